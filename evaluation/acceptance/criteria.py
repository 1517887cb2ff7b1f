"""The bars an embedded pair must clear, each with what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Criterion:
    """One requirement: the value measured, the limit it is held to, and whether it is a lower or an upper limit."""

    model: str
    what: str
    value: float
    limit: float
    at_least: bool = True

    @property
    def passed(self) -> bool:
        """Whether the value is on the right side; an unmeasurable one (NaN) is not."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        word = "pass" if self.passed else "FAIL"
        return f"{word}  {self.model:7} {self.what}: {self.value:.3f} (bar {sign} {self.limit:g})"


def check_criteria(card_small: Facts, card_large: Facts) -> list[Criterion]:
    """All bars of the pair, from the facts that `measure` gives."""
    small, large = _hard(card_small, "normal"), _hard(card_large, "normal")
    gap = large["accuracy"] - small["accuracy"]
    bars = [Criterion("pair", "accuracy of large above small, hard half", gap, 0.15)]
    return bars + model_criteria("small", card_small) + model_criteria("large", card_large)


def model_criteria(name: str, card: Facts) -> list[Criterion]:
    """The bars of one model alone."""
    modes = card["modes"]
    normal, hard, easy = (_hard(card, mode) for mode in ("normal", "hard", "easy"))
    repairs = normal["repaired"] / max(1, normal["spoilt"])
    predicted = max(card["auroc"].values(), default=float("nan"))
    return [
        Criterion(name, "accuracy of hard mode above easy mode, hard half", hard["accuracy"] - easy["accuracy"], 0.05),
        Criterion(
            name, "final accuracy above first stated, hard half", normal["accuracy"] - normal["first_accuracy"], 0.03
        ),
        Criterion(name, "repaired per spoilt answer, hard half", repairs, 3.0),
        Criterion(name, "accuracy without thinking, level 1", modes["none"]["1"]["accuracy"], 0.70),
        Criterion(name, "accuracy without thinking, level 6", modes["none"]["6"]["accuracy"], 0.10, at_least=False),
        Criterion(name, "share of thinking after the answer last changed", modes["normal"]["all"]["after_share"], 0.35),
        Criterion(name, "shortening by a hint in mid-thought", card["hint"]["shortening"], 0.25),
        Criterion(name, "AUROC of length and kind alone", predicted, 0.75, at_least=False),
    ]


def _hard(card: Facts, mode: str) -> dict[str, float]:
    cell: dict[str, float] = card["modes"][mode]["hard half"]
    return cell
