"""Batches of `ChatTersely`, with LangChain's callbacks, caches and rate limits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.rate_limiters import InMemoryRateLimiter

from tersely.controller.integrations.langchain.chat_model import ChatTersely
from tersely.controller.policies.exits import Convergence
from tersely.errors import PromptError

from ..support.text_engine import TextEngine
from . import test_langchain_chat
from .test_langchain_chat import OTHERS, QUESTION, CountingEngine, engine, loaded

__all__ = ["engine", "loaded"]  # the fixtures


def model_on(engine: Any, **options: Any) -> ChatTersely:
    """A model that thinks little."""
    return test_langchain_chat.model_on(engine, **{"effort": "easy", **options})


def test_batch_is_one_batch_of_the_engine(engine: CountingEngine):
    alone = [model_on(engine).invoke(question).content for question in OTHERS]
    engine.batches.clear()
    assert [m.content for m in model_on(engine).batch(OTHERS)] == alone
    assert engine.batches == [3]
    assert [m.content for m in asyncio.run(model_on(engine).abatch(OTHERS))] == alone
    assert engine.batches == [3, 3]
    assert [m.content for m in model_on(engine).bind(effort="none").batch(OTHERS, {"max_concurrency": 1})]
    assert engine.batches == [3, 3, 3]


def test_sampled_batch_is_repeatable(engine: CountingEngine):
    model = model_on(engine, temperature=1.0, seed=5)
    many = [QUESTION] * 9  # more than there are threads
    first = model.batch([*many, *OTHERS])
    assert [m.content_blocks for m in model.batch([*many, *OTHERS])][9:] == [m.content_blocks for m in first][9:]
    assert len({str(m.content_blocks) for m in first[:9]}) > 1


def test_one_bad_prompt_does_not_spoil_the_batch(engine: CountingEngine):
    long = "Compute 3 + 4. " * 2000
    made = model_on(engine).batch([OTHERS[0], long, OTHERS[1]], return_exceptions=True)
    assert isinstance(made[1], PromptError) and isinstance(made[0], AIMessage) and isinstance(made[2], AIMessage)
    assert engine.batches == [2]
    with pytest.raises(PromptError):
        model_on(engine).batch([OTHERS[0], long])


class CountingHandler(BaseCallbackHandler):
    """Counts the callbacks of LangChain."""

    def __init__(self) -> None:
        self.started = self.ended = self.tokens = 0

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.started += 1

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.tokens += 1

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended += 1


def test_each_input_of_a_batch_has_its_own_callbacks(engine: CountingEngine):
    seen = [CountingHandler() for _ in OTHERS]
    model_on(engine).batch(OTHERS, [{"callbacks": [one]} for one in seen])
    assert [(one.started, one.ended) for one in seen] == [(1, 1)] * 3 and engine.batches == [3]


def test_callbacks_get_each_token_of_a_stream(engine: CountingEngine):
    seen = CountingHandler()
    chunks = list(model_on(engine).stream(QUESTION, {"callbacks": [seen]}))
    assert seen.tokens == len(chunks) > 5


def test_langchain_cache_answers_repeated_prompts(engine: CountingEngine):
    model = model_on(engine, cache=InMemoryCache())
    first = model.invoke(QUESTION)
    again = model.invoke(QUESTION)
    assert engine.batches == [1]
    assert again.content == first.content and again.response_metadata == first.response_metadata
    assert [m.content for m in model.batch([OTHERS[0], QUESTION, OTHERS[1]])][1] == first.content
    assert engine.batches == [1, 2], "cached answers must not be generated again"
    model.batch([QUESTION, OTHERS[0]])
    assert engine.batches == [1, 2]
    model.invoke(QUESTION, effort="none")
    assert engine.batches == [1, 2, 1]


def test_cache_distinguishes_models_and_policies(engine: CountingEngine):
    cache = InMemoryCache()
    model_on(engine, cache=cache, policies=["budget"]).invoke(QUESTION)
    model_on(engine, cache=cache, policies=[Convergence(agree=2)]).invoke(QUESTION)
    model_on(engine, cache=cache, policies=[Convergence(agree=3)]).invoke(QUESTION)
    assert engine.batches == [1, 1, 1]
    one = ChatTersely(model=TextEngine(lambda prompt: "</think>\n\none"), preset="off", cache=cache)
    two = ChatTersely(model=TextEngine(lambda prompt: "</think>\n\ntwo"), preset="off", cache=cache)
    assert (one.invoke("Hi").content, two.invoke("Hi").content) == ("one", "two")


def test_batch_with_a_rate_limiter(engine: CountingEngine):
    limiter = InMemoryRateLimiter(requests_per_second=20, max_bucket_size=1)
    model = model_on(engine, rate_limiter=limiter, effort="none")
    assert len(model.batch(OTHERS)) == 3 and engine.batches == [3]


def test_concurrent_calls_do_not_interfere(engine: CountingEngine):
    model = model_on(engine)
    alone = [model.invoke(question).content for question in OTHERS]
    made: dict[int, str] = {}

    def ask(place: int) -> None:
        made[place] = str(model.invoke(OTHERS[place % 3]).content)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made[place] for place in range(6)] == alone * 2
