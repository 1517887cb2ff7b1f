"""Spans of OpenTelemetry by the names of its conventions for generative AI; nothing without opentelemetry-api."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..trace import GenerationResult
from .errors import RequestError
from .metrics import exit_reason

PROVIDER = "tersely"


class Span:
    """One request; without opentelemetry it takes everything and says nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def answered(self, rows: Sequence[GenerationResult], budget: int) -> None:
        """Note what the rows of the request came to."""
        if self._span is None:
            return
        usages = [made.usage for made in rows]
        thinking = sum(usage.thinking for usage in usages)
        about: dict[str, Any] = {
            "gen_ai.usage.input_tokens": usages[0].prompt,
            "gen_ai.usage.output_tokens": thinking + sum(usage.answer for usage in usages),
            "gen_ai.usage.reasoning.output_tokens": thinking,
            "gen_ai.response.finish_reasons": [made.finish_reason for made in rows],
            "tersely.tier": rows[0].tier,
            "tersely.budget": budget,
            "tersely.exit": exit_reason(rows[0]) if usages[0].thinking else "none",
            "tersely.probe_tokens": sum(usage.probe for usage in usages),
            "tersely.overhead_tokens": sum(usage.overhead for usage in usages),
        }
        self._span.set_attributes(about)

    def failed(self, kind: str) -> None:
        """Note that there is no answer."""
        if self._span is not None:
            self._span.set_attribute("error.type", kind)


class Spans:
    """Where spans are made; the tracer is the one that the process has set up, if any."""

    def __init__(self) -> None:
        try:
            self._trace: Any = importlib.import_module("opentelemetry.trace")
        except ImportError:
            self._trace = None

    @contextmanager
    def span(self, model: str) -> Iterator[Span]:
        """The span of a request, open for as long as it is answered."""
        if self._trace is None:
            yield Span()
            return
        tracer = self._trace.get_tracer("tersely.serving")
        about = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
        }
        span = tracer.start_span(f"chat {model}", kind=self._trace.SpanKind.SERVER, attributes=about)
        try:
            yield Span(span)
        except RequestError as refusal:
            span.set_attribute("error.type", str(refusal.status))
            raise
        finally:
            span.end()
