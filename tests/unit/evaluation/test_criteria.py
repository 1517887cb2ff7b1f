"""The bars of the embedded pair: a good pair passes, and each bar alone can be missed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tersely.evaluation.acceptance.criteria import check_criteria


def passing() -> dict[str, Any]:
    base = {"accuracy": 0.5, "first_accuracy": 0.4, "repaired": 30, "spoilt": 5, "after_share": 0.5}
    modes: dict[str, Any] = {m: {"hard half": dict(base), "all": dict(base)} for m in ("normal", "easy", "hard")}
    modes["easy"]["hard half"]["accuracy"] = 0.4
    modes["none"] = {"1": {"accuracy": 0.8}, "6": {"accuracy": 0.05}}
    return {"modes": modes, "hint": {"shortening": 0.4}, "auroc": {"logistic": 0.6, "boosting": 0.7}}


def pair() -> tuple[dict[str, Any], dict[str, Any]]:
    small, large = passing(), passing()
    large["modes"]["normal"]["hard half"] |= {"accuracy": 0.7, "first_accuracy": 0.6}
    return small, large


def test_a_good_pair_passes_every_bar() -> None:
    bars = check_criteria(*pair())
    assert len(bars) == 17
    assert all(bar.passed for bar in bars)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("modes", "easy", "hard half", "accuracy"), 0.46),
        (("modes", "normal", "hard half", "first_accuracy"), 0.48),
        (("modes", "normal", "hard half", "spoilt"), 11),
        (("modes", "none", "1", "accuracy"), 0.69),
        (("modes", "none", "6", "accuracy"), 0.11),
        (("modes", "normal", "all", "after_share"), 0.34),
        (("hint", "shortening"), 0.24),
        (("auroc", "boosting"), 0.76),
        (("auroc",), {}),
    ],
)
def test_each_bar_can_be_missed(path: tuple[str, ...], value: object) -> None:
    small, large = pair()
    holder: dict[str, Any] = small
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = copy.copy(value)
    missed = [bar for bar in check_criteria(small, large) if not bar.passed]
    assert [bar.model for bar in missed] == ["small"]


def test_the_gap_of_the_pair_is_a_bar() -> None:
    small, large = pair()
    large["modes"]["normal"]["hard half"]["accuracy"] = 0.64
    assert [bar.model for bar in check_criteria(small, large) if not bar.passed] == ["pair"]
