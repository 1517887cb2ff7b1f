"""What servers report about requests: Prometheus metrics, and OpenTelemetry spans where that is installed.

Saved tokens are not counted, since what an answer would have cost without control is not known. In shadow mode it is:
`tersely_shadow_*` counts the thinking, and how much of it came before the point where it would have ended.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..trace import OVERHEAD, GenerationResult
from .errors import RequestError
from .settings import UNBILLED, Billing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CANCELLED = "cancelled"  # the finish reason of rows whose client left, or whose time was over
STAGES = ("prepare", "thinking", "policy", "fallback")
"""Where control fails: before the thinking, in it, in one policy, or so that another endpoint had to answer."""
_GROUP = ("tier", "model", "control")  # labels
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The Prometheus metrics of one server; thread-safe."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tersely_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"tersely_{name}", text, registry=registry, buckets=buckets)

        self._prompt = counter("prompt_tokens", "Prompt tokens.")
        self._thinking = counter("thinking_tokens", "Thinking tokens, including injected ones.", *_GROUP)
        self._answer = counter("answer_tokens", "Answer tokens.", *_GROUP)
        self._injected = counter("injected_tokens", "Tokens of the text that the controller wrote.")
        self._overhead = counter("overhead_tokens", "Tokens paid for in addition to the text.", "kind")
        self._exits = counter(
            "exits", "How thinking ended: the policy that closed it, model, or limit.", "reason", *_GROUP[1:]
        )
        self._replies = counter("replies", "Replies.", "effort", "preset", *_GROUP[1:])
        self._budget = histogram("budget_tokens", "Thinking tokens that a row was allowed.", _TOKENS)
        self.requests = counter("requests", "Requests by HTTP status; 499 is a client that disconnected.", "status")
        self.latency = histogram("request_latency_seconds", "From a request's first byte to its last.", _SECONDS)
        self.in_flight = Gauge(
            "tersely_requests_in_flight", "Requests that are waiting or being answered.", registry=registry
        )
        self._cost = counter("cost", "Cost of tokens by the configured prices, overhead included.", "model", "key")
        self.control_failures = counter(
            "control_failures", "Errors in the control of requests, which went on without it.", "stage"
        )
        self._shadow = counter("shadow_thinking_tokens", "Thinking tokens of rows in shadow mode.", "tier")
        self._shadow_kept = counter(
            "shadow_kept_thinking_tokens", "Those before the point where thinking would have ended.", "tier"
        )
        self._shadow_exits = counter("shadow_exits", "What would have ended the thinking.", "reason")
        for kind in OVERHEAD:
            self._overhead.labels(kind)
        for stage in STAGES:
            self.control_failures.labels(stage)

    def add_result(
        self, result: GenerationResult, budget: int | None, billing: Billing = UNBILLED, rows: int = 1
    ) -> None:
        """Count a row that has ended, or several as one, allowed `budget` thinking tokens; None is any number."""
        usage, group = result.usage, (billing.model, billing.control)
        if cost := billing.cost(usage):
            self._cost.labels(billing.model, billing.key).inc(cost)
        self._prompt.inc(usage.prompt)
        self._replies.labels(billing.effort, billing.preset, *group).inc(rows)
        self._thinking.labels(result.tier, *group).inc(usage.thinking)
        self._answer.labels(result.tier, *group).inc(usage.answer)
        self._injected.inc(usage.injected)
        for kind in OVERHEAD:
            self._overhead.labels(kind).inc(getattr(usage, kind))
        if budget is not None:
            self._budget.observe(budget)
        failures = sum(d.action == "error" and d.policy != "server" for d in result.trace)
        self.control_failures.labels("policy").inc(failures)
        if usage.thinking:
            self._exits.labels(exit_reason(result), *group).inc()
        if billing.control == "shadow":
            close = next((d for d in result.trace if d.action == "close" and not d.acted), None)
            self._shadow.labels(result.tier).inc(usage.thinking)
            kept = usage.thinking if close is None else min(close.position, usage.thinking)
            self._shadow_kept.labels(result.tier).inc(kept)
            self._shadow_exits.labels("model" if close is None else close.policy).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return bytes(generate_latest(self._registry))


def exit_reason(result: GenerationResult) -> str:
    """What ended the thinking: the policy that closed it, `model`, `limit`, or `cancelled`."""
    closes = [d.policy for d in result.trace if d.action == "close" and d.acted]
    if closes:
        return closes[-1]
    if result.finish_reason == CANCELLED and not result.usage.answer:
        return CANCELLED
    return "model" if result.usage.answer or result.finish_reason in ("stop", "content_filter") else "limit"


def result_attributes(results: Sequence[GenerationResult], budget: int | None) -> dict[str, Any]:
    """The attributes of a span by the results of a request's rows, which were allowed `budget` thinking tokens each."""
    usages = [result.usage for result in results]
    thinking = sum(usage.thinking for usage in usages)
    return {
        "gen_ai.usage.input_tokens": usages[0].prompt,
        "gen_ai.usage.output_tokens": thinking + sum(usage.answer for usage in usages),
        "gen_ai.usage.reasoning.output_tokens": thinking,
        "gen_ai.response.finish_reasons": [result.finish_reason for result in results],
        "tersely.tier": results[0].tier,
        **({} if budget is None else {"tersely.budget": budget}),
        "tersely.exit": exit_reason(results[0]) if usages[0].thinking else "none",
        "tersely.trial_tokens": sum(usage.trial for usage in usages),
        "tersely.overhead_tokens": sum(usage.overhead for usage in usages),
    }


@contextmanager
def request_span(model: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A span named by OpenTelemetry's conventions for generative AI, from the tracer that the process has set up.

    Yields a function that sets its attributes, and does nothing without opentelemetry-api.
    """
    try:
        trace: Any = importlib.import_module("opentelemetry.trace")
    except ImportError:
        yield lambda attributes: None
        return
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "tersely", "gen_ai.request.model": model}
    tracer = trace.get_tracer("tersely.serving")
    span = tracer.start_span(f"chat {model}", kind=trace.SpanKind.SERVER, attributes=attributes)
    try:
        yield span.set_attributes
    except RequestError as refusal:
        span.set_attributes({"error.type": str(refusal.status)})
        raise
    finally:
        span.end()
