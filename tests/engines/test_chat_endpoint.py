"""Chat endpoints: what can be asked of them, and what cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tersely.controller.chat_endpoint import ChatOnlyEndpoint
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.types import SamplingParams
from tersely.errors import CapabilityError, ModelError, OptionError

from ..support.remote_servers import TextServer

OFF = GenerationOptions(preset="off", max_new_tokens=100, sampling=SamplingParams(temperature=0.0, seed=3))


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def reply(message: dict[str, Any], thinking: int | None = None) -> dict[str, Any]:
    details = {} if thinking is None else {"completion_tokens_details": {"reasoning_tokens": thinking}}
    usage = {"prompt_tokens": 9, "completion_tokens": 30, **details}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_under_both_its_names(engine: TransformersEngine, name: str) -> None:
    with TextServer(engine, chat=reply({"content": "It is 4.", name: "2 and 2\n"}, thinking=22)).up() as server:
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?", [{"role": "user", "content": "And 3+3?"}]], OFF)
        assert [(one.thinking, one.answer) for one in done] == [("2 and 2", "It is 4.")] * 2
        assert (done[0].usage.prompt, done[0].usage.thinking, done[0].usage.answer) == (9, 22, 8)
        assert done[0].trace == ()
        one, other = sorted(server.asked, key=lambda body: str(body["messages"]), reverse=True)
        assert one["messages"] == [{"role": "user", "content": "What is 2+2?"}]
        assert other["messages"] == [{"role": "user", "content": "And 3+3?"}]
        assert (one["max_tokens"], one["temperature"], one["seed"]) == (100, 0.0, 3)


def test_thinking_that_stands_in_the_answer_is_parted_from_it(engine: TransformersEngine) -> None:
    with TextServer(engine, chat=reply({"content": "<think>\n2 and 2</think>\n\nIt is 4."})).up() as server:
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?"], OFF)[0]
        assert (done.thinking, done.answer) == ("2 and 2", "It is 4.")
        assert "does not say how many tokens were thinking" in done.trace[0].reason
        assert (done.usage.thinking, done.usage.answer) == (0, 30)
        server.chat = reply({"content": "It is 4."})
        done = ChatOnlyEndpoint(server.url).run(["What is 2+2?"], OFF)[0]
        assert (done.thinking, done.answer, done.trace) == ("", "It is 4.", ())


def test_efforts_are_told_by_their_common_names(engine: TransformersEngine) -> None:
    with TextServer(engine, chat=reply({"content": "4"})).up() as server:
        for effort, told, tier in (
            ("none", "none", "none"),
            ("easy", "low", "easy"),
            ("normal", "medium", "normal"),
            ("high", "high", "hard"),
            ("auto", "low", "easy"),
        ):
            done = ChatOnlyEndpoint(server.url).run(["2+2?"], replace(OFF, effort=effort))[0]
            assert (server.asked[-1]["reasoning_effort"], done.tier) == (told, tier)
        assert "by the prompt's length" in done.trace[0].reason
        with pytest.raises(OptionError, match="unknown effort"):
            ChatOnlyEndpoint(server.url).run(["2+2?"], replace(OFF, effort="hardest"))


def test_the_cap_goes_by_the_name_that_the_server_wants(engine: TransformersEngine) -> None:
    class Newer(TextServer):
        def refusal(self, body: dict[str, Any]) -> str | None:
            return "use 'max_completion_tokens' instead" if "max_tokens" in body else None

    with Newer(engine, chat=reply({"content": "4"})).up() as server:
        assert ChatOnlyEndpoint(server.url).run(["2+2?"], OFF)[0].answer == "4"
        assert [set(body) & {"max_tokens", "max_completion_tokens"} for body in server.asked] == [
            {"max_tokens"},
            {"max_completion_tokens"},
        ]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"preset": "fast"}, "the policies budget, hint, convergence"),
        ({"preset": "certified"}, "the policies budget, readiness"),
        ({"policies": ("trim",)}, "the policies trim"),
        ({"shadow": True}, "shadow mode"),
        ({"signals": True, "answer_reserve": 9}, "signals, an answer reserve"),
        ({"strategy": "diffadapt"}, "a strategy"),
        ({"record": "folder", "probes": "folder"}, "recording, probes"),
    ],
)
def test_what_cannot_work_is_named(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(CapabilityError, match=rf"which {named} would need; accepted: preset 'off'"):
        ChatOnlyEndpoint("http://127.0.0.1:9").run(["2+2?"], replace(OFF, **changed))


def test_what_may_be_wrong_with_a_server(engine: TransformersEngine) -> None:
    with pytest.raises(OptionError, match="no URL"):
        ChatOnlyEndpoint("localhost")
    with pytest.raises(ModelError, match="no server answers at"):
        ChatOnlyEndpoint("http://127.0.0.1:9").run(["2+2?"], OFF)
    with TextServer(engine, key="sesame").up() as server:
        with pytest.raises(ModelError, match="refuses the API key"):
            ChatOnlyEndpoint(server.url, api_key="mellon").run(["2+2?"], OFF)
        with pytest.raises(ModelError, match="no model 'tyni'; did you mean 'tiny'"):
            ChatOnlyEndpoint(server.url, "tyni", "sesame").run(["2+2?"], OFF)
        with pytest.raises(ModelError, match="another kind of endpoint"):
            ChatOnlyEndpoint(server.url, "tiny", "sesame").run(["2+2?"], OFF)
        server.chat = {"choices": []}
        with pytest.raises(ModelError, match="answers with no choice"):
            ChatOnlyEndpoint(server.url, "tiny", "sesame").run(["2+2?"], OFF)
