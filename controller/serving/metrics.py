"""What is counted, under names that all servers share; without prometheus-client nothing is.

There is no counter of saved tokens: what an answer would have cost untouched is not known. In shadow mode it is, and
`tersely_shadow_*` says both how much was thought and how much of that came before the place where it would have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..trace import Decision, GenerationResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OVERHEAD = ("discarded", "probe", "verifier", "delegated", "consulted", "reprefilled")
"""Kinds of `trace.Usage` that are paid for beside the text."""
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one server, in a registry of their own; may be used from any thread."""

    def __init__(self) -> None:
        self._registry: Any = None
        try:
            import prometheus_client as prometheus
        except ImportError:
            return
        self._registry = registry = prometheus.CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"tersely_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Any:
            return prometheus.Gauge(f"tersely_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Any:
            return prometheus.Histogram(f"tersely_{name}", text, registry=registry, buckets=buckets)

        self._prompt = counter("prompt_tokens", "Prompt tokens.")
        self._thinking = counter("thinking_tokens", "Thinking tokens, forced ones included.", "tier")
        self._answer = counter("answer_tokens", "Answer tokens.", "tier")
        self._forced = counter("forced_tokens", "Tokens of the text that were written for the model.")
        self._overhead = counter("overhead_tokens", "Tokens paid for beside the text.", "kind")
        self._exits = counter("exits", "How thinking ended: the policy that closed it, model, or limit.", "reason")
        self._budget = histogram("budget_tokens", "Thinking tokens that a row was allowed.", _TOKENS)
        self._requests = counter("requests", "Requests by HTTP status; 499 is a client that left.", "status")
        self._latency = histogram("request_latency_seconds", "From a request's first byte to its last.", _SECONDS)
        self._flight = gauge("requests_in_flight", "Requests that are being answered or wait for it.")
        self._shadow = counter("shadow_thinking_tokens", "Thinking tokens of rows in shadow mode.", "tier")
        self._shadow_kept = counter(
            "shadow_kept_thinking_tokens", "Those of them before the place where thinking would have ended.", "tier"
        )
        self._shadow_exits = counter("shadow_exits", "What would have ended the thinking.", "reason")
        for kind in OVERHEAD:
            self._overhead.labels(kind)

    def begun(self) -> None:
        """A request has come."""
        if self._registry is not None:
            self._flight.inc()

    def done(self, status: int, seconds: float) -> None:
        """A request was answered, or not."""
        if self._registry is not None:
            self._flight.dec()
            self._requests.labels(str(status)).inc()
            self._latency.observe(seconds)

    def row(self, made: GenerationResult, budget: int, shadow: bool) -> None:
        """A row has ended; budget: thinking tokens that it was allowed."""
        if self._registry is None:
            return
        usage = made.usage
        self._prompt.inc(usage.prompt)
        self._thinking.labels(made.tier).inc(usage.thinking)
        self._answer.labels(made.tier).inc(usage.answer)
        self._forced.inc(usage.forced)
        for kind in OVERHEAD:
            self._overhead.labels(kind).inc(getattr(usage, kind))
        self._budget.observe(budget)
        if usage.thinking:
            self._exits.labels(exit_reason(made)).inc()
        if shadow:
            close = next((d for d in made.trace if d.action == "close" and not d.acted), None)
            self._shadow.labels(made.tier).inc(usage.thinking)
            self._shadow_kept.labels(made.tier).inc(share_kept(made, close))
            self._shadow_exits.labels("model" if close is None else close.policy).inc()

    def text(self) -> str | None:
        """All of it as Prometheus reads it, None if nothing is counted."""
        if self._registry is None:
            return None
        import prometheus_client as prometheus

        return str(prometheus.generate_latest(self._registry).decode())


def exit_reason(made: GenerationResult) -> str:
    """What ended the thinking: the policy that closed it, `model`, or `limit` where nothing did."""
    closes = [d.policy for d in made.trace if d.action == "close" and d.acted]
    if closes:
        return closes[-1]
    return "model" if made.usage.answer or made.finish_reason == "stop" else "limit"


def share_kept(made: GenerationResult, close: Decision | None) -> int:
    """Thinking tokens of a row before the place where it would have been closed."""
    return made.usage.thinking if close is None else min(close.position, made.usage.thinking)
