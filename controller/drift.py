"""Whether the questions of a session are still like those that its certificate was made on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..probes.drift import DriftMonitor, DriftState, Region

Row = NDArray[np.float32]


class BatchDriftTracker:
    """Hears the first thought of each row of a batch, and tells a monitor of them in the order of the rows.

    That order matters: the monitor's promise is for questions in an order that does not depend on what they are like,
    and rows whose first thought is short would otherwise always come first.
    """

    def __init__(self, region: Region) -> None:
        self.monitor = DriftMonitor(region)
        self._slots: list[list[Row]] = []

    def begin(self) -> Callable[[Row], None]:
        """A row begins; what is returned is to be told of its first thought, if there is one."""
        self._slots.append([])
        return self._slots[-1].append

    def settle(self) -> DriftState:
        """The batch is over; what the monitor makes of it."""
        slots, self._slots = self._slots, []
        for row in (slot[0] for slot in slots if slot):
            if np.isfinite(row).all():
                self.monitor.observe(row)
        return self.monitor.state
