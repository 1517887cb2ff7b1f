r"""Trial answers in the middle of thinking: what the model would answer if it had to stop here, and how sure it is.

As in DEER (arXiv 2504.15895): the beginning of an answer is forced, and the confidence is the geometric mean
probability of what the model writes greedily into ``\boxed{``. All of it is dropped afterwards. Unless a `TrialPrompt`
says how to ask, the thinking is closed first. Collections for probes also record an answer in the model's own words,
sampled like the rest of the output: where nothing has been worked out yet, how often a sampled guess is right differs
from whether the most likely one is. Where the greedy answer is all but certain, sampling is skipped.

An engine that can take its tokens back decodes a trial within the sequence. Otherwise another request decodes it, from
the same tokens, and the sequence goes on: the policy then gets the reply at the first end of a sentence after it came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from statistics import fmean

from .budgets import Budget
from .policies.base import Trial, TrialAnswer, TrialPrompt
from .policy_runner import PendingTrial, PolicyTask
from .text.answers import extract_boxed, find_closing_brace, normalize_answer
from .text.markers import Markers, closing_text, paragraph_separator
from .text.thoughts import ThinkingState
from .text.tokenizer_adapter import TokenizerAdapter
from .types import KEEP, Directive, StepInfo

ANSWER_PREFIX = "The answer is \\boxed{"
MAX_TRIAL_TOKENS = 24  # longest trial answer of a trial without a prompt of its own; a longer one is cut here
CERTAIN = 0.999  # from this confidence on, the greedy answer is used as the sampled one

AnswerTrial = Callable[[str, Trial], TrialAnswer]  # answers a trial after the thinking so far


AskTrial = Callable[[int, Sequence[int], "TrialDecoder"], Future[TrialAnswer]]
"""Lets another request decode a trial, after so many tokens of the output and those that open it; never raises."""


@dataclass(frozen=True, slots=True)
class SampledTrial:
    """How an answer is sampled after the greedy one."""

    closing: tuple[int, ...]
    answer_prefix: str
    tokens: int  # longest answer


@dataclass(slots=True)
class TrialDecoder:
    """A trial in progress, opened by `forced` tokens; `sampling` asks for a sampled answer after the greedy one.

    `most` tokens at most are read, and behind the end of the box only of a `whole` reply.
    """

    codec: TokenizerAdapter
    forced: int
    sampling: SampledTrial | None = None
    most: int = MAX_TRIAL_TOKENS
    whole: bool = False
    _greedy: TrialAnswer | None = None  # set while the sampled answer is decoded
    _ids: list[int] = field(default_factory=list)
    _log_probabilities: list[float] = field(default_factory=list)  # of the tokens up to the end of the box
    _boxed: str = ""
    _entropy: float = math.nan

    @property
    def tokens(self) -> int:
        """Tokens that stand in the sequence because of the trial."""
        return self.forced + len(self._ids)

    def add(self, token: int, probability: float, entropy: float = math.nan) -> Directive | None:
        """Process a token with its probability and entropy; return what follows, None at the end of the trial."""
        if not self._ids and self._greedy is None:
            self._entropy = entropy
        self._ids.append(token)
        if self._greedy is not None:
            return None if self._sampled_is_complete(token) else KEEP
        if open_box := find_closing_brace(self._boxed) is None:
            self._log_probabilities.append(math.log(max(probability, 1e-12)))
            self._boxed += self.codec.decode([token])
            open_box = find_closing_brace(self._boxed) is None
        if (open_box or self.whole) and len(self._ids) < self.most and token != self._eos:
            return KEEP
        answer = self._read_answer()
        if self.sampling is None or answer.confidence >= CERTAIN:
            return None
        retract, self._greedy, self._ids, self.forced = self.tokens, answer, [], len(self.sampling.closing)
        return Directive(self.sampling.closing, retract=retract, trial=True, sampled=True)

    def answer(self) -> TrialAnswer:
        if self._greedy is not None and self.sampling is not None:
            return replace(self._greedy, sampled=self.sampling.answer_prefix + self._text)
        answer = self._read_answer()
        return answer if self.sampling is None else replace(answer, sampled=f"\\boxed{{{answer.answer}}}")

    def _read_answer(self) -> TrialAnswer:
        confidence = math.exp(fmean(self._log_probabilities))
        return TrialAnswer(read_boxed(self._text), confidence, self.tokens, text=self._text, entropy=self._entropy)

    def _sampled_is_complete(self, token: int) -> bool:
        """Whether the sampled answer has ended, is full, or has said what counts."""
        assert self.sampling is not None
        if token == self._eos or len(self._ids) >= self.sampling.tokens:
            return True
        return "}" in self.codec.decode([token]) and extract_boxed(self._text) is not None

    @property
    def _eos(self) -> int | None:
        eos: int | None = self.codec.tokenizer.eos_token_id
        return eos

    @property
    def _text(self) -> str:
        return self.codec.decode(self._ids[:-1] if self._ids[-1] == self._eos else self._ids)


def trial_opening(markers: Markers, tail: str, opening: str = ANSWER_PREFIX) -> str:
    """The text that closes the thinking, which ends in `tail`, and opens the box of a trial answer."""
    return f"{paragraph_separator(tail)}{markers.close}{markers.close_suffix}{opening}"


def read_boxed(text: str) -> str:
    """The answer that a box holds, normalized, given the text from its start on."""
    return normalize_answer(text[: find_closing_brace(text)])


def start_trial(
    codec: TokenizerAdapter, markers: Markers, tail: str, reserve: int, asked: Trial
) -> tuple[tuple[int, ...], TrialDecoder]:
    """The ids that open a trial after a text that ends in `tail`, and the trial; a sampled answer fits `reserve`."""
    prompt = asked.prompt or TrialPrompt(ANSWER_PREFIX, MAX_TRIAL_TOKENS, closes=True)
    forced = codec.encode(trial_opening(markers, tail, prompt.opening) if prompt.closes else prompt.opening)
    closing = codec.encode(closing_text(markers, "", paragraph_separator(tail)))
    sampling = SampledTrial(closing, markers.answer_prefix, reserve) if asked.sampled else None
    return forced, TrialDecoder(codec, len(forced), sampling, prompt.tokens, prompt.whole)


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
        self.set_aside: tuple[int, ...] = ()  # the latest tokens of the thinking, before which the trial was asked
        self.failed = False  # whether a trial in another request had no reply; no more are asked then
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
        probability, entropy = (1.0, math.nan) if signals is None else (signals.chosen, signals.entropy)
        if (directive := self._decoder.add(token, probability, entropy)) is not None:
            return directive
        return TrialReply(self._tasks, self._decoder.answer())

    def drop_aside(self) -> None:
        """Take what stands behind the trial out of the thinking."""
        self.thinking.retract(len(self.set_aside))
        self.set_aside = ()

    def end(self, directive: Directive) -> Directive:
        """Drop the trial, and put back what stood behind it as far as what is done now leaves it there."""
        assert self._decoder is not None
        decoder, self._decoder = self._decoder, None
        aside, self.set_aside = self.set_aside, ()
        restored = aside[: max(0, len(aside) - directive.retract)]
        retract = decoder.tokens + directive.retract - (len(aside) - len(restored))
        return Directive((*restored, *directive.force), retract=retract, trial=False, wait_for=directive.wait_for)
