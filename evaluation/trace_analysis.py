"""Analysis of a generation's text: the answers that its thinking states, where, and the final answer."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..controller.text.answers import extract_answer, extract_stated_answer, normalize_answer
from ..controller.text.tokenizer_adapter import TokenizerAdapter
from ..controller.trace import GenerationResult

_LINE = re.compile(r"[^\n]+")
_VERDICT = re.compile(r"\bNow (\d+), before (\d+): (?:the )?(same|different)\b")


@dataclass(frozen=True, slots=True)
class StatedLine:
    """An answer stated in the thinking; `end` is the end of its line, in thinking tokens."""

    answer: str
    end: int


@dataclass(frozen=True, slots=True)
class TraceReading:
    """One analysed generation: its normalized final answer ("" for none) and its tokens of thinking.

    `verdicts` say, for each re-check in the embedded models' form, whether it fits the two numbers that it names.
    """

    final: str
    tokens: int
    statements: tuple[StatedLine, ...] = ()
    verdicts: tuple[bool, ...] = ()

    @property
    def first(self) -> str:
        """The first stated answer; the final one if the thinking states none."""
        return self.statements[0].answer if self.statements else self.final

    @property
    def after(self) -> int:
        """Thinking tokens after the answer last changed: after the final one was stated for good."""
        at = self.tokens
        for statement in reversed(self.statements):
            if statement.answer != self.final:
                break
            at = statement.end
        return self.tokens - at

    def changes(self, gold: str) -> tuple[int, int]:
        """How often a statement corrected a wrong answer, and how often it broke a right one."""
        right = [s.answer == gold for s in self.statements]
        pairs = list(pairwise(right))
        return pairs.count((False, True)), pairs.count((True, False))


def read(generation: GenerationResult, codec: TokenizerAdapter) -> TraceReading:
    """Analyse one generation."""
    tokens = generation.usage.thinking
    ids = generation.token_ids[:tokens]
    text = codec.decode(ids)
    stated = [(extract_stated_answer(line.group()), line.end()) for line in _LINE.finditer(text)]
    statements = [StatedLine(answer, tokens_until(ids, codec, end)) for answer, end in stated if answer is not None]
    verdicts = [(now == before) == (word == "same") for now, before, word in _VERDICT.findall(text)]
    return TraceReading(final_answer(generation), tokens, tuple(statements), tuple(verdicts))


def final_answer(generation: GenerationResult) -> str:
    """The normalized final answer of a generation; "" if there is none."""
    return normalize_answer(extract_answer(generation.answer)) if generation.answer else ""


def tokens_until(ids: Sequence[int], codec: TokenizerAdapter, characters: int) -> int:
    """The smallest number of leading tokens whose text has at least this many characters."""
    return bisect_left(range(len(ids)), characters, key=lambda n: len(codec.decode(ids[:n])))
