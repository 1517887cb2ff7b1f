"""What a policy is compared with on the same recordings: a budget that spends as many tokens, and an oracle.

The budget is one number for all rows of a set, found in hindsight, and cuts hard, as vLLM's and Qwen's do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from ...controller.text.answers import find_statements
from ...controller.text.tokenizer_adapter import TokenizerAdapter
from ...controller.trace import Decision
from ..tasks.equality import AnswerChecker
from .run import Reader, ReplayedRow, Stop, ask_reader, find_stop, grade, is_right

EQUAL_BUDGET, FIRST_CORRECT = "equal-budget", "first-correct"


def match_budget(lengths: Sequence[int], target: int) -> int:
    """The budget with which thinking of these lengths has about `target` tokens in all."""

    def spend(budget: int) -> int:
        return sum(min(budget, length) for length in lengths)

    above = bisect_left(range(max(lengths)), target, key=spend)
    return min((max(1, above - 1), max(1, above)), key=lambda budget: abs(spend(budget) - target))


def cut_at_equal_tokens(
    found: Sequence[ReplayedRow], codec: TokenizerAdapter, reader: Reader | None, checker: AnswerChecker
) -> list[ReplayedRow]:
    """The rows of a policy, each cut at the budget that spends as many tokens as it did, trials included."""
    budget = match_budget([one.tokens for one in found], sum(one.used + one.trial_tokens for one in found))
    close = Decision(EQUAL_BUDGET, "close", f"budget of {budget} thinking tokens is used up", budget)
    cut = []
    for one in found:
        long = one.tokens > budget
        stop = find_stop(one.row, codec.encode(one.row.thinking), close, codec) if long else None
        cut.append(ReplayedRow(one.row, one.tokens, stop))
    return grade(ask_reader(cut, reader), checker)


def stop_at_first_correct(
    found: Sequence[ReplayedRow], codec: TokenizerAdapter, checker: AnswerChecker
) -> list[ReplayedRow]:
    """The rows, each stopped behind the first sentence that states the right answer: what could be saved at most."""
    return grade([ReplayedRow(one.row, one.tokens, _find_first(one, codec, checker)) for one in found], checker)


def _find_first(one: ReplayedRow, codec: TokenizerAdapter, checker: AnswerChecker) -> Stop | None:
    row = one.row
    for statement in find_statements(row.thinking, row.question):
        if is_right(row, statement.answer, checker):
            thinking = row.thinking[: statement.end]
            tokens = min(len(codec.encode(thinking)), one.tokens)
            if not row.thinking[statement.end :].strip():
                return None
            close = Decision(FIRST_CORRECT, "close", "the right answer is stated", tokens)
            return Stop(close, tokens, thinking, statement.answer, statement.answer)
    return None
