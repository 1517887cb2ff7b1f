"""Reading a generation: which answers its thinking stated, where, and what became of the first one.

Plain text analysis over what was generated; it knows neither the model nor the gold answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..controller.text.answers import extract_answer, extract_stated_answer, normalize_answer
from ..controller.text.tokenizer_adapter import TokenizerAdapter
from ..controller.trace import GenerationResult

_LINE = re.compile(r"[^\n]+")
_VERDICT = re.compile(r"\bNow (\d+), before (\d+): (?:the )?(same|different)\b")


@dataclass(frozen=True, slots=True)
class Statement:
    """An answer that the thinking stated; `end` counts thinking tokens up to the end of the stating line."""

    answer: str
    end: int


@dataclass(frozen=True, slots=True)
class TraceReading:
    """One generation read: `tokens` of thinking, the statements in it, and the final answer.

    verdicts: for each re-check of the embedded models' form, whether its verdict fits the two numbers it names.
    """

    final: str
    tokens: int
    statements: tuple[Statement, ...] = ()
    verdicts: tuple[bool, ...] = ()

    @property
    def first(self) -> str:
        """The first stated answer; the final one where the thinking stated none, as nothing else could be taken."""
        return self.statements[0].answer if self.statements else self.final

    @property
    def settled(self) -> int:
        """Thinking tokens when the final answer was stated and never changed again; all of them if it never was."""
        at = self.tokens
        for statement in reversed(self.statements):
            if statement.answer != self.final:
                break
            at = statement.end
        return at

    @property
    def after(self) -> int:
        """Thinking tokens spent after the answer last changed."""
        return self.tokens - self.settled

    def changes(self, gold: str) -> tuple[int, int]:
        """How often a statement turned a wrong answer right, and a right one wrong."""
        right = [s.answer == gold for s in self.statements]
        pairs = list(pairwise(right))
        return pairs.count((False, True)), pairs.count((True, False))


def read(generation: GenerationResult, codec: TokenizerAdapter) -> TraceReading:
    """Read one generation; without a final answer (cut off, say) its `final` is empty."""
    tokens = generation.usage.thinking
    ids = generation.token_ids[:tokens]
    text = codec.decode(ids)
    statements = []
    for line in _LINE.finditer(text):
        answer = extract_stated_answer(line.group())
        if answer is not None:
            statements.append(Statement(answer, tokens_until(ids, codec, line.end())))
    verdicts = [(now == before) == (said == "same") for now, before, said in _VERDICT.findall(text)]
    return TraceReading(final_answer(generation), tokens, tuple(statements), tuple(verdicts))


def final_answer(generation: GenerationResult) -> str:
    """The answer a generation ends with, in one spelling; empty if it gave none."""
    return normalize_answer(extract_answer(generation.answer)) if generation.answer else ""


def tokens_until(ids: Sequence[int], codec: TokenizerAdapter, characters: int) -> int:
    """The fewest first tokens whose text has at least this many characters."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(codec.decode(ids[:middle])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low
