"""Fitting the readiness rule: free evidence, trials where it is undecided, and the certified threshold."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError
from ..estimator import Examples, fit_calibrated
from ..risk_control import (
    Certificate,
    Outcomes,
    certify,
    oracle_threshold,
    resample_calibrations,
    risk_curve,
    threshold_grid,
)
from ..rule import HOPEFUL, HOPELESS, READY, Evidence, StopRule, trial_features
from ..stats import measure_quality
from .data import Boundaries, concatenate

DRAWS = 200
MIN_ROWS, MIN_TUNING_ROWS = 50, 20
BANDS = tuple((low, high) for high in (0.98, 0.995, 0.999) for low in (0.5, 0.8, 0.9) if low < high)
"""Score ranges in which a trial may be asked for; the tuning part decides which one saves most."""


def label_boundaries(now: NDArray[np.bool_], final: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Label boundaries [n] by whether an answer now is right, and whether that after all thinking is."""
    return np.where(now, READY, np.where(final, HOPEFUL, HOPELESS))


def make_examples(boundaries: Boundaries) -> Examples:
    """Return the rows of boundaries with their labels."""
    labels = label_boundaries(boundaries.now, boundaries.final)
    return Examples(boundaries.rows, labels, np.array(boundaries.question))


def fit_rule(fit: Boundaries, tune: Boundaries, alpha: float, seed: int = 0) -> tuple[StopRule, StopRule]:
    """Fit the rule without trials and the one with trials, whose band saves most on the tuning part at harm alpha."""
    examples, tune_examples = make_examples(fit), make_examples(tune)
    if HOPEFUL not in examples.labels:
        raise OptionError(
            "in none of these rollouts did further thinking repair an answer, so there is nothing to learn; collect "
            "harder questions",
            code="nothing_to_learn",
        )
    free = _fit_evidence(examples, tune_examples, seed)
    plain = StopRule(free)
    best, most = plain, -np.inf
    for low, high in BANDS:
        undecided, tuning = (_find_undecided(free, low, high, part) for part in (fit, tune))
        tuning &= tuning.sum() >= MIN_TUNING_ROWS
        paid_examples = replace(examples.select(undecided), rows=_add_trial_features(fit, undecided))
        found = set(paid_examples.labels.tolist())
        if undecided.sum() < MIN_ROWS or HOPEFUL not in found or len(found) < 2:
            continue
        paid_tuning = replace(tune_examples.select(tuning), rows=_add_trial_features(tune, tuning))
        paid = _fit_evidence(paid_examples, paid_tuning, seed)
        rule = StopRule(free, paid, low, high)
        saved = oracle_threshold(score_outcomes(rule, tune), alpha)[2]
        if saved > most:
            best, most = rule, saved
    return plain, best


def score_outcomes(rule: StopRule, boundaries: Boundaries) -> Outcomes:
    """Compute the outcomes of stopping by a rule."""
    scores = boundaries.score(rule)
    return boundaries.outcomes(scores.score, scores.trial_tokens)


def _fit_evidence(examples: Examples, held: Examples, seed: int) -> Evidence:
    estimator = fit_calibrated(examples, held, seed)
    return Evidence(estimator.to_network(), tuple(str(c) for c in estimator.classes_))


def _find_undecided(free: Evidence, low: float, high: float, boundaries: Boundaries) -> NDArray[np.bool_]:
    """Find the boundaries where a rule with this band would ask for a trial, ignoring the overhead."""
    score = free.scores(boundaries.rows)[0]
    return (boundaries.trial > 0) & (score >= low) & (score < high)


def _add_trial_features(boundaries: Boundaries, chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Build the rows of chosen boundaries, with the features of the trials at the chosen ones so far."""
    rows: list[NDArray[np.float32]] = []
    answers: list[int] = []
    last = -1
    for i in np.flatnonzero(chosen):
        if boundaries.rollout[i] != last:
            answers, last = [], int(boundaries.rollout[i])
        answers.append(int(boundaries.trial_answer[i]))
        features = trial_features(answers, float(boundaries.confidence[i]), boundaries.latest_stated(int(i)))
        rows.append(np.concatenate([boundaries.rows[i], features]))
    return np.array(rows, np.float32)


def certify_rules(
    rules: tuple[StopRule, StopRule], tune: Boundaries, calibrate: Boundaries, alpha: float, delta: float
) -> dict[str, Certificate]:
    """Certify a threshold of each rule; grids come from the tuning part, which no certificate uses."""
    return {
        name: certify(score_outcomes(rule, calibrate), alpha, delta, threshold_grid(tune.score(rule).score))
        for name, rule in zip(("free", "trials"), rules, strict=True)
    }


def evaluate_rules(
    rules: tuple[StopRule, StopRule],
    certificates: dict[str, Certificate],
    test: Boundaries,
    tune: Boundaries,
    calibrate: Boundaries,
    alpha: float,
    delta: float,
) -> dict[str, Any]:
    """Evaluate the rules on an unseen part, compared with the raw confidence of trials if there are any; JSON form."""
    harmless = ~(test.final & ~test.now)
    report: dict[str, Any] = {"boundaries": len(test), "questions": len(test.full), "harmless": float(harmless.mean())}
    for name, rule in zip(("free", "trials"), rules, strict=True):
        scores = test.score(rule)
        outcomes = test.outcomes(scores.score, scores.trial_tokens)
        report[name] = {
            "quality": asdict(measure_quality(harmless, scores.score)),
            **_measure_threshold(outcomes, certificates[name].threshold, alpha),
            "asked": float(scores.tried.sum() / len(test.full)),
            "resampled": _resample(rule, concatenate([calibrate, test]), tune, len(calibrate.full), alpha, delta),
        }
    if not test.trial.any():  # live traffic has no trials
        return report
    confidence = _score_by_confidence(test)
    grid = threshold_grid(_score_by_confidence(tune)[0])
    certificate = certify(calibrate.outcomes(*_score_by_confidence(calibrate)), alpha, delta, grid)
    report["confidence"] = {
        "quality": asdict(measure_quality(harmless, confidence[0])),
        **_measure_threshold(test.outcomes(*confidence), certificate.threshold, alpha),
        "asked": len(test) / len(test.full),
    }
    return report


def _score_by_confidence(boundaries: Boundaries) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Baseline: the raw confidence of a trial after each thought (DEER), and the cost of the trials so far."""
    totals = np.cumsum(boundaries.trial)
    first = np.searchsorted(boundaries.rollout, boundaries.rollout)  # the first boundary of each one's rollout
    costs = (totals - totals[first] + boundaries.trial[first]).astype(np.int64)
    return np.clip(boundaries.confidence.astype(np.float64), 0, 1), costs


def _measure_threshold(outcomes: Outcomes, threshold: float | None, alpha: float) -> dict[str, float | None]:
    """Measure harm and saving of a threshold, compared with the best threshold in hindsight."""
    never = 1.0 + 1e-9
    harm, saved = (float(column[0]) for column in risk_curve(outcomes, [never if threshold is None else threshold]))
    return {"threshold": threshold, "harm": harm, "saved": saved, "oracle": oracle_threshold(outcomes, alpha)[2]}


def _resample(
    rule: StopRule, pool: Boundaries, tune: Boundaries, n: int, alpha: float, delta: float
) -> dict[str, float]:
    """Simulate many calibrations of n questions, drawn from a pool that is taken for the population."""
    outcomes, grid = score_outcomes(rule, pool), threshold_grid(tune.score(rule).score)
    exceeded, efficiency = resample_calibrations(outcomes, alpha, delta, grid, DRAWS, n)
    return {"exceeded": exceeded, "efficiency": efficiency, "draws": DRAWS, "n": n}
