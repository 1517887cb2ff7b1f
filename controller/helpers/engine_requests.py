"""From what a helper is asked to what its engine generates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..budgets import TIERS, fit_budget
from ..controller import ControllerState
from ..delegation import HelperRequest
from ..options import GenerationOptions
from ..prompts import render
from ..text.markers import MarkerMatcher
from ..text.tokenizer_adapter import TokenFlags
from ..types import KEEP, Directive, Prompt, Request, StepInfo, Watcher

if TYPE_CHECKING:
    from ..session import Session

_STOP = Directive(stop=True)
_UNLIMITED = 1 << 20


class StopAfter:
    """Ends a sequence after `tokens` tokens, at the end of a thought or of the thinking, or after the deadline.

    Args:
        inner: controls the sequence, which then ends where `thinking_ended()`.

    Attributes:
        late: whether the deadline has passed.
    """

    def __init__(
        self,
        session: Session,
        request: HelperRequest,
        deadline: float,
        inner: Watcher | None = None,
        thinking_ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self.tokens_left, self.deadline, self.late = request.tokens, deadline, False
        self._codec, self._one_thought = session.codec, request.one_thought
        self._close = MarkerMatcher(session.codec, session.markers.close)
        self._inner, self._thinking_ended = inner, thinking_ended

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        self.tokens_left -= 1
        self.late = time.monotonic() > self.deadline
        if self.tokens_left <= 0 or self.late:
            return _STOP
        if self._inner is not None:
            return _STOP if self._thinking_ended() else self._inner.observe(token, step)
        thought_ended = self._one_thought and bool(self._codec.flags(token) & TokenFlags.BLANK)
        return _STOP if self._close.completes(token) or thought_ended else KEEP


def make_request(session: Session, request: HelperRequest, deadline: float, preset: str) -> tuple[Request, StopAfter]:
    """The engine's request, and the watcher that ends it.

    Args:
        preset: controls a thinking that the helper writes from the question on.
    """
    if request.whole:
        limit = request.tokens + TIERS["normal"].reserve
        (prepared,) = session.prepare([request.prompt], GenerationOptions(preset=preset, max_new_tokens=limit))
        controller = prepared.controller
        watcher = StopAfter(
            session,
            request,
            deadline,
            controller,
            lambda: controller is not None and controller.state is ControllerState.ANSWER,
        )
        return replace(prepared.request, watcher=watcher), watcher
    if request.reply:
        prompt_ids = render(
            session.engine.tokenizer, request.prompt, fit_budget("none", _UNLIMITED), session.markers
        ).ids
    else:
        (prompt_ids,) = encode_thinking(session, request.prompt, request.thinking)
    limit, context = request.tokens + 1, session.engine.context_length
    if context is not None:
        limit = max(1, min(limit, context - len(prompt_ids)))  # the engine refuses a prompt that leaves no room
    watcher = StopAfter(session, request, deadline)
    return Request(prompt_ids, limit, watcher), watcher


def encode_thinking(session: Session, prompt: Prompt, *thinkings: str) -> list[tuple[int, ...]]:
    """The ids of a prompt followed by each of these beginnings of a thinking."""
    rendered = render(session.engine.tokenizer, prompt, fit_budget("normal", _UNLIMITED), session.markers)
    opening = "" if rendered.state == "thinking" else f"{session.markers.open}\n"
    return [(*rendered.ids, *session.codec.encode(f"{opening}{thinking}")) for thinking in thinkings]
