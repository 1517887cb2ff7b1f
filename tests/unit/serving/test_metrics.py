"""What is counted: parsed as Prometheus does, and equal to what the replies said."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.settings import ServerLimits, ServerSettings
from tersely.controller.trace import Decision, GenerationResult, Usage

from ...support.serving import MODEL, Served, body, served

pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(load_engine(MODEL), ServerSettings(MODEL, limits=ServerLimits(tokens=512))) as running:
        yield running


def risen(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What rose, without when it was first seen and without the buckets."""
    kept = {k: v - before.get(k, 0.0) for k, v in after.items() if "_created" not in k and "_bucket" not in k}
    return {k.removeprefix("tersely_"): v for k, v in kept.items() if v}


def test_counts_are_what_the_replies_said(server: Served) -> None:
    before = server.metrics()
    one = server.answered(thinking_token_budget=50)
    two = server.answered(reasoning_effort="low", n=2)
    server.answered(reasoning_effort="none")
    server.refused(reasoning_effort="hgih")
    rose = risen(before, server.metrics())
    told = [choice["tersely"] for choice in two["choices"]]
    assert rose['thinking_tokens_total{tier="normal"}'] == one["choices"][0]["tersely"]["usage"]["thinking"]
    assert rose['thinking_tokens_total{tier="easy"}'] == sum(t["usage"]["thinking"] for t in told)
    assert 'thinking_tokens_total{tier="none"}' not in rose and rose['answer_tokens_total{tier="none"}'] > 0
    assert rose['exits_total{reason="budget"}'] == 1
    assert sum(v for k, v in rose.items() if k.startswith("exits_total")) == 3
    assert (rose['requests_total{status="200"}'], rose['requests_total{status="400"}']) == (3, 1)
    assert (rose["budget_tokens_count"], rose["budget_tokens_sum"]) == (4, 50 + 2 * 448)
    assert rose["request_latency_seconds_count"] == 4 and rose["request_latency_seconds_sum"] > 0
    assert server.metrics()["tersely_requests_in_flight"] == 0


def test_shadow_counts_what_would_have_been_kept(server: Served) -> None:
    before = server.metrics()
    told = server.answered(tersely={"shadow": True}, seed=3)["choices"][0]["tersely"]
    rose = risen(before, server.metrics())
    (close,) = [d for d in told["decisions"] if d["action"] == "close"]
    assert rose['shadow_exits_total{reason="readiness"}'] == 1
    assert rose['shadow_thinking_tokens_total{tier="normal"}'] == told["usage"]["thinking"]
    assert rose['shadow_kept_thinking_tokens_total{tier="normal"}'] == close["position"] < told["usage"]["thinking"]
    assert rose['exits_total{reason="model"}'] == 1


def test_a_share_of_requests_is_answered_untouched() -> None:
    with served(load_engine(MODEL), ServerSettings(MODEL, shadow_share=1.0, limits=ServerLimits(tokens=256))) as server:
        assert server.answered()["choices"][0]["tersely"]["shadow"]
        promised: list[dict[str, Any]] = [{"seed": 1}, {"thinking_token_budget": 60}]
        for fields in promised:
            assert not server.answered(**fields)["choices"][0]["tersely"]["shadow"]


def test_names_say_what_they_are(server: Served) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {f.name: f for f in text_string_to_metric_families(response.text)}
    kinds = {name: family.type for name, family in families.items() if not name.endswith("_created")}
    assert all(name.startswith("tersely_") for name in kinds)
    assert kinds["tersely_budget_tokens"] == kinds["tersely_request_latency_seconds"] == "histogram"
    assert kinds["tersely_exits"] == kinds["tersely_thinking_tokens"] == "counter"
    assert not [name for name in kinds if "saved" in name]
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    assert labels <= {"tier", "kind", "reason", "status", "le"}


def test_without_the_library_nothing_is_counted_and_all_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> ModuleType:
        if name == "prometheus_client":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with served(load_engine(MODEL)) as server:
        assert server.answered(reasoning_effort="none")
        response = server.http.get("/metrics")
    assert response.status_code == 501 and "prometheus-client" in response.json()["error"]["message"]


MADE = GenerationResult("", "", "", "stop", "easy", Usage(prompt=3, thinking=9, answer=1, probe=4, discarded=2))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (MADE, "model"),
        (GenerationResult("", "", "", "length", "easy", Usage(thinking=9)), "limit"),
        (GenerationResult("", "", "", "stop", "easy", MADE.usage, (Decision("budget", "close", "", 9),)), "budget"),
        (
            GenerationResult("", "", "", "stop", "easy", MADE.usage, (Decision("x", "close", "", 9, acted=False),)),
            "model",
        ),
        (GenerationResult("", "", "", "stop", "none", Usage(answer=3)), None),
    ],
)
def test_how_thinking_ended(made: GenerationResult, reason: str | None) -> None:
    metrics = Metrics()
    metrics.add_result(made, 64, shadow=False)
    lines = [line for line in (metrics.render() or "").splitlines() if line.startswith("tersely_exits_total")]
    assert lines == ([] if reason is None else [f'tersely_exits_total{{reason="{reason}"}} 1.0'])


def test_overhead_is_counted_by_kind() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.add_result(MADE, 64, shadow=False)
    lines = [line for line in (metrics.render() or "").splitlines() if line.startswith("tersely_overhead_tokens_total")]
    counted = {line.partition('"')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert counted == {"probe": 8, "discarded": 4, "verifier": 0, "delegated": 0, "consulted": 0, "reprefilled": 0}


class Spanned:
    """A stand-in for opentelemetry's `trace`, which is no dependency: keeps the spans that were made."""

    SpanKind = SimpleNamespace(SERVER="server")

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any]]] = []
        self.ended = 0

    def get_tracer(self, name: str) -> Spanned:
        return self

    def start_span(self, name: str, kind: str, attributes: dict[str, Any]) -> Any:
        self.spans.append((name, dict(attributes)))
        kept = self.spans[-1][1]
        return SimpleNamespace(set_attributes=kept.update, set_attribute=kept.__setitem__, end=self._end)

    def _end(self) -> None:
        self.ended += 1


def test_requests_are_spans_where_there_is_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    spanned = Spanned()
    monkeypatch.setitem(sys.modules, "opentelemetry", ModuleType("opentelemetry"))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", spanned)
    with served(load_engine(MODEL), ServerSettings(MODEL, limits=ServerLimits(tokens=256))) as server:
        usage = server.answered(reasoning_effort="low")["usage"]
        with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
            response.read()
        server.refused(messages=[{"role": "user", "content": ""}])
    (name, about), (_, streamed), (_, failed) = spanned.spans
    assert (name, spanned.ended) == (f"chat {MODEL}", 3)
    assert (about["gen_ai.operation.name"], about["gen_ai.request.model"]) == ("chat", MODEL)
    assert about["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert about["gen_ai.usage.reasoning.output_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"]
    assert (about["tersely.tier"], streamed["tersely.tier"]) == ("easy", "normal")
    assert "tersely.tier" not in failed and failed["error.type"] == "400"
