"""Where the baseline's thinking would have been cut: rules that need no model, only what it wrote and trial answers.

A cut is decided on recorded output by the controller that would have watched it live, so it falls where a live policy
could have cut, and never falls inside mathematics or code. A budget closes with the sentence that budget forcing
writes; the other rules close with the marker alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...controller.budgets import Budget
from ...controller.controller import Controller
from ...controller.policies.base import Close, Policy, PolicyView, Wait, Watching
from ...controller.policies.budget import BudgetForcing
from ...controller.text.markers import Markers
from ...controller.text.tokenizer_adapter import TokenizerAdapter


@dataclass(frozen=True, slots=True)
class TrialPoint:
    """A trial answer after one thought: its confidence (geometric mean probability), its cost in tokens, its truth."""

    confidence: float
    tokens: int
    right: bool


@dataclass(frozen=True, slots=True)
class Recording:
    """One generation of the baseline that can be cut.

    ids: its output; thinking and answer_tokens count them. opened: the prompt had opened the thinking. budget: all that
    there was room for, the answer's reserve kept. ends: thinking tokens at the ends of thoughts. tries: those of the
    ends at which trial answers were asked for.
    """

    id: str
    ids: tuple[int, ...]
    thinking: int
    answer_tokens: int
    opened: bool
    budget: Budget
    ends: tuple[int, ...] = ()
    tries: tuple[int, ...] = ()
    trials: tuple[TrialPoint, ...] = ()

    @property
    def total(self) -> int:
        """Tokens of the whole."""
        return self.thinking + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Truncation:
    """What is kept of a source's output, and the `forced` last tokens of it that close the thinking."""

    ids: tuple[int, ...]
    forced: int


@dataclass(frozen=True, slots=True)
class StopAt:
    """Close as soon as so many tokens were thought."""

    name: ClassVar[str] = "stop at"
    needs: ClassVar[frozenset[str]] = frozenset()
    at: int

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        yield Wait(at=self.at, boundary="token", deadline=self.at)
        yield Close(f"{self.at} tokens thought", phrase="")


@dataclass(frozen=True, slots=True)
class _Ends:
    """Notes where thoughts end, and never acts."""

    name: ClassVar[str] = "ends"
    needs: ClassVar[frozenset[str]] = frozenset()
    found: list[int]

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        while True:
            view = yield Wait(at=view.tokens + 1, boundary="thought")
            self.found.append(view.tokens)


@dataclass(frozen=True, slots=True)
class TruncationBaseline:
    """Cuts sources as a controller on this tokenizer and these markers would."""

    codec: TokenizerAdapter
    markers: Markers

    def ends(self, source: Recording) -> tuple[int, ...]:
        """Thinking tokens at the ends of thoughts after which there is room for an answer, the last left out."""
        found: list[int] = []
        self._watch(source, _Ends(found), source.budget)
        return tuple(end for end in found if end < source.thinking - 1 and end <= source.budget.thinking)

    def at(self, source: Recording, tokens: int) -> Truncation | None:
        """Cut after so many thinking tokens; None if the thinking was over before."""
        return self._watch(source, StopAt(tokens), source.budget)

    def at_budget(self, source: Recording, budget: int) -> Truncation | None:
        """Cut as budget forcing would; None if the thinking kept to the budget."""
        tight = Budget(source.budget.tier, min(budget, source.budget.thinking), source.budget.reserve)
        return self._watch(source, BudgetForcing(), tight)

    def _watch(self, source: Recording, policy: Policy, budget: Budget) -> Truncation | None:
        controller = Controller([policy], self.codec, self.markers, budget, opened=source.opened)
        for place, token in enumerate(source.ids, 1):
            directive = controller.observe(token)
            if directive.force:
                return Truncation((*source.ids[: place - directive.drop], *directive.force), len(directive.force))
            if controller.phase == "answer":
                break
        return None


def spread(ends: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the ends, evenly spread."""
    if len(ends) <= most:
        return tuple(ends)
    return tuple(ends[i] for i in np.linspace(0, len(ends) - 1, most).round().astype(int))


def cost(source: Recording, cut: Truncation | None, probe: int) -> int:
    """Tokens of a cut source with what trials cost, its answer taken to be as long as the source's own."""
    return probe + (source.total if cut is None else len(cut.ids) + source.answer_tokens)


def bisect_to_cost(costs: Callable[[float], float], target: float, low: float, high: float, steps: int = 12) -> float:
    """The setting in low..high whose mean cost, rising with it, comes nearest to the target (bisection)."""
    tried: dict[float, float] = {}

    def of(setting: float) -> float:
        if setting not in tried:
            tried[setting] = costs(setting)
        return tried[setting]

    below, above = low, high
    for _ in range(steps):
        middle = (below + above) / 2
        if of(middle) < target:
            below = middle
        else:
            above = middle
    of(low), of(high)
    return min(tried, key=lambda setting: (abs(tried[setting] - target), setting))


def random_stop(source: Recording, chance: float, seed: int, rollout: int) -> int | None:
    """The end after which a coin of this chance, thrown after each thought, ends the thinking; None: none does.

    The throws of one source are the same whatever the chance, so that costs fall as it rises.
    """
    coin = random.Random(f"{seed}:{rollout}:{source.id}")
    return next((end for end in source.ends if coin.random() < chance), None)


def confident_stop(source: Recording, threshold: float) -> tuple[int | None, int]:
    """The first end whose trial answer is at least so confident, and what all trials up to it cost."""
    paid = 0
    for end, trial in zip(source.tries, source.trials, strict=True):
        paid += trial.tokens
        if trial.confidence >= threshold:
            return end, paid
    return None, paid


def first_correct(source: Recording) -> int | None:
    """The first end after which a trial answer is right."""
    return next((end for end, trial in zip(source.tries, source.trials, strict=True) if trial.right), None)


def budgets(sources: Sequence[Recording], count: int) -> list[int]:
    """Budgets for a curve, evenly spaced on a log scale, from one that cuts nearly all to one that cuts few."""
    lengths = np.array([source.thinking for source in sources if source.thinking])
    if not len(lengths):
        return []
    low, high = np.quantile(lengths, [0.02, 0.95])
    return sorted({int(b) for b in np.geomspace(max(low / 2, 8), max(high, 9), count)})
