"""Sequences that their consumer can cancel at any token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from .types import KEEP, Directive, Request, StepInfo, SuspendableWatcher, Watcher

_STOP = Directive(stop=True)


class CancellableWatcher:
    """Wraps a sequence's watcher, and ends the sequence once `is_cancelled()`; implements `types.Watcher`."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self.is_cancelled = is_cancelled
        self.inner: Watcher | None = None
        self._trial_tokens = 0  # of the trial in progress

    def wrap(self, request: Request) -> Request:
        """The same request, watched by this watcher around its own."""
        self.inner = request.watcher
        return replace(request, watcher=self)

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        if self.is_cancelled():
            if self._trial_tokens:
                return Directive(retract=self._trial_tokens + 1, trial=False, stop=True)
            return _STOP
        if self.inner is None:
            return KEEP
        directive = self.inner.observe(token, step)
        if directive.trial or (self._trial_tokens and directive.trial is None):
            before = self._trial_tokens + 1 if self._trial_tokens else 0
            self._trial_tokens = before - directive.retract + len(directive.force)
        else:
            self._trial_tokens = 0
        return directive

    def resume(self) -> Directive:
        """See `SuspendableWatcher.resume`."""
        return _STOP if self.is_cancelled() else cast(SuspendableWatcher, self.inner).resume()
