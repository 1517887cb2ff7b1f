r"""A trial answer in mid-thinking: what the model would say if it had to stop here, and how sure it is of it.

As in DEER (arXiv 2504.15895): the thinking is closed, the answer's opening is forced, and the confidence is the
geometric mean probability of what the model writes greedily into `\\boxed{`. All of it is discarded afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .answers import normalise
from .text import Codec

LEAD = "The answer is \\boxed{"
MOST_TOKENS = 24
"""Longest trial answer; one that is not over by then counts as far as it goes."""


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """What a trial said, in the spelling in which equal answers are equal; its confidence; its cost in tokens."""

    answer: str
    confidence: float
    tokens: int


class TrialRun:
    """A trial under way: `forced` tokens opened it."""

    def __init__(self, codec: Codec, forced: int) -> None:
        self.codec, self.forced = codec, forced
        self._ids: list[int] = []
        self._logs = 0.0
        self._depth = 1

    @property
    def tokens(self) -> int:
        """Tokens of the trial so far."""
        return self.forced + len(self._ids)

    def take(self, token: int, chance: float) -> bool:
        """Take in a token with its probability; whether that ends the trial."""
        self._ids.append(token)
        self._logs += math.log(max(chance, 1e-12))
        self._depth = depth_after(self._depth, self.codec.decode([token]))
        return self._depth <= 0 or len(self._ids) >= MOST_TOKENS or token == self.codec.tokenizer.eos_token_id

    def answer(self) -> TrialAnswer:
        """What was said."""
        end = self._ids[-1] == self.codec.tokenizer.eos_token_id
        text = self.codec.decode(self._ids[:-1] if end else self._ids)
        return TrialAnswer(normalise(inside(text)), math.exp(self._logs / len(self._ids)), self.tokens)


def depth_after(depth: int, text: str) -> int:
    """How many braces are open after a text, if `depth` were before; stops at the one that closes the first."""
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            break
    return depth


def inside(text: str) -> str:
    """What stands in a box that was opened before the text, up to the brace that closes it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:place]
    return text
