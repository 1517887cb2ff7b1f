"""Majority votes over the rollouts of a benchmark, counted by hand, and a planted gain per doubling."""

from __future__ import annotations

import json
from math import comb

import numpy as np
import pytest

from tersely.evaluation.bench.compare import compare, measure_votes
from tersely.evaluation.bench.records import ArmRecords, BenchRow
from tersely.evaluation.report.schema import ReportArm

from ...support.scripted import ScriptedAnswers, make_bench, run_both

COUNTS = dict.fromkeys(
    "prompt thinking answer_tokens forced discarded probe verifier delegated consulted reprefilled".split(), 0
)


def arm(*answers: str) -> ArmRecords:
    """An arm with one text of answers for each question, one for each rollout; "R" is right and "." is none."""
    texts = [text.split() for text in answers]
    rows = [
        BenchRow(
            id=str(number),
            task="t",
            level=None,
            tier="normal",
            arm="full",
            rollout=rollout,
            answer={".": "", "R": "1/2"}.get(text[rollout], text[rollout]),
            right=text[rollout] in ("R", "0.5"),
            outcome="equal",
            capped=False,
            overhead=0.0,
            total=1.0,
            **COUNTS,
        )
        for rollout in range(len(texts[0]))
        for number, text in enumerate(texts)
    ]
    return ArmRecords("full", rows, len(texts[0]))


def accuracy(*answers: str) -> dict[str, float]:
    found = measure_votes(arm(*answers), 0)
    assert found is not None
    return dict(found["accuracy"])


def test_a_majority_is_right_more_often_than_its_voters() -> None:
    # Pairs in a circle: R 7, 7 0.5, 0.5 8, 8 R; the first of two that differ is taken.
    assert accuracy("R 7 0.5 8") == {"1": 0.5, "2": 0.5, "4": 1.0}, "one half in two spellings is one answer"
    assert accuracy("7 R 7 R", "R R 8 8") == {"1": 0.5, "2": 0.5, "4": 0.5}, "ties"
    assert accuracy("7 7 7 R") == {"1": 0.25, "2": 0.25, "4": 0.0}
    assert accuracy(". . R .") == {"1": 0.25, "2": 0.5, "4": 1.0}, "no answer is no vote"
    assert accuracy(". .") == {"1": 0.0, "2": 0.0}
    assert list(accuracy("R R R R R R R")) == ["1", "2", "4"], "of seven"


def test_the_fit_is_least_squares() -> None:
    found = measure_votes(arm("R 7 0.5 8", ". . R .", "7 7 7 R"), 0)
    assert found is not None
    slope, single = np.polyfit([0, 1, 2], list(found["accuracy"].values()), 1)
    assert (found["per_doubling"], found["single"]) == (pytest.approx(slope), pytest.approx(single))
    low, high = found["per_doubling_ci"]
    assert -0.5 <= low < slope < high <= 0.5


def test_the_interval_covers_a_planted_gain() -> None:
    """Samples are right with a chance of 0.7, so that three of four are right more often than one."""
    rng, inside = np.random.default_rng(0), 0
    rights, exact = 0.7, []
    for size, fewest in ((1, 1), (2, 2), (4, 3)):
        chances = [comb(size, k) * rights**k * (1 - rights) ** (size - k) for k in range(size + 1)]
        ties = chances[size // 2] / 2 if size > 1 else 0
        exact.append(sum(chances[fewest:]) + ties)
    slope = np.polyfit([0, 1, 2], exact, 1)[0]
    for seed in range(20):
        texts = [" ".join(rng.choice(["R", "7"], 4, p=[rights, 1 - rights])) for _ in range(60)]
        found = measure_votes(arm(*texts), seed)
        assert found is not None
        low, high = found["per_doubling_ci"]
        inside += low <= slope <= high
    assert inside >= 17


def test_a_benchmark_has_votes_with_rollouts_alone() -> None:
    for rollouts, found in ((1, None), (3, {"1": 1.0, "2": 1.0})):
        full, _ = compare(run_both(make_bench(ScriptedAnswers(), 10, rollouts=rollouts)), 0.02, seed=0)["arms"]
        assert (full["votes"] and full["votes"]["accuracy"]) == found
        shown = ReportArm.model_validate_json(json.dumps(full)).votes
        assert (shown and shown.accuracy) == found
