"""ASGI middleware before vLLM's own OpenAI server.

It translates requests on their way in, and adds what was done to replies. vLLM makes one `ControlMiddleware` in each of
its API servers, from the settings that `vllm_launcher` leaves in the environment; everything else passes through
untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import CapabilityError, MarkerError
from ..text.markers import find_markers
from ..text.sanitizer import RENDERED, SpecialTokenSanitizer, sanitize_body
from ..trace import Decision, GenerationResult, Usage
from ..vllm.engine_options import load_tokenizer
from ..vllm.processes import LIFETIME, SERVED, TraceStore
from ..vllm.request_control import KEY
from ..vllm.trial_endpoint import require_trials
from .auth_middleware import METRICS, Access, AuthMiddleware, get_route, hash_key
from .config import Rules
from .errors import CLIENT_LEFT, RequestError
from .limits import BodyLimits, PromptLimit, replay
from .metrics import Metrics
from .rules import LiveConfig, check_names
from .settings import UNBILLED, Billing, ServerLimits
from .vllm_limits import check_request
from .vllm_translation import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    PATHS,
    RESPONSES,
    VllmRequestMapping,
    make_default_control,
    translate,
)

SETTINGS_VARIABLE = SERVED
HEALTH, READY = "/health", "/ready"
COUNT_TOKENS = "/v1/messages/count_tokens"
UNCONTROLLED_PATHS = ("/version", METRICS, "/v1/models", "/v1/models/*", "/v1/responses/*", COUNT_TOKENS)
"""What is served of vLLM's in addition to the paths under control: nothing of it writes tokens."""
_EVENT_END = b"\n\n"
_LONGER = 4  # how many times as long as other prompts one may be that vLLM only counts, or truncates
Trace = tuple[Decision, ...]


def _make_sanitizer(tokenizer: Any) -> SpecialTokenSanitizer:
    markers = None
    with contextlib.suppress(MarkerError):
        markers = find_markers(tokenizer)
    return SpecialTokenSanitizer(tokenizer, markers)


def load_settings(settings: Mapping[str, Any]) -> LiveConfig:
    """The configuration of the settings of `ControlMiddleware`; raises TerselyError for what vLLM cannot do."""
    path, changes = settings.get("config"), Rules.model_validate(settings.get("changes", {}))
    live = LiveConfig(changes, Path(path) if path else None, api_key=settings.get("key"))
    live.check = lambda other: check_vllm(other, settings.get("models", ()), bool(settings.get("trials")))
    live.check(live)
    return live


def check_vllm(live: LiveConfig, models: Sequence[str], trials: bool = False) -> None:
    """Raise TerselyError for a configuration that vLLM cannot keep; `models` are those that it serves, if known.

    `trials` says whether requests of their own decode trial answers.
    """
    if models:
        check_names(live.config, models)
    if live.config.upstreams:
        raise CapabilityError(
            "vLLM's server has no upstreams; leave them out, or start `tersely serve` without --engine"
        )
    if tuned := [where for where, layer in live.config.layers() if layer.defaults.tuned is not None]:
        raise CapabilityError(f"{tuned[0] or 'defaults'}: tuned budgets are not known inside vLLM; leave `tuned` out")
    for model in ("", *live.config.models):
        for key in (None, *live.config.keys):
            require_trials(make_default_control(live.rules(model, key)), trials)


class ControlMiddleware:
    """Controls the requests of vLLM's application.

    Its settings: `config`, `changes` and `key`, see `LiveConfig`; `models`, all that are served; `max_body`;
    `tokenizer`, the arguments of `load_tokenizer`; `special_tokens`, whether users and tools can write those of that;
    `hosts` and `metrics`, see `auth_middleware.Access`; `exposed`, paths served in addition; `trials`, whether trial
    answers can be asked for, and `trials_key`, the digest of the key of those that this server itself decodes.
    """

    def __init__(self, app: ASGIApp) -> None:
        settings = json.loads(os.environ.get(SETTINGS_VARIABLE, "{}"))
        self.config = load_settings(settings)
        self._model = next(iter(settings.get("models", ())), "")  # of requests that name none
        self.traces, self.metrics = TraceStore(), Metrics()
        self._tokenizer = load_tokenizer(*settings["tokenizer"]) if settings.get("tokenizer") else None
        guards = self._tokenizer is not None and not settings.get("special_tokens")
        self._sanitize = _make_sanitizer(self._tokenizer) if guards else None
        self._prompt_limit: PromptLimit | None = None
        self._trials, self._trials_key = bool(settings.get("trials")), settings.get("trials_key")
        self.app = app
        limits = ServerLimits(body=settings.get("max_body", ServerLimits().body))
        self.checked = AuthMiddleware(
            self._route,
            self.metrics,
            Access(
                lambda: self.config.keys,
                settings.get("hosts"),
                settings.get("metrics", "key"),
                (*PATHS, *UNCONTROLLED_PATHS, *settings.get("exposed", ())),
            ),
            BodyLimits(limits.body, limits.held, limits.body_seconds),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see ASGI."""
        if self._trials_key is not None and scope["type"] == "http" and get_route(scope) == COMPLETIONS:
            key = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            if hmac.compare_digest(hash_key(key), self._trials_key):  # of a request under control, which counts it
                await self.app(scope, receive, send)
                return
        await self.checked(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            LIFETIME.start(self.config.reload if self.config.path is not None else None)
        path = get_route(scope) if scope["type"] == "http" else ""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif path == READY:
            await self.app({**scope, "path": scope["path"].removesuffix(READY) + HEALTH}, receive, send)
        elif path == METRICS:
            await self.app(scope, receive, rewriting(send, lambda body: body + self.metrics.render()))
        elif path == COUNT_TOKENS and scope["method"] == "POST":
            await self._pass_on(await self._read(path, scope, receive), scope, receive, send)
        elif path in PATHS and scope["method"] == "POST":
            await self._control(path, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _control(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        tag = self.traces.tag()
        try:
            given = await self._read(path, scope, receive)
            key = scope.get("state", {}).get("key", "")
            model = str(given.get("model") or self._model)
            mapping = translate(path, given, self.config.rules(model, key), tag)
            require_trials(mapping.control, self._trials)
            billing = self.config.billing(model, key, mapping.counted)
            del given
        except CapabilityError as missing:
            raise RequestError(str(missing), param=KEY, code=missing.code) from None
        except (ValueError, AttributeError, TypeError):
            message = "a field of the request has a wrong type; accepted: what the API's reference says"
            raise RequestError(message) from None
        reply = ReplyAnnotator(path, mapping, lambda: self.traces.take(tag), self.metrics, billing)
        try:
            annotated = rewriting(send, reply.rewrite_body, reply.rewrite_event)
            await self._pass_on(mapping.body, scope, receive, annotated)
        finally:
            self.traces.take(tag)  # of a client that disconnected
            if reply.left:
                scope.setdefault("state", {})["status"] = CLIENT_LEFT

    async def _pass_on(self, body: Mapping[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Have vLLM answer this body."""
        text = json.dumps(body).encode()
        inner = {**scope, "headers": list(scope["headers"])}
        MutableHeaders(scope=inner)["content-length"] = str(len(text))
        await self.app(inner, replay(text, receive), send)

    async def _read(self, path: str, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The body of a request, made safe; raises RequestError for what must not reach vLLM."""
        given = _parse_object(await Request(scope, receive).body())
        check_request(given)
        await self._check_prompt(scope, given, counted=path == COUNT_TOKENS)
        if self._sanitize is not None and path != COMPLETIONS:
            given = await asyncio.to_thread(sanitize_body, given, self._sanitize)
        return given

    async def _check_prompt(self, scope: Scope, given: Mapping[str, Any], counted: bool) -> None:
        """Raise RequestError for a prompt that is too long, before the sanitizer and vLLM tokenize it whole."""
        if self._tokenizer is None:
            return
        if self._prompt_limit is None:
            model = scope["app"].state.engine_client.model_config
            self._prompt_limit = PromptLimit(self._tokenizer, model.max_model_len)
        others = [given[name] for name in (*RENDERED, "system", "instructions") if name in given]
        times = _LONGER if counted or given.get("truncate_prompt_tokens") is not None else 1
        for field in ("messages", "input"):
            await self._prompt_limit.check(given.get(field), others, field, times)
        prompts = given.get("prompt")
        for prompt in prompts if isinstance(prompts, list) else [prompts]:
            if isinstance(prompt, str):
                await self._prompt_limit.check(prompt, (), "prompt", times)


def _parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; raises RequestError for anything else, so that nothing reaches vLLM uncontrolled."""
    try:
        given = json.loads(body)
    except ValueError as error:
        raise RequestError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(given, dict):
        raise RequestError(f"the request body is a {type(given).__name__}; accepted: an object", code="invalid_json")
    return given


def rewriting(
    send: Send,
    rewrite_body: Callable[[bytes], bytes],
    rewrite_event: Callable[[bytes], bytes | None] = lambda event: event,
) -> Send:
    """A channel that rewrites a successful response: a whole body by `rewrite_body`, or a stream event by event.

    `rewrite_event` may return None to leave an event out.
    """
    start: Message | None = None
    streams, held = False, b""

    async def rewrite(message: Message) -> None:
        nonlocal start, streams, held
        ends = not message.get("more_body")
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "") if message["status"] == 200 else ""
            streams = kind.startswith("text/event-stream")
            if kind.startswith(("application/json", "text/plain")):
                start = message
                return
        elif streams:
            *events, held = (held + message.get("body", b"")).split(_EVENT_END)
            body = b"".join(new + _EVENT_END for event in events if (new := rewrite_event(event)) is not None)
            message = {**message, "body": body + held if ends else body}
            if not (body or ends):
                return
        elif start is not None:
            held += message.get("body", b"")
            if not ends:
                return
            message = {**message, "body": rewrite_body(held)}
            MutableHeaders(scope=start)["content-length"] = str(len(message["body"]))
            await send(start)
        await send(message)

    return rewrite


class ReplyAnnotator:
    """Adds the field `tersely`, and reasoning under both of its names, to the reply to one request, and counts it.

    `take` returns the traces that have arrived since the last call.
    """

    def __init__(
        self,
        path: str,
        mapping: VllmRequestMapping,
        take: Callable[[], Mapping[int, Trace]],
        metrics: Metrics,
        billing: Billing = UNBILLED,
    ) -> None:
        self.billing = billing
        self.path, self.mapping, self.metrics, self._take = path, mapping, metrics, take
        self.left = False  # whether the client disconnected
        self._traces: dict[int, Trace] = {}
        self._shadow = mapping.control is not None and mapping.control.shadow

    def rewrite_body(self, body: bytes) -> bytes:
        """Annotate a whole reply."""
        reply = json.loads(body)
        if not isinstance(reply, dict):  # vLLM says null to a client that has left
            self.left = True
            return body
        if self.path in (CHAT, COMPLETIONS):
            for choice in reply.get("choices", ()):
                _add_reasoning_alias(choice.get("message"))
                choice["tersely"] = self._metadata(choice.get("index", 0))
        else:
            reply["tersely"] = self._metadata(0)
        self._count(reply)
        return json.dumps(reply, ensure_ascii=False).encode()

    def rewrite_event(self, event: bytes) -> bytes | None:
        """Annotate an event of a stream; None for one that the client did not ask for."""
        head, marker, data = event.rpartition(b"data: ")
        if not marker or not data.startswith(b"{"):
            return event
        chunk = json.loads(data)
        if self.path in (CHAT, COMPLETIONS):
            if chunk.get("usage") and not chunk.get("choices"):
                self._count(chunk)
                return None if self.mapping.usage_added else event
            for choice in chunk.get("choices", ()):
                _add_reasoning_alias(choice.get("delta"))
                if choice.get("finish_reason") is not None:
                    choice["tersely"] = self._metadata(choice.get("index", 0))
        elif not self._annotate_last(chunk):
            return event
        return head + marker + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()

    def _annotate_last(self, chunk: dict[str, Any]) -> bool:
        """Annotate the last event of the other APIs; returns whether this is it."""
        if self.path == RESPONSES and chunk.get("type") in ("response.completed", "response.incomplete"):
            target = chunk["response"]
        elif self.path == MESSAGES and chunk.get("type") == "message_delta":
            target = chunk
        else:
            return False
        target["tersely"] = self._metadata(0)
        self._count(target)
        return True

    def _metadata(self, index: int) -> dict[str, Any]:
        self._traces.update(self._take())
        effort, include_trace = self.mapping.effort, self.mapping.include_trace
        tier, budget = self.mapping.tier, self.mapping.budget
        metadata = {"effort": effort, "tier": tier, "budget": budget, "shadow": self._shadow}
        decisions = [asdict(decision) for decision in self._traces.get(index, ())]
        return {**metadata, "decisions": decisions} if include_trace else metadata

    def _count(self, reply: Mapping[str, Any]) -> None:
        self._traces.update(self._take())
        trace = tuple(decision for decisions in self._traces.values() for decision in decisions)
        usage = replace(_read_usage(reply), trial=sum(decision.tokens for decision in trace))
        result = GenerationResult("", "", "", "stop", self.mapping.tier, usage, trace)
        rows = self.mapping.body.get("n")
        self.metrics.add_result(result, self.mapping.budget, self.billing, rows if isinstance(rows, int) else 1)


def _add_reasoning_alias(message: Any) -> None:
    if isinstance(message, dict) and message.get("reasoning") is not None:
        message.setdefault("reasoning_content", message["reasoning"])


def _read_usage(reply: Mapping[str, Any]) -> Usage:
    """The usage of a reply, whose names depend on the API."""
    usage = reply.get("usage") or {}
    read, written = ("input", "output") if "input_tokens" in usage else ("prompt", "completion")
    thinking = (usage.get(f"{written}_tokens_details") or {}).get("reasoning_tokens") or 0
    answer = max(0, (usage.get(f"{written}_tokens") or 0) - thinking)
    return Usage(prompt=usage.get(f"{read}_tokens") or 0, thinking=thinking, answer=answer)
