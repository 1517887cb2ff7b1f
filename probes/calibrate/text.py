"""Fitting a text probe to recorded outputs, and certifying it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError
from ..drift import KnownQuestions
from ..estimator import Examples, ProbeClassifier
from ..io import ANY_MODEL, TextProbe
from ..network import Network
from ..risk_control import Outcomes, certify, needed_questions, oracle_threshold, resample_calibrations, risk_curve
from ..rule import RULE, combine
from ..stats import measure_quality
from .data import MIN_QUESTIONS, get_part

GRID = 200


@dataclass(frozen=True, slots=True, eq=False)
class RecordedThinking:
    """A recorded output with the values that it called the answer, each [values]."""

    question: str
    hash: str
    tokens: int  # of the thinking
    right: bool  # whether its answer is right
    stops: NDArray[np.int64]  # tokens up to which it would have gone
    rows: NDArray[np.float32]  # [values, inputs], NaN for states that the reader could not read
    supported: NDArray[np.bool_]  # whether the rule of `convergence` would stop there
    now: NDArray[np.bool_]  # whether the value is right
    late: NDArray[np.int64]  # how many of those tokens are written before a reader's verdict


def fit_text_probe(
    data: Sequence[RecordedThinking],
    alpha: float,
    delta: float,
    seed: int = 0,
    base: Mapping[str, str] = ANY_MODEL,
    layer: int = 0,
) -> tuple[TextProbe, dict[str, Any]]:
    """Fit a probe on half of the questions, certify it on a third and measure it on the rest; the report is JSON."""
    parts = {name: [one for one in data if get_part(one.hash) == name] for name in ("fit", "calibrate", "test")}
    for name, part in parts.items():
        if len(part) < MIN_QUESTIONS // 2 or not sum(len(one.stops) for one in part):
            raise OptionError(
                f"outputs of {len(data)} questions leave {len(part)} for part {name!r}, of which "
                f"{sum(len(one.stops) > 0 for one in part)} call a value the answer; accepted: {MIN_QUESTIONS // 2} "
                f"or more; to certify {alpha:g} at delta {delta:g}, give about "
                f"{3.2 * needed_questions(alpha, delta):.0f} outputs in all, of different questions",
                code="too_few_questions",
            )
    network = _fit(parts["fit"], seed)
    outcomes = {name: score(part, network) for name, part in parts.items()}
    grid = np.unique(np.append(np.linspace(0, 1, GRID + 1), RULE))[::-1]
    certificate = certify(outcomes["calibrate"], alpha, delta, grid)
    known = KnownQuestions.learn(*([one.question for one in parts[name]] for name in ("fit", "calibrate")))
    learned_from = frozenset(one.hash for name in ("fit", "calibrate") for one in parts[name])
    probe = TextProbe(network, certificate, known, learned_from, base, layer)
    return probe, _report(parts, outcomes, probe, grid)


def score(data: Sequence[RecordedThinking], network: Network) -> Outcomes:
    """The outcomes of stopping at each value; what the rule supports needs no verdict of a reader."""
    offsets = np.cumsum([0, *(len(one.stops) for one in data)])
    rows, supported = _join(data, "rows"), _join(data, "supported")
    tokens = np.array([one.tokens for one in data])
    owner = np.repeat(np.arange(len(data)), np.diff(offsets))
    now, right = _join(data, "now"), np.array([one.right for one in data])
    saved = tokens[owner] - _join(data, "stops") + np.where(supported, _join(data, "late"), 0)
    probabilities, read = np.zeros(len(rows)), np.isfinite(rows).all(axis=1)
    probabilities[read] = network.proba(rows[read])[:, 1]
    return Outcomes(offsets, combine(probabilities, supported), right[owner] & ~now, saved, tokens)


def _join(data: Sequence[RecordedThinking], name: str) -> NDArray[Any]:
    """A column of all values."""
    return np.concatenate([getattr(one, name) for one in data if len(one.stops)])


def _fit(data: Sequence[RecordedThinking], seed: int) -> Network:
    """A network that tells right values from wrong ones; where all are right, or none is, they are alike."""
    owner = np.repeat(np.arange(len(data)), [len(one.stops) for one in data])
    rows, now = _join(data, "rows"), _join(data, "now")
    read = np.isfinite(rows).all(axis=1)
    owner, rows, now = owner[read], rows[read], now[read]
    if now.all() or not now.any():
        d, sign = rows.shape[1], 1 if now.all() else -1
        arrays = (np.zeros(d), np.zeros(d), np.zeros((d, 1)), [0], np.zeros((1, 2)), [-9 * sign, 9 * sign], 1, [0, 0])
        return Network(*(np.asarray(array, np.float32) for array in arrays))
    examples = Examples(rows, now, owner)
    return ProbeClassifier(random_state=seed).fit(examples.rows, examples.labels, groups=owner).to_network()


def _report(
    parts: Mapping[str, Sequence[RecordedThinking]],
    outcomes: Mapping[str, Outcomes],
    probe: TextProbe,
    grid: NDArray[np.float64],
) -> dict[str, Any]:
    test, certificate = outcomes["test"], probe.certificate
    threshold = certificate.threshold
    waits = threshold is not None and threshold > RULE  # then the reader also decides on what the rule supports
    late = np.where(_join(parts["test"], "supported") & waits, _join(parts["test"], "late"), 0)
    harm, saved = risk_curve(replace(test, saved=test.saved - late), [2.0 if threshold is None else threshold])
    rule_harm, rule_saved = risk_curve(test, [RULE])
    pool = score([*parts["calibrate"], *parts["test"]], probe.network)
    exceeded, efficiency = resample_calibrations(
        pool, certificate.alpha, certificate.delta, grid, n=outcomes["calibrate"].n
    )
    return {
        "model": probe.base["name"],
        "outputs": {name: len(part) for name, part in parts.items()},
        "values": len(test.score),
        "quality": asdict(measure_quality(~test.harm, test.score)),
        "probe": {"threshold": threshold, "harm": float(harm[0]), "saved": float(saved[0])},
        "convergence": {"harm": float(rule_harm[0]), "saved": float(rule_saved[0])},
        "oracle": oracle_threshold(test, certificate.alpha)[2],
        "resampled": {"exceeded": exceeded, "efficiency": efficiency},
        "certificate": str(certificate),
        "alpha": certificate.alpha,
    }
