"""Why vLLM's server has ended: it was stopped, or its engine died behind it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType


class ServerLifetime:
    """What happened to the server in this process since it started."""

    def __init__(self) -> None:
        self._started = self._stopped = False

    def start(self, reload: Callable[[], object] | None = None) -> None:
        """Note signals as well from now on; vLLM's event loop, which gets them by another way, still acts on them.

        SIGHUP calls `reload`.
        """
        self._started = True
        if reload is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    @property
    def died(self) -> bool:
        """Whether the server, which has ended, ended without a signal: vLLM ends it only where its engine is lost."""
        return self._started and not self._stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True


LIFETIME = ServerLifetime()
