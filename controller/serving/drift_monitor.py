"""Whether questions are still like those of a policy's certificate, over the batches of a server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..options import GenerationOptions
from ..session import Session
from ..trace import Decision

if TYPE_CHECKING:
    from ..drift import BatchDriftTracker

_log = logging.getLogger(__name__)


class DriftReporter:
    """What the monitors of a session's policies have found in the batches so far."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._since: dict[str, int] = {}

    def settle(self, batch: Sequence[GenerationOptions]) -> None:
        """A batch under these options is over."""
        found = {id(drift): (name, drift) for options in batch for name, drift in self._of(options)}
        for name, drift in found.values():
            if (since := drift.settle().since) is not None and name not in self._since:
                self._since[name] = since
                _log.warning("%s: %s", name, _reason(since))

    def notes(self, options: GenerationOptions) -> list[Decision]:
        """What the trace of a row under these options says of it."""
        if not self._since:
            return []
        names = [name for name, _ in self._of(options)]
        return [Decision(n, "drift", _reason(self._since[n]), 0, acted=False) for n in names if n in self._since]

    def _of(self, options: GenerationOptions) -> list[tuple[str, BatchDriftTracker]]:
        """The policies under these options that have a monitor."""
        policies = self.session.learnt(options)[0]
        return [(p.name, drift) for p in policies if (drift := getattr(p, "drift", None)) is not None]


def _reason(since: int) -> str:
    return (
        f"from the question numbered {since} of this server on, questions are unlike those that the threshold was "
        "certified on; calibrate on questions like these"
    )
