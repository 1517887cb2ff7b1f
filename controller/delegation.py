"""Parts of a thinking that a helper writes or reviews: the contract of helpers, and their bookkeeping per sequence."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from .policies.base import AskHelper, Delegate, HelperAction, Inject, ReviewDraft, TextAction
from .policy_runner import PolicyTask
from .text.thoughts import ThinkingState
from .types import Directive, Prompt
from .verification import ReviewCriterion, format_error


class PrefixKey:
    """Cache key for one growing text; its cache entry dies with it."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class HelperRequest:
    """What a helper is asked for: at most `tokens` tokens, by its own count, that continue `thinking`."""

    prompt: Prompt
    thinking: str
    tokens: int
    one_thought: bool = False  # write no further than to the end of a thought
    reply: bool = False  # do not think at all, but reply to the prompt
    whole: bool = False  # write all of the thinking, under the helper's own control
    draft: str = ""  # text that stands already and is to be reviewed; the result begins with what is kept of it
    criterion: ReviewCriterion | None = None  # when the draft is kept; None where there is none
    prefix_key: PrefixKey | None = None
    """Identifies the growing text, so that what the helper has read of it is not read again."""


@dataclass(frozen=True, slots=True)
class HelperText:
    """What a helper wrote, and whether it ended the thinking there."""

    text: str
    closed: bool


class HelperFuture(Future[HelperText]):
    """The text to come; computed, together with all others that are pending, when the first of them is waited for.

    `tokens` is what the helper wrote, and `read` what it read for that, by its own count.
    """

    def __init__(self, compute: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._compute = compute
        self.tokens = self.read = 0

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self.done():
            self._compute()
        if not self.done():
            self.set_exception(HelperError("the helper wrote nothing"))
        return super().exception(timeout)

    def result(self, timeout: float | None = None) -> HelperText:
        self.exception()
        return super().result(timeout)


class HelperError(Exception):
    """A helper has no text for a request."""


class Helper(Protocol):
    """Writes parts of a thinking; `write` returns at once and never raises for a request."""

    reviews: bool  # whether it can review drafts

    def write(self, request: HelperRequest) -> HelperFuture:
        """Take a request."""


@dataclass(frozen=True, slots=True)
class Delegation:
    """One request to the helper: which policy made it, where in the output, and what comes of it."""

    task: PolicyTask
    action: HelperAction
    position: int
    future: HelperFuture
    reviewed: int  # how many of the latest tokens the helper was shown to keep or rewrite

    @property
    def kind(self) -> str:
        """For the trace: `ask`, `review` where the helper kept everything, or `delegate`."""
        if isinstance(self.action, AskHelper):
            return "ask"
        return "review" if self.reviewed and not self.future.tokens else "delegate"

    @property
    def reason(self) -> str:
        """For the trace: why the helper was asked, and how much it wrote."""
        if self.kind == "review":
            return f"{self.action.reason}; the helper keeps the last {self.reviewed} tokens"
        return f"{self.action.reason}; the helper wrote {self.future.tokens} tokens"


class DelegationManager:
    """Sends parts of one sequence to its helper, one at a time."""

    def __init__(self, helper: Helper | None, prompt: Prompt, thinking: ThinkingState) -> None:
        self.helper, self.prompt, self.thinking = helper, prompt, thinking
        self.tokens = self.read = self.retracted = 0
        self._pending: Delegation | None = None
        self._prefix_key = PrefixKey()

    def begin(self, task: PolicyTask, action: HelperAction, position: int, room: int) -> Directive:
        """Send a request after `position` output tokens, and suspend; the thinking may grow by `room` tokens."""
        if isinstance(action, ReviewDraft):
            return self._review(task, action, position, room)
        thinking = self.thinking
        restart = isinstance(action, Delegate) and action.restart
        retract = thinking.retract(len(thinking) if restart else action.retract)
        self.retracted += retract
        if isinstance(action, AskHelper):
            request = HelperRequest(action.message, "", action.tokens, reply=True)
            return Directive(retract=retract, wait_for=self._send(request, task, action, position - retract))
        prefix = f"{thinking.separator}{action.prefix} " if action.prefix else ""
        forced = thinking.codec.encode(prefix)
        for token in forced:
            thinking.add(token)
        growth = len(forced) - retract
        tokens = min(action.tokens, room - growth)
        request = HelperRequest(self.prompt, prefix if restart else thinking.text, tokens, whole=restart)
        return Directive(forced, retract=retract, wait_for=self._send(request, task, action, position + growth))

    def _review(self, task: PolicyTask, action: ReviewDraft, position: int, room: int) -> Directive:
        """Show the helper the latest tokens; all of them stand until it has decided."""
        thinking = self.thinking
        latest = thinking.retractable(action.latest)
        before = thinking.codec.decode(thinking.ids[: len(thinking) - latest])
        request = HelperRequest(
            self.prompt,
            before,
            min(action.tokens, room + latest),
            action.one_thought,
            draft=thinking.text[len(before) :],
            criterion=action.criterion,
            prefix_key=self._prefix_key,
        )
        return Directive(wait_for=self._send(request, task, action, position - latest, latest))

    def _send(
        self, request: HelperRequest, task: PolicyTask, action: HelperAction, position: int, reviewed: int = 0
    ) -> HelperFuture:
        assert self.helper is not None  # the controller has checked
        try:
            future = self.helper.write(request)
        except Exception as error:  # a helper may be anybody's code
            future = HelperFuture()
            future.set_exception(error)
        self._pending = Delegation(task, action, position, future, reviewed)
        return future

    def end(self) -> Delegation:
        """Return the request that the sequence waited for, and count what it cost."""
        assert self._pending is not None  # only a suspended sequence is resumed
        delegation, self._pending = self._pending, None
        self.tokens += delegation.future.tokens
        self.read += delegation.future.read
        return delegation

    def apply(self, delegation: Delegation, text: str, room: int) -> tuple[int, tuple[int, ...]]:
        """Put the helper's text into the thinking; return how many tokens are retracted and which are added."""
        if delegation.kind in ("ask", "review"):
            return 0, ()
        thinking, codec, kept = self.thinking, self.thinking.codec, 0
        draft = thinking.ids[len(thinking) - delegation.reviewed :]
        while kept < delegation.reviewed and text.startswith(codec.decode(draft[: kept + 1])):
            kept += 1
        retracted = thinking.retract(delegation.reviewed - kept)
        self.retracted += retracted
        ids = codec.encode(text[len(codec.decode(draft[:kept])) :])[: max(0, room + retracted)]
        for token in ids:
            thinking.add(token)
        return retracted, ids


def helper_error(future: HelperFuture) -> str:
    """Why a helper's future has no text."""
    error = future.exception()
    assert error is not None
    return str(error) if isinstance(error, HelperError) else format_error(error)


def without_retraction(action: TextAction) -> TextAction:
    """The action as it may follow a helper's: what was just written is neither dropped nor reviewed."""
    if isinstance(action, ReviewDraft):
        return replace(action, latest=0)
    if isinstance(action, Inject):
        return replace(action, behind=0)
    return replace(action, retract=0) if isinstance(action, (Delegate, AskHelper)) else action
