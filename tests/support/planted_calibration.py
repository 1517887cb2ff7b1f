"""A calibration of a planted collection, for tests that look at its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tersely.probes.calibrate.data import QuestionParts
from tersely.probes.calibrate.run import CalibrationSettings, calibrate_into

from .planted_records import Planting, planted

N = 460
ALPHA = 0.1
FINGERPRINT = Planting(N).fingerprint


class Calibration:
    """One calibration of one planted collection."""

    def __init__(self, out: Path) -> None:
        self.out, self.records = out, planted(N)
        self.parts = QuestionParts(self.records, self.records, self.records, True)
        self.report = calibrate_into(out, self.parts, CalibrationSettings(alpha=ALPHA))

    def hashes(self, *names: str) -> set[str]:
        """The questions of some parts."""
        hashes = np.array(self.records.texts["hash"])
        return {h for name in names for h in hashes[self.parts.select(name)[1]].tolist()}
