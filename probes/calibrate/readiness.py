"""Fitting the readiness rule: free evidence, trials where it is undecided, and the threshold that is certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError
from ..certificate import Certificate
from ..estimator import ProbeClassifier
from ..features import trial_features
from ..readiness import HOPEFUL
from ..readiness import labels as labels_of
from ..risk_control import certify, curve, grid, oracle, resample
from ..rule import Evidence, StopRule, Walked, walk_all
from .baselines import quality, unseen_loss
from .data import Boundaries, concatenate

DRAWS = 200
BANDS = tuple((low, high) for high in (0.98, 0.995, 0.999) for low in (0.5, 0.8, 0.9) if low < high)
"""Score ranges in which a trial may be asked for; which one saves most is found on the tuning part."""


@dataclass(frozen=True, slots=True)
class FittedReadiness:
    """The rule and its certificates: with trials, without, and for giving up."""

    rule: StopRule
    certificates: dict[str, Certificate]
    metrics: dict[str, Any]


def evaluate_loss(fit: Boundaries, tune: Boundaries, seed: int) -> float:
    """How badly this layer's states foretell the outcomes of another part."""
    labels, held = labels_of(fit.now, fit.final), labels_of(tune.now, tune.final)
    return unseen_loss(fit.rows, labels, fit.question, tune.rows, held, seed)


def fit_evidence(rows: NDArray[np.float32], labels: NDArray[np.str_], groups: Sequence[str], seed: int) -> Evidence:
    """A network that tells the outcomes of boundaries; raises OptionError for a single outcome."""
    estimator = ProbeClassifier(random_state=seed).fit(rows, labels, groups=groups)
    return Evidence(estimator.to_network(), tuple(str(c) for c in estimator.classes_))


def calibrated(evidence: Evidence, rows: NDArray[np.float32], labels: NDArray[np.str_]) -> Evidence:
    """The evidence with chances that fit rows it did not learn from."""
    known = np.isin(labels, evidence.classes)
    if not known.any():
        return evidence
    estimator = ProbeClassifier.from_network(evidence.network, evidence.classes)
    return Evidence(estimator.calibrate(rows[known], labels[known]).to_network(), evidence.classes)


def walked(rule: StopRule, boundaries: Boundaries) -> Walked:
    """A rule's walk over boundaries."""
    b = boundaries
    return walk_all(rule, b.rows, b.end, b.said, b.confidence, b.trial, b.stated, b.rollout)


def _with_trials(boundaries: Boundaries, asked: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Rows of the boundaries where a trial was asked for, with what the trials so far say."""
    rows: list[NDArray[np.float32]] = []
    said: list[int] = []
    last = -1
    for place in np.flatnonzero(asked):
        if boundaries.rollout[place] != last:
            said, last = [], int(boundaries.rollout[place])
        said.append(int(boundaries.said[place]))
        stated = int(boundaries.stated[place])
        told = trial_features(said, float(boundaries.confidence[place]), stated if stated >= 0 else None)
        rows.append(np.concatenate([boundaries.rows[place], told]))
    return np.array(rows, np.float32)


def fit_rule(fit: Boundaries, tune: Boundaries, alpha: float, seed: int = 0) -> tuple[StopRule, StopRule]:
    """The rule without trials and the one with trials, whose band saves most on the tuning part at harm alpha."""
    labels, tune_labels = labels_of(fit.now, fit.final), labels_of(tune.now, tune.final)
    if HOPEFUL not in labels:
        raise OptionError(
            "in none of these rollouts did thinking on repair an answer, so stopping at once is as good: there is "
            "nothing to learn; collect harder questions"
        )
    free = calibrated(fit_evidence(fit.rows, labels, fit.question, seed), tune.rows, tune_labels)
    plain = StopRule(free)
    best, most = plain, -np.inf
    for low, high in BANDS:
        asking = StopRule(free, free, low, high)  # where it would ask; what it would hear is not known yet
        asked = _asked(asking, fit)
        if asked.sum() < 50 or HOPEFUL not in labels[asked] or len(set(labels[asked])) < 2:
            continue
        groups = [fit.question[i] for i in np.flatnonzero(asked)]
        paid = fit_evidence(_with_trials(fit, asked), labels[asked], groups, seed)
        tuned = _asked(asking, tune)
        if tuned.sum() >= 20:
            paid = calibrated(paid, _with_trials(tune, tuned), tune_labels[tuned])
        rule = StopRule(free, paid, low, high)
        walk = walked(rule, tune)
        saved = oracle(tune.outcomes(walk.score, walk.paid), alpha)[2]
        if saved > most:
            best, most = rule, saved
    return plain, best


def _asked(rule: StopRule, boundaries: Boundaries) -> NDArray[np.bool_]:
    """Where a rule would ask for trials, overhead aside."""
    score = rule.free.scores(boundaries.rows)[0]
    return (boundaries.trial > 0) & (score >= rule.low) & (score < rule.high)


def list_certificates(
    rules: tuple[StopRule, StopRule], tune: Boundaries, calibrate: Boundaries, alpha: float, delta: float
) -> dict[str, Certificate]:
    """Certified thresholds of both rules; grids come from the tuning part, which no certificate looks at."""
    made = {}
    for name, rule in zip(("free", "trials"), rules, strict=True):
        seen, walk = walked(rule, tune), walked(rule, calibrate)
        made[name] = certify(calibrate.outcomes(walk.score, walk.paid), alpha, delta, grid(seen.score))
    return made


def examine(
    rules: tuple[StopRule, StopRule],
    certificates: dict[str, Certificate],
    test: Boundaries,
    tune: Boundaries,
    calibrate: Boundaries,
    alpha: float,
    delta: float,
) -> dict[str, Any]:
    """What the rules are worth on a part they have not seen, beside the raw confidence of trials if any; JSON form."""
    harmless = ~(test.final & ~test.now)
    found: dict[str, Any] = {"boundaries": len(test), "questions": len(test.full), "harmless": float(harmless.mean())}
    for name, rule in zip(("free", "trials"), rules, strict=True):
        walk = walked(rule, test)
        outcomes = test.outcomes(walk.score, walk.paid)
        found[name] = {
            "quality": quality(harmless, walk.score).as_dict(),
            **_realised(outcomes, certificates[name].threshold, alpha),
            "asked": float(walk.asked.sum() / len(test.full)),
            "resampled": _resampled(rule, concatenate([calibrate, test]), tune, len(calibrate.full), alpha, delta),
        }
    if not test.trial.any():  # live traffic: no trial was asked
        return found
    raw = _raw(test)
    certificate = certify(calibrate.outcomes(*_raw(calibrate)), alpha, delta, grid(_raw(tune)[0]))
    found["confidence"] = {
        "quality": quality(harmless, raw[0]).as_dict(),
        **_realised(test.outcomes(*raw), certificate.threshold, alpha),
        "asked": len(test) / len(test.full),
    }
    return found


def _raw(boundaries: Boundaries) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Raw confidence of a trial after each thought (DEER), and what the trials cost so far."""
    paid = np.zeros(len(boundaries), np.int64)
    total, last = 0, -1
    for place, (rollout, cost) in enumerate(zip(boundaries.rollout, boundaries.trial, strict=True)):
        total = int(cost) + (total if rollout == last else 0)
        paid[place], last = total, rollout
    return np.clip(boundaries.confidence.astype(np.float64), 0, 1), paid


def _realised(outcomes: Any, threshold: float | None, alpha: float) -> dict[str, float | None]:
    """Harm and saving of a threshold on a part, beside what its best threshold in hindsight would save."""
    never = float(curve(outcomes, [1.0 + 1e-9])[1][0])
    harm, saved = (0.0, never) if threshold is None else (float(c[0]) for c in curve(outcomes, [threshold]))
    return {"threshold": threshold, "harm": harm, "saved": saved, "oracle": oracle(outcomes, alpha)[2]}


def _resampled(
    rule: StopRule, pool: Boundaries, tune: Boundaries, n: int, alpha: float, delta: float
) -> dict[str, float]:
    """What becomes of the guarantee over many calibrations of n questions, drawn from a pool that is all there is.

    exceeded: the share of them whose harm is above alpha; efficiency: mean saving over that of the best threshold.
    """
    walk = walked(rule, pool)
    outcomes = pool.outcomes(walk.score, walk.paid)
    found = resample(outcomes, outcomes, alpha, delta, grid(walked(rule, tune).score), DRAWS, n)
    return {"exceeded": found.exceeded, "efficiency": found.efficiency, "draws": DRAWS, "n": n}
