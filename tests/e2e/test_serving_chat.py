"""POST /v1/chat/completions on a real server: replies, streams, efforts and budgets."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving.rules import ServerSettings

from ..support.serving import MODEL, QUESTION, Served, body, chunks_of, configured, served, texts_of

QUICK: dict[str, Any] = {"seed": 1, "reasoning_effort": "low"}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(load_engine(MODEL), ServerSettings(configured(ceilings={"max_tokens": 1024}))) as running:
        yield running


def stream_of(server: Served, **fields: Any) -> list[dict[str, Any]]:
    with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True, **fields)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return chunks_of(response.iter_lines())


def without_drift(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without drift notes, which depend on all questions that the server has had."""
    return metadata | {"decisions": [d for d in metadata["decisions"] if d["action"] != "drift"]}


def test_a_reply_has_the_answer_the_thinking_and_the_trace(server: Served) -> None:
    reply = server.answered(seed=1)
    assert (reply["object"], reply["model"]) == ("chat.completion", MODEL)
    (choice,) = reply["choices"]
    message, metadata = choice["message"], choice["tersely"]
    assert message["content"].startswith("The answer is \\boxed{")
    assert message["reasoning"] == message["reasoning_content"] and len(message["reasoning"]) > 50
    assert "<think>" not in message["reasoning"] and "</think>" not in message["reasoning"] + message["content"]
    assert choice["finish_reason"] == "stop"
    assert (metadata["effort"], metadata["tier"], metadata["budget"], metadata["shadow"]) == (
        "normal",
        "normal",
        960,
        False,
    )
    assert all(
        set(d) == {"policy", "action", "reason", "position", "text", "acted", "tokens"} for d in metadata["decisions"]
    )
    usage, kinds = reply["usage"], metadata["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == kinds["thinking"] > 0
    assert usage["completion_tokens"] == kinds["thinking"] + kinds["answer"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_trace_can_be_left_out(server: Served) -> None:
    metadata = server.answered(tersely={"trace": False}, reasoning_effort="low")["choices"][0]["tersely"]
    assert "decisions" not in metadata and metadata["tier"] == "easy"


@pytest.mark.parametrize("fields", [QUICK, {"reasoning_effort": "none"}, {"thinking_token_budget": 60}])
def test_a_stream_adds_up_to_the_whole_reply(server: Served, fields: dict[str, Any]) -> None:
    fields = {"seed": 3} | fields
    whole, chunks = server.answered(**fields), stream_of(server, **fields)
    message = whole["choices"][0]["message"]
    assert texts_of(chunks) == (message["reasoning"] or "", message["content"])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({c["id"] for c in chunks}) == 1 and {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    whole_metadata, streamed_metadata = (without_drift(c["choices"][0]["tersely"]) for c in (whole, chunks[-1]))
    assert streamed_metadata == whole_metadata
    assert not any("usage" in c for c in chunks)


def test_usage_comes_last_in_a_stream_if_requested(server: Served) -> None:
    *chunks, last = stream_of(server, **QUICK, stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"] == server.answered(**QUICK)["usage"]
    assert all(c["usage"] is None for c in chunks)


def test_thinking_is_streamed_before_the_answer(server: Served) -> None:
    deltas = [c["choices"][0]["delta"] for c in stream_of(server, **QUICK)][1:-1]
    kinds = ["reasoning" if "reasoning" in d else "content" for d in deltas]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds.count("reasoning") > 20 and kinds.count("content") > 3


def test_several_choices_are_rows_of_one_request(server: Served) -> None:
    fields: dict[str, Any] = {**QUICK, "n": 3, "temperature": 1.0}
    reply = server.answered(**fields)
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert len({c["message"]["reasoning"] for c in reply["choices"]}) > 1
    total = sum(c["tersely"]["usage"]["thinking"] + c["tersely"]["usage"]["answer"] for c in reply["choices"])
    assert reply["usage"]["completion_tokens"] == total
    chunks = stream_of(server, **fields)
    for row, choice in enumerate(reply["choices"]):
        assert texts_of(chunks, row) == (choice["message"]["reasoning"], choice["message"]["content"])


def test_the_seed_determines_the_reply(server: Served) -> None:
    thinking = [
        server.answered(**(QUICK | {"seed": s}), temperature=1.0)["choices"][0]["message"]["reasoning"]
        for s in (7, 7, 8)
    ]
    assert thinking[0] == thinking[1] != thinking[2]


def test_temperature_zero_is_deterministic(server: Served) -> None:
    fields: dict[str, Any] = {"temperature": 0, "reasoning_effort": "low"}
    assert len({server.answered(**fields)["choices"][0]["message"]["reasoning"] for _ in range(2)}) == 1


@pytest.mark.parametrize("stop", ["boxed", [" is", "nowhere", "boxed"]])
def test_a_stop_string_ends_the_answer_and_not_the_thinking(server: Served, stop: Any) -> None:
    free = server.answered(**QUICK)["choices"][0]
    cut = server.answered(**QUICK, stop=stop)["choices"][0]
    ends = "The answer" if " is" in stop else "The answer is \\"
    assert (cut["message"]["content"], cut["finish_reason"]) == (ends, "stop")
    assert cut["message"]["reasoning"] == free["message"]["reasoning"]
    assert cut["tersely"]["usage"]["answer"] < free["tersely"]["usage"]["answer"]
    assert texts_of(stream_of(server, **QUICK, stop=stop)) == (free["message"]["reasoning"], ends)


def test_stop_strings_do_not_apply_to_the_thinking(server: Served) -> None:
    free = server.answered(**QUICK)["choices"][0]["message"]
    assert "=" in free["reasoning"]
    assert server.answered(**QUICK, stop="=")["choices"][0]["message"] == free


EFFORTS = [
    ({"reasoning_effort": "minimal"}, "easy", 128),
    ({"reasoning_effort": "low"}, "easy", 960),
    ({"reasoning_effort": "max"}, "hard", 960),
    ({"thinking_token_budget": 50}, "normal", 50),
    ({"thinking": {"type": "enabled", "budget_tokens": 80}}, "normal", 80),
    ({"tersely": {"effort": "easy"}}, "easy", 960),
]


@pytest.mark.parametrize(("fields", "tier", "budget"), EFFORTS)
def test_efforts_and_budgets_are_kept(server: Served, fields: dict[str, Any], tier: str, budget: int) -> None:
    choice = server.answered(**fields)["choices"][0]
    assert (choice["tersely"]["tier"], choice["tersely"]["budget"]) == (tier, budget)
    assert 0 < choice["tersely"]["usage"]["thinking"] <= budget
    assert "boxed" in choice["message"]["content"]


NO_THINKING = [
    {"reasoning_effort": "none"},
    {"thinking": {"type": "disabled"}},
    {"thinking_token_budget": 0},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"tersely": {"effort": "none"}},
]


@pytest.mark.parametrize("fields", NO_THINKING)
def test_no_thinking(server: Served, fields: dict[str, Any]) -> None:
    reply = server.answered(**fields)
    assert reply["choices"][0]["message"]["reasoning"] is None
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert reply["choices"][0]["message"]["content"].startswith("The answer is")


def test_higher_efforts_think_longer(server: Served) -> None:
    spent = [
        sum(c["tersely"]["usage"]["thinking"] for c in server.answered(n=4, seed=2, reasoning_effort=e)["choices"])
        for e in ("none", "low", "medium")
    ]
    assert 0 == spent[0] < 2 * spent[1] < spent[2]


def test_a_budget_is_kept_under_preset_off(server: Served) -> None:
    choice = server.answered(thinking_token_budget=40, tersely={"preset": "off"})["choices"][0]
    assert choice["tersely"]["usage"]["thinking"] <= 40
    assert choice["tersely"]["decisions"][-1]["policy"] == "budget"


def test_effort_auto_uses_the_probe(server: Served) -> None:
    choice = server.answered(reasoning_effort="auto", seed=1)["choices"][0]
    assert choice["tersely"]["effort"] == "auto"
    assert choice["tersely"]["decisions"][0]["policy"] == "effort"
    assert texts_of(stream_of(server, reasoning_effort="auto", seed=1))[1] == choice["message"]["content"]


@pytest.mark.parametrize("limit", [1, 7, 40, 100])
def test_small_limits_still_give_an_answer(server: Served, limit: int) -> None:
    reply = server.answered(max_tokens=limit)
    choice = reply["choices"][0]
    assert reply["usage"]["completion_tokens"] <= limit
    assert choice["message"]["content"]
    if limit < 64:
        note = choice["tersely"]["decisions"][0]
        assert (note["policy"], note["action"]) == ("server", "tier") and str(limit) in note["reason"]
        assert choice["finish_reason"] == ("length" if limit < 10 else "stop")
    else:
        assert choice["tersely"]["usage"]["thinking"] > 0


def test_preset_off_may_spend_everything_on_thinking(server: Served) -> None:
    choice = server.answered(max_tokens=40, tersely={"preset": "off", "effort": "hard"})["choices"][0]
    assert choice["tersely"]["tier"] == "none"  # no room for both: see the test above
    choice = server.answered(max_tokens=80, seed=3, tersely={"preset": "off", "effort": "hard"})["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "")


def test_shadow_mode_changes_nothing(server: Served) -> None:
    off = server.answered(seed=4, tersely={"preset": "off"})["choices"][0]
    shadow = server.answered(seed=4, tersely={"shadow": True})["choices"][0]
    assert shadow["message"] == off["message"]
    assert shadow["tersely"]["shadow"] and shadow["tersely"]["decisions"]
    assert not any(d["acted"] for d in shadow["tersely"]["decisions"])


def test_all_messages_and_parts_are_in_the_prompt(server: Served) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Compute 1+"}, {"type": "text", "text": "1."}]},
        {"role": "assistant", "content": None, "reasoning": "1+1=2.", "refusal": None},
        {"role": "user", "content": QUESTION},
    ]
    reply, short = server.answered(messages=messages, max_tokens=4), server.answered(max_tokens=4)
    assert reply["usage"]["prompt_tokens"] > short["usage"]["prompt_tokens"] + 10


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_reads_the_stream(server: Served) -> None:
    data = json.dumps(body("Compute 48+31.", stream=True, reasoning_effort="low"))
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", data]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    chunks = chunks_of(iter(out.split("\n")[:-1]))
    assert "boxed" in texts_of(chunks)[1]
