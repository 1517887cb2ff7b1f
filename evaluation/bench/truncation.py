"""Rules that decide where to truncate a recorded generation; they need no model.

The decision is made by a controller that watches the recording, so a cut is where a live policy could have made it, and
never inside mathematics or code. A budget closes the thinking with the budget-forcing sentence, the other rules with
the marker alone. Only a hard budget cuts wherever it is reached, as servers do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from ...controller.budgets import Budget
from ...controller.controller import Controller, ControllerState
from ...controller.policies.base import Close, Policy, PolicyView, Wait, Watching
from ...controller.policies.exits import BudgetForcing
from ...controller.text.markers import Markers, closing_text
from ...controller.text.tokenizer_adapter import TokenizerAdapter

HARD_CLOSING = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now."
)
"""The words with which Qwen's thinking budget ends a thinking (Qwen3 report, 4.3)."""
_SEARCH_STEPS = 12


@dataclass(frozen=True, slots=True)
class TrialPoint:
    """A trial answer after one thought: confidence (geometric mean probability), cost in tokens, and correctness."""

    confidence: float
    tokens: int
    right: bool


@dataclass(frozen=True, slots=True)
class Recording:
    """One generation of the baseline that can be truncated; `ids` are its output tokens.

    `opened` says that the prompt already opened the thinking, and `budget` is all room for thinking that leaves the
    answer its reserve. `ends` of thoughts are in thinking tokens; trial answers were asked for after `trial_ends`.
    """

    id: str
    ids: tuple[int, ...]
    thinking: int
    answer_tokens: int
    opened: bool
    budget: Budget
    ends: tuple[int, ...] = ()
    trial_ends: tuple[int, ...] = ()
    trials: tuple[TrialPoint, ...] = ()

    @property
    def total(self) -> int:
        """All output tokens."""
        return self.thinking + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Truncation:
    """A truncated output; its last `forced` tokens close the thinking."""

    ids: tuple[int, ...]
    forced: int


@dataclass(frozen=True, slots=True)
class StopAt(Policy):
    """A policy that closes the thinking after a number of tokens."""

    name: ClassVar[str] = "stop at"
    at: int

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=self.at, boundary="token", deadline=self.at)
        yield Close(f"{self.at} tokens thought", phrase="")


@dataclass(frozen=True, slots=True)
class _RecordEnds(Policy):
    """A policy that records where thoughts end, and never acts."""

    name: ClassVar[str] = "ends"
    ends: list[int]

    def watch(self, view: PolicyView) -> Watching:
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            self.ends.append(view.tokens)


@dataclass(frozen=True, slots=True)
class TruncationBaseline:
    """Truncates recordings as a controller with this tokenizer and these markers would."""

    codec: TokenizerAdapter
    markers: Markers

    def find_ends(self, recording: Recording) -> tuple[int, ...]:
        """Ends of thoughts, in thinking tokens, that leave room for an answer; without the last."""
        ends: list[int] = []
        self._watch(recording, _RecordEnds(ends), recording.budget)
        return tuple(end for end in ends if end < recording.thinking - 1 and end <= recording.budget.thinking)

    def truncate_at(self, recording: Recording, tokens: int) -> Truncation | None:
        """Truncate after a number of thinking tokens; None if the thinking ended before."""
        return self._watch(recording, StopAt(tokens), recording.budget)

    def truncate_to_budget(self, recording: Recording, budget: int) -> Truncation | None:
        """Truncate as budget forcing would; None if the thinking stayed within the budget."""
        full = recording.budget
        tight = Budget(full.tier, min(budget, full.thinking), full.reserve)
        return self._watch(recording, BudgetForcing(), tight)

    def truncate_hard(self, recording: Recording, budget: int) -> Truncation | None:
        """Truncate at a budget to the token, the closing not counted, as vLLM and Qwen do; None if it is not longer."""
        budget = min(budget, recording.budget.thinking)
        if recording.thinking <= budget + 1:
            return None
        closing = self.codec.encode(closing_text(self.markers, HARD_CLOSING, "\n\n"))
        return Truncation((*recording.ids[:budget], *closing), len(closing))

    def _watch(self, recording: Recording, policy: Policy, budget: Budget) -> Truncation | None:
        controller = Controller([policy], self.codec, self.markers, budget, opened=recording.opened)
        for position, token in enumerate(recording.ids, 1):
            directive = controller.observe(token)
            if directive.force:
                ids = (*recording.ids[: position - directive.retract], *directive.force)
                return Truncation(ids, len(directive.force))
            if controller.state is ControllerState.ANSWER:
                break
        return None


def pick_evenly(ends: Sequence[int], most: int) -> tuple[int, ...]:
    """At most this many of the ends, evenly spaced."""
    if len(ends) <= most:
        return tuple(ends)
    return tuple(ends[i] for i in np.linspace(0, len(ends) - 1, most).round().astype(int))


def estimate_cost(recording: Recording, truncation: Truncation | None, trial_tokens: int) -> int:
    """Tokens of a truncated recording and its trials, assuming an answer as long as the recorded one."""
    if truncation is None:
        return trial_tokens + recording.total
    return trial_tokens + len(truncation.ids) + recording.answer_tokens


def bisect_to_cost(costs: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The setting in low..high whose mean cost, which must rise with it, is nearest to the target."""
    cost, tried, below, above = cache(costs), {low, high}, low, high
    for _ in range(_SEARCH_STEPS):
        middle = (below + above) / 2
        tried.add(middle)
        if cost(middle) < target:
            below = middle
        else:
            above = middle
    return min(tried, key=lambda setting: (abs(cost(setting) - target), setting))


def random_stop(recording: Recording, probability: float, seed: int, rollout: int) -> int | None:
    """The end after which a biased coin, tossed after each thought, stops the thinking; None if it never does.

    The tosses of a recording do not depend on the probability, so the cost falls as the probability rises.
    """
    coin = random.Random(f"{seed}:{rollout}:{recording.id}")
    return next((end for end in recording.ends if coin.random() < probability), None)


def confident_stop(recording: Recording, threshold: float) -> tuple[int | None, int]:
    """The first end with a trial answer of at least this confidence, and the cost of all trials up to it."""
    paid = 0
    for end, trial in zip(recording.trial_ends, recording.trials, strict=True):
        paid += trial.tokens
        if trial.confidence >= threshold:
            return end, paid
    return None, paid


def first_correct(recording: Recording) -> int | None:
    """The first end with a correct trial answer."""
    pairs = zip(recording.trial_ends, recording.trials, strict=True)
    return next((end for end, trial in pairs if trial.right), None)


def curve_budgets(recordings: Sequence[Recording], count: int) -> list[int]:
    """Budgets for a curve, evenly spaced on a log scale, from one that truncates most to one that truncates few."""
    lengths = np.array([recording.thinking for recording in recordings if recording.thinking])
    if not len(lengths):
        return []
    low, high = np.quantile(lengths, [0.02, 0.95])
    return sorted({int(b) for b in np.geomspace(max(low / 2, 8), max(high, 9), count)})
