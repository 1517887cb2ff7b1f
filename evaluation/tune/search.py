"""Searching a space: many candidates on few questions, few on many, and a proof on questions of their own.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): each round doubles the questions and keeps the better
half. What looked best in a search looks better than it is, so the last few are judged anew on fresh questions, with
intervals widened for their number, and only what passes there is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import OptionError
from ..bench.records import ArmRecords
from ..bench.verdict import GOOD, judge
from ..stats import LEVEL, Array, paired_bootstrap, ratio_bootstrap, studentized_bootstrap
from .space import Candidate

FINALISTS = 3
FIRST = 32
"""Questions of the first round."""

Ask = Callable[[str, Candidate | None, int, int], ArmRecords]
"""`ask(part, candidate, start, stop)` answers those questions of a part; None is the uncontrolled model."""
Cost = Callable[[ArmRecords], Array]
"""What each question cost, [questions]."""


@dataclass(slots=True)
class Scores:
    """What is known of one candidate: accuracy and cost of the questions so far."""

    right: Array = field(default_factory=lambda: np.zeros(0))
    cost: Array = field(default_factory=lambda: np.zeros(0))

    def add(self, records: ArmRecords, cost: Cost) -> None:
        """Take in the answers to further questions."""
        self.right = np.concatenate([self.right, records.means("right")])
        self.cost = np.concatenate([self.cost, cost(records)])


@dataclass(frozen=True, slots=True)
class Finding:
    """One candidate on questions that the search has not seen, against the uncontrolled model.

    saving and accuracy change with intervals at `level`, wider than 95 % where several were judged.
    """

    name: str
    verdict: str
    n: int
    accuracy: float
    accuracy_change: tuple[float, float, float]
    saving: tuple[float, float, float]
    level: float

    @property
    def passed(self) -> bool:
        """Whether it saves and loses nothing beyond the margin."""
        return self.verdict == GOOD


def search(candidates: Sequence[Candidate], ask: Ask, cost: Cost, limit: int, margin: float) -> list[Candidate]:
    """The best few of the candidates after `limit` questions, the cheapest first.

    Better is who loses at most `margin` as far as is seen, and then who costs less.
    """
    if limit < FIRST:
        raise OptionError(f"{limit} questions to search on; accepted: {FIRST} or more")
    base, known = Scores(), {candidate.name: Scores() for candidate in candidates}
    left, start, stop = list(candidates), 0, FIRST
    while True:
        base.add(ask("search", None, start, stop), cost)
        for candidate in left:
            known[candidate.name].add(ask("search", candidate, start, stop), cost)

        def rank(candidate: Candidate) -> tuple[bool, float]:
            scores = known[candidate.name]
            return bool((scores.right - base.right).mean() < -margin), float(scores.cost.mean())

        left.sort(key=rank)
        if stop == limit:
            return left[:FINALISTS]
        left = left[: max(FINALISTS, -(-len(left) // 2))]
        start, stop = stop, min(2 * stop, limit)


def prove(finalists: Sequence[Candidate], ask: Ask, cost: Cost, n: int, margin: float, seed: int) -> list[Finding]:
    """Judge finalists on n fresh questions; together they are wrong as rarely as one judged at 95 %."""
    base = Scores()
    base.add(ask("prove", None, 0, n), cost)
    level = 1 - (1 - LEVEL) / len(finalists)
    found = []
    for candidate in finalists:
        scores = Scores()
        scores.add(ask("prove", candidate, 0, n), cost)
        change, spent = scores.right - base.right, scores.cost - base.cost
        accuracy = paired_bootstrap(change, level=level, seed=seed)
        tokens = studentized_bootstrap(spent, level=level, seed=seed)
        saving = ratio_bootstrap(scores.cost, base.cost, level=level, seed=seed)
        found.append(
            Finding(
                name=candidate.name,
                verdict=judge(change, accuracy, spent, tokens, margin).word,
                n=n,
                accuracy=float(scores.right.mean()),
                accuracy_change=(accuracy.estimate, accuracy.low, accuracy.high),
                saving=(saving.estimate, saving.low, saving.high),
                level=level,
            )
        )
    return found


def chosen(findings: Sequence[Finding]) -> Finding | None:
    """The one that saves most of those that passed; None if none did."""
    passed = [finding for finding in findings if finding.passed]
    return max(passed, key=lambda finding: finding.saving[0], default=None)
