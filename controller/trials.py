"""The trials of one sequence: decoded within it, by another request, or answered for the model in shadow mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

from .budgets import Budget
from .policies.base import Trial, TrialAnswer
from .policy_runner import PolicyTask
from .text.markers import Markers
from .text.thoughts import ThinkingState
from .text.tokenizer_adapter import TokenizerAdapter
from .trial_answers import AnswerTrial, AskTrial, PendingTrial, TrialDecoder, start_trial
from .types import KEEP, Directive, StepInfo


@dataclass(frozen=True, slots=True)
class TrialReply:
    """What the policies that asked for a trial get: its answer, or None where there was no room for it."""

    tasks: Sequence[PolicyTask]
    answer: TrialAnswer | None


class TrialManager:
    """Starts trials, follows the one within the sequence, and puts back what stood behind it.

    Args:
        answer: answers trials in shadow mode, where the model is not asked; None leaves them without a reply.
        ask: lets other requests decode trials; None decodes them within the sequence.
    """

    def __init__(
        self,
        codec: TokenizerAdapter,
        markers: Markers,
        budget: Budget,
        thinking: ThinkingState,
        answer: AnswerTrial | None = None,
        ask: AskTrial | None = None,
    ) -> None:
        self.codec, self.markers, self.budget, self.thinking = codec, markers, budget, thinking
        self.set_aside: tuple[int, ...] = ()
        """The latest tokens of the thinking, before which the trial was asked."""
        self.failed = False
        """Whether a trial in another request had no reply; no more are asked then."""
        self._answer, self._ask = answer, ask
        self._decoder: TrialDecoder | None = None
        self._tasks: Sequence[PolicyTask] = ()

    def start(self, wanted: Sequence[tuple[PolicyTask, Trial]], position: int, shadow: bool) -> Directive | TrialReply:
        """Start one trial after `position` tokens for all that want the same one.

        Returns the directive that opens it within the sequence, KEEP where another request decodes it, or a reply.
        """
        tasks, asked = self._choose(wanted)
        kept = len(self.thinking) - self.thinking.retractable(asked.retract)
        before = self.codec.decode(self.thinking.ids[max(0, kept - 4) : kept])
        forced, trial = start_trial(self.codec, self.markers, before, self.budget.reserve, asked)
        fits = len(forced) + trial.most <= self.budget.thinking + self.budget.reserve - position
        aside = tuple(self.thinking.ids[kept:])
        if self._ask is not None:
            if not fits or self.failed:
                return TrialReply(tasks, None)
            asked_at = position - len(aside)
            pending = PendingTrial(asked_at, self._ask(asked_at, forced, trial))
            for task in tasks:
                task.wait_for(pending)
            return KEEP
        if shadow:
            if self._answer is None:
                return TrialReply(tasks, None)
            self.set_aside = aside
            return TrialReply(tasks, self._answer(self.codec.decode(self.thinking.ids[:kept]), asked))
        if not fits:
            return TrialReply(tasks, None)
        self._decoder, self._tasks, self.set_aside = trial, tasks, aside
        return Directive(forced, retract=len(aside), trial=True)

    def _choose(self, wanted: Sequence[tuple[PolicyTask, Trial]]) -> tuple[list[PolicyTask], Trial]:
        """The first trial that is wanted, and who wants the same; the others continue without one."""
        sampled = self._ask is None and any(action.sampled for _, action in wanted)
        asked = replace(wanted[0][1], sampled=sampled)
        tasks = []
        for task, action in wanted:
            if replace(action, sampled=sampled) == asked:
                tasks.append(task)
            else:
                task.advance()
        return tasks, asked

    def add(self, token: int, step: StepInfo | None) -> Directive | TrialReply:
        """Process a token of the trial; the reply comes with its last one."""
        assert self._decoder is not None
        signals = None if step is None else step.signals
        probability, entropy = (1.0, nan) if signals is None else (signals.chosen, signals.entropy)
        if (directive := self._decoder.add(token, probability, entropy)) is not None:
            return directive
        return TrialReply(self._tasks, self._decoder.answer())

    def end(self, directive: Directive) -> Directive:
        """Drop the trial, and put back what stood behind it as far as what is done now leaves it there."""
        assert self._decoder is not None
        decoder, self._decoder = self._decoder, None
        aside, self.set_aside = self.set_aside, ()
        restored = aside[: max(0, len(aside) - directive.retract)]
        retract = decoder.tokens + directive.retract - (len(aside) - len(restored))
        return Directive((*restored, *directive.force), retract=retract, trial=False, wait_for=directive.wait_for)
