"""Planted stop rules: constant evidence, and folders as `tersely calibrate` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tersely.probes.drift import Region
from tersely.probes.io import StoredRule, save_stop_rule
from tersely.probes.risk_control import Certificate, Outcomes, certify
from tersely.probes.rule import FEATURES, HOPEFUL, HOPELESS, READY, TRIAL_FEATURES, Evidence, StopRule

from .planted_records import constant

CLASSES = (HOPEFUL, HOPELESS, READY)
FREE = len(FEATURES) + 128
PAID = FREE + len(TRIAL_FEATURES)


def sure(score: float, hopeless: float = 0.0, inputs: int = FREE) -> Evidence:
    """Make evidence that predicts the same for every boundary."""
    tiny = 1e-30
    return Evidence(constant([max(1 - score, tiny), max(hopeless, tiny), max(score - hopeless, tiny)], inputs), CLASSES)


def certificate(score: float, n: int = 200, delta: float = 0.1) -> Certificate:
    """Make a certificate without harms; score: share of tokens saved by each stop."""
    split = Outcomes(np.arange(n + 1), np.full(n, 0.7), np.zeros(n, bool), np.full(n, 100 * score), np.full(n, 100.0))
    return certify(split, 0.05, delta, [0.7])


def stored_rule(rule: StopRule, layer: int = -1, threshold: float | None = None) -> StoredRule:
    """A rule as `probes.io` loads it, with a certificate that does not matter."""
    region = Region.fit(np.random.default_rng(0).normal(size=(200, FREE)) * 1e3)
    return StoredRule(rule, layer, threshold, certificate(0.5), region, frozenset())


def store(
    folder: Path,
    engine: Any,
    *,
    free: float = 0.75,
    saves: tuple[float, float] = (0.5, 0.4),
    n: int = 200,
    spread: float = 1e3,
    **more: Any,
) -> str:
    """Write a folder as `tersely calibrate` does, with a readiness probe of this engine's model, certified at 0.7.

    Args:
        spread: standard deviation of the calibrated region.
    """
    plain = StopRule(sure(free))
    paid = StopRule(plain.free, sure(0.8, inputs=PAID), 0.5, 0.9, 9.0)
    base = {"name": engine.name, "fingerprint": more.pop("fingerprint", engine.fingerprint())}
    certificates = {"free": certificate(saves[0], n), "trials": certificate(saves[1], n)}
    region = Region.fit(np.random.default_rng(0).normal(size=(200, FREE)) * spread)
    save_stop_rule((plain, paid), certificates, region, -1, folder / "readiness", base, more, {})
    return str(folder)
