"""Economics of a benchmark, on planted rows: the frontier, idealized seconds and the ceiling, by hand."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tersely.controller.budgets import Budget
from tersely.evaluation.bench.economics import CostModel, measure_ceiling, measure_economics
from tersely.evaluation.bench.records import ArmRecords, BenchRow
from tersely.evaluation.bench.truncation import Recording, TrialPoint
from tersely.evaluation.economics.costs import Price
from tersely.evaluation.economics.latency import RuntimeModel, Timing

PRICE = Price(prompt=0.0, output=1e6, as_of=dt.date(2026, 11, 1))  # a USD for each output token
RUNTIME = RuntimeModel(start=1.0, per_prompt=0.1, per_output=0.5, timings=3, error=None, relative_error=None)


def row(number: int, right: bool, tokens: int, arm: str = "full", level: int | None = None, **changes: int) -> BenchRow:
    counts = dict.fromkeys("forced discarded probe verifier delegated consulted reprefilled".split(), 0) | changes
    return BenchRow(
        id=str(number),
        task="t",
        level=level,
        tier="normal",
        arm=arm,
        rollout=0,
        answer="",
        right=right,
        outcome="equal",
        capped=False,
        prompt=10,
        thinking=tokens,
        answer_tokens=0,
        overhead=0.0,
        total=float(tokens),
        **counts,
    )


def arm(name: str, rights: Sequence[bool], tokens: Sequence[int]) -> ArmRecords:
    rows = [row(i, *one, arm=name) for i, one in enumerate(zip(rights, tokens, strict=True))]
    return ArmRecords(name, rows, 1)


FULL, BRIEF = arm("full", [True, True, False], [8, 4, 9]), arm("brief", [True, False, False], [2, 3, 3])


def test_the_frontier_takes_the_cheapest_right_answer_or_the_expert() -> None:
    arms, result, notes = measure_economics([FULL, BRIEF], [], CostModel(price=PRICE, expert_usd=20.0), 0)
    assert result["frontier"]["usd"] == pytest.approx((2 + 4 + 20) / 3)
    assert result["frontier"]["cheapest"] == pytest.approx({"brief": 1 / 3, "full": 1 / 3, "human expert": 1 / 3})
    assert arms["brief"]["gain"] == pytest.approx((8 - 2) / 3)
    assert arms["full"]["gain"] == pytest.approx((20 - 4) / 3)
    assert arms["full"]["essentialness"] == pytest.approx(16 / 42)
    assert notes == []


def test_without_an_expert_unsolved_questions_are_left_out() -> None:
    arms, result, notes = measure_economics([FULL, BRIEF], [], CostModel(price=PRICE), 0)
    assert (result["frontier"]["usd"], result["frontier"]["unsolved"]) == (pytest.approx((2 + 4) / 2), 1)
    assert arms["full"]["gain"] is arms["brief"]["gain"] is None and "--expert-usd" in notes[0]
    wrong = arm("full", [False], [3])
    _, result, notes = measure_economics([wrong, replace(wrong, arm="brief")], [], CostModel(price=PRICE), 0)
    assert result["frontier"] is None and len(notes) == 1


def test_arms_without_a_price_have_no_frontier() -> None:
    assert measure_economics([FULL, BRIEF], [], CostModel(), 0)[1]["frontier"] is None
    helper = replace(BRIEF, arm="helper")
    _, result, notes = measure_economics([FULL, helper], [], CostModel(price=PRICE), 0)
    assert result["frontier"] is None and len(notes) == 1


def test_idealized_seconds_count_what_is_read_and_what_is_decoded() -> None:
    forced = ArmRecords("forced", [row(0, True, 7, forced=3, probe=4, reprefilled=5)], 1)
    helped = ArmRecords("helped", [row(0, True, 7, delegated=3)], 1)
    arms, _, _ = measure_economics([forced, helped], [], CostModel(runtime=RUNTIME, usd_per_hour=3600.0), 0)
    assert arms["forced"]["ideal_seconds"] == pytest.approx(1.0 + 0.1 * (10 + 5 + 3) + 0.5 * (7 + 4 - 3 - 1))
    assert arms["forced"]["ideal_usd"] == pytest.approx(arms["forced"]["ideal_seconds"])
    assert arms["helped"]["ideal_seconds"] is None, "the helper's seconds are not known"


def test_seconds_are_fitted_to_generations_that_ran_alone() -> None:
    timings = [Timing(prompt=p, output=o, seconds=RUNTIME.predict(p, o)) for p, o in ((10, 4), (20, 4), (10, 9))]
    timed = replace(FULL, timings=timings)
    arms, _, notes = measure_economics([timed, BRIEF], [], CostModel(), 0)
    assert arms["brief"]["ideal_seconds"] == pytest.approx(1.0 + 1.0 + 0.5 * (5 / 3))
    assert notes == []
    arms, _, notes = measure_economics([replace(FULL, timings=timings[:2])], [], CostModel(), 0)
    assert arms["full"]["ideal_seconds"] is None and "2 different pair" in notes[0]


def recording(number: int, confidence: float, right: bool) -> Recording:
    trial = TrialPoint(confidence, 1, right)
    return Recording(str(number), (), 0, 0, True, Budget("normal"), trials=(trial,))


def test_the_ceiling_is_that_of_the_verifier_by_levels() -> None:
    base = ArmRecords("full", [row(i, i < 15, 5, level=i // 10) for i in range(20)], 1)  # 100 % and 50 % right
    sure = [True] * 8 + [False] * 2 + [True] * 2 + [False] * 8
    recordings = [recording(i, 0.97 if passes else 0.5, i < 10) for i, passes in enumerate(sure)]
    found, notes = measure_ceiling(base, recordings)
    assert found is not None and notes == []
    assert (found["true_positive"], found["false_positive"]) == (0.8, 0.2)
    assert found["accuracy"] == pytest.approx(0.5 * 1.0 + 0.5 * 0.4 / (0.4 + 0.1))
    assert found["attempts"] == {"1": None, "4": None}, "no attempt of these kinds is expected to be a loss"
    found, notes = measure_ceiling(base, recordings[:13])
    assert found is None and "7 more wrong ones" in notes[0]
