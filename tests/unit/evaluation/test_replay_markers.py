"""Markers in right and wrong thinking, counted by hand."""

from __future__ import annotations

import pytest

from tersely.evaluation.replay.formats import RecordedOutput
from tersely.evaluation.replay.result import MARKERS, compare_markers
from tersely.evaluation.replay.run import ReplayedRow


def replayed(thinking: str, right: bool, gold: str | None = "5") -> ReplayedRow:
    return ReplayedRow(RecordedOutput("1", "q", thinking, "5", gold), 10, None, right_full=right)


def test_markers_are_means_per_thousand_words() -> None:
    rows = [
        replayed("Therefore it is five, so we stop.", True),  # 7 words: 2 of discourse
        replayed("It is five because 2 + 3.", True),  # 7 words: 1 of discourse
        replayed("Maybe four. Wait, let me check: hold on.", False),  # 8 words: 1 hedge, 3 of thinking
    ]
    found = compare_markers(rows)
    assert found is not None
    assert found["words"] == {"right": 7.0, "wrong": 8.0}
    assert found["discourse"] == pytest.approx({"right": 1000 * (2 + 1) / 7 / 2, "wrong": 0.0})
    assert found["hedging"] == pytest.approx({"right": 0.0, "wrong": 125.0})
    assert found["thinking"] == pytest.approx({"right": 0.0, "wrong": 375.0})


def test_whole_words_count() -> None:
    assert MARKERS["thinking"].findall("waiter awaits, actually") == ["actually"]
    assert MARKERS["hedging"].findall("I am NOT SURE") == ["NOT SURE"]


def test_nothing_is_compared_without_both() -> None:
    assert compare_markers([replayed("So.", True), replayed("So.", True)]) is None
    assert compare_markers([replayed("So.", True), replayed("So.", False, gold=None)]) is None
