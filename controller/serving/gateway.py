"""From models to workers: of this process, or on upstream servers; and whether they can do what the rules say."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...errors import ModelError, OptionError, TerselyError, did_you_mean
from ..chat_model import ChatDialect, ChatModel, probe_dialect
from ..delegation import Helper
from ..engines.openai import StreamError
from ..engines.openai.client import OpenAIClient, RefusedError, ServedModel, choose_model
from ..engines.openai.completions import CompletionsBackend
from ..engines.openai.engine import RemoteEngine
from ..options import make_options
from ..session import Session
from ..text.markers import Markers, resolve_markers
from ..types import Engine
from ..verification import Verifier
from .batch_worker import BatchWorker
from .config import Upstream
from .metrics import Metrics
from .rules import LiveConfig, check_names
from .settings import UPSTREAM_KEY, ServerLimits, served_model_name
from .upstream_worker import ChatWorker, UpstreamWorker
from .worker import RequestWorker

_NO_ENDPOINT = (404, 405, 501)
NO_MARKERS = Markers("<think>", "</think>", "none")


@dataclass(frozen=True, slots=True)
class Thinking:
    """How models think, for all that a server has."""

    markers: Markers | None = None  # None finds them
    prompt: bool = False  # make a model without markers think
    off: bool = False  # serve without control
    verifier: Verifier | None = None
    helper: Helper | None = None

    def open_session(self, engine: Engine, markers: Markers | None = None) -> Session:
        """A session that has answered a tiny prompt, so that what would fail for every request fails now."""
        markers = NO_MARKERS if self.off else markers or self.markers
        session = Session(engine, markers, self.prompt, verifier=self.verifier, helper=self.helper)
        session.run(["1 + 1"], make_options(preset="off", max_new_tokens=2, answer_reserve=1))
        return session


def load_worker(model: str, grouped: bool, thinking: Thinking, limits: ServerLimits, metrics: Metrics) -> BatchWorker:
    """A worker on a model of this process."""
    from ..engines.transformers.engine import load_engine

    session = thinking.open_session(load_engine(model, grouped=grouped))
    return BatchWorker(session, limits, metrics, not thinking.off)


def check_rules(live: LiveConfig, workers: Mapping[str, RequestWorker]) -> None:
    """Raise TerselyError for rules that the workers cannot keep, and for models that are not served."""
    check_names(live.config, workers)
    for name, worker in workers.items():
        for key in (None, *live.config.keys):
            try:
                worker.check(live.rules(name, key), key is not None)
            except TerselyError as error:
                where = f"model {name!r}" if key is None else f"model {name!r}, key {key!r}"
                raise type(error)(f"{where}: {error}", code=error.code) from None


def open_upstreams(
    upstreams: Sequence[Upstream],
    folder: Path,
    thinking: Thinking,
    limits: ServerLimits,
    metrics: Metrics,
    key: str | None = None,
) -> dict[str, RequestWorker]:
    """The workers of all models of upstream servers by our names; `key` is for servers that name none."""
    workers: dict[str, RequestWorker] = {}
    for number, upstream in enumerate(upstreams):
        secret = upstream.read_key(folder, f"upstreams[{number}]") or key or ""
        source = upstream.key_env or upstream.key_file or UPSTREAM_KEY
        connect = partial(OpenAIClient, upstream.url, secret, limits.timeout, source, upstream.allow_http)
        for name, model, dialect in asyncio.run(_find_models(upstream, connect())):
            if name in workers:
                raise OptionError(
                    f"two upstreams have a model {name!r}; give one another name: models = {{NAME = ...}}"
                )
            client, markers = connect(), resolve_markers(upstream.markers)
            chat = ChatModel(client, model, dialect, markers)
            if dialect is not None:
                workers[name] = ChatWorker(chat, limits, metrics)
                print(f"{name}: {dialect.describe()}", file=sys.stderr)
                continue
            engine = RemoteEngine(CompletionsBackend(client, model.name, upstream.tokenizer))
            session = thinking.open_session(engine, markers)
            workers[name] = UpstreamWorker(session, limits, metrics, not thinking.off, chat)
    return workers


async def _find_models(upstream: Upstream, client: OpenAIClient) -> list[tuple[str, ServedModel, ChatDialect | None]]:
    """The models of a server that are to be served by our names, and the dialect of those with only a chat endpoint.

    Raises OptionError or ModelError.
    """
    try:
        cards = await client.list_models()
        names = upstream.names
        if names is None:
            names = {"": ""} if len(cards) == 1 or upstream.kind == "completions" else {name: name for name in cards}
        found = []
        for ours, theirs in names.items():
            served = await choose_model(client, theirs or None)
            if cards and served.name not in cards:
                known = did_you_mean(served.name, cards)
                raise ModelError(f"{client.url} has no model {served.name!r}; {known}", code="unknown_model")
            chat = upstream.kind == "chat" or (upstream.kind == "auto" and not await _completes(client, served.name))
            dialect = await probe_dialect(client, served.name, cards.get(served.name, {})) if chat else None
            found.append((ours or served_model_name(served.name), served, dialect))
    except StreamError as error:
        message = f"the request to {client.url} failed ({error}); check that the server is running"
        raise ModelError(message, code="server_unreachable") from error
    else:
        return found
    finally:
        await client.close()


async def _completes(client: OpenAIClient, model: str) -> bool:
    """Whether a server has a completions endpoint, by a request for one token."""
    try:
        await client.request("POST", "/completions", {"model": model, "prompt": "1 + 1", "max_tokens": 1})
    except RefusedError as error:
        return error.status not in _NO_ENDPOINT
    return True
