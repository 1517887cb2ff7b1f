"""Statistics shared by the probes and the evaluation; scipy and scikit-learn are imported when first needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BINS = 10  # of confidence


def binomial_upper_bound(events: float, n: int, delta: float) -> float:
    """Upper bound of a rate that holds with confidence 1 - delta: Clopper and Pearson (Biometrika 1934), one-sided.

    Exact for `n` independent trials. `events` may be a fraction, such as a sum of means over rollouts.
    """
    from scipy.special import betainccinv

    if events >= n:
        return 1.0
    # Without events there is a closed form, which rounds less.
    return float(betainccinv(events + 1, n - events, delta)) if events > 0 else -math.expm1(math.log(delta) / n)


def binomial_lower_bound(events: float, n: int, delta: float) -> float:
    """Lower bound of a rate that holds with confidence 1 - delta, see `binomial_upper_bound`."""
    return 1.0 - binomial_upper_bound(n - events, n, delta)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half; NaN if one class is missing."""
    from sklearn.metrics import roc_auc_score

    positive = np.asarray(labels, bool)
    if positive.all() or not positive.any():
        return math.nan
    return float(roc_auc_score(positive, np.asarray(scores, np.float64)))


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Predictions of similar confidence: their mean confidence, how often they were right, and how many there are."""

    confidence: float
    accuracy: float
    n: int


def calibration_bins(labels: ArrayLike, confidences: ArrayLike, *, equal_width: bool = False) -> list[CalibrationBin]:
    """Group predictions by confidence into ten bins of equal size, or of equal width from 0 to 1; skips empty bins."""
    right, stated = np.asarray(labels, np.float64), np.asarray(confidences, np.float64)
    if equal_width:
        numbers = np.minimum((stated * BINS).astype(int), BINS - 1)
        groups = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    else:
        order = np.argsort(stated, kind="stable")
        groups = [group for group in np.array_split(order, BINS) if len(group)]
    return [CalibrationBin(float(stated[g].mean()), float(right[g].mean()), len(g)) for g in groups]


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance between confidence and accuracy, weighted by the size of the bins (Naeini et al. 2015)."""
    return sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / sum(b.n for b in bins)


@dataclass(frozen=True, slots=True)
class Quality:
    """How well probabilities predict a binary outcome: AUROC with a 95 % interval, and the ECE over ten bins."""

    auroc: float
    low: float
    high: float
    brier: float
    ece: float
    n: int
    share: float


def measure_quality(labels: NDArray[np.bool_], probabilities: Floats) -> Quality:
    """Compare probabilities [n] with outcomes [n]; all figures are NaN if only one outcome occurred.

    The interval of the AUROC is Hanley and McNeil's (Radiology 1982).
    """
    from sklearn.metrics import brier_score_loss

    n, share = len(labels), float(labels.mean()) if len(labels) else math.nan
    if not 0 < share < 1:
        return Quality(math.nan, math.nan, math.nan, math.nan, math.nan, n, share)
    area = auroc(labels, probabilities)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    half = 1.96 * math.sqrt(max(spread, 0.0) / (positives * negatives))
    return Quality(
        auroc=area,
        low=max(0.0, area - half),
        high=min(1.0, area + half),
        brier=float(brier_score_loss(labels, np.clip(probabilities, 0, 1))),
        ece=expected_calibration_error(calibration_bins(labels, probabilities)),
        n=n,
        share=share,
    )
