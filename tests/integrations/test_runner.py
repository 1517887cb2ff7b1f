"""`BatchRunner`: batches on a shared engine, errors of single calls, and cancellation."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest

from tersely.controller.integrations import Call, get_runner
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.errors import PromptError

from ..support.text_engine import TextEngine

OUTPUT = "I think.\n</think>\n\nIt is 3. END of it."


@pytest.fixture
def call() -> Call:
    engine = TextEngine(lambda prompt: OUTPUT)
    return Call(Session(engine), "How much is 1 + 2?", GenerationOptions(preset="off"))


def read_stream(call: Call) -> tuple[dict[str, str], GenerationResult]:
    texts = {"thinking": "", "answer": ""}
    for event in get_runner(call.session.engine).stream(call):
        if isinstance(event, GenerationResult):
            return texts, event
        texts[event.channel] += event.text
    raise AssertionError("a stream must end with a result")


def test_an_error_concerns_its_own_call_only(call: Call) -> None:
    bad, good = get_runner(call.session.engine).submit([replace(call, prompt=""), call])
    assert good.result(10).answer == "It is 3. END of it."
    assert isinstance(bad.exception(10), PromptError)


def test_a_waiting_call_can_be_cancelled(call: Call) -> None:
    engine = call.session.engine
    runner = get_runner(engine)
    with runner.lock:
        (waiting,) = runner.submit([call], cancellable=True)
        assert waiting.cancel()
    runner.generate(call)
    assert isinstance(engine, TextEngine) and engine.batches == [1]
    with pytest.raises(CancelledError):
        waiting.result()


def test_a_running_call_can_be_cancelled() -> None:
    started, cancelled = threading.Event(), threading.Event()

    def write(prompt: str) -> str:
        started.set()
        cancelled.wait(10)
        return OUTPUT

    call = Call(Session(TextEngine(write)), "How much is 1 + 2?", GenerationOptions(preset="off"))
    runner = get_runner(call.session.engine)
    (future,) = runner.submit([call], cancellable=True)
    assert started.wait(10) and future.cancel()
    cancelled.set()
    with runner.lock:
        pass
    assert future.cancelled()


def test_a_stream_ends_with_the_result_it_adds_up_to(call: Call) -> None:
    call = replace(call, stops=("END",))
    texts, result = read_stream(call)
    assert texts == {"thinking": "I think.", "answer": "It is 3."}
    assert (result.thinking, result.answer, result.finish_reason) == ("I think.", "It is 3.", "stop")


def test_the_answer_is_not_streamed_from_hidden_text_on(call: Call) -> None:
    call = replace(call, hide="END")
    texts, result = read_stream(call)
    assert texts["answer"] == "It is 3." and result.answer == "It is 3. END of it."
