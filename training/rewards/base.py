"""What all rewards share: the calling convention of TRL, and reading completions and columns.

TRL calls `reward(prompts=, completions=, completion_ids=, **columns)` with one entry a completion in each; columns are
those of the dataset and what the rollouts added. The reward is a number for each, or None where it does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import groupby
from numbers import Real
from typing import Any, ClassVar

from ...controller.text.markers import Markers
from ...controller.text.reasoning_parser import split_text
from ...errors import OptionError, did_you_mean

THINK, NO_THINK, AGENTIC = "think", "no_think", "agentic"
"""The modes of a completion: it thinks, it does not, or it calls tools, thinking or not."""


class Reward:
    """A reward: plain settings, so that it can be pickled, and a `__name__`, under which TRL logs it."""

    name: ClassVar[str]

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward for each completion."""
        raise NotImplementedError


def get_text(completion: Any) -> str:
    """The text of a completion: a text as it is, or messages of which the last one counts."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def answer_part(text: str, close: str | None) -> str:
    """What follows the thinking; empty where that was never closed. close: None if the prompt has closed it."""
    return text.strip() if close is None else split_text(text, Markers("", close), "thinking")[1]


def needed(columns: Mapping[str, Any], name: str, who: str) -> Sequence[Any]:
    """A column that a reward cannot do without; raises OptionError."""
    if name not in columns or columns[name] is None:
        raise OptionError(
            f"the reward {who!r} needs a column {name!r}, in the dataset or from tersely's rollouts; "
            f"{did_you_mean(name, sorted(columns))}"
        )
    found: Sequence[Any] = columns[name]
    return found


def gold_text(gold: Any, where: str) -> str:
    """A gold answer as text, a number in plain digits; raises OptionError, naming `where` it stands, for neither."""
    if isinstance(gold, str):
        return gold
    if not isinstance(gold, Real | Decimal) or isinstance(gold, bool) or not _is_finite(gold):
        raise OptionError(f"{where} is {gold!r}; accepted: text or a finite number; give one, or leave the row out")
    text = str(gold)
    return format(Decimal(text), "f") if "e" in text.lower() else text  # no comparison of answers reads 1e-05


def parse_number(value: Any, where: str) -> float:
    """A value as a finite number; raises OptionError, naming `where` it stands, for what is none."""
    if _is_finite(value):
        with suppress(OverflowError):  # a whole number beyond floats
            return float(value)
    raise OptionError(f"{where} is {value!r}; accepted: a finite number; give one, or leave the row out")


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(float(value)))
    except (TypeError, ValueError, OverflowError):
        return False


def get_modes(completions: Sequence[Any], columns: Mapping[str, Any], close: str) -> list[str]:
    """The mode of each completion: as the rollouts say, otherwise by whether it begins with the closing marker."""
    if columns.get("mode") is not None:
        return list(columns["mode"])
    return [NO_THINK if get_text(c).lstrip().startswith(close) else THINK for c in completions]


def groups(prompts: Sequence[Any]) -> list[range]:
    """Stretches of equal prompts: the completions of one question stand side by side."""
    made, start = [], 0
    for _, same in groupby(prompts):
        size = sum(1 for _ in same)
        made.append(range(start, start + size))
        start += size
    return made
