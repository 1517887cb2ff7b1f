"""vLLM's AsyncLLM in this process, through the same loop as servers."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest

from tersely.controller.engines.openai.async_llm import AsyncLLMBackend, load_async_llm
from tersely.controller.engines.openai.engine import RemoteEngine
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.types import Request, SamplingParams
from tersely.errors import ModelError, OptionError
from tersely.evaluation.tasks.questions import load

from ..support.refusals import refused
from ..support.vllm_engine import forked_engines

pytestmark = pytest.mark.vllm

MODEL = "tersely-tiny-small"
PROBLEMS = [question.problem for question in load("tiny", "test", 3, 5)]
GREEDY = GenerationOptions(max_new_tokens=160, sampling=SamplingParams(temperature=0.0))
SETTINGS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "gpu_memory_utilization": 0.3}


@pytest.fixture(scope="session")
def engine() -> Iterator[RemoteEngine]:
    """Kept to the end, as vLLM shuts down all engines of a process with the first one."""
    with forked_engines():
        engine = load_async_llm(MODEL, **SETTINGS)
    yield engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM leaves a context of its sockets to the garbage collector
        engine.close()
        gc.collect()


@pytest.mark.parametrize("preset", ["off", "fast"])
def test_greedy_answers_are_the_same_as_on_transformers(engine: RemoteEngine, preset: str) -> None:
    options = replace(GREEDY, preset=preset)
    local = load_engine(MODEL, dtype="float32")
    expected, found = (Session(one).run(PROBLEMS, options) for one in (local, engine))
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert [(d.policy, d.action, d.position) for d in one.trace] == [
            (d.policy, d.action, d.position) for d in other.trace
        ]
    assert any(done.trace for done in found) == (preset != "off")


def test_signals_are_the_same_as_on_transformers(engine: RemoteEngine) -> None:
    request = Request(Session(engine).prepare(PROBLEMS[:1], GREEDY)[0].request.prompt_ids, 30, signals=True)
    local = load_engine(MODEL, dtype="float32")
    expected, found = (one.generate([request], GREEDY.sampling)[0].signals for one in (local, engine))
    for one, other in zip(found, expected, strict=True):
        assert one is not None and other is not None
        assert (one.chosen, one.top, one.margin) == pytest.approx((other.chosen, other.top, other.margin), abs=2e-3)


def test_a_closed_stream_is_aborted(engine: RemoteEngine) -> None:
    backend = engine.backend
    assert isinstance(backend, AsyncLLMBackend) and engine.context_length == 1024
    requests = [Request((5, 6, 7, row + 8), 900) for row in range(4)]

    async def cancelled() -> None:
        task = asyncio.create_task(engine.agenerate(requests, SamplingParams(temperature=2.0)))
        end = time.monotonic() + 60
        while backend._llm.get_num_unfinished_requests() < 4:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with mock.patch.object(backend._llm, "abort", wraps=backend._llm.abort) as aborted:
        asyncio.run(cancelled())
        end = time.monotonic() + 60
        while backend._llm.get_num_unfinished_requests():
            assert time.monotonic() < end, "vLLM is still running an aborted request"
            time.sleep(0.02)
    assert aborted.called, "all ended by themselves"


def test_requests_that_vllm_refuses_are_errors(engine: RemoteEngine) -> None:
    with refused(ModelError, "request_refused"):
        engine.generate([Request((5, 123456), 5)], GREEDY.sampling)


def test_unfit_options_and_engines_are_refused(engine: RemoteEngine) -> None:
    backend = engine.backend
    assert isinstance(backend, AsyncLLMBackend)
    with pytest.raises(OptionError):
        load_async_llm(backend._llm)
    with refused(OptionError):
        load_async_llm(backend._llm, dtype="float32")
    with refused(OptionError):
        load_async_llm(MODEL, temprature=1)
    with refused(ModelError, "missing_tokenizer"):
        load_async_llm("tersely-tiny-smal")
