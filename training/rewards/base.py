"""The reward interface of TRL, helpers to read completions and columns, and the reward for a correct answer.

TRL calls `reward(prompts=, completions=, completion_ids=, **columns)` with one entry per completion in each argument.
Columns come from the dataset and from the rollouts. The result has one number per completion, or None where the reward
does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import groupby
from numbers import Real
from typing import Any, ClassVar

from ...controller.text.answers import extract_answer
from ...controller.text.markers import Markers
from ...controller.text.reasoning_parser import split_text
from ...errors import OptionError, did_you_mean
from ...evaluation.tasks.equality import DEADLINE, AnswerChecker
from ...evaluation.tasks.questions import Drawn, Question
from ...evaluation.tasks.sandbox import Closing

THINK, NO_THINK, AGENTIC = "think", "no_think", "agentic"
"""Modes of a completion: it thinks, it answers at once, or it calls tools (with or without thinking)."""


class Reward:
    """A reward function. Its settings are plain values, so it can be pickled; TRL logs it under its `__name__`."""

    name: ClassVar[str]

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward per completion."""
        raise NotImplementedError


class Correctness(Reward, Closing):
    """1 for a right answer, 0 for a wrong or missing one, by the equality that the benchmarks use.

    Columns: `answer`, the gold answer, text or a number. Optional: `response`, the text after the thinking, if the
    rollouts have split it off; `gym_entry`, name and entry of a reasoning-gym task; `solved`, a verdict of the
    environment. With one of the last two, `answer` may be None.

    A helper process is started when a comparison needs it; `close()` ends it.
    """

    name = "correctness"

    def __init__(self, marker: str | None = "</think>", deadline: float = DEADLINE) -> None:
        """Prepare the reward.

        Args:
            marker: ends the thinking; None if completions contain no thinking.
            deadline: seconds for a comparison.
        """
        self.marker, self.deadline = marker, deadline
        self._checker = AnswerChecker(deadline)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.marker, self.deadline)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """See `Reward`."""
        gold = require_column(columns, "answer", self.name)
        responses = columns.get("response") or [answer_part(get_text(c), self.marker) for c in completions]
        entries, verdicts = (columns.get(name) or [None] * len(completions) for name in ("gym_entry", "solved"))
        rewards: list[float | None] = []
        for i, (answer, response, entry, solved) in enumerate(zip(gold, responses, entries, verdicts, strict=True)):
            if solved is None:
                text = "" if entry else gold_text(answer, f"row {i} of this batch's column 'answer'")
                solved = self.is_right(text, response, entry)
            rewards.append(float(solved))
        return rewards

    def is_right(self, gold: str, response: str, gym_entry: Sequence[str] | None = None) -> bool:
        """Whether a response gives the gold answer, or solves a reasoning-gym entry."""
        if not response:
            return False
        question = Question("", "", gold, drawn=Drawn(*gym_entry) if gym_entry else None)
        return self._checker.grade(question, response if gym_entry else extract_answer(response)).equal

    def close(self) -> None:
        """End the helper process, if there is one."""
        self._checker.close()


def get_text(completion: Any) -> str:
    """The text of a completion: a string, or the last of several messages."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def answer_part(text: str, close: str | None) -> str:
    """What follows the thinking; empty where that was never closed. close: None if the prompt has closed it."""
    return text.strip() if close is None else split_text(text, Markers("", close), "thinking")[1]


def require_column(columns: Mapping[str, Any], name: str, reward: str) -> Sequence[Any]:
    """A column that a reward needs; raises OptionError."""
    if columns.get(name) is None:
        raise OptionError(
            f"the reward {reward!r} needs the column {name!r}, from the dataset or from tersely's rollouts; "
            f"{did_you_mean(name, sorted(columns))}",
            code="missing_column",
        )
    column: Sequence[Any] = columns[name]
    return column


def gold_text(gold: Any, source: str) -> str:
    """A gold answer as text, with numbers in plain digits; raises OptionError, naming its source."""
    if isinstance(gold, str):
        return gold
    if not isinstance(gold, Real | Decimal) or isinstance(gold, bool) or not _is_finite(gold):
        raise OptionError(
            f"{source} is {gold!r}; accepted: text or a finite number; add it, or remove the row",
            code="invalid_gold_answer",
        )
    text = str(gold)
    return format(Decimal(text), "f") if "e" in text.lower() else text  # answers are not compared in 1e-05 notation


def parse_number(value: Any, source: str) -> float:
    """A value as a finite number; raises OptionError, naming its source."""
    if _is_finite(value):
        with suppress(OverflowError):  # an integer beyond the range of floats
            return float(value)
    raise OptionError(
        f"{source} is {value!r}; accepted: a finite number; add it, or remove the row", code="invalid_number"
    )


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(float(value)))
    except (TypeError, ValueError, OverflowError):
        return False


def get_modes(completions: Sequence[Any], columns: Mapping[str, Any], close: str) -> list[str]:
    """The mode of each completion: from the column `mode`, else by whether it starts with the closing marker."""
    if columns.get("mode") is not None:
        return list(columns["mode"])
    return [NO_THINK if get_text(c).lstrip().startswith(close) else THINK for c in completions]


def group_by_prompt(prompts: Sequence[Any]) -> list[range]:
    """The index ranges of equal prompts; the completions of a question are consecutive."""
    groups, start = [], 0
    for _, equal in groupby(prompts):
        size = sum(1 for _ in equal)
        groups.append(range(start, start + size))
        start += size
    return groups
