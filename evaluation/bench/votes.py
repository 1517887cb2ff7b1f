"""What more samples of a question buy: the majority vote over P of an arm's rollouts, and a fit over log P.

That gains grow as log P is the shape that ParScale (arXiv 2505.10475) finds for P parallel streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...controller.sampling.rules import Vote, tally
from ...controller.text.answers import normalize_answer
from ..stats import Interval, paired_bootstrap
from .records import ArmRecords, BenchRow


def measure_votes(records: ArmRecords, seed: int) -> dict[str, Any] | None:
    """The `accuracy` of a majority of P = 1, 2, 4, ... rollouts, and the least-squares fit a + b log2 P to it.

    `single` is a, `per_doubling` is b with its bootstrap interval over questions; None for a single rollout.
    """
    sizes = [2**power for power in range(records.rollouts.bit_length())]
    if len(sizes) < 2:
        return None
    questions = len(records.rows) // records.rollouts
    accuracy = np.array([[_vote(records.rows[i::questions], size) for size in sizes] for i in range(questions)])
    powers = np.arange(len(sizes)) - (len(sizes) - 1) / 2
    weights = powers / (
        powers @ powers
    )  # a slope is this sum of accuracies, so that its mean is that of the questions'
    most = float(weights[weights > 0].sum())  # the slope of a question that more samples turn from wrong to right
    slope = paired_bootstrap(accuracy @ weights / most, seed=seed)
    slope = Interval(most * slope.estimate, most * slope.low, most * slope.high)
    return {
        "accuracy": {str(size): float(mean) for size, mean in zip(sizes, accuracy.mean(axis=0), strict=True)},
        "single": float(accuracy.mean() + powers[0] * slope.estimate),
        **slope.named("per_doubling"),
    }


def _vote(rollouts: Sequence[BenchRow], size: int) -> float:
    """How often the majority of `size` rollouts in a row, as on a circle, is right; ties go to the first of them."""
    right = 0
    for start in range(len(rollouts)):
        voters = [*rollouts[start:], *rollouts[:start]][:size]
        leader = next(iter(tally(Vote(row.rollout, row.answer) for row in voters)), None)
        right += any(row.right and normalize_answer(row.answer) == leader for row in voters)
    return right / len(rollouts)
