"""A larger model that writes a stretch of somebody else's thinking.

Speculative Thinking (arXiv 2504.12329) hands reflective steps to it. What goes between the two models is text, so that
they need not share a tokenizer. Rows that ask at the same time are answered as one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ..budgets import TIERS, fit_budget
from ..options import GenerationOptions
from ..pending_questions import format_error
from ..prompts import Prompt, render
from ..text.marker_matcher import MarkerMatcher
from ..text.tokenizer_adapter import TokenFlags
from ..types import KEEP, Directive, Request, SamplingParams, StepInfo
from ..verification import ReviewCriterion

if TYPE_CHECKING:
    from ..controller import Controller
    from ..session import Session
    from .draft_reviewer import DraftReviewer

_STOP = Directive(stop=True)
_ROOM = 1 << 20


class PrefixKey:
    """Stands for one text that grows; what was read of it is forgotten with it."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class HelperRequest:
    """What is asked for: at most `tokens` tokens, by the helper's count, of thinking that goes on from `thinking`.

    thought: no further than to the end of a thought. reply: no thinking at all, but a reply to the prompt. whole: all
    of the thinking, under the helper's own control. review: `draft` stands there already, and the text begins with what
    of it is kept; nothing is added where that is all of it. text: whose stretches these are, so that what a helper has
    read of it need not be read again.
    """

    prompt: Prompt
    thinking: str
    tokens: int
    thought: bool = False
    reply: bool = False
    whole: bool = False
    draft: str = ""
    review: ReviewCriterion | None = None
    text: PrefixKey | None = None


class HelperFuture:
    """A stretch to come.

    text: what was written, None until then or if it never will be. closed: the helper ended the thinking there.
    tokens: what it wrote; read: what it read for that, by its own count. error: why there is none.
    """

    __slots__ = ("_bring", "closed", "done", "error", "read", "text", "tokens")

    def __init__(self, bring: Callable[[], None] = lambda: None) -> None:
        self._bring = bring
        self.text: str | None = None
        self.closed = self.done = False
        self.tokens = self.read = 0
        self.error: str | None = None

    def wait(self) -> None:
        """Have it written, or know why it will not be."""
        if not self.done:
            self._bring()
        if not self.done:
            self.fail("the helper wrote nothing")

    def settle(self, text: str, closed: bool) -> HelperFuture:
        """Write the text."""
        self.text, self.closed, self.done = text, closed, True
        return self

    def fail(self, error: str) -> HelperFuture:
        """Write that there will be none, and why."""
        if not self.done:
            self.error, self.done = error, True
        return self


class Helper(Protocol):
    """Writes stretches; `write` only takes one in and never raises for it, `HelperFuture.wait` has it written.

    reviews: whether it looks at drafts; one that does not keeps nothing of them.
    """

    reviews: bool

    def write(self, stretch: HelperRequest) -> HelperFuture:
        """Take a stretch in."""
        ...


class EngineHelper:
    """Lets an engine write; implements `Helper`.

    All stretches that were taken in are written as one batch as soon as one of them is waited for. session: of the
    larger model, which finds its markers. patience: seconds after which a batch is given up. sampling: None takes the
    model's own; seed: of its draws. preset: what controls it where it thinks from the question on.
    """

    def __init__(
        self,
        session: Session,
        *,
        patience: float = 60.0,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        preset: str = "balanced",
    ) -> None:
        self.session, self.patience, self.seed, self.preset = session, patience, seed, preset
        self.sampling = sampling or SamplingParams()
        self._open: list[tuple[HelperRequest, HelperFuture]] = []
        self._batches = 0
        self._reviewer: DraftReviewer | None = None
        self.reviews = hasattr(session.engine, "model")

    def write(self, stretch: HelperRequest) -> HelperFuture:
        """See `Helper.write`."""
        made = HelperFuture(self._bring)
        self._open.append((stretch, made))
        return made

    def _bring(self) -> None:
        batch, self._open = self._open, []
        self._batches += 1
        try:
            self._write(batch)
        except Exception as error:  # whatever is wrong with the helper is no matter of the rows that wait
            for _, made in batch:
                made.fail(format_error(error))

    def _write(self, batch: Sequence[tuple[HelperRequest, HelperFuture]]) -> None:
        session, deadline = self.session, time.monotonic() + self.patience
        batch = self._looked_over(batch)
        if not batch:
            return
        asked = [self._asked(stretch, deadline) for stretch, _ in batch]
        requests = [replace(request, watcher=until) for request, until in asked]
        # A seed of its own leaves the draws of the rows that wait as they are.
        sampling = replace(self.sampling, seed=self.seed + self._batches)
        done = session.engine.generate(requests, sampling)
        for (request, until), completion, (stretch, made) in zip(asked, done, batch, strict=True):
            made.tokens = len(completion.token_ids) + completion.dropped + completion.trial
            made.read += len(request.prompt_ids)
            if until.late:
                made.fail(f"the helper was not done after {self.patience:g} s")
                continue
            text = session.codec.decode(completion.token_ids)
            if stretch.whole and text.startswith(session.markers.open):
                text = text.removeprefix(session.markers.open).lstrip("\n")
            before, found, _ = text.partition(session.markers.close)
            ended = bool(found) or completion.finish_reason == "stop"
            made.settle(stretch.draft + before, ended and not stretch.reply)

    def _asked(self, stretch: HelperRequest, deadline: float) -> tuple[Request, _StopAfter]:
        """What the engine is asked for and who watches it; all of a thinking is under the helper's own control."""
        session = self.session
        if stretch.whole:
            limit = stretch.tokens + TIERS["normal"].reserve
            (row,) = session.prepare([stretch.prompt], GenerationOptions(preset=self.preset, max_new_tokens=limit))
            return row.request, _StopAfter(session, stretch, deadline, row.controller)
        prompt = _ids(session, stretch)
        room = _within(session.engine.context_length, len(prompt), stretch.tokens + 1)
        return Request(prompt, room), _StopAfter(session, stretch, deadline)

    def _looked_over(
        self, batch: Sequence[tuple[HelperRequest, HelperFuture]]
    ) -> list[tuple[HelperRequest, HelperFuture]]:
        """What is left to be written; the draft of a stretch is then what stands of it."""
        rest = [(stretch, made) for stretch, made in batch if stretch.review is None]
        drafts = [(stretch, made) for stretch, made in batch if stretch.review is not None]
        if not drafts:
            return rest
        from .draft_reviewer import DraftReviewer

        self._reviewer = self._reviewer or DraftReviewer(self.session)
        for (stretch, made), verdict in zip(drafts, self._reviewer.look_over([s for s, _ in drafts]), strict=True):
            made.read = verdict.read
            if verdict.kept is None:
                made.fail(verdict.error)
            elif verdict.kept == stretch.draft:
                made.settle(stretch.draft, closed=False)
            elif verdict.next is not None and stretch.tokens == 1:
                self._put(made, verdict.kept, verdict.next)
            else:
                rest.append((replace(stretch, thinking=stretch.thinking + verdict.kept, draft=verdict.kept), made))
        return rest

    def _put(self, made: HelperFuture, kept: str, token: int) -> None:
        """Settle a review with the one token that is to follow what stands, which needs no decoding."""
        codec, made.tokens = self.session.codec, 1
        text = codec.decode([token])
        closed = token == codec.tokenizer.eos_token_id or text == self.session.markers.close
        made.settle(kept if closed else kept + text, closed)


def encode_prompt(session: Session, prompt: Prompt, *thinkings: str) -> list[tuple[int, ...]]:
    """A prompt after which each of these thinkings stands already."""
    rendered = render(session.engine.tokenizer, prompt, fit_budget("normal", _ROOM), session.markers)
    opening = "" if rendered.state == "thinking" else f"{session.markers.open}\n"
    return [(*rendered.ids, *session.codec.encode(f"{opening}{thinking}")) for thinking in thinkings]


def _ids(session: Session, stretch: HelperRequest) -> tuple[int, ...]:
    if not stretch.reply:
        return encode_prompt(session, stretch.prompt, stretch.thinking)[0]
    return render(session.engine.tokenizer, stretch.prompt, fit_budget("none", _ROOM), session.markers).ids


class _StopAfter:
    """Ends a row after so many tokens, where the thought or the thinking ends, or when it is too late.

    controller: of the row, which then knows where the thinking ends.
    """

    def __init__(
        self, session: Session, stretch: HelperRequest, deadline: float, controller: Controller | None = None
    ) -> None:
        self.left, self.deadline, self.late = stretch.tokens, deadline, False
        self._codec, self._thought = session.codec, stretch.thought
        self._close = MarkerMatcher(session.codec, session.markers.close)
        self._controller = controller

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        self.left -= 1
        self.late = time.monotonic() > self.deadline
        if self.left <= 0 or self.late:
            return _STOP
        if self._controller is not None:
            return _STOP if self._controller.phase == "answer" else self._controller.observe(token, seen)
        ended = self._close.completes(token) or (self._thought and bool(self._codec.flags(token) & TokenFlags.BLANK))
        return _STOP if ended else KEEP


def _within(context: int | None, prompt: int, tokens: int) -> int:
    """As many tokens as fit, at least one: the engine then says what is wrong with the prompt."""
    return tokens if context is None else max(1, min(tokens, context - prompt))
