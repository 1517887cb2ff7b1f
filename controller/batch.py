"""Rows that an engine decodes together: each streams, ends at its own stop strings, and can be cancelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .request_builder import PreparedRequest
from .session import Session
from .streaming import CancellableWatcher, StreamEmitter, TextDeltaEvent
from .text.reasoning_parser import ReasoningParser, truncate_at_stop
from .trace import GenerationResult
from .types import Completion, SamplingParams, TokenSink

if TYPE_CHECKING:
    from .engines.openai.engine import RemoteEngine


class BatchRow(CancellableWatcher):
    """One row of a batch.

    `stops` end the answer, but not the thinking; the answer is not streamed from `hide` on. `emit` receives new text.
    """

    def __init__(
        self,
        session: Session,
        prepared: PreparedRequest,
        is_cancelled: Callable[[], bool] | None,
        stops: Sequence[str] = (),
        hide: str = "",
        emit: Callable[[TextDeltaEvent], None] | None = None,
    ) -> None:
        parser = ReasoningParser(session.markers, prepared.state, stops, hide, session.codec)
        super().__init__(lambda: parser.stopped or (is_cancelled is not None and is_cancelled()))
        self.session, self.prepared, self.stops = session, prepared, stops
        self.streams = emit is not None or bool(stops)
        self.request = self.wrap(prepared.request) if is_cancelled or stops else prepared.request

        def send(event: TextDeltaEvent) -> None:
            if emit is not None and event.text:
                emit(event)

        self.emitter = StreamEmitter(session.codec, session.markers, [prepared], send, [parser])

    def on_tokens(self, tokens: Sequence[int], forced: bool) -> None:
        """Stream what the engine wrote; see `types.TokenSink`."""
        self.emitter(0, tokens, forced)

    def result(self, completion: Completion) -> GenerationResult:
        """The result, cut at the first stop string."""
        result = self.session.finish(self.prepared, completion)
        answer, stopped = truncate_at_stop(result.answer, self.stops)
        return replace(result, answer=answer, finish_reason="stop") if stopped else result


def decode(rows: Sequence[BatchRow], sampling: SamplingParams) -> list[Completion]:
    """Decode rows of one session as one batch."""
    return rows[0].session.engine.generate([row.request for row in rows], sampling, _make_sink(rows))


async def decode_async(engine: RemoteEngine, rows: Sequence[BatchRow], sampling: SamplingParams) -> list[Completion]:
    """Decode rows on a server, in the event loop that runs; cancelling this closes their streams."""
    return await engine.generate_in_loop([row.request for row in rows], sampling, _make_sink(rows))


def _make_sink(rows: Sequence[BatchRow]) -> TokenSink | None:
    def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
        rows[row].on_tokens(tokens, forced)

    return sink if any(row.streams for row in rows) else None
