"""Whether the questions of a session still resemble those that its certificate was made on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..probes.drift import DriftMonitor, DriftState, Region

Row = NDArray[np.float32]


class BatchDriftTracker:
    """Collects the first thought of each sequence of a batch and shows them to a monitor in the batch's order.

    The order matters: the monitor's guarantee is for questions in an order that does not depend on their content, and
    sequences with a short first thought would otherwise always come first.
    """

    def __init__(self, region: Region) -> None:
        self.monitor = DriftMonitor(region)
        self._slots: list[list[Row]] = []

    def begin(self) -> Callable[[Row], None]:
        """Start a sequence; call what is returned with its first thought, if there is one."""
        self._slots.append([])
        return self._slots[-1].append

    def settle(self) -> DriftState:
        """Show the thoughts of the batch to the monitor and return its state."""
        slots, self._slots = self._slots, []
        for row in (slot[0] for slot in slots if slot):
            if np.isfinite(row).all():
                self.monitor.observe(row)
        return self.monitor.state

    def end_batch(self) -> str | None:
        """Settle, and return a note for the traces of the batch if questions have drifted."""
        since = self.settle().since
        if since is None:
            return None
        return (
            f"since question {since} of this session, questions are unlike those that the threshold was certified on; "
            "calibrate on questions like these"
        )
