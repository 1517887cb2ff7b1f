"""From models to workers: of this process, or on upstream servers; and whether they can do what the rules say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError, TerselyError, unknown
from ..delegation import Helper
from ..engines.openai.client import OpenAIClient
from ..engines.openai.completions import CompletionsBackend
from ..engines.openai.engine import RemoteEngine
from ..engines.transformers.engine import load_engine
from ..options import make_options
from ..session import Session
from ..text.markers import Markers, resolve_markers
from ..types import Engine
from ..verification import Verifier
from .batch_worker import BatchWorker
from .config import Upstream
from .metrics import Metrics
from .rules import LiveConfig
from .settings import ServerLimits, served_model_name
from .upstream_worker import UpstreamWorker
from .worker import RequestWorker

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
    session = thinking.open_session(load_engine(model, grouped=grouped))
    return BatchWorker(session, limits, metrics, not thinking.off)


def check_rules(live: LiveConfig, workers: Mapping[str, RequestWorker]) -> None:
    """Raise TerselyError for rules that the workers cannot keep, and for models that are not served."""
    config = live.config
    for section, names in (("models", config.models), ("prices", config.prices)):
        for name in names:
            if name not in workers:
                raise unknown(f"model in {section}:", name, workers)
    for name, worker in workers.items():
        for key in (None, *config.keys):
            try:
                worker.check(live.rules(name, key))
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
        for ours, theirs in (upstream.names or {"": ""}).items():
            backend = CompletionsBackend(
                OpenAIClient(upstream.url, secret, limits.timeout), theirs or None, upstream.tokenizer
            )
            session = thinking.open_session(RemoteEngine(backend), resolve_markers(upstream.markers))
            name = ours or served_model_name(backend.model)
            if name in workers:
                raise OptionError(
                    f"two upstreams have a model {name!r}; give one another name: models = {{NAME = ...}}"
                )
            workers[name] = UpstreamWorker(session, limits, metrics, not thinking.off)
    return workers
