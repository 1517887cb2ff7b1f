"""Sampling again until a verifier passes, no more often than its errors make worth it (arXiv 2411.17501)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...prompts import Prompt
from ...trace import GenerationResult
from ..vote import ROOT, Branch, VoteState, tally
from .resampling import ProblemClass, VerifierRates, optimal_attempts


@dataclass(frozen=True, slots=True)
class Verified:
    """The first sample that `passes`; none, so an empty answer, if the next attempt is expected to lose.

    A verifier that errs passes wrong answers too, the more likely the harder the problem has turned out to be: see
    `resampling.attempt_value`. verifier: its rates. kinds: what problems there are. penalty: what a wrong answer that
    passes costs, where a right one earns 1. What `passes` itself costs is not counted.
    """

    name: ClassVar[str] = "verified"
    signals: ClassVar[bool] = False
    passes: Callable[[Prompt, GenerationResult], bool]
    verifier: VerifierRates
    kinds: Sequence[ProblemClass]
    penalty: float = 1.0

    def poll(self, k: int) -> VoteState:
        """See `Rule.poll`; at most k attempts."""
        return VerifiedVote(k, self)


class VerifiedVote(VoteState):
    """One attempt after another; `judge` looks at each that has ended.

    best: the number of attempts after which one more would lose; None if that is more than are allowed.
    """

    def __init__(self, k: int, rule: Verified) -> None:
        self.best = optimal_attempts(rule.kinds, rule.verifier, rule.penalty, most=k)
        super().__init__(k if self.best is None else self.best, early=False)
        self._passes = rule.passes
        self._passed: int | None = None

    def draw(self) -> list[Branch]:
        """See `VoteState.draw`."""
        return self._begin([ROOT][: self.k - self.begun])

    def judge(self, sample: int, prompt: Prompt, generation: GenerationResult) -> None:
        """Ask the verifier about a sample that has ended."""
        if self._passes(prompt, generation):
            self._passed = sample
            self._decide(f"attempt {sample + 1} passed")

    def votes(self) -> dict[str, float]:
        """See `VoteState.votes`; only an answer that passed has any."""
        return tally(ballot for ballot in self.ballots if ballot.sample == self._passed)

    def verdict(self) -> str:
        """See `VoteState.verdict`."""
        why = "no more are allowed" if self.best is None else "one more would be a loss"
        return self.decided or f"given up after {self.begun} attempts: {why}"
