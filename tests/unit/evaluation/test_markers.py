"""Markers in right and wrong thinking, counted by hand, in replays and in benchmarks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tersely.controller.options import GenerationOptions
from tersely.controller.trace import GenerationResult
from tersely.evaluation.bench.compare import compare
from tersely.evaluation.bench.records import MARKERS, compare_markers, count_markers
from tersely.evaluation.replay.formats import RecordedOutput
from tersely.evaluation.replay.result import summarize
from tersely.evaluation.replay.run import ReplayedRow
from tersely.evaluation.report.schema import ReportArm

from ...support.scripted import ScriptedAnswers, make_bench, run_both

SURE = "Therefore it is five, so we stop."  # 7 words: 2 of discourse
REASONED = "It is five because 2 + 3."  # 7 words: 1 of discourse
UNSURE = "Maybe four. Wait, let me check: hold on."  # 8 words: 1 hedge, 3 of thinking


def test_markers_are_means_per_thousand_words() -> None:
    found = compare_markers([(text is not UNSURE, count_markers(text)) for text in (SURE, REASONED, UNSURE)])
    assert found is not None
    assert found["words"] == {"right": 7.0, "wrong": 8.0}
    assert found["discourse"] == pytest.approx({"right": 1000 * (2 + 1) / 7 / 2, "wrong": 0.0})
    assert found["hedging"] == pytest.approx({"right": 0.0, "wrong": 125.0})
    assert found["thinking"] == pytest.approx({"right": 0.0, "wrong": 375.0})


def test_whole_words_count() -> None:
    assert MARKERS["thinking"].findall("waiter awaits, actually") == ["actually"]
    assert MARKERS["hedging"].findall("I am NOT SURE") == ["NOT SURE"]


def replayed(thinking: str, right: bool, gold: str | None = "5") -> ReplayedRow:
    return ReplayedRow(RecordedOutput("1", "q", thinking, "5", gold), 10, None, right_full=right)


def test_a_replay_compares_rows_with_a_right_answer_where_some_are_right_and_some_are_not() -> None:
    assert summarize("x", [replayed(SURE, True), replayed(SURE, True)], {})["markers"] is None
    assert summarize("x", [replayed(SURE, True), replayed(UNSURE, False, gold=None)], {})["markers"] is None
    found = summarize("x", [replayed(SURE, True), replayed(UNSURE, False)], {})["markers"]
    assert found["thinking"] == pytest.approx({"right": 0.0, "wrong": 375.0})


class Thinker(ScriptedAnswers):
    """Thinks as its answer will be: sure where right, unsure where wrong, and not at all about every third K."""

    def answer_one(self, prompt: str, options: GenerationOptions) -> GenerationResult:
        done = super().answer_one(prompt, options)
        number = int(prompt.split()[2].strip("?"))
        right = done.answer == f"The answer is \\boxed{{{number}}}."
        return replace(done, thinking="" if number % 3 == 0 else SURE if right else UNSURE)


def test_a_benchmark_compares_the_thinking_of_each_arm() -> None:
    full, ours = compare(run_both(make_bench(Thinker(errs=2), 12)), 0.02, seed=0)["arms"]
    assert full["markers"] is None, "all is right"
    assert ReportArm.model_validate_json(json.dumps(ours)).markers == ours["markers"]
    assert ours["markers"]["words"] == {"right": 7.0, "wrong": 8.0}
    assert ours["markers"]["discourse"] == pytest.approx({"right": 1000 * 2 / 7, "wrong": 0.0})
    assert ours["markers"]["hedging"] == pytest.approx({"right": 0.0, "wrong": 125.0})
