"""`ChatTersely` on an embedded model: messages, streams, cancellation, settings and loading."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.integrations import shared_engine
from tersely.controller.integrations.langchain.chat_model import ChatTersely
from tersely.controller.session import Session
from tersely.errors import OptionError, PromptError

from ..support.text_engine import TextEngine

MODEL = "tersely-tiny-small"
QUESTION = "Compute 3 + 6."
HELD = 20
OTHERS = ["Compute 3 + 4.", "Compute (2 + 3) - 4.", "Compute 9 - 2."]


class CountingEngine(TransformersEngine):
    """The embedded engine; records the size of each batch and the output length of each sequence.

    After `HELD` tokens it waits for `may_go_on`.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__(engine.model, engine.tokenizer, engine.name)
        self.batches: list[int] = []
        self.output_lengths: list[int] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def generate(self, requests: Any, sampling: Any, sink: Any = None) -> Any:
        put_out = 0

        def held(row: int, tokens: Any, forced: bool) -> None:
            nonlocal put_out
            if sink is not None:
                sink(row, tokens, forced)
            put_out += len(tokens)
            assert put_out < HELD or self.may_go_on.wait(60)

        self.batches.append(len(requests))
        completions = super().generate(requests, sampling, held)
        self.output_lengths += [len(row.token_ids) for row in completions]
        return completions


@pytest.fixture(scope="module")
def loaded() -> TransformersEngine:
    return load_engine(MODEL)


@pytest.fixture
def engine(loaded: TransformersEngine) -> CountingEngine:
    return CountingEngine(loaded)


@pytest.fixture
def until_cancelled(engine: CountingEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, the engine waits until a generation is cancelled."""
    cancel = Future.cancel

    def cancelled(self: Future[Any]) -> bool:
        done = cancel(self)
        engine.may_go_on.set()
        return done

    monkeypatch.setattr(Future, "cancel", cancelled)
    return engine.may_go_on.clear


def model_on(engine: Any, **options: Any) -> ChatTersely:
    return ChatTersely(model=engine, **{"temperature": 0, "max_tokens": 400, **options})


def join_chunks(chunks: Any) -> Any:
    full = None
    for chunk in chunks:
        full = chunk if full is None else full + chunk
    return full


def test_invoke_matches_generate(engine: CountingEngine):
    made = tersely.generate(engine, prompts=QUESTION, temperature=0, max_new_tokens=400)
    message = model_on(engine).invoke(QUESTION)
    assert message.content == made.answer and made.answer
    assert message.content_blocks == [
        {"type": "reasoning", "reasoning": made.thinking},
        {"type": "text", "text": made.answer},
    ]
    assert message.usage_metadata == {
        "input_tokens": made.usage.prompt,
        "output_tokens": made.usage.thinking + made.usage.answer,
        "total_tokens": made.usage.prompt + made.usage.thinking + made.usage.answer,
        "output_token_details": {"reasoning": made.usage.thinking},
    }
    about = message.response_metadata
    assert (about["finish_reason"], about["model_name"]) == ("stop", MODEL)
    assert about["tersely"]["usage"] == made.usage.as_dict() and about["tersely"]["tier"] == "normal"
    assert [d["policy"] for d in about["tersely"]["decisions"]] == [d.policy for d in made.trace] and made.trace


@pytest.mark.parametrize(("effort", "version"), [("none", "v0"), ("none", "v1"), ("easy", "v0"), ("normal", "v1")])
def test_stream_matches_invoke(engine: CountingEngine, effort: str, version: str):
    model = model_on(engine, effort=effort, output_version=version)
    whole, chunks = model.invoke(QUESTION), list(model.stream(QUESTION))
    full = join_chunks(chunks)
    assert full.text == whole.text and full.text
    assert full.usage_metadata == whole.usage_metadata and full.response_metadata == whole.response_metadata
    assert [b.get("reasoning") for b in full.content_blocks] == [b.get("reasoning") for b in whole.content_blocks]
    assert [c.chunk_position for c in chunks[-2:]] == [None, "last"]
    assert len(chunks) > 5, "text must be streamed while it is generated"


def test_stream_starts_before_the_generation_ends(engine: CountingEngine):
    stream = model_on(engine).stream(QUESTION)
    next(stream)
    assert engine.output_lengths == []
    stream.close()


def test_closing_a_stream_stops_the_generation(engine: CountingEngine, until_cancelled: Callable[[], None]):
    until_cancelled()
    for _ in model_on(engine).stream(QUESTION):
        break
    assert engine.output_lengths[-1] <= HELD + 1
    assert not [t for t in threading.enumerate() if t.name == "tersely-runner"]


def test_closing_an_async_stream_stops_the_generation(engine: CountingEngine, until_cancelled: Callable[[], None]):
    until_cancelled()

    async def read() -> None:
        stream = model_on(engine).astream(QUESTION)
        async for _ in stream:
            break
        await stream.aclose()
        assert await model_on(engine).ainvoke(OTHERS[0])  # waits for the engine, so the first generation is over

    asyncio.run(read())
    assert engine.output_lengths[0] <= HELD + 1


def test_cancelling_a_call_stops_the_generation(engine: CountingEngine, until_cancelled: Callable[[], None]):
    until_cancelled()

    async def ask() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model_on(engine, preset="off", max_tokens=2000).ainvoke(QUESTION), 0.05)
        await model_on(engine).ainvoke(OTHERS[0])

    asyncio.run(ask())
    assert len(engine.output_lengths) in (1, 2)
    assert len(engine.output_lengths) == 1 or engine.output_lengths[0] <= HELD + 1


def test_async_calls_match_sync_ones(engine: CountingEngine):
    async def ask() -> tuple[Any, Any]:
        model = model_on(engine)
        return await model.ainvoke(QUESTION), join_chunks([chunk async for chunk in model.astream(QUESTION)])

    whole = model_on(engine).invoke(QUESTION)
    invoked, streamed = asyncio.run(ask())
    assert invoked.content == streamed.content == whole.content
    assert invoked.usage_metadata == streamed.usage_metadata == whole.usage_metadata


def test_engine_errors_reach_the_caller():
    def broken(prompt: str) -> str:
        raise RuntimeError("out of memory")

    model = ChatTersely(model=TextEngine(broken), preset="off")
    for ask in (model.invoke, lambda q: list(model.stream(q)), lambda q: model.batch([q, q])):
        with pytest.raises(RuntimeError):
            ask("Hi")
    with pytest.raises(RuntimeError):
        asyncio.run(model.ainvoke("Hi"))


def test_stop_string_ends_the_answer_but_not_the_thinking(engine: CountingEngine):
    whole = model_on(engine).invoke(QUESTION)
    assert "is" in whole.content and "=" in whole.content_blocks[0]["reasoning"] and "=" not in whole.content
    cut = model_on(engine, stop=["is"]).invoke(QUESTION)
    assert cut.content == whole.content.partition("is")[0].rstrip() and cut.response_metadata["finish_reason"] == "stop"
    assert cut.content_blocks[0] == whole.content_blocks[0]
    assert cut.usage_metadata["output_tokens"] < whole.usage_metadata["output_tokens"]
    assert join_chunks(model_on(engine).stream(QUESTION, stop=["is"])).content == cut.content
    assert model_on(engine).invoke(QUESTION, stop=["="]).content == whole.content
    assert [m.content for m in model_on(engine).batch([QUESTION, QUESTION], stop=["is"])] == [cut.content] * 2


def test_settings_given_with_a_call(engine: CountingEngine):
    model = model_on(engine)
    assert model.invoke(QUESTION, effort="none").usage_metadata["output_token_details"]["reasoning"] == 0
    assert model.bind(reasoning_effort="low").invoke(QUESTION).response_metadata["tersely"]["tier"] == "easy"
    short = model.invoke(QUESTION, preset="budget", max_tokens=90)
    assert short.usage_metadata["output_tokens"] <= 90 and short.content
    with pytest.raises(OptionError) as error:
        model.invoke(QUESTION, efort="none")
    assert error.value.code == "unknown_name"


@pytest.mark.parametrize(
    ("name", "value"), [("efort", "none"), ("effort", "extreme"), ("preset", "quick"), ("base_url", "http://x")]
)
def test_wrong_arguments_are_refused(name: str, value: str):
    with pytest.raises(OptionError) as error:
        ChatTersely(model=MODEL, **{name: value})
    assert error.value.code == "unknown_name"


def test_network_arguments_are_ignored():
    assert ChatTersely(model=MODEL, timeout=3, max_retries=1).model == MODEL


def test_auto_is_normal_after_a_tool_result(engine: CountingEngine):
    """Tool output is untrusted: its length or wording must not raise the budget."""
    asked = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}])
    messages = [HumanMessage(QUESTION), asked, ToolMessage("hard " * 300, tool_call_id="1", name="look")]
    made = ChatTersely(model=TextEngine(lambda p: "</think>\n\n39"), effort="auto", preset="off").invoke(messages)
    assert made.response_metadata["tersely"]["tier"] == "normal"
    alone = model_on(engine, effort="auto").invoke(QUESTION)
    assert "the difficulty probe" in alone.response_metadata["tersely"]["decisions"][0]["reason"]


def test_auto_can_be_streamed_and_cancelled(engine: CountingEngine, until_cancelled: Callable[[], None]):
    model = model_on(engine, effort="auto")
    assert join_chunks(model.stream(QUESTION)).content == model.invoke(QUESTION).content
    until_cancelled()
    for _ in model.stream(QUESTION):
        break
    assert engine.output_lengths[-1] <= HELD + 1
    assert [m.content for m in model.batch([QUESTION, *OTHERS])] and engine.batches[-1] == 4


def test_content_other_than_text_is_refused(engine: CountingEngine):
    image = {"type": "image", "url": "https://example.org/a.png"}
    with pytest.raises(PromptError) as error:
        model_on(engine).invoke([HumanMessage([{"type": "text", "text": "What is it?"}, image])])
    assert error.value.code == "unsupported_content"
    blocks = [HumanMessage([{"type": "text", "text": QUESTION}])]
    assert model_on(engine).invoke(blocks).content == model_on(engine).invoke(QUESTION).content


def test_model_is_loaded_once():
    one, two = ChatTersely(model=MODEL, effort="none"), ChatTersely(model=MODEL, effort="none", max_tokens=100)
    assert one.get_num_tokens("Compute 3 + 4.") == len(one.get_token_ids("Compute 3 + 4.")) > 4
    two.invoke(OTHERS[0])
    assert one.session().engine is two.session().engine is shared_engine(MODEL)


def test_model_may_be_an_engine_or_a_session(engine: CountingEngine):
    assert model_on(engine).model_name == model_on(Session(engine)).model_name == MODEL
    assert model_on(Session(engine)).invoke(OTHERS[0]).content == model_on(engine).invoke(OTHERS[0]).content
    assert model_on(engine).profile["max_input_tokens"] == engine.context_length
    assert model_on(engine).profile["tool_calling"] is False
    assert ChatTersely(model=MODEL).profile["reasoning_output"] is True


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_json_round_trip():
    model = ChatTersely(model=MODEL, effort="easy", seed=3, stop=["x"])
    back = load(dumpd(model), allowed_objects=[ChatTersely], valid_namespaces=["tersely"])
    assert isinstance(back, ChatTersely) and back.asdict() == model.asdict()
    assert (back.effort, back.seed, back.stop, back.model) == ("easy", 3, ["x"], MODEL)
