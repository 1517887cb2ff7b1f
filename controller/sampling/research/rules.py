"""Rules of papers: trees of samples, and sampling again until a verifier that errs passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import ClassVar

from ....errors import OptionError
from ...trace import GenerationResult
from ...types import Capability, Prompt
from ..resampling import ProblemClass, VerifierRates, optimal_attempts
from ..rules import ROOT, Branch, VoteState, find_meaning, tally


@dataclass(frozen=True, slots=True)
class Tree:
    """Majority vote of a tree: `roots` samples first, then `width` more from one fork after another.

    A fork lies before the thought with the lowest mean confidence (the probability of the likeliest token) among those
    where no branch starts yet: the branch keeps what came before it and continues differently. Its beginning is read
    once more, which counts as `recomputed`. The vote is settled early as in `Majority`; branches share their
    beginnings, so their votes are worth less than independent ones.

    With `backup`, forks of the highest value come first, and confidence decides between equal ones, after the greedy
    variant of Diffusion Tree Sampling (arXiv 2506.20701): a finished sample is worth the share of the finished samples
    that give its answer, and a node the soft mean log(mean(exp(backup * v))) / backup of the nodes v that follow it.
    """

    name: ClassVar[str] = "tree"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGIT_SIGNALS})
    roots: int = 2
    width: int = 2
    most_tokens: int | None = None  # sampled in all; then every sample is stopped
    backup: float | None = None  # the paper's lambda: near 0 a node has the mean of what follows it, high the maximum

    def __post_init__(self) -> None:
        if self.backup is not None and not 0 < self.backup < math.inf:
            raise OptionError(f"backup is {self.backup}; accepted: a number above 0, or None to fork by confidence")

    def start_vote(self, k: int) -> VoteState:
        if not 1 <= self.roots <= k or self.width < 1:
            raise OptionError(
                f"roots are {self.roots} of {k} samples, width {self.width}; accepted: 1 to {k}, 1 or more"
            )
        return _TreeVote(k, self)


class _TreeVote(VoteState):
    def __init__(self, k: int, rule: Tree) -> None:
        super().__init__(k)
        self.rule = rule
        self._tokens = 0
        self._branches: list[Branch] = []  # where each sample started
        self._forks: list[tuple[float, int, int]] = []  # confidence of the next thought, sample, thinking tokens before

    def start_samples(self) -> list[Branch]:
        branches = [ROOT] * self.rule.roots if not self.started else self._fork()
        self._branches += branches
        return self._start(branches)

    def _fork(self) -> list[Branch]:
        branch = ROOT
        if self._forks:
            fork = min(self._forks, key=lambda fork: (-self.value(*fork[1:]), fork))
            self._forks.remove(fork)
            branch = Branch(*fork[1:])
        return [branch] * min(self.rule.width, self.k - self.started)

    def value(self, sample: int, at: int) -> float:
        """The value of a finished sample's node after `at` thinking tokens of its own, 0 without `backup`."""
        if (scale := self.rule.backup) is None:
            return 0.0
        meanings = {vote.sample: find_meaning(vote.answer) for vote in self.votes if vote.answer}
        agreeing = list(meanings.values()).count(meanings.get(sample, ""))
        value = agreeing / max(len(self.votes), 1)
        starts = {branch.at for branch in self._branches if branch.parent == sample and branch.at >= at}
        for start in sorted(starts, reverse=True):
            below = [self.value(i, start) for i, b in enumerate(self._branches) if b == Branch(sample, start)]
            most = max(value, *below)
            value = most + math.log(fmean(math.exp(scale * (v - most)) for v in (value, *below))) / scale
        return value

    def add_token(self, sample: int, confidence: float) -> None:
        self._tokens += 1
        if self._tokens == self.rule.most_tokens:
            self._decide(f"{self._tokens} tokens are sampled")

    def finish(self, sample: int, answer: str | None, thoughts: Sequence[tuple[int, float]] = ()) -> None:
        kept = self._branches[sample].at  # forks up to there are those of its parent
        self._forks += [(confidence, sample, end) for (end, _), (_, confidence) in pairwise(thoughts) if end > kept]
        super().finish(sample, answer, thoughts)


@dataclass(frozen=True, slots=True)
class Verified:
    """The first sample that `passes`; if the next attempt is expected to be a loss, none, so an empty answer.

    Resampling with a verifier that errs (Inference Scaling fLaws, arXiv 2411.17501): it passes wrong answers as well,
    and more likely the harder the problem is; see `attempt_value`. The cost of `passes` itself is not counted.
    """

    name: ClassVar[str] = "verified"
    requires: ClassVar[frozenset[Capability]] = frozenset()
    passes: Callable[[Prompt, GenerationResult], bool]
    verifier: VerifierRates
    kinds: Sequence[ProblemClass]
    penalty: float = 1.0  # what a wrong answer that passes costs, where a right one earns 1

    def start_vote(self, k: int) -> VoteState:
        """See `AggregationRule.start_vote`; at most k attempts."""
        return _VerifiedVote(k, self)


class _VerifiedVote(VoteState):
    """One attempt after another, each judged when it has finished; after `best` one more would be a loss."""

    def __init__(self, k: int, rule: Verified) -> None:
        self.best = optimal_attempts(rule.kinds, rule.verifier, rule.penalty, most=k)
        super().__init__(k if self.best is None else self.best, early=False)
        self._passes = rule.passes
        self._passed: int | None = None

    def start_samples(self) -> list[Branch]:
        return self._start([ROOT][: self.k - self.started])

    def judge(self, sample: int, prompt: Prompt, result: GenerationResult) -> None:
        if self._passes(prompt, result):
            self._passed = sample
            self._decide(f"attempt {sample + 1} passed")

    def tally(self) -> dict[str, float]:
        return tally(vote for vote in self.votes if vote.sample == self._passed)

    def explain(self) -> str:
        why = "no more are allowed" if self.best is None else "one more would be a loss"
        return self.decision or f"given up after {self.started} attempts: {why}"
