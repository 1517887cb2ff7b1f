"""Chat endpoints: results, efforts, and what they refuse."""

from __future__ import annotations

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tersely.controller.chat_endpoint import ChatOnlyEndpoint
from tersely.controller.engines.openai.completions import get_choices
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions, make_options
from tersely.controller.types import SamplingParams
from tersely.errors import CapabilityError, ModelError, OptionError, TerselyError

from ..support.chat_servers import ChatServer, content
from ..support.refusals import refused
from ..support.remote_servers import JsonHandler, TextServer, serve_http

OFF = GenerationOptions(preset="off", max_new_tokens=100, sampling=SamplingParams(temperature=0.0, seed=3))


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def reply(message: dict[str, Any], thinking: int | None = None) -> dict[str, Any]:
    details = {} if thinking is None else {"completion_tokens_details": {"reasoning_tokens": thinking}}
    usage = {"prompt_tokens": 9, "completion_tokens": 30, **details}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_from_both_fields(engine: TransformersEngine, name: str) -> None:
    with TextServer(engine, chat=reply({"content": "It is 4.", name: "2 and 2\n"}, thinking=22)).serve() as server:
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?", [{"role": "user", "content": "And 3+3?"}]], OFF)
        assert [(one.thinking, one.answer) for one in done] == [("2 and 2\n", "It is 4.")] * 2
        assert (done[0].usage.prompt, done[0].usage.thinking, done[0].usage.answer) == (9, 22, 8)
        assert done[0].trace == ()
        one, other = sorted(server.requests, key=lambda body: str(body["messages"]), reverse=True)
        assert one["messages"] == [{"role": "user", "content": "What is 2+2?"}]
        assert other["messages"] == [{"role": "user", "content": "And 3+3?"}]
        assert (one["max_tokens"], one["temperature"], one["seed"]) == (100, 0.0, 3)


def part(**fields: Any) -> dict[str, Any]:
    return {"content": [fields]}


@pytest.mark.parametrize(
    ("deltas", "answer"),
    [
        ([part(type="thinking", thinking=[{"type": "text", "text": "2 and 2"}]), part(type="text", text="4")], "4"),
        ([content("I add. "), {"reasoning": "2 and"}, {"reasoning": " 2"}, content("4")], "I add. 4"),
    ],
)
def test_thinking_may_be_a_part_of_the_content_or_come_behind_some(deltas: list[dict[str, Any]], answer: str) -> None:
    with ChatServer(deltas).serve() as server:
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?"], OFF)[0]
    assert (done.thinking, done.answer) == ("2 and 2", answer)


def test_a_reply_that_is_no_stream_is_read_or_its_error_told() -> None:
    replies = [reply({"content": "It is 4.", "reasoning": "2 and 2"}), {"error": {"message": "no credit", "code": 402}}]

    class Whole(JsonHandler, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "talker"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(200, replies.pop(0))

    with serve_http(Whole) as url:
        done = ChatOnlyEndpoint(url).run(["What is 2+2?"], OFF)[0]
        assert (done.thinking, done.answer, done.usage.answer) == ("2 and 2", "It is 4.", 29)
        with pytest.raises(ModelError) as caught:
            ChatOnlyEndpoint(url).run(["What is 2+2?"], OFF)
        assert "no credit" in str(caught.value)


def test_thinking_within_the_content_is_split_off(engine: TransformersEngine) -> None:
    with TextServer(engine, chat=reply({"content": "<think>\n2 and 2</think>\n\nIt is 4."})).serve() as server:
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?"], OFF)[0]
        assert (done.thinking, done.answer) == ("2 and 2", "It is 4.")
        assert "by pieces of the stream" in done.trace[0].reason
        assert (done.usage.thinking, done.usage.answer) == (1, 29)
        server.chat = reply({"content": "It is 4."})
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?"], OFF)[0]
        assert (done.thinking, done.answer, done.trace) == ("", "It is 4.", ())


@pytest.mark.parametrize("said", ["2 and 2</think>\n\nIt is 4.", "[THINK]2 and 2[/THINK]It is 4."])
def test_thinking_in_other_markers_or_without_an_opening_is_split_off(engine: TransformersEngine, said: str) -> None:
    with TextServer(engine, chat=reply({"content": said})).serve() as server:
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?"], OFF)[0]
    assert (done.thinking, done.answer, done.usage.thinking) == ("2 and 2", "It is 4.", 0)
    assert "count as answer" in done.trace[0].reason


def test_efforts_are_sent_by_their_openai_names(engine: TransformersEngine) -> None:
    with TextServer(engine, chat=reply({"content": "4"})).serve() as server:
        for effort, name, tier in (
            ("none", "none", "none"),
            ("easy", "low", "easy"),
            ("normal", "medium", "normal"),
            ("high", "high", "hard"),
            ("auto", "low", "easy"),
        ):
            done = ChatOnlyEndpoint(server.url).run(["2+2?"], replace(OFF, effort=effort))[0]
            assert (server.requests[-1]["reasoning_effort"], done.tier) == (name, tier)
        assert "by the prompt's length" in done.trace[0].reason
        with refused(OptionError, "unknown_name"):
            make_options(OFF, effort="hardest")


def test_the_token_limit_has_the_name_that_the_server_wants(engine: TransformersEngine) -> None:
    class NewerServer(TextServer):
        def find_problem(self, body: dict[str, Any]) -> str | None:
            if "max_tokens" not in body:
                return None
            both.wait()
            return "use 'max_completion_tokens' instead"

    both = threading.Barrier(2, timeout=20)
    with NewerServer(engine, chat=reply({"content": "4"})).serve() as server:
        done = ChatOnlyEndpoint(server.url).run(["2+2?", "1+3?"], OFF)
        assert [one.answer for one in done] == ["4", "4"], "both were refused before either was sent again"
        assert [set(body) & {"max_tokens", "max_completion_tokens"} for body in server.requests] == [
            *[{"max_tokens"}] * 2,
            *[{"max_completion_tokens"}] * 2,
        ]


@pytest.mark.parametrize(
    "changed",
    [
        {"preset": "fast"},
        {"preset": "certified"},
        {"policies": ("trimr",)},
        {"shadow": True},
        {"modifiers": ("steer",)},
        {"signals": True, "answer_reserve": 9},
        {"strategy": "diffadapt"},
        {"record": "folder", "probes": "folder"},
    ],
)
def test_unsupported_options_are_named(changed: dict[str, Any]) -> None:
    with pytest.raises(CapabilityError) as error:
        ChatOnlyEndpoint("http://127.0.0.1:9").run(["2+2?"], replace(OFF, **changed))
    assert error.value.code == "chat_endpoint_only"


def test_wrong_servers_keys_and_models_are_refused(engine: TransformersEngine) -> None:
    def refused(kind: type[TerselyError], *args: Any) -> str:
        with pytest.raises(kind) as error:
            ChatOnlyEndpoint(*args).run(["2+2?"], OFF)
        return error.value.code

    assert refused(OptionError, "localhost") == "invalid_url"
    assert refused(ModelError, "http://127.0.0.1:9") == "server_unreachable"
    with TextServer(engine, key="sesame").serve() as server:
        assert refused(ModelError, server.url, None, "mellon") == "invalid_api_key"
        assert refused(ModelError, server.url, "tyni", "sesame") == "unknown_model"
        assert refused(ModelError, server.url, "tiny", "sesame") == "no_endpoint"
        server.chat = {"choices": []}
        assert refused(ModelError, server.url, "tiny", "sesame") == "server_lost"


def test_a_choice_without_a_number_is_the_first() -> None:
    assert get_choices({"choices": [{"index": None}, {}, {"index": 0}, {"index": 1}]}) == [
        {"index": None},
        {},
        {"index": 0},
    ]
