"""What would be answered after a thought is what a policy that closes there gets, and is drawn as all else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from transformers.utils import logging

from tersely.controller.engines.base import Sampling
from tersely.controller.engines.transformers import load_engine
from tersely.controller.options import Options
from tersely.controller.policies.base import Close, View, Wait, Watching
from tersely.controller.policies.record import Boundary, Record
from tersely.controller.session import Session
from tersely.evaluation.collect import answers
from tersely.evaluation.collect.answers import Thought, answers_at
from tersely.evaluation.tasks.questions import load

PROBLEMS = [question.problem for question in load("tiny", "fit", 6, 3)]
GREEDY = Options(preset="off", max_new_tokens=800, sampling=Sampling(temperature=0.0))


@dataclass(frozen=True)
class ClosesAfter:
    """Closes after so many thoughts."""

    name: ClassVar[str] = "closes"
    needs: ClassVar[frozenset[str]] = frozenset()
    thoughts: int = 1

    def watch(self, view: View) -> Watching:
        while len(view.thinking.thoughts) < self.thoughts:
            view = yield Wait(at=view.tokens + 1, boundary="thought")
        yield Close("as planned", phrase="")


@pytest.fixture(scope="module")
def session() -> Session:
    logging.disable_progress_bar()
    return Session(load_engine("tersely-tiny-small"))


def recorded(session: Session, options: Options = GREEDY) -> list[Thought]:
    rows: list[list[Boundary]] = []

    def begin() -> Callable[[Boundary], None]:
        rows.append([])
        return rows[-1].append

    done = session.run(PROBLEMS, replace(options, policies=(Record(begin),), signals=True))
    return [Thought(*row) for row in zip(session.prepare(PROBLEMS, options), done, rows, strict=True)]


def test_greedy_answers_are_those_of_a_policy_that_closes_there(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CERTAIN", 2.0)  # ask everywhere
    found = answers_at(session, recorded(session), GREEDY, size=4)
    for count in (1, 2):
        closed = session.run(PROBLEMS, replace(GREEDY, policies=(ClosesAfter(count),)))
        assert [one[count - 1].strip() for one in found] == [done.answer for done in closed]


def test_uncertain_answers_are_drawn_and_certain_ones_are_not_asked_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    thoughts = recorded(session)
    asked: list[int] = []
    generate = session.engine.generate

    def counted(requests: Any, sampling: Sampling, sink: Any = None) -> Any:
        asked.append(len(requests))
        return generate(requests, sampling, sink)

    monkeypatch.setattr(session.engine, "generate", counted)
    warm = replace(GREEDY, sampling=Sampling(temperature=1.5, seed=1))
    found = answers_at(session, thoughts, warm, size=4)
    ends = [end for thought in thoughts for end in thought.ends]
    sure = [end.trial is not None and end.trial.confidence >= answers.CERTAIN for end in ends]
    assert 0 < sum(sure) < len(ends)
    assert sum(asked) == len(ends) - sum(sure) and max(asked) <= 4
    flat = [answer for one in found for answer in one]
    for answer, end, certain in zip(flat, ends, sure, strict=True):
        assert end.trial is not None
        assert not certain or answer == f"\\boxed{{{end.trial.answer}}}"
    others = answers_at(session, thoughts, replace(warm, sampling=Sampling(temperature=1.5, seed=2)), size=4)
    assert found != others, "greedy after all"


def test_where_there_was_no_room_for_a_trial_nothing_is_asked(session: Session) -> None:
    (thought, *_) = recorded(session)
    silent = replace(thought, ends=[replace(end, trial=None) for end in thought.ends])
    assert answers_at(session, [silent], GREEDY, size=4) == [[""] * len(thought.ends)]
