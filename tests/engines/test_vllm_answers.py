"""Measuring through vLLM gives what users get through transformers: answers under control, and probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.types import Completion, SamplingParams
from tersely.evaluation.runner import SessionRunner
from tersely.evaluation.tasks.questions import load

if TYPE_CHECKING:
    from tersely.controller.vllm.engine import VllmEngine

pytestmark = pytest.mark.vllm

PROBLEMS = [question.problem for question in load("tiny", "test", 3, 5)]
GREEDY = GenerationOptions(max_new_tokens=160, sampling=SamplingParams(temperature=0.0))


@pytest.fixture(scope="module")
def ours() -> SessionRunner:
    return SessionRunner(load_engine("tersely-tiny-small"))


@pytest.fixture(scope="module")
def theirs(vllm_engine: VllmEngine) -> SessionRunner:
    return SessionRunner(vllm_engine)


def test_greedy_answers_are_those_of_a_session(ours: SessionRunner, theirs: SessionRunner) -> None:
    expected, found = (answers.answer(PROBLEMS, GREEDY) for answers in (ours, theirs))
    for one, other in zip(expected, found, strict=True):
        assert other.token_ids == one.token_ids
        assert (other.usage, other.trace) == (one.usage, one.trace)
    assert any(generation.trace for generation in found), "no policy ever acted"


def test_what_is_written_on_has_the_probabilities_that_transformers_gives_it(
    ours: SessionRunner, theirs: SessionRunner
) -> None:
    prepared = ours.session.prepare(PROBLEMS, replace(GREEDY, preset="off"))
    texts, limits = [row.request.prompt_ids for row in prepared], [40] * len(prepared)
    expected, found = (answers.continue_from(texts, limits, GREEDY.sampling) for answers in (ours, theirs))
    for one, other in zip(expected, found, strict=True):
        assert other.token_ids == one.token_ids
        assert _chances(other) == pytest.approx(_chances(one), abs=1e-3)
        assert other.finish_reason == one.finish_reason
    assert min(min(_chances(one)) for one in found) < 0.9, "all certain: nothing was compared"


def _chances(completion: Completion) -> list[float]:
    return [signal.chosen for signal in completion.signals if signal]
