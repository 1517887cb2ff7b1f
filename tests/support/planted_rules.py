"""Planted stop rules: evidence made by hand, and folders as `tersely calibrate` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tersely.probes.certificate import Certificate
from tersely.probes.drift import Region
from tersely.probes.features import FEATURES, TRIAL_FEATURES
from tersely.probes.io import StoredRule, save_stop_rule
from tersely.probes.readiness import HOPEFUL, HOPELESS, READY
from tersely.probes.risk_control import Outcomes, certify
from tersely.probes.rule import Evidence, StopRule

from .planted_records import constant

CLASSES = (HOPEFUL, HOPELESS, READY)
FREE = len(FEATURES) + 128
PAID = FREE + len(TRIAL_FEATURES)


def sure(score: float, hopeless: float = 0.0, inputs: int = FREE) -> Evidence:
    """Evidence that says the same of every boundary."""
    tiny = 1e-30
    return Evidence(constant([max(1 - score, tiny), max(hopeless, tiny), max(score - hopeless, tiny)], inputs), CLASSES)


def certificate(score: float, n: int = 200, delta: float = 0.1) -> Certificate:
    """A certificate that nothing was harmed; each stop saved so large a share."""
    split = Outcomes(np.arange(n + 1), np.full(n, 0.7), np.zeros(n, bool), np.full(n, 100 * score), np.full(n, 100.0))
    return certify(split, 0.05, delta, [0.7])


def stored_rule(rule: StopRule, layer: int = -1, threshold: float | None = None) -> StoredRule:
    """A rule as `probes.io` loads it, certified for nothing in particular."""
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
    """A folder as `tersely calibrate` leaves it, with a readiness probe of this engine's model, certified at 0.7.

    spread: how far from 0 the calibrated region goes.
    """
    plain = StopRule(sure(free))
    paid = StopRule(plain.free, sure(0.8, inputs=PAID), 0.5, 0.9, 9.0)
    base = {"name": engine.name, "fingerprint": more.pop("fingerprint", engine.fingerprint())}
    made = {"free": certificate(saves[0], n), "trials": certificate(saves[1], n)}
    region = Region.fit(np.random.default_rng(0).normal(size=(200, FREE)) * spread)
    save_stop_rule((plain, paid), made, region, -1, folder / "readiness", base, more, {})
    return str(folder)
