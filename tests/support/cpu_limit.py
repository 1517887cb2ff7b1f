"""An end to what computes for too long, in CPU seconds: they do not depend on what else the machine does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TooSlowError(BaseException):
    """More CPU seconds than allowed; what is tested must not catch it."""


@contextmanager
def limited(seconds: float = 3.0) -> Iterator[None]:
    """Interrupts what all threads of this process compute, patterns of `re` as well, after so many CPU seconds.

    Child processes do not count.
    """

    def stop(*_: Any) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
