r"""Trial answers in the middle of thinking: what the model would answer if it had to stop here, and how sure it is.

As in DEER (arXiv 2504.15895): the thinking is closed, the beginning of the answer is forced, and the confidence is the
geometric mean probability of what the model writes greedily into ``\boxed{``. All of it is dropped afterwards.

Collections for probes also record what a policy that closes here would get: an answer in the model's own words, sampled
like the rest of the output. Where nothing has been worked out yet a model guesses, and how often a sampled guess is
right differs from whether the most likely one is. Where the greedy answer is all but certain, sampling gives the same
answer and is skipped, as it would be most of the work of a collection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .policies.base import TrialAnswer
from .text.answers import extract_boxed, find_closing_brace, normalize_answer
from .text.markers import Markers, closing_text, paragraph_separator
from .text.tokenizer_adapter import TokenizerAdapter
from .types import KEEP, Directive

ANSWER_PREFIX = "The answer is \\boxed{"
MAX_TRIAL_TOKENS = 24
"""Longest trial answer; a longer one is cut here."""
CERTAIN = 0.999
"""From this confidence on, the greedy answer is used as the sampled one."""


@dataclass(frozen=True, slots=True)
class SampledTrial:
    """How an answer is sampled after the greedy one."""

    closing: tuple[int, ...]
    answer_prefix: str
    tokens: int  # longest answer


class TrialDecoder:
    """A trial in progress, opened by `forced` tokens; `sampling` asks for a sampled answer after the greedy one."""

    def __init__(self, codec: TokenizerAdapter, forced: int, sampling: SampledTrial | None = None) -> None:
        self.codec, self.forced, self.sampling = codec, forced, sampling
        self._greedy: TrialAnswer | None = None  # set while the sampled answer is decoded
        self._ids: list[int] = []
        self._log_probability = 0.0
        self._boxed = ""

    @property
    def tokens(self) -> int:
        """Tokens that stand in the sequence because of the trial."""
        return self.forced + len(self._ids)

    def add(self, token: int, probability: float) -> Directive | None:
        """Process a token with its probability; return what follows, None at the end of the trial."""
        self._ids.append(token)
        if self._greedy is not None:
            return None if self._sampled_is_complete(token) else KEEP
        self._log_probability += math.log(max(probability, 1e-12))
        self._boxed += self.codec.decode([token])
        open_box = find_closing_brace(self._boxed) is None
        if open_box and len(self._ids) < MAX_TRIAL_TOKENS and token != self._eos:
            return KEEP
        answer = self._read_answer()
        if self.sampling is None or answer.confidence >= CERTAIN:
            return None
        return self._start_sampling(answer, self.sampling)

    def answer(self) -> TrialAnswer:
        """The result."""
        if self._greedy is not None and self.sampling is not None:
            return replace(self._greedy, sampled=self.sampling.answer_prefix + self._text)
        answer = self._read_answer()
        return answer if self.sampling is None else replace(answer, sampled=f"\\boxed{{{answer.answer}}}")

    def _read_answer(self) -> TrialAnswer:
        confidence = math.exp(self._log_probability / len(self._ids))
        return TrialAnswer(read_boxed(self._text), confidence, self.tokens)

    def _start_sampling(self, answer: TrialAnswer, sampling: SampledTrial) -> Directive:
        retract, self._greedy, self._ids, self.forced = self.tokens, answer, [], len(sampling.closing)
        return Directive(sampling.closing, retract=retract, trial=True, sampled=True)

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


def trial_opening(markers: Markers, tail: str) -> str:
    """The text that closes the thinking, which ends in `tail`, and opens the box of a trial answer."""
    return f"{paragraph_separator(tail)}{markers.close}{markers.close_suffix}{ANSWER_PREFIX}"


def read_boxed(text: str) -> str:
    """The answer that a box holds, normalized, given the text from its start on."""
    return normalize_answer(text[: find_closing_brace(text)])


def start_trial(
    codec: TokenizerAdapter, markers: Markers, tail: str, reserve: int, sampled: bool
) -> tuple[tuple[int, ...], TrialDecoder]:
    """Start a trial after a text that ends in `tail`; return the ids that open it, and the trial.

    A sampled answer has at most `reserve` tokens.
    """
    forced = codec.encode(trial_opening(markers, tail))
    closing = codec.encode(closing_text(markers, "", paragraph_separator(tail)))
    sampling = SampledTrial(closing, markers.answer_prefix, reserve) if sampled else None
    return forced, TrialDecoder(codec, len(forced), sampling)
