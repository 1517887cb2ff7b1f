"""What would be answered after a thought is what a policy that closes there gets, and is drawn as all else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from transformers.utils import logging

from tersely.controller import trials as trial
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Close, Policy, PolicyView, TrialAnswer, Wait, Watching
from tersely.controller.policies.record import PassiveRecorder, ThoughtRecord
from tersely.controller.session import Session
from tersely.controller.streaming import CancellableWatcher
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.trials import CERTAIN, SampledTrial, TrialDecoder
from tersely.controller.types import KEEP, Directive, Request, SamplingParams, StepInfo
from tersely.evaluation.tasks.questions import load

from ..support.word_tokenizer import WordTokenizer

PROBLEMS = [question.problem for question in load("tiny", "fit", 3, 9)]
GREEDY = GenerationOptions(preset="off", max_new_tokens=800, sampling=SamplingParams(temperature=0.0))
WARM = replace(GREEDY, sampling=SamplingParams(temperature=1.5, seed=1))


@dataclass(frozen=True)
class ClosesAfter(Policy):
    """Closes after so many thoughts."""

    name: ClassVar[str] = "closes"
    thoughts: int = 1

    def watch(self, view: PolicyView) -> Watching:
        while len(view.thinking.thoughts) < self.thoughts:
            yield Wait(at=view.tokens + 1, boundary="thought")
        yield Close("as planned", phrase="")


@pytest.fixture(scope="module")
def session() -> Session:
    logging.disable_progress_bar()
    return Session(load_engine("tersely-tiny-small"))


def recorded(session: Session, options: GenerationOptions) -> list[list[TrialAnswer]]:
    rows: list[list[ThoughtRecord]] = []

    def begin() -> Callable[[ThoughtRecord], None]:
        rows.append([])
        return rows[-1].append

    session.run(PROBLEMS, replace(options, policies=(PassiveRecorder(begin),), signals=True))
    return [[end.trial for end in row if end.trial is not None] for row in rows]


def test_greedy_answers_are_those_of_a_policy_that_closes_there(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "CERTAIN", 2.0)  # draw everywhere
    found = recorded(session, GREEDY)
    for count in (1, 2):
        closed = session.run(PROBLEMS, replace(GREEDY, policies=(ClosesAfter(count),)))
        for row, done in zip(found, closed, strict=True):
            drawn = (row[count - 1].sampled or "").strip()
            assert "\\boxed{" in drawn and done.answer.startswith(drawn)


def test_trials_that_draw_leave_the_row_as_it_is(session: Session) -> None:
    plain = session.run(PROBLEMS, GREEDY)
    done = session.run(PROBLEMS, replace(GREEDY, policies=(PassiveRecorder(lambda: lambda end: None),), signals=True))
    assert [g.token_ids for g in done] == [g.token_ids for g in plain]


def test_uncertain_answers_are_drawn_and_certain_ones_are_not_asked_again(session: Session) -> None:
    found = [one for row in recorded(session, WARM) for one in row]
    sure = [one.confidence >= CERTAIN for one in found]
    assert 0 < sum(sure) < len(found)
    for one, certain in zip(found, sure, strict=True):
        assert one.sampled is not None
        assert not certain or one.sampled == f"\\boxed{{{one.answer}}}"
    others = [one.sampled != f"\\boxed{{{one.answer}}}" for one in found if one.confidence < CERTAIN]
    assert any(others), "greedy after all"


# -- one trial ------------------------------------------------------------------------------------------------------

CODEC = get_adapter(WordTokenizer())


def feed(run: TrialDecoder, text: str) -> list[Directive | None]:
    return [run.add(token, 0.5) for token in CODEC.encode(text)]


def begun(most: int = 40, closing: Sequence[int] = (1, 2, 3)) -> TrialDecoder:
    run = TrialDecoder(CODEC, 5, SampledTrial(tuple(closing), "It is", most))
    *before, last = feed(run, "7}")
    assert all(follow is KEEP for follow in before)
    assert last == Directive((1, 2, 3), retract=5 + len(CODEC.encode("7}")), trial=True, sampled=True)
    return run


def test_a_drawn_answer_is_over_with_its_box() -> None:
    run = begun()
    *before, last = feed(run, " said to be \\boxed{8}")
    assert all(follow is KEEP for follow in before) and last is None
    assert run.tokens == 3 + len(CODEC.encode(" said to be \\boxed{8}"))
    said = run.answer()
    assert (said.answer, said.sampled) == ("7", "It is said to be \\boxed{8}")
    assert said.tokens == 5 + len(CODEC.encode("7}")), "what was drawn costs nothing in use"


def test_a_drawn_answer_is_over_with_its_turn_or_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun()
    feed(run, " 8")
    (end,) = CODEC.encode("END")
    monkeypatch.setattr(CODEC.tokenizer, "eos_token_id", end)
    assert run.add(end, 0.5) is None
    assert run.answer().sampled == "It is 8"
    run = begun(most=4)
    follows = feed(run, " 1 2 3 4 5 6")
    assert follows.index(None) == 3


def test_a_row_may_be_ended_while_an_answer_is_drawn() -> None:
    closing, over = (1, 2, 3), [False]
    said = [Directive((4, 5), trial=True), KEEP, Directive(closing, retract=4, trial=True, sampled=True), KEEP, KEEP]

    class Says:
        def observe(self, token: int, step: StepInfo | None = None) -> Directive:
            return said.pop(0)

    ending = CancellableWatcher(lambda: over[0])
    ending.wrap(Request((1,), 100, watcher=Says()))
    while said:
        ending.observe(9)
    over[0] = True
    assert ending.observe(9) == Directive(retract=len(closing) + 2 + 1, trial=False, stop=True)
