"""A larger model that writes a stretch of somebody else's thinking.

Speculative Thinking (arXiv 2504.12329) hands reflective steps to it. What goes between the two models is text, so that
they need not share a tokenizer. Rows that ask at the same time are answered as one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ..budgets import fit_budget
from ..engines.base import KEEP, Directive, Request, Sampling, Seen
from ..prompts import Prompt, render
from ..spotting import Spotter
from ..text import Flag
from .asked import told
from .questions import Review

if TYPE_CHECKING:
    from ..session import Session

_STOP = Directive(stop=True)
_ROOM = 1 << 20


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is asked for: at most `tokens` tokens, by the helper's count, of thinking that goes on from `thinking`.

    thought: no further than to the end of a thought. reply: no thinking at all, but a reply to the prompt. review:
    `draft` stands there already, and the text begins with what of it is kept; nothing is added where that is all of it.
    """

    prompt: Prompt
    thinking: str
    tokens: int
    thought: bool = False
    reply: bool = False
    draft: str = ""
    review: Review | None = None


class Help:
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

    def settle(self, text: str, closed: bool) -> Help:
        """Write the text."""
        self.text, self.closed, self.done = text, closed, True
        return self

    def fail(self, error: str) -> Help:
        """Write that there will be none, and why."""
        if not self.done:
            self.error, self.done = error, True
        return self


class Helper(Protocol):
    """Writes stretches; `write` only takes one in and never raises for it, `Help.wait` has it written.

    reviews: whether it looks at drafts; one that does not keeps nothing of them.
    """

    reviews: bool

    def write(self, stretch: Stretch) -> Help:
        """Take a stretch in."""
        ...


class EngineHelper:
    """Lets an engine write; implements `Helper`.

    All stretches that were taken in are written as one batch as soon as one of them is waited for. session: of the
    larger model, which finds its markers. patience: seconds after which a batch is given up. sampling: None takes the
    model's own; seed: of its draws.
    """

    def __init__(
        self, session: Session, *, patience: float = 60.0, sampling: Sampling | None = None, seed: int = 0
    ) -> None:
        self.session, self.patience, self.seed = session, patience, seed
        self.sampling = sampling or Sampling()
        self._open: list[tuple[Stretch, Help]] = []
        self._batches = 0
        self.reviews = hasattr(session.engine, "model")

    def write(self, stretch: Stretch) -> Help:
        """See `Helper.write`."""
        made = Help(self._bring)
        self._open.append((stretch, made))
        return made

    def _bring(self) -> None:
        batch, self._open = self._open, []
        self._batches += 1
        try:
            self._write(batch)
        except Exception as error:  # whatever is wrong with the helper is no matter of the rows that wait
            for _, made in batch:
                made.fail(told(error))

    def _write(self, batch: Sequence[tuple[Stretch, Help]]) -> None:
        session, deadline = self.session, time.monotonic() + self.patience
        batch = self._looked_over(batch)
        if not batch:
            return
        watchers = [_Until(session, stretch, deadline) for stretch, _ in batch]
        prompts = [_ids(session, stretch) for stretch, _ in batch]
        requests = [
            Request(prompt, _within(session.engine.context_length, len(prompt), stretch.tokens + 1), watcher)
            for prompt, watcher, (stretch, _) in zip(prompts, watchers, batch, strict=True)
        ]
        # A seed of its own leaves the draws of the rows that wait as they are.
        sampling = replace(self.sampling, seed=self.seed + self._batches)
        done = session.engine.generate(requests, sampling)
        for prompt, watcher, completion, (stretch, made) in zip(prompts, watchers, done, batch, strict=True):
            made.tokens = len(completion.token_ids) + completion.dropped
            made.read += len(prompt)
            if watcher.late:
                made.fail(f"the helper was not done after {self.patience:g} s")
                continue
            before, found, _ = session.codec.decode(completion.token_ids).partition(session.markers.close)
            ended = bool(found) or completion.finish_reason == "stop"
            made.settle(stretch.draft + before, ended and not stretch.reply)

    def _looked_over(self, batch: Sequence[tuple[Stretch, Help]]) -> list[tuple[Stretch, Help]]:
        """What is left to be written; the draft of a stretch is then what stands of it."""
        rest = [(stretch, made) for stretch, made in batch if stretch.review is None]
        drafts = [(stretch, made) for stretch, made in batch if stretch.review is not None]
        if not drafts:
            return rest
        from .reviewing import look_over

        for (stretch, made), verdict in zip(drafts, look_over(self.session, [s for s, _ in drafts]), strict=True):
            made.read = verdict.read
            if verdict.kept is None:
                made.fail(verdict.error)
            elif verdict.kept == stretch.draft:
                made.settle(stretch.draft, closed=False)
            else:
                rest.append((replace(stretch, thinking=stretch.thinking + verdict.kept, draft=verdict.kept), made))
        return rest


def prompt_ids(session: Session, prompt: Prompt, thinking: str) -> tuple[int, ...]:
    """A prompt after which this thinking stands already."""
    rendered = render(session.engine.tokenizer, prompt, fit_budget("normal", _ROOM), session.markers)
    opening = "" if rendered.state == "thinking" else f"{session.markers.open}\n"
    return (*rendered.ids, *session.codec.encode(f"{opening}{thinking}"))


def _ids(session: Session, stretch: Stretch) -> tuple[int, ...]:
    if not stretch.reply:
        return prompt_ids(session, stretch.prompt, stretch.thinking)
    return render(session.engine.tokenizer, stretch.prompt, fit_budget("none", _ROOM), session.markers).ids


class _Until:
    """Ends a row after so many tokens, where the thought or the thinking ends, or when it is too late."""

    def __init__(self, session: Session, stretch: Stretch, deadline: float) -> None:
        self.left, self.deadline, self.late = stretch.tokens, deadline, False
        self._codec, self._thought = session.codec, stretch.thought
        self._close = Spotter(session.codec, session.markers.close)

    def observe(self, token: int, seen: Seen | None = None) -> Directive:
        """See `Watcher.observe`."""
        self.left -= 1
        self.late = time.monotonic() > self.deadline
        ended = self._close.completes(token) or (self._thought and bool(self._codec.flags(token) & Flag.BLANK))
        return _STOP if ended or self.left <= 0 or self.late else KEEP


def _within(context: int | None, prompt: int, tokens: int) -> int:
    """As many tokens as fit, at least one: the engine then says what is wrong with the prompt."""
    return tokens if context is None else max(1, min(tokens, context - prompt))
