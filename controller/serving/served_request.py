"""The rows of requests while an engine decodes them: whoever asked is told, and may leave at any token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..cancellation import CancellableWatcher
from ..request_builder import PreparedRequest
from ..session import Session
from ..streaming import TextDeltaEvent
from ..text.reasoning_parser import ReasoningParser, truncate_at_stop
from ..text.tool_calls import OPEN
from ..trace import Decision, GenerationResult
from ..types import Completion, Request
from .chat_responses import split_tool_calls
from .metrics import Metrics
from .pending_response import PendingResponse, RowFinished, TextDelta


class ServedRequest(CancellableWatcher):
    """Watches one row of a request beside the watcher that it has; implements `engines.base.Concerned`."""

    def __init__(
        self, ticket: PendingResponse, number: int, session: Session, row: PreparedRequest, metrics: Metrics
    ) -> None:
        super().__init__(self._leaves)
        self.ticket, self.number, self.session, self.row, self.metrics = ticket, number, session, row, metrics
        self.told = False
        self._parser: ReasoningParser | None = None  # made with the first text, when the prompt is settled
        self.finish_stream: Callable[[str, str], None] | None = None
        wish = ticket.wish
        self.wants_text = ticket.streams or bool(wish.stops)

    def request(self) -> Request:
        """The request of the row, watched."""
        request = self.row.request
        most = min(request.max_new_tokens, self.ticket.wish.max_tokens)
        return self.around(replace(request, max_new_tokens=most))

    def ended(self, done: Completion) -> None:
        """See `Concerned.ended`; whoever asked need not wait for the other rows."""
        reread = self.row.request.opening is not None and "ragged" not in self.session.engine.capabilities
        if not reread:  # what that cost is known to the engine alone, which says so in the end
            self.tell(done)

    def make_parser(self) -> ReasoningParser:
        """The parser of the row's output."""
        self._parser = ReasoningParser(self.session.markers, self.row.state, self.ticket.wish.stops, self._hide)
        return self._parser

    def send(self, event: TextDeltaEvent) -> None:
        """Send new text to the client."""
        if event.text and self.ticket.streams:
            self.ticket.tell(TextDelta(self.number, event.channel, event.text))

    def tell(self, done: Completion) -> None:
        """Say that the row has ended, once."""
        if self.told:
            return
        self.told = True
        generation = self._result(done)
        self.metrics.row(generation, self.row.budget.thinking, self.ticket.wish.options.shadow)
        if self.finish_stream is not None:
            self.finish_stream(generation.thinking, split_tool_calls(generation, self.ticket.wish)[0])
        self.ticket.tell(RowFinished(self.number, generation, self.row.budget.thinking))

    @property
    def _hide(self) -> str:
        """Where an answer begins to be a call of a tool rather than text."""
        return OPEN if self.ticket.wish.options.tools else ""

    def _leaves(self) -> bool:
        return self.ticket.gone or (self._parser is not None and self._parser.stopped)

    def _result(self, done: Completion) -> GenerationResult:
        """What the row came to, cut at the first stop string."""
        wish = self.ticket.wish
        made = self.session.finish(self.row, done)
        answer, stopped = truncate_at_stop(made.answer, wish.stops)
        finish = "stop" if stopped and made.finish_reason != "stop" else made.finish_reason
        notes = (Decision("server", "tier", wish.note, 0),) if wish.note else ()
        return replace(made, answer=answer, finish_reason=finish, trace=(*notes, *made.trace))
