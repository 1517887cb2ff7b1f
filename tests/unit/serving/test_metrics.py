"""Metrics agree with the replies; requests are OpenTelemetry spans."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.serving.settings import Billing
from tersely.controller.trace import Decision, GenerationResult, Usage

from ...support.serving import MODEL, Served, body, configured, served

pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(load_engine(MODEL), ServerSettings(configured(ceilings={"max_tokens": 512}))) as running:
        yield running


ON = f'control="on",model="{MODEL}"'


def increases(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The counters that increased, without buckets and creation times."""
    kept = {k: v - before.get(k, 0.0) for k, v in after.items() if "_created" not in k and "_bucket" not in k}
    return {k.removeprefix("tersely_"): v for k, v in kept.items() if v}


def test_counters_agree_with_the_replies(server: Served) -> None:
    before = server.metrics()
    one = server.answered(thinking_token_budget=50)
    two = server.answered(reasoning_effort="low", n=2)
    server.answered(reasoning_effort="none")
    server.refused(reasoning_effort="hgih")
    delta = increases(before, server.metrics())
    metadata = [choice["tersely"] for choice in two["choices"]]
    assert delta[f'thinking_tokens_total{{{ON},tier="normal"}}'] == one["choices"][0]["tersely"]["usage"]["thinking"]
    assert delta[f'thinking_tokens_total{{{ON},tier="easy"}}'] == sum(t["usage"]["thinking"] for t in metadata)
    assert f'thinking_tokens_total{{{ON},tier="none"}}' not in delta
    assert delta[f'answer_tokens_total{{{ON},tier="none"}}'] > 0
    assert delta[f'exits_total{{{ON},reason="budget"}}'] == 1
    replies = {key: number for key, number in delta.items() if key.startswith("replies_total")}
    assert replies == {
        f'replies_total{{control="on",effort="{effort}",model="{MODEL}",preset="balanced"}}': number
        for effort, number in (("normal", 1), ("low", 2), ("none", 1))
    }
    assert sum(v for k, v in delta.items() if k.startswith("exits_total")) == 3
    assert (delta['requests_total{status="200"}'], delta['requests_total{status="400"}']) == (3, 1)
    assert (delta["budget_tokens_count"], delta["budget_tokens_sum"]) == (4, 50 + 2 * 448)
    assert delta["request_latency_seconds_count"] == 4 and delta["request_latency_seconds_sum"] > 0
    assert server.metrics()["tersely_requests_in_flight"] == 0


FAMILIAR = (
    "Joy holds 185 tickets. Then Joy drops 164 tickets. Joy makes 2 times the tickets. Later Joy makes 8 times the "
    "tickets. Then Joy drops 123 tickets. Then Joy breaks 92 tickets. Joy finds 299 tickets. Erase it and begin again. "
    "Joy has 5 tickets. Next Joy breaks 4 tickets. What is the number of tickets now, for Joy?"
)
"""A question of the kind that the embedded model's probe knows."""


def test_shadow_mode_counts_kept_thinking(server: Served) -> None:
    before = server.metrics()
    messages = [{"role": "user", "content": FAMILIAR}]
    metadata = server.answered(messages=messages, tersely={"shadow": True}, seed=3)["choices"][0]["tersely"]
    delta = increases(before, server.metrics())
    (close,) = [d for d in metadata["decisions"] if d["action"] == "close"]
    assert delta['shadow_exits_total{reason="readiness"}'] == 1
    assert delta['shadow_thinking_tokens_total{tier="normal"}'] == metadata["usage"]["thinking"]
    assert (
        delta['shadow_kept_thinking_tokens_total{tier="normal"}'] == close["position"] < metadata["usage"]["thinking"]
    )
    assert delta[f'exits_total{{control="shadow",model="{MODEL}",reason="model"}}'] == 1


@pytest.mark.slow
def test_shadow_share_leaves_seeds_and_budgets_alone() -> None:
    with served(
        load_engine(MODEL), ServerSettings(configured(ceilings={"max_tokens": 256}, shadow_share=1.0))
    ) as server:
        assert server.answered()["choices"][0]["tersely"]["shadow"]
        promised: list[dict[str, Any]] = [{"seed": 1}, {"thinking_token_budget": 60}, {"tersely": {"shadow": False}}]
        for fields in promised:
            assert not server.answered(**fields)["choices"][0]["tersely"]["shadow"]


def test_metric_names_types_and_labels(server: Served) -> None:
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
    assert labels <= {"tier", "kind", "reason", "status", "stage", "model", "key", "effort", "preset", "control", "le"}


RESULT = GenerationResult("", "", "", "stop", "easy", Usage(prompt=3, thinking=9, answer=1, trial=4, discarded=2))


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (RESULT, "model"),
        (GenerationResult("", "", "", "length", "easy", Usage(thinking=9)), "limit"),
        (GenerationResult("", "", "", "stop", "easy", RESULT.usage, (Decision("budget", "close", "", 9),)), "budget"),
        (
            GenerationResult("", "", "", "stop", "easy", RESULT.usage, (Decision("x", "close", "", 9, acted=False),)),
            "model",
        ),
        (GenerationResult("", "", "", "stop", "none", Usage(answer=3)), None),
        (GenerationResult("", "", "", "cancelled", "easy", Usage(thinking=3)), "cancelled"),
    ],
)
def test_exits_are_counted_by_reason(result: GenerationResult, reason: str | None) -> None:
    metrics = Metrics()
    metrics.add_result(result, 64, Billing("m"))
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("tersely_exits_total")]
    assert lines == ([] if reason is None else [f'tersely_exits_total{{control="on",model="m",reason="{reason}"}} 1.0'])


def test_overhead_is_counted_by_kind() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.add_result(RESULT, 64)
    lines = [
        line for line in metrics.render().decode().splitlines() if line.startswith("tersely_overhead_tokens_total")
    ]
    counted = {line.partition('"')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert counted == {
        "discarded": 4,
        "trial": 8,
        "verifier": 0,
        "helper_completion": 0,
        "helper_prompt": 0,
        "recomputed": 0,
    }


class FakeTrace:
    """Replaces `opentelemetry.trace`, which is not a dependency, and keeps the spans."""

    SpanKind = SimpleNamespace(SERVER="server")

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any]]] = []
        self.ended = 0

    def get_tracer(self, name: str) -> FakeTrace:
        return self

    def start_span(self, name: str, kind: str, attributes: dict[str, Any]) -> Any:
        self.spans.append((name, dict(attributes)))
        kept = self.spans[-1][1]
        return SimpleNamespace(set_attributes=kept.update, set_attribute=kept.__setitem__, end=self._end)

    def _end(self) -> None:
        self.ended += 1


@pytest.mark.slow
def test_each_request_is_an_opentelemetry_span(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrace()
    monkeypatch.setitem(sys.modules, "opentelemetry", ModuleType("opentelemetry"))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", fake)
    with served(load_engine(MODEL), ServerSettings(configured(ceilings={"max_tokens": 256}))) as server:
        usage = server.answered(reasoning_effort="low")["usage"]
        with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
            response.read()
        server.refused(messages=[{"role": "user", "content": ""}])
    (name, about), (_, streamed), (_, failed) = fake.spans
    assert (name, fake.ended) == (f"chat {MODEL}", 3)
    assert (about["gen_ai.operation.name"], about["gen_ai.request.model"]) == ("chat", MODEL)
    assert about["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert about["gen_ai.usage.reasoning.output_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"]
    assert (about["tersely.tier"], streamed["tersely.tier"]) == ("easy", "normal")
    assert "tersely.tier" not in failed and failed["error.type"] == "400"
