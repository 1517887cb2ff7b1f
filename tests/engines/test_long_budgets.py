"""Long budgets are never exceeded, and used but for 24 tokens, on every engine by a model that would think for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.engines.openai.completions import connect
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.types import SamplingParams

from ..support.endless_model import CONTEXT, write_endless_model
from ..support.vllm_server import KEY, plain_vllm_server

BUDGETS = (64, 8_000, 30_000)
SLACK = 24
"""Tokens in which a thinking may close before its budget is used up."""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_endless_model(tmp_path_factory.mktemp("endless"))


@pytest.fixture(params=["transformers", "vllm", "openai"])
def engine(
    request: pytest.FixtureRequest, endless: Path, tmp_path: Path, start_vllm: Callable[..., Any]
) -> Iterator[Any]:
    with ExitStack() as stack:
        if request.param == "transformers":
            yield load_engine(str(endless), dtype="float32")
        elif request.param == "vllm":
            from tersely.controller.vllm.engine import PROCESSOR, VllmEngine

            yield VllmEngine(start_vllm(str(endless), logits_processors=(PROCESSOR,), max_model_len=CONTEXT))
        else:
            server = stack.enter_context(plain_vllm_server(endless, tmp_path, "--max-model-len", str(CONTEXT)))
            remote = connect(server.url, tokenizer=str(endless), api_key=KEY)
            stack.callback(remote.close)
            yield remote


@pytest.mark.attack
@pytest.mark.vllm
def test_a_long_budget_is_used_and_never_exceeded(engine: Any) -> None:
    for budget in BUDGETS:
        options = GenerationOptions(
            policies=("budget",),
            thinking_budget=budget,
            max_new_tokens=budget + 100,
            answer_reserve=64,
            sampling=SamplingParams(temperature=0.0),
        )
        done = Session(engine).run(["2 + 2?"], options)[0]
        assert budget - SLACK <= done.usage.thinking <= budget
        assert [(one.policy, one.action) for one in done.trace if one.action == "close"] == [("budget", "close")]
        assert done.usage.answer > 0 and done.finish_reason == "length"
