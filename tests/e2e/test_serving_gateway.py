"""A gateway to several servers, some of which have only a chat endpoint; and what happens where control fails."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.serving.config import make_config
from tersely.controller.serving.rules import LiveConfig
from tersely.errors import CapabilityError, ModelError, OptionError

from ..support.chat_servers import ChatServer, content, thinking
from ..support.gateways import GREEDY, SAID, ask, gateway
from ..support.refusals import refused
from ..support.remote_servers import TextServer
from ..support.serving import MODEL, body, chunks_of, configured, error_of, texts_of, until

LOOP = [thinking("So we have seven. Let me check that again. ")] * 400


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return load_engine(MODEL, dtype="float32")


def test_requests_go_to_the_server_that_has_the_model(local: TransformersEngine) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(TextServer(local, models=("one", "two")).serve())
        second = stack.enter_context(TextServer(local, models=("one",)).serve())
        third = stack.enter_context(ChatServer(SAID).serve())
        server = stack.enter_context(
            gateway(
                {"url": first.url, "models": ["two"], "tokenizer": MODEL},
                {"url": second.url, "models": {"other": "one"}, "tokenizer": MODEL},
                {"url": third.url},
            )
        )
        listed = server.http.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["two", "other", "talker"]
        assert [model["tersely"]["policies"] for model in listed] == [True, True, False]
        before = len(first.requests), len(second.requests)
        assert ask(server, "other")["choices"][0]["message"]["content"]
        assert len(first.requests) == before[0] and second.requests[-1]["model"] == "one"
        assert ask(server, "two")["choices"][0]["message"]["content"] and first.requests[-1]["model"] == "two"
        assert ask(server)["choices"][0]["message"]["content"] == "It is 7."
        for unknown in ("one", "tow"):
            assert ask(server, unknown, 404)["error"]["code"] == "model_not_found"
        assert server.http.get("/v1/models/talker").json()["id"] == "talker"
        with refused(OptionError):
            gateway({"url": third.url}, {"url": third.url}).__enter__()
        with refused(ModelError, "unknown_model"):
            gateway({"url": third.url, "models": ["taker"]}).__enter__()


@pytest.mark.parametrize("tags", [False, True])
def test_a_chat_endpoint_is_passed_efforts_and_limits(tags: bool, capfd: pytest.CaptureFixture[str]) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 21}}
    said = [content(part) for part in ("<thi", "nk>Three and four.", "</th", "ink>\n\nIt is ", "7.")] if tags else SAID
    with ChatServer(said, usage=usage).serve() as upstream, gateway({"url": upstream.url}) as server:
        reply = ask(server, reasoning_effort="max", max_tokens=99)
        message, meta = reply["choices"][0]["message"], reply["choices"][0]["tersely"]
        assert (message["reasoning_content"], message["content"]) == ("Three and four.", "It is 7.")
        assert (meta["usage"]["thinking"], meta["usage"]["answer"], reply["usage"]["prompt_tokens"]) == (21, 9, 9)
        assert upstream.bodies[-1]["reasoning_effort"] == "high" and upstream.bodies[-1]["max_tokens"] == 99
        assert "chat_template_kwargs" not in upstream.bodies[-1] and "stop" not in upstream.bodies[-1]
        ask(server, reasoning_effort="none")
        assert upstream.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
        # What is not possible is said in the header, the trace, and at the start.
        assert reply["headers"]["x-tersely-control"] == "effort" and meta["budget"] is None
        assert [d["acted"] for d in meta["decisions"] if "chat endpoint" in d["reason"]] == [False]
        assert "chat endpoint" in capfd.readouterr().err
        for fields in ({"thinking_token_budget": 50}, {"tersely": {"preset": "fast"}}, {"tersely": {"shadow": True}}):
            assert ask(server, status=400, **fields)["error"]["param"]
        assert ask(server, stop=["is"])["choices"][0]["message"]["content"] == "It "
        fields = {**body(**GREEDY), "model": "talker", "stream": True}
        with server.http.stream("POST", "/v1/chat/completions", json=fields) as response:
            assert response.headers["x-tersely-control"] == "effort"
            assert texts_of(chunks_of(response.iter_lines())) == ("Three and four.", "It is 7.")
        rows = ask(server, n=3)["choices"]
        assert [row["index"] for row in rows] == [0, 1, 2]
        until(lambda: server.metrics()['tersely_requests_total{status="200"}'] == 5)


def test_the_form_of_requests_is_found_out() -> None:
    refuses = frozenset({"max_tokens", "chat_template_kwargs", "thinking_budget_tokens"})
    with (
        ChatServer(SAID, owner="llamacpp", refuses=refuses).serve() as upstream,
        gateway({"url": upstream.url}) as server,
    ):
        ask(server, reasoning_effort="low")
        sent = upstream.bodies[-1]
        assert sent["max_completion_tokens"] == 240 and sent["reasoning_effort"] == "low"
        assert not refuses & set(sent)
    with ChatServer(SAID, refuses=frozenset({"messages"})).serve() as upstream, pytest.raises(ModelError):
        gateway({"url": upstream.url}).__enter__()


def test_llama_cpp_gets_a_budget_and_ends_loops() -> None:
    after = [thinking("I stop here."), content("Seven.")]
    live = configured(ceilings={"thinking_tokens": 100})
    with (
        ChatServer(LOOP, after, "llamacpp", pause=0.002).serve() as upstream,
        gateway({"url": upstream.url}, live=live) as server,
    ):
        choice = ask(server, max_tokens=4000)["choices"][0]
        sent = upstream.bodies[-1]
        assert sent["thinking_budget_tokens"] == sent["reasoning_budget_tokens"] == choice["tersely"]["budget"] == 100
        assert sent["reasoning_control"] is True and upstream.ended == ["chatcmpl-1"]
        assert choice["message"]["content"] == "Seven."
        closes = [d for d in choice["tersely"]["decisions"] if d["action"] == "close"]
        assert [(d["policy"], d["acted"]) for d in closes] == [("repetition", True)]
        assert closes[0]["position"] < 100
        assert server.metrics()['tersely_exits_total{control="off",model="talker",reason="repetition"}'] == 1
        ask(server, thinking_token_budget=40)
        assert upstream.bodies[-1]["thinking_budget_tokens"] == 40


def test_a_loop_that_cannot_be_ended_is_noted() -> None:
    with ChatServer([*LOOP, content("Seven.")]).serve() as upstream, gateway({"url": upstream.url}) as server:
        choice = ask(server, max_tokens=4000)["choices"][0]
        closes = [d for d in choice["tersely"]["decisions"] if d["action"] == "close"]
        assert [d["acted"] for d in closes] == [False] and choice["message"]["content"] == "Seven."


def test_tool_calls_of_a_chat_endpoint_come_back() -> None:
    pieces = [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a"'}}]
    deltas = [{"tool_calls": pieces}, {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    with (
        ChatServer(deltas, finish="tool_calls", breaks=[1]).serve() as upstream,
        gateway({"url": upstream.url}) as server,
    ):
        choice = ask(server, tools=tools)["choices"][0]
        assert upstream.bodies[-1]["tools"] == tools and choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(("finish", "why"), [("content_filter", "content_filter"), ("length", "max_output_tokens")])
def test_a_reply_that_a_chat_endpoint_cuts_or_refuses_says_so(finish: str, why: str) -> None:
    call = {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a"'}}]}
    with (
        ChatServer([call, {"refusal": "I cannot help."}], finish=finish).serve() as upstream,
        gateway({"url": upstream.url}) as server,
    ):
        choice = ask(server)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("I cannot help.", finish)
        reply = server.http.post("/v1/responses", json={"model": "talker", "input": "Help!"}).json()
        assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": why})


def test_what_a_chat_endpoint_cannot_keep_is_refused_at_the_start() -> None:
    with ChatServer(SAID).serve() as upstream:
        for rules in (
            {"ceilings": {"thinking_tokens": 100}},
            {"defaults": {"preset": "fast"}},
            {"defaults": {"thinking_tokens": 100}},
            {"defaults": {"budgets": {"low": 100}}},
            {"shadow_share": 0.5},
            {"control_share": 0.5},
        ):
            with refused(CapabilityError, "chat_endpoint_only"):
                gateway({"url": upstream.url}, live=configured(**rules)).__enter__()
        config = LiveConfig()
        kept = {"ceilings": {"thinking_tokens": 100, "max_tokens": 100}, "defaults": {"preset": "off"}}
        config.config = make_config({**kept, "models": {"talker": kept}}, "test")
        with gateway({"url": upstream.url}, live=config) as server:
            assert ask(server, max_tokens=100)["choices"][0]["message"]["content"]
            assert ask(server, status=400, max_tokens=101)["error"]["param"] == "max_tokens"


def test_the_example_of_the_docs_runs(
    local: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHAT_FRONTEND_KEY", "RESEARCH_KEY", "UPSTREAM_KEY"):
        monkeypatch.setenv(name, name)
    text = (Path(__file__).parents[2] / "deploy" / "server.toml").read_text()
    with (
        TextServer(local, models=("Qwen/Qwen3-4B",), key="UPSTREAM_KEY").serve() as first,
        ChatServer(SAID, models=("gpt-oss-20b",)).serve() as second,
    ):
        for old, new in (("http://127.0.0.1:8001", first.url), ("http://127.0.0.1:8080", second.url)):
            text = text.replace(old, new)
        file = tmp_path / "server.toml"
        file.write_text(text.replace('tokenizer = "Qwen/Qwen3-4B"', f'tokenizer = "{MODEL}"'))
        live = LiveConfig(path=file)
        with gateway(*(upstream.model_dump() for upstream in live.config.upstreams), live=live) as server:
            for model, policies in (("reasoner", True), ("helper", False)):
                for key in ("CHAT_FRONTEND_KEY", "RESEARCH_KEY"):
                    server.http.headers["authorization"] = f"Bearer {key}"
                    assert ask(server, model)["choices"][0]["message"]["content"]
                    listed = server.http.get(f"/v1/models/{model}").json()
                    assert listed["tersely"]["policies"] == policies
            file.write_text(
                file.read_text().replace(
                    "thinking_tokens = 4096\n\n[keys.research]", "thinking_tokens = 99\n\n[keys.research]"
                )
            )
            live.reload()
            server.http.headers["authorization"] = "Bearer CHAT_FRONTEND_KEY"
            assert ask(server, "helper", 403)["error"]["code"] == "not_allowed"
            assert ask(server, "reasoner")["choices"][0]["tersely"]["budget"] == 99


def test_a_chat_endpoint_that_breaks_is_asked_again_until_it_has_written() -> None:
    with ChatServer(SAID).serve() as upstream, gateway({"url": upstream.url}) as server:
        upstream.breaks = [0, 0]
        assert ask(server)["choices"][0]["message"]["content"] == "It is 7."
        upstream.breaks = [2]
        reply = ask(server, status=502)
        error = reply["error"]
        assert error["code"] == "server_lost" and upstream.url not in error["message"]
        assert reply["headers"]["retry-after"] == "1"
        assert server.http.get("/ready").status_code == 200
        server.worker.upstream.client.url, url = "http://127.0.0.1:9/v1", server.worker.upstream.client.url
        assert ask(server, status=502)["error"]["code"] == "server_lost"
        assert error_of(server.http.get("/ready"), 503)["code"] == "server_lost"
        assert server.http.get("/health").status_code == 200
        server.worker.upstream.client.url = url
        ask(server)
        until(lambda: server.http.get("/ready").status_code == 200)


def test_a_chat_endpoint_that_stays_busy_says_so_to_clients() -> None:
    with ChatServer(SAID).serve() as upstream, gateway({"url": upstream.url}) as server:
        upstream.busy = 2
        assert ask(server)["choices"][0]["message"]["content"] == "It is 7."
        upstream.busy, upstream.rest = 3, "7"
        reply = ask(server, status=429)
        assert (reply["error"]["code"], reply["headers"]["retry-after"]) == ("busy", "7")
        assert server.http.get("/ready").status_code == 200


class EndlessServer(TextServer):
    """Writes slowly, and as much as it may."""

    def generate(self, body: dict[str, Any], send: Callable[[str, str | None], None]) -> None:
        for number in range(body["max_tokens"]):
            send(f"Then {number}. ", None)
            time.sleep(0.02)
        send("", "length")


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_a_client_that_leaves_ends_the_stream_upstream_and_pays(
    kind: str, local: TransformersEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    endless = EndlessServer(local, models=("talker",))
    server_of: dict[str, Any] = {"chat": ChatServer([content("word ")] * 100_000, pause=0.005), "completions": endless}
    with (
        server_of[kind].serve() as upstream,
        gateway({"url": upstream.url, "kind": kind, "tokenizer": MODEL}, log="json") as server,
    ):
        fields = {**body(**GREEDY), "model": "talker", "stream": True, "max_tokens": 900}
        with server.http.stream("POST", "/v1/chat/completions", json=fields) as response:
            lines = response.iter_lines()
            for _ in range(20):
                next(lines)
        until(lambda: server.worker.idle and not upstream.running)
        until(lambda: server.metrics()["tersely_requests_in_flight"] == 0)
        metrics = server.metrics()
        assert metrics['tersely_requests_total{status="499"}'] == 1
        written = [
            v for k, v in metrics.items() if k.startswith(("tersely_thinking_tokens_t", "tersely_answer_tokens_t"))
        ]
        assert sum(written) > 5
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"path"' in line]
    assert (line["status"], line["model"], line["thinking"] + line["answer"]) == (499, "talker", sum(written))
    assert line["exit"] == "cancelled" or kind == "chat"
