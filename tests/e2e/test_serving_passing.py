"""A gateway to a chat endpoint passes on what it is asked and what is answered, and changes neither."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tersely.controller.serving.auth_middleware import LineHandler
from tersely.errors import ModelError, OptionError

from ..support.chat_servers import ChatServer, content, thinking
from ..support.gateways import SAID, ask, gateway
from ..support.serving import Served, body, chunks_of, configured, texts_of

FREE: dict[str, Any] = {"temperature": None, "max_tokens": None}
PROMPT = "Where is my red bicycle?"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ChatServer]:
    with ChatServer(SAID, context=2048).serve() as server:
        yield server


@pytest.fixture(scope="module")
def server(upstream: ChatServer) -> Iterator[Served]:
    with gateway({"url": upstream.url}) as running:
        yield running


@pytest.fixture(autouse=True)
def _as_before(upstream: ChatServer) -> Iterator[None]:
    yield
    upstream.deltas, upstream.usage, upstream.refusal, upstream.rest = SAID, None, None, "0"


def streamed(server: Served, **fields: Any) -> list[dict[str, Any]]:
    asked = {**body(**fields), "model": "talker", "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=asked) as response:
        assert response.status_code == 200
        return chunks_of(response.iter_lines())


CODE = ["\n    def f():\n", "        pass\n\n"]
TEXTS: list[tuple[list[dict[str, Any]], str, str]] = [
    ([thinking(" r1\n"), *map(content, CODE)], " r1\n", "".join(CODE)),
    ([*map(content, CODE)], "", "".join(CODE)),
    ([thinking("r1"), content("c1"), thinking("r2"), content("c2")], "r1r2", "c1c2"),
    ([thinking("r"), content("<think>x</think> is a tag")], "r", "<think>x</think> is a tag"),
    ([content("  Use the <thi"), content("nk> tag. ")], "", "  Use the <think> tag. "),
    ([content("<think>"), content("\nh"), content("m\n</thi"), content("nk>\n\n    x\n")], "hm", "    x\n"),
    ([content("x\ud83d"), content("\ude00y"), content("\ud83d"), content("z\udc00\ud800")], "", "x😀y�z��"),
    ([thinking("\ud83d"), content("a"), thinking("\ude00")], "😀", "a"),
]


@pytest.mark.parametrize(("deltas", "thought", "answer"), TEXTS)
def test_texts_are_those_of_the_server(
    server: Served, upstream: ChatServer, deltas: list[dict[str, Any]], thought: str, answer: str
) -> None:
    upstream.deltas = deltas
    message = ask(server)["choices"][0]["message"]
    assert (message["reasoning"] or "", message["content"]) == (thought, answer)
    assert texts_of(streamed(server)) == (thought, answer)


USAGES: list[tuple[Any, tuple[int, int, int]]] = [
    ({"prompt_tokens": "x", "completion_tokens": None}, (0, 4, 0)),
    ({"prompt_tokens": -1, "completion_tokens": True, "prompt_tokens_details": 7}, (0, 4, 0)),
    ("much", (0, 4, 0)),
    ({"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 5}}, (9, 8, 5)),
]


@pytest.mark.parametrize(("usage", "counts"), USAGES)
def test_usage_that_is_none_costs_no_answer(
    server: Served, upstream: ChatServer, usage: Any, counts: tuple[int, int, int]
) -> None:
    upstream.usage = usage
    *_, last = streamed(server, stream_options={"include_usage": True})
    for found in (ask(server)["usage"], last["usage"]):
        cached = found["prompt_tokens_details"]["cached_tokens"]
        assert (found["prompt_tokens"], found["completion_tokens"], cached) == counts


def test_limits_and_efforts_are_left_to_the_server_unless_chosen(server: Served, upstream: ChatServer) -> None:
    ask(server, **FREE)
    assert set(upstream.bodies[-1]) == {"model", "messages", "stream", "stream_options"}
    ask(server, max_tokens=40_000, reasoning_effort="medium")
    assert (upstream.bodies[-1]["max_tokens"], upstream.bodies[-1]["reasoning_effort"]) == (40_000, "medium")
    ask(server, max_tokens=16)
    assert "reasoning_effort" not in upstream.bodies[-1]
    for rules, effort in (({"ceilings": {"max_tokens": 30_000}}, None), ({"defaults": {"effort": "high"}}, "high")):
        with gateway({"url": upstream.url}, live=configured(**rules)) as other:
            ask(other, **FREE)
            limit = upstream.bodies[-1].get("max_tokens")
            assert (limit is not None, upstream.bodies[-1].get("reasoning_effort")) == (effort is None, effort)
            assert limit is None or 1900 < limit < 2048, "the prompt has room"


def test_budgets_are_sent_where_somebody_wants_them() -> None:
    with ChatServer(SAID, owner="vllm").serve() as upstream, gateway({"url": upstream.url}) as server:
        for fields, budget in (({}, None), ({"reasoning_effort": "high"}, None), ({"thinking_token_budget": 40}, 40)):
            ask(server, **FREE, **fields)
            assert upstream.bodies[-1].get("thinking_token_budget") == budget


REFUSALS: list[tuple[int, Any, int, str, str | None]] = [
    (400, {"error": {"message": "too long", "code": "context_length_exceeded", "param": "x"}}, 400, "too long", "x"),
    (413, {"message": "too large"}, 413, "too large", None),
    (422, {"detail": "not an image"}, 422, "not an image", None),
    (401, {"error": {"message": "bad key sk-123"}}, 502, "does not accept this gateway", None),
    (402, {"error": {"message": "no credit"}}, 502, "see the server log", None),
    (404, {"error": {"message": "gone"}}, 502, "see the server log", None),
    (529, {"error": {"message": "overloaded"}}, 502, "was lost", None),
    (307, {}, 502, "failed", None),
]


@pytest.mark.parametrize(("status", "reply", "passed", "message", "param"), REFUSALS)
def test_errors_of_requests_come_back_and_those_of_the_gateway_do_not(
    server: Served, upstream: ChatServer, status: int, reply: Any, passed: int, message: str, param: str | None
) -> None:
    before, upstream.refusal = len(upstream.bodies), (status, reply)
    error = ask(server, status=passed)["error"]
    assert message in error["message"] and error["param"] == param
    assert error["code"] != "invalid_api_key" and "sk-123" not in error["message"]
    assert len(upstream.bodies) - before == (3 if status == 529 else 1)


def test_neither_address_nor_key_are_in_errors(server: Served, upstream: ChatServer) -> None:
    upstream.refusal = 400, {"error": {"message": f"bad field at {upstream.url}/v1"}}
    error = ask(server, status=400)["error"]
    assert "bad field" in error["message"] and upstream.url.partition("//")[2] not in error["message"]


def test_a_server_that_wants_a_long_rest_is_not_waited_for(server: Served, upstream: ChatServer) -> None:
    before, upstream.refusal = len(upstream.bodies), (429, {"error": {"message": "slow down"}})
    upstream.rest = "3600"
    reply = ask(server, status=429)
    assert (reply["error"]["type"], reply["headers"]["retry-after"]) == ("rate_limit_error", "3600")
    assert len(upstream.bodies) == before + 1


PASSED: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "frequency_penalty": 0.5,
    "presence_penalty": -1.0,
    "logit_bias": {"5": -100.0},
    "logprobs": True,
    "top_logprobs": 2,
    "user": "u",
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "safety_identifier": "i",
    "store": False,
}


def test_fields_are_passed_on_or_refused(server: Served, upstream: ChatServer) -> None:
    ask(server, **PASSED)
    assert upstream.bodies[-1].items() >= PASSED.items()
    ask(server, tool_choice="none", tools=PASSED["tools"])
    assert not {"tools", "tool_choice"} & set(upstream.bodies[-1])
    for fields in ({"min_p": 0.1}, {"tool_choice": "always"}, {"top_logprobs": 21}, {"response_format": "json"}):
        assert ask(server, status=400, **fields)["error"]["param"] == next(iter(fields))
    asked = {**body(), "model": "talker"}
    server.http.post("/v1/chat/completions", json=asked, headers={"x-request-id": "r-1"})
    assert str(upstream.ids[-1]).startswith("r-1-")


def test_log_probabilities_come_back(server: Served, upstream: ChatServer) -> None:
    entries = [{"token": "It\ud83d", "logprob": -0.5, "top_logprobs": []}, {"token": " is", "logprob": float("nan")}]
    upstream.logprobs = {"content": entries}
    try:
        whole, last = ask(server, logprobs=True)["choices"][0], streamed(server, logprobs=True)[-1]["choices"][0]
    finally:
        upstream.logprobs = None
    assert whole["logprobs"] == last["logprobs"]
    assert [(entry["token"], entry["logprob"]) for entry in whole["logprobs"]["content"][:2]] == [
        ("It�", -0.5),
        (" is", None),
    ]
    assert ask(server)["choices"][0]["logprobs"] is None


def test_an_answer_reserve_for_all_models_is_no_obstacle(upstream: ChatServer) -> None:
    with gateway({"url": upstream.url}, live=configured(defaults={"answer_reserve": 3000})) as server:
        ask(server, **FREE)
        ask(server, max_tokens=20)
    with pytest.raises(OptionError) as error:
        configured(ceilings={"thinking_tokens": 100}, shadow_share=0.5)
    assert "ceilings.thinking_tokens" in str(error.value) and "shadow_share" in str(error.value)


def test_a_wrong_key_of_the_upstream_is_named_by_its_source(
    upstream: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    upstream.refusal = upstream.probe_refusal = 401, {"error": {"message": "no"}}
    try:
        for fields, name in (({}, "TERSELY_UPSTREAM_KEY"), ({"key_env": "MY_KEY"}, "MY_KEY")):
            with pytest.raises(ModelError) as error:
                gateway({"url": upstream.url, "kind": "chat", **fields}).__enter__()
            assert str(error.value).endswith(f"check {name}")
    finally:
        upstream.probe_refusal = None


def test_log_lines_have_a_form_an_id_and_no_text_of_requests(
    server: Served, upstream: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = LineHandler("json")
    logging.getLogger().addHandler(handler)
    try:
        for status in (400, 500):
            upstream.refusal = status, {"error": {"message": f"cannot process: {PROMPT}"}}
            server.http.post(
                "/v1/chat/completions",
                json={**body(PROMPT), "model": "talker"},
                headers={"x-request-id": f"r-{status}"},
            )
        try:
            raise ValueError(PROMPT)
        except ValueError:
            logging.getLogger("tersely.any").exception("a request failed")
    finally:
        logging.getLogger().removeHandler(handler)
    text = capfd.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    assert PROMPT not in text
    assert [(line["level"], line.get("id")) for line in lines] == [
        ("error", "r-400"),
        ("error", "r-500"),
        ("error", None),
    ]
    assert all(line["time"] for line in lines)
    assert "status 400" in lines[0]["message"] and "status 500" in lines[1]["message"]
    assert lines[2]["error"] == "ValueError" and "test_serving_passing" in lines[2]["traceback"]
