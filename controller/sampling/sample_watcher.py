"""The watcher of one sample: its controller acts first; then the vote learns what happened, and may end the sample."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from ..controller import Controller, ControllerState
from ..request_builder import PreparedRequest
from ..session import Session
from ..streaming import CancellableWatcher
from ..text.answers import extract_answer, extract_boxed
from ..text.reasoning_parser import split_reasoning
from ..types import Completion, Directive, Request, StepInfo
from .vote import VoteState


class SampleWatcher(CancellableWatcher):
    """Watches a sample and ends it once its vote stops it; implements `types.CompletionListener`.

    Attributes:
        preamble: output tokens before the thinking, including the marker that opens it.
    """

    def __init__(self, vote: VoteState, sample: int, session: Session, prepared: PreparedRequest) -> None:
        super().__init__(lambda: sample in vote.stopped)
        self.vote, self.sample, self.session, self.prepared = vote, sample, session, prepared
        self.controller = prepared.controller or _make_observer(session, prepared)
        self.preamble = int(prepared.state == "before")
        self._thinking_closed = False

    def wrap(self, request: Request) -> Request:
        """See `CancellableWatcher.wrap`; a sample without control is observed as well."""
        return super().wrap(replace(request, watcher=request.watcher or self.controller))

    def continue_from(self, head: Completion, preamble: int) -> None:
        """Start after the first tokens of another sample, `preamble` of which are not thinking."""
        controller, self.preamble = self.controller, preamble or self.preamble
        controller.state = ControllerState.THINKING
        controller.position += len(head.token_ids)
        signals = head.signals or (None,) * len(head.token_ids)
        for token, of_token in list(zip(head.token_ids, signals, strict=True))[preamble:]:
            controller.thinking.add(token, of_token)

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        cancelled, was_trial = self.is_cancelled(), self._trial_tokens > 0
        directive = super().observe(token, step)
        if cancelled:
            return directive
        if not was_trial and not directive.trial and step is not None and step.signals is not None:
            self.vote.add_token(self.sample, step.signals.top)
        state = self.controller.state
        if state is ControllerState.BEFORE:
            self.preamble += 1
        elif state is ControllerState.ANSWER and not self._thinking_closed:
            self._thinking_closed = True
            self.vote.close_thinking(self.sample)
        return directive

    def on_finish(self, completion: Completion) -> None:
        """See `CompletionListener.on_finish`."""
        answer = None if completion.finish_reason == "stopped" else self._extract_answer(completion)
        self.vote.finish(self.sample, answer, self._thought_confidences())

    def _extract_answer(self, completion: Completion) -> str:
        """The answer of the sample; a model that ended its turn within its thinking may have put it there."""
        state = "thinking" if self.controller.thinking.ids else self.prepared.state
        parts = split_reasoning(completion.token_ids, self.session.codec, self.session.markers, state)
        return extract_answer(parts.answer) if parts.answer else extract_boxed(parts.thinking) or ""

    def _thought_confidences(self) -> list[tuple[int, float]]:
        """The end and the mean confidence of each thought whose tokens have signals."""
        confidences = []
        for thought in self.controller.thinking.thoughts:
            signals = self.controller.thinking.signals[thought.start : thought.end]
            if tops := [one.top for one in signals if one is not None]:
                confidences.append((thought.end, fmean(tops)))
        return confidences


def _make_observer(session: Session, prepared: PreparedRequest) -> Controller:
    """A controller that follows an uncontrolled sample and does nothing."""
    opened = prepared.state == "thinking"
    observer = Controller((), session.codec, session.markers, prepared.budget, opened=opened, shadow=True)
    if prepared.state == "answer":
        observer.state = ControllerState.ANSWER
    return observer
