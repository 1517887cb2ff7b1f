"""What one sequence of a batch has generated so far, on the host, and what a directive does to it. No tensors here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import CapabilityError, OptionError, PromptError
from ..types import (
    KEEP,
    Completion,
    CompletionListener,
    Directive,
    FinishReason,
    Request,
    Signals,
    StepInfo,
    TokenSink,
    Watcher,
)


@dataclass(frozen=True, slots=True)
class CacheEdit:
    """What a directive requires of the model's cache and of the ids that logits processors see."""

    feed: tuple[int, ...]  # tokens of the next forward pass
    unfeed: int  # how many tokens already fed are removed first
    drop: int  # how many of the sequence's ids are removed, where the token just sampled already stands at the end
    add: tuple[int, ...]  # ids that are then added

    def without(self, count: int) -> CacheEdit:
        """The same edit, followed by removing the last `count` tokens."""
        fed, added = min(count, len(self.feed)), min(count, len(self.add))
        return CacheEdit(
            self.feed[: len(self.feed) - fed],
            self.unfeed + count - fed,
            self.drop + count - added,
            self.add[: len(self.add) - added],
        )


WAIT = CacheEdit((), 0, 1, ())
"""The edit of a suspended sequence: nothing is fed, and the token sampled for it is dropped."""


class SequenceState:
    """The output of one sequence; `tokens` includes an end-of-sequence token that ended it.

    `index` is its number among the requests, and `slot` its place in the batch, which moves up as others end. A `queue`
    of forced tokens is fed one at a time.
    """

    __slots__ = (
        "dropped ended_by_eos eos finish forced index keep_signals last_prompt_token limit notify observe queue "
        "ragged recomputed resume signals sink slot tokens trial trial_sampled trial_tokens waiting_for"
    ).split()

    def __init__(
        self,
        index: int,
        *,
        eos: frozenset[int],
        limit: float,
        ragged: bool,
        last_prompt_token: int,
        watcher: Watcher | None = None,
        sink: TokenSink | None = None,
        keep_signals: bool = False,
    ) -> None:
        self.index = self.slot = index
        self.eos, self.limit, self.ragged = eos, limit, ragged
        self.last_prompt_token = last_prompt_token
        self.observe: Callable[..., Directive] | None = None if watcher is None else watcher.observe
        self.resume: Callable[[], Directive] | None = getattr(watcher, "resume", None)
        self.notify: Callable[[Completion], None] | None = (
            watcher.on_finish if isinstance(watcher, CompletionListener) else None
        )
        self.sink, self.keep_signals = sink, keep_signals
        self.tokens: list[int] = []
        self.forced: list[bool] = []
        self.signals: list[Signals | None] = []  # as long as `tokens` if they are kept, else empty
        self.queue: deque[int] = deque()
        self.finish: FinishReason | None = None
        self.ended_by_eos = self.trial = self.trial_sampled = False
        self.dropped = self.recomputed = self.trial_tokens = 0
        self.waiting_for: Future[Any] | None = None

    @property
    def sampling_next(self) -> bool:
        return self.finish is None and self.waiting_for is None and not self.queue

    def advance(self, token: int, stop: bool, step: StepInfo | None = None) -> CacheEdit | None:
        """Append a sampled token and let the watcher react; return what must be done, None for nothing."""
        signals = step.signals if step is not None else None
        stopped = False
        if self.observe is not None:
            directive = self.observe(token) if step is None else self.observe(token, step)
            # A sequence that ends by itself on a kept token has no use for more tokens.
            ends = not directive.retract and not self.trial and (stop or token in self.eos)
            acts = directive.force or directive.retract or directive.wait_for
            if directive is not KEEP and acts and not ends:
                return self._apply(token, directive, signals)
            stopped = directive.stop
        self.tokens.append(token)
        self.forced.append(False)
        if self.keep_signals:
            self.signals.append(signals)
        if self.trial:
            return None
        if token in self.eos:
            self.finish, self.ended_by_eos = "stop", True
            return None
        if stop:
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "length"
        elif stopped:
            self.finish = "stopped"
        if self.sink is not None:
            self.sink(self.index, (token,), False)
        return None

    def wake(self, edit: CacheEdit) -> CacheEdit:
        """Continue once the future is done; `edit` is what this step has required so far."""
        assert self.resume is not None  # its watcher suspended it
        assert self.waiting_for is not None
        with suppress(CancelledError):
            self.waiting_for.exception()
        self.waiting_for = None
        directive = self.resume()
        edit = edit.without(directive.retract)
        self.dropped += directive.retract
        self._retract(directive.retract)
        before = len(self.tokens)
        self._force(directive)
        feed = tuple(self.tokens[before:])
        if not feed and not edit.feed and self.waiting_for is None:
            return CacheEdit((self._last_token,), edit.unfeed + 1, edit.drop, edit.add)
        return CacheEdit((*edit.feed, *feed), edit.unfeed, edit.drop, (*edit.add, *feed))

    def completion(self) -> Completion:
        """The output without its end-of-sequence token."""
        size = len(self.tokens) - self.ended_by_eos
        return Completion(
            tuple(self.tokens[:size]),
            tuple(self.forced[:size]),
            self.finish or "length",
            self.dropped,
            self.trial_tokens,
            self.recomputed,
            signals=tuple(self.signals[:size]),
        )

    @property
    def _last_token(self) -> int:
        return self.tokens[-1] if self.tokens else self.last_prompt_token

    def _apply(self, token: int, directive: Directive, signals: Signals | None) -> CacheEdit:
        unfeed = max(directive.retract - 1, 0)
        self._check(directive, unfeed)
        if self.trial:
            self.trial_tokens += directive.retract
        else:
            self.dropped += directive.retract - directive.restored
            self.recomputed += directive.restored
        self._retract(unfeed)
        before = len(self.tokens)
        self._append([] if directive.retract else [token], False, signals)
        if directive.trial is not None:
            self.trial, self.trial_sampled = directive.trial, directive.sampled
        self._force(directive)
        feed = tuple(self.tokens[before:])
        if not feed and self.waiting_for is None:
            # Nothing new to feed, but the logits after the last kept token are gone: feed it once more.
            return CacheEdit((self._last_token,), unfeed + 1, directive.retract, ())
        kept = 0 if directive.retract else 1
        return CacheEdit(feed, unfeed, directive.retract, feed[kept:])

    def _retract(self, count: int) -> None:
        if self.keep_signals and count:
            del self.signals[-count:]
        for _ in range(count):
            self.tokens.pop()
            self.forced.pop()
            if self.sink is not None and not self.trial:
                self.sink(self.index, (), True)

    def _force(self, directive: Directive) -> None:
        """Append forced tokens, then stop or wait as the directive says, unless the sequence has ended."""
        own = len(self.tokens) + len(directive.force) - directive.restored
        self._append(directive.force, True)
        self.forced[own:] = [False] * len(self.forced[own:])
        if self.finish is None:
            self.finish = "stopped" if directive.stop else None
        if self.finish is None:
            self.waiting_for = directive.wait_for

    def _append(self, tokens: Sequence[int], forced: bool, signals: Signals | None = None) -> None:
        """Append tokens up to the limit; an end-of-sequence token ends the output if it is the last of them."""
        announced = []
        for number, token in enumerate(tokens, 1):
            if self.finish is not None:
                break
            self.tokens.append(token)
            self.forced.append(forced)
            if self.keep_signals:
                self.signals.append(signals)
            if self.trial:
                continue
            if token in self.eos and number == len(tokens):
                self.finish, self.ended_by_eos = "stop", True
                break
            announced.append(token)
            if len(self.tokens) >= self.limit:
                self.finish = "length"
        if announced and self.sink is not None:
            self.sink(self.index, tuple(announced), forced)

    def _check(self, directive: Directive, unfeed: int) -> None:
        if unfeed > len(self.tokens):
            raise OptionError(
                f"a watcher dropped {directive.retract} tokens of sequence {self.index}, which has only "
                f"{len(self.tokens) + 1}; drop at most what was generated"
            )
        if not self.ragged and unfeed:
            raise CapabilityError(
                f"a watcher dropped {directive.retract} tokens, but this model's cache cannot be cropped (sliding "
                "window, recurrent or static); use a full-attention model, or a policy that "
                "drops at most the last token"
            )
        if not self.ragged and directive.wait_for:
            raise CapabilityError(
                "a watcher suspended its sequence, which this model's cache does not support; use another policy"
            )
        if not self.ragged and not directive.force:
            raise CapabilityError(
                "a watcher dropped a token without forcing another, but this model's cache cannot be rolled back; "
                "force at least one token"
            )
        if not self.trial and self.dropped > 4 * self.limit + 64:
            raise CapabilityError(
                f"watchers dropped {self.dropped} tokens of sequence {self.index}, which may have {self.limit}; "
                "the policy would never let it end"
            )


def check_max_new_tokens(request: Request, index: int, context: int | None, name: str) -> int:
    """Most tokens that a request may generate within the context; raises PromptError, OptionError if there are none."""
    if request.max_new_tokens < 1:
        raise OptionError(f"max_new_tokens of request {index} is {request.max_new_tokens}; accepted: 1 or more")
    if not request.prompt_ids:
        raise PromptError(f"the prompt of request {index} is empty; pass at least one token")
    if context is None:
        return request.max_new_tokens
    room = context - len(request.prompt_ids)
    if room < 1:
        raise PromptError(
            f"the prompt of request {index} has {len(request.prompt_ids)} tokens and {name!r} takes {context} in all; "
            "shorten it"
        )
    return min(request.max_new_tokens, room)
