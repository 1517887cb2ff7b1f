r"""A trial answer in mid-thinking: what the model would say if it had to stop here, and how sure it is of it.

As in DEER (arXiv 2504.15895): the thinking is closed, the answer's opening is forced, and the confidence is the
geometric mean probability of what the model writes greedily into `\\boxed{`. All of it is discarded afterwards.

Whoever learns from trials wants to know, beside that, what a policy that closes here would get: an answer in the
model's own words, sampled as all else is. Where nothing has been worked out yet a model guesses, and how often a
sampled guess is right is another matter than whether the likeliest one is. Where the greedy answer is all but certain,
sampling gives the same, and drawing again would be most of the work of a collection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .text.answers import extract_boxed, normalize_answer
from .text.closing import closing_text, paragraph_separator
from .text.markers import Markers
from .text.tokenizer_adapter import TokenizerAdapter
from .types import KEEP, Directive

LEAD = "The answer is \\boxed{"
MOST_TOKENS = 24
"""Longest trial answer; one that is not over by then counts as far as it goes."""
CERTAIN = 0.999
"""The confidence from which on the greedy answer is taken for the drawn one."""


@dataclass(frozen=True, slots=True)
class SampledTrial:
    """How an answer is drawn: the ids that close the thinking, what stands before it in words, its longest size."""

    closing: tuple[int, ...]
    answering: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """What a trial said, in the spelling in which equal answers are equal; its confidence; its cost in tokens.

    drawn: the sampled answer, in the model's own words, where that was asked for; its tokens are not counted.
    """

    answer: str
    confidence: float
    tokens: int
    drawn: str | None = None


class TrialDecoder:
    """A trial under way: `forced` tokens opened it; draw: how an answer is drawn after it, if one is wanted."""

    def __init__(self, codec: TokenizerAdapter, forced: int, draw: SampledTrial | None = None) -> None:
        self.codec, self.forced, self.draw = codec, forced, draw
        self._greedy: TrialAnswer | None = None  # what the trial came to, while an answer is drawn
        self._ids: list[int] = []
        self._logs = 0.0
        self._depth = 1

    @property
    def tokens(self) -> int:
        """Tokens that stand in the row because of the trial."""
        return self.forced + len(self._ids)

    def take(self, token: int, chance: float) -> Directive | None:
        """Take in a token with its probability; what follows from it, None at the end of the trial."""
        self._ids.append(token)
        if self._greedy is not None:
            return None if self._is_drawn(token) else KEEP
        self._logs += math.log(max(chance, 1e-12))
        self._depth = brace_depth(self._depth, self.codec.decode([token]))
        if self._depth > 0 and len(self._ids) < MOST_TOKENS and token != self._eos:
            return KEEP
        said = self._said()
        if self.draw is None or said.confidence >= CERTAIN:
            return None
        return self._begin_draw(said, self.draw)

    def answer(self) -> TrialAnswer:
        """What was said."""
        if self._greedy is not None and self.draw is not None:
            return replace(self._greedy, drawn=self.draw.answering + self._text)
        said = self._said()
        return said if self.draw is None else replace(said, drawn=f"\\boxed{{{said.answer}}}")

    def _said(self) -> TrialAnswer:
        return TrialAnswer(
            normalize_answer(boxed_content(self._text)), math.exp(self._logs / len(self._ids)), self.tokens
        )

    def _begin_draw(self, said: TrialAnswer, draw: SampledTrial) -> Directive:
        standing, self._greedy, self._ids, self.forced = self.tokens, said, [], len(draw.closing)
        return Directive(draw.closing, drop=standing, trial=True, drawn=True)

    def _is_drawn(self, token: int) -> bool:
        """Whether the drawn answer is over: it has ended, is full, or has said what counts."""
        assert self.draw is not None
        if token == self._eos or len(self._ids) >= self.draw.tokens:
            return True
        return "}" in self.codec.decode([token]) and extract_boxed(self._text) is not None

    @property
    def _eos(self) -> int | None:
        found: int | None = self.codec.tokenizer.eos_token_id
        return found

    @property
    def _text(self) -> str:
        return self.codec.decode(self._ids[:-1] if self._ids[-1] == self._eos else self._ids)


def start_trial(
    codec: TokenizerAdapter, markers: Markers, tail: str, reserve: int, drawn: bool
) -> tuple[tuple[int, ...], TrialDecoder]:
    """The ids that open a trial after a text that ends so, and the trial; reserve: longest drawn answer, in tokens."""
    lead = paragraph_separator(tail)
    forced = codec.encode(f"{lead}{markers.close}{markers.after}{LEAD}")
    draw = SampledTrial(codec.encode(closing_text(markers, "", lead)), markers.answering, reserve) if drawn else None
    return forced, TrialDecoder(codec, len(forced), draw)


def brace_depth(depth: int, text: str) -> int:
    """How many braces are open after a text, if `depth` were before; stops at the one that closes the first."""
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            break
    return depth


def boxed_content(text: str) -> str:
    """What stands in a box that was opened before the text, up to the brace that closes it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:place]
    return text
