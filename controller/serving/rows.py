"""The rows of requests while an engine decodes them: whoever asked is told, and may leave at any token."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from ..engines.base import KEEP, Completion, Directive, Opened, Opening, Request, Resting, Seen, State, Watcher
from ..making import Prepared
from ..session import Session
from ..toolcalls import OPEN
from ..trace import Decision, Generation
from .metrics import Metrics
from .parting import Parting, cut
from .replies import called
from .tickets import Ended, Piece, Ticket

_STOP = Directive(stop=True)


class ServedRow:
    """Watches one row of a request together with the watcher that it has; implements `engines.base.Concerned`."""

    def __init__(self, ticket: Ticket, number: int, session: Session, row: Prepared, metrics: Metrics) -> None:
        self.ticket, self.number, self.session, self.row, self.metrics = ticket, number, session, row, metrics
        self.inner: Watcher | None = None
        self.told = False
        self._parting: Parting | None = None  # made with the first text: until then the prompt may not be settled
        self._trial = 0  # tokens of the trial under way
        wish = ticket.wish
        self.wants_text = ticket.streams or bool(wish.stops)

    def request(self) -> Request:
        """The request of the row, watched."""
        wish, request = self.ticket.wish, self.row.request
        request = replace(request, max_new_tokens=min(request.max_new_tokens, wish.max_tokens))
        if request.opening is not None:
            return replace(request, opening=_Opening(request.opening, self))
        self.inner = request.watcher
        return replace(request, watcher=self)

    def observe(self, token: int, seen: Seen | None = None) -> Directive:
        """See `Watcher.observe`."""
        if self._leaves:
            return Directive(drop=self._trial + 1, trial=False, stop=True) if self._trial else _STOP
        if self.inner is None:
            return KEEP
        directive = self.inner.observe(token, seen)
        if directive.trial:
            self._trial = len(directive.force)
        elif self._trial:
            self._trial = 0 if directive.trial is False else self._trial + 1
        return directive

    def resume(self) -> Directive:
        """See `Resting.resume`."""
        return _STOP if self._leaves else cast(Resting, self.inner).resume()

    def ended(self, done: Completion) -> None:
        """See `Concerned.ended`; whoever asked need not wait for the other rows."""
        reread = self.row.request.opening is not None and "ragged" not in self.session.engine.capabilities
        if not reread:  # what that cost is known to the engine alone, which says so in the end
            self.tell(done)

    def say(self, text: str) -> None:
        """Take in text that was put out."""
        if self._parting is None:
            self._parting = Parting(self.session.markers, self.row.state, self.ticket.wish.stops, self._hide)
        for part, piece in self._parting.feed(text):
            if self.ticket.streams:
                self.ticket.tell(Piece(self.number, part, piece))

    def tell(self, done: Completion) -> None:
        """Say that the row has ended, once."""
        if self.told:
            return
        self.told = True
        generation = self._result(done)
        self.metrics.row(generation, self.row.budget.thinking, self.ticket.wish.options.shadow)
        if self.ticket.streams:
            parting = self._parting or Parting(self.session.markers, self.row.state)
            answer = called(generation, self.ticket.wish)[0]
            for part, piece in parting.finish(generation.thinking, answer):
                self.ticket.tell(Piece(self.number, part, piece))
        self.ticket.tell(Ended(self.number, generation, self.row.budget.thinking))

    @property
    def _hide(self) -> str:
        """Where an answer begins to be a call of a tool rather than text."""
        return OPEN if self.ticket.wish.options.tools else ""

    @property
    def _leaves(self) -> bool:
        return self.ticket.gone or (self._parting is not None and self._parting.stopped)

    def _result(self, done: Completion) -> Generation:
        """What the row came to, cut at the first stop string."""
        wish = self.ticket.wish
        made = self.session.finish(self.row, done)
        answer, stopped = cut(made.answer, wish.stops)
        finish = "stop" if stopped and made.finish_reason != "stop" else made.finish_reason
        notes = (Decision("server", "tier", wish.note, 0),) if wish.note else ()
        return replace(made, answer=answer, finish_reason=finish, trace=(*notes, *made.trace))


class _Opening:
    """An opening whose row is then watched by ours as well; implements `engines.base.Opening`."""

    def __init__(self, inner: Opening, row: ServedRow) -> None:
        self.inner, self.row = inner, row
        self.layer, self.longest = inner.layer, inner.longest

    def choose(self, state: State) -> Opened:
        """See `Opening.choose`."""
        opened = self.inner.choose(state)
        self.row.inner = opened.watcher
        return replace(opened, watcher=self.row)
