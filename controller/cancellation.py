"""Rows that whoever reads them may end at any token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from .types import KEEP, Directive, PromptRouter, Request, RoutedPrompt, State, StepInfo, SuspendableWatcher, Watcher

_STOP = Directive(stop=True)


class CancellableWatcher:
    """Watches a row for the watcher it has, and ends it once `over()`; implements `engines.base.Watcher`."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self.over = over
        self.inner: Watcher | None = None
        self._trial = 0  # tokens of the trial under way

    def around(self, request: Request) -> Request:
        """The request, watched by this one for the watcher that it has or that its opening brings."""
        if request.opening is not None:
            return replace(request, opening=_Opening(request.opening, self))
        self.begin(request.watcher)
        return replace(request, watcher=self)

    def begin(self, inner: Watcher | None) -> None:
        """Follow the row, whose prompt is settled, together with the watcher it has."""
        self.inner = inner

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        if self.over():
            return Directive(drop=self._trial + 1, trial=False, stop=True) if self._trial else _STOP
        if self.inner is None:
            return KEEP
        directive = self.inner.observe(token, seen)
        if directive.trial or (self._trial and directive.trial is None):
            standing = self._trial + 1 if self._trial else 0
            self._trial = standing - directive.drop + len(directive.force)
        else:
            self._trial = 0
        return directive

    def resume(self) -> Directive:
        """See `SuspendableWatcher.resume`."""
        return _STOP if self.over() else cast(SuspendableWatcher, self.inner).resume()


class _Opening:
    """An opening whose row is then watched by ours; implements `engines.base.Opening`."""

    def __init__(self, inner: PromptRouter, ending: CancellableWatcher) -> None:
        self.inner, self.ending = inner, ending
        self.layer, self.longest = inner.layer, inner.longest

    def choose(self, state: State) -> RoutedPrompt:
        """See `PromptRouter.choose`."""
        opened = self.inner.choose(state)
        self.ending.begin(opened.watcher)
        return replace(opened, watcher=self.ending)
