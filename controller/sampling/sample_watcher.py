"""The watcher of one sample: the row's own goes first; the poll hears what happens, and may end the row."""

from __future__ import annotations

from statistics import fmean

from ..cancellation import CancellableWatcher
from ..controller import Controller
from ..request_builder import PreparedRequest
from ..session import Session
from ..text.answers import extract_answer, extract_boxed
from ..text.reasoning_parser import split_reasoning
from ..types import Completion, Directive, StepInfo, Watcher
from .vote import VoteState


class SampleWatcher(CancellableWatcher):
    """Watches a sample from `begin` on, and ends it once its poll stops it; implements `engines.base.Concerned`.

    before: output tokens before the thinking, the marker that opens it included.
    """

    controller: Controller

    def __init__(self, poll: VoteState, sample: int, session: Session, row: PreparedRequest) -> None:
        super().__init__(lambda: sample in poll.stopped)
        self.poll, self.sample, self.session, self.row = poll, sample, session, row
        self.before = 0
        self._closed = False

    def begin(self, inner: Watcher | None, head: Completion | None = None, before: int = 0) -> None:
        """See `CancellableWatcher.begin`.

        head: what the row goes on from, of which `before` tokens are no thinking.
        """
        self.controller = self.row.controller or _onlooker(self.session, self.row)
        super().begin(inner or self.controller)
        self.before = before or int(self.row.state == "before")
        if head is not None:
            self.controller.phase = "thinking"
            self.controller.position += len(head.token_ids)
            signals = head.signals or (None,) * len(head.token_ids)
            for token, seen in list(zip(head.token_ids, signals, strict=True))[before:]:
                self.controller.thinking.add(token, seen)

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        over, tried = self.over(), self._trial > 0
        directive = super().observe(token, seen)
        if over:
            return directive
        if not tried and not directive.trial and seen is not None and seen.signals is not None:
            self.poll.read(self.sample, seen.signals.top)
        phase = self.controller.phase
        if phase == "before":
            self.before += 1
        elif phase == "answer" and not self._closed:
            self._closed = True
            self.poll.closed(self.sample)
        return directive

    def ended(self, done: Completion) -> None:
        """See `Concerned.ended`."""
        answer = None if done.finish_reason == "stopped" else self._answer(done)
        self.poll.ended(self.sample, answer, self._thoughts())

    def _answer(self, done: Completion) -> str:
        """What the sample answers; a model that ended its turn within its thinking may have put it there."""
        state = "thinking" if self.controller.thinking.ids else self.row.state
        parts = split_reasoning(done.token_ids, self.session.codec, self.session.markers, state)
        return extract_answer(parts.answer) if parts.answer else extract_boxed(parts.thinking) or ""

    def _thoughts(self) -> list[tuple[int, float]]:
        """Where each thought ends and its mean confidence, of those whose tokens were seen."""
        thinking = self.controller.thinking
        seen = ((t.end, [s.top for s in thinking.signals[t.start : t.end] if s is not None]) for t in thinking.thoughts)
        return [(end, fmean(tops)) for end, tops in seen if tops]


def _onlooker(session: Session, row: PreparedRequest) -> Controller:
    """A controller that follows the phases and thoughts of an uncontrolled row, and does nothing."""
    controller = Controller((), session.codec, session.markers, row.budget, opened=row.state == "thinking", shadow=True)
    if row.state == "answer":
        controller.phase = "answer"
    return controller
