"""What one row of a batch has put out so far, on the host, and what a directive does to it. Knows no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import CapabilityError, OptionError
from ..types import (
    KEEP,
    Completion,
    CompletionListener,
    Directive,
    FinishReason,
    Signals,
    StepInfo,
    TokenSink,
    Waitable,
    Watcher,
)


@dataclass(frozen=True, slots=True)
class CacheEdit:
    """What a directive asks of the model's cache and of the ids that logits processors see.

    `feed` are the tokens of the next forward and `unfeed` how many already fed ones go first; `drop` and `add` say the
    same of the row's ids, where the token just sampled already stands at the end.
    """

    feed: tuple[int, ...]
    unfeed: int
    drop: int
    add: tuple[int, ...]

    def without(self, count: int) -> CacheEdit:
        """The same, and then the last `count` tokens taken back."""
        fed, added = min(count, len(self.feed)), min(count, len(self.add))
        return CacheEdit(
            self.feed[: len(self.feed) - fed],
            self.unfeed + count - fed,
            self.drop + count - added,
            self.add[: len(self.add) - added],
        )


WAIT = CacheEdit((), 0, 1, ())
"""What a resting row asks for: nothing, not even the token that was sampled for it."""


class SequenceState:
    """One row's output; `tokens` includes an end-of-sequence token when that ended the row.

    `index` is its number among the requests, `slot` its place in the batch, which moves up as others end.
    """

    __slots__ = (
        "budget",
        "by_eos",
        "drawn",
        "dropped",
        "eos",
        "finish",
        "forced",
        "index",
        "last_prompt_token",
        "measured",
        "observe",
        "pending",
        "queue",
        "ragged",
        "reread",
        "resume",
        "signals",
        "sink",
        "slot",
        "tell",
        "tokens",
        "trial",
        "tried",
    )

    def __init__(
        self,
        index: int,
        *,
        eos: frozenset[int],
        budget: float,
        ragged: bool,
        last_prompt_token: int,
        watcher: Watcher | None = None,
        sink: TokenSink | None = None,
        measured: bool = False,
    ) -> None:
        self.index = self.slot = index
        self.eos = eos
        self.budget = budget
        self.ragged = ragged
        self.last_prompt_token = last_prompt_token
        self.watch(watcher)
        self.sink = sink
        self.measured = measured
        self.tokens: list[int] = []
        self.forced: list[bool] = []
        self.signals: list[Signals | None] = []  # as long as `tokens` if measured, else empty
        self.queue: deque[int] = deque()
        self.finish: FinishReason | None = None
        self.by_eos = False
        self.dropped = 0
        self.reread = 0  # prompt tokens that were read for a choice alone
        self.pending: Waitable | None = None
        self.trial = False
        self.drawn = False  # whether the trial is sampled
        self.tried = 0  # tokens of trials that are over

    def watch(self, watcher: Watcher | None) -> None:
        """Let this watcher follow the row from now on."""
        self.observe: Callable[..., Directive] | None = watcher.observe if watcher is not None else None
        self.resume: Callable[[], Directive] | None = getattr(watcher, "resume", None)
        self.tell: Callable[[Completion], None] | None = (
            watcher.ended if isinstance(watcher, CompletionListener) else None
        )

    def advance(self, token: int, stop: bool, seen: StepInfo | None = None) -> CacheEdit | None:
        """Take in a sampled token, let the watcher speak, and return what must be done; None when nothing."""
        signals = seen.signals if seen is not None else None
        stopped = False
        if self.observe is not None:
            directive = self.observe(token) if seen is None else self.observe(token, seen)
            # A row that ends by itself on a kept token has no use for more tokens.
            ends = not directive.drop and not self.trial and (stop or token in self.eos)
            if directive is not KEEP and (directive.force or directive.drop or directive.until) and not ends:
                return self._edit(token, directive, signals)
            stopped = directive.stop
        self.tokens.append(token)
        self.forced.append(False)
        if self.measured:
            self.signals.append(signals)
        if self.trial:
            return None
        if token in self.eos:
            self.finish, self.by_eos = "stop", True
            return None
        if stop:
            self.finish = "stop"
        elif len(self.tokens) >= self.budget:
            self.finish = "length"
        elif stopped:
            self.finish = "stopped"
        if self.sink is not None:
            self.sink(self.index, (token,), False)
        return None

    def wake(self, begun: CacheEdit) -> CacheEdit:
        """Go on after a rest, as the watcher says; `begun` is what this step has asked for so far."""
        assert self.resume is not None  # its watcher let it rest
        self.pending = None
        directive = self.resume()
        begun = begun.without(directive.drop)
        self.dropped += directive.drop
        self._retract(directive.drop)
        before = len(self.tokens)
        self._force(directive)
        feed = tuple(self.tokens[before:])
        if not feed and not begun.feed and self.pending is None:
            return CacheEdit((self._last(),), begun.unfeed + 1, begun.drop, begun.add)
        return CacheEdit((*begun.feed, *feed), begun.unfeed, begun.drop, (*begun.add, *feed))

    def _retract(self, count: int) -> None:
        """Take back tokens that were put out."""
        if self.measured and count:
            del self.signals[-count:]
        for _ in range(count):
            self.tokens.pop()
            self.forced.pop()
            if self.sink is not None and not self.trial:
                self.sink(self.index, (), True)

    def _last(self) -> int:
        return self.tokens[-1] if self.tokens else self.last_prompt_token

    def _edit(self, token: int, directive: Directive, signals: Signals | None) -> CacheEdit:
        unfed = max(directive.drop - 1, 0)
        self._check(directive, unfed)
        if self.trial:
            self.tried += directive.drop
        else:
            self.dropped += directive.drop
        self._retract(unfed)
        before = len(self.tokens)
        self._append([] if directive.drop else [token], False, signals)
        if directive.trial is not None:
            self.trial, self.drawn = directive.trial, directive.drawn
        self._force(directive)
        feed = tuple(self.tokens[before:])
        if not feed and self.pending is None:
            # Nothing new to feed, yet the logits after the last kept token are gone: it is fed once more.
            return CacheEdit((self._last(),), unfed + 1, directive.drop, ())
        kept = 0 if directive.drop else 1
        return CacheEdit(feed, unfed, directive.drop, feed[kept:])

    def _force(self, directive: Directive) -> None:
        """Put out what is forced, and then end or rest as the directive says, unless that has ended the row."""
        self._append(directive.force, True)
        if self.finish is None:
            self.finish = "stopped" if directive.stop else None
        if self.finish is None:
            self.pending = directive.until

    def _append(self, tokens: Sequence[int], forced: bool, signals: Signals | None = None) -> None:
        """Put tokens out until the budget is full or an end-of-sequence token was among them."""
        taken = []
        for token in tokens:
            if self.finish is not None:
                break
            self.tokens.append(token)
            self.forced.append(forced)
            if self.measured:
                self.signals.append(signals)
            if self.trial:
                continue
            if token in self.eos:
                self.finish, self.by_eos = "stop", True
                break
            taken.append(token)
            if len(self.tokens) >= self.budget:
                self.finish = "length"
        if taken and self.sink is not None:
            self.sink(self.index, tuple(taken), forced)

    def _check(self, directive: Directive, unfed: int) -> None:
        if unfed > len(self.tokens):
            raise OptionError(
                f"a watcher dropped {directive.drop} tokens of row {self.index}, which has put out "
                f"{len(self.tokens) + 1}; drop at most what was put out"
            )
        if not self.ragged and unfed:
            raise CapabilityError(
                f"a watcher dropped {directive.drop} tokens, but this model's cache cannot be cropped (sliding window, "
                "recurrent or static); use a full-attention model or a policy that drops at most the last token"
            )
        if not self.ragged and directive.until:
            raise CapabilityError("a watcher let its row rest, which this model's cache cannot; use another policy")
        if not self.ragged and not directive.force:
            raise CapabilityError(
                "a watcher dropped a token without forcing another, but this model's cache cannot go back; "
                "force at least one token"
            )
        if not self.trial and self.dropped > 4 * self.budget + 64:
            raise CapabilityError(
                f"watchers dropped {self.dropped} tokens of row {self.index}, which may hold {self.budget}; "
                "the policy would never let it end"
            )

    def completion(self) -> Completion:
        """The row's output without its end-of-sequence token."""
        size = len(self.tokens) - self.by_eos
        return Completion(
            tuple(self.tokens[:size]),
            tuple(self.forced[:size]),
            self.finish or "length",
            dropped=self.dropped,
            trial=self.tried,
            reprefilled=self.reread,
            signals=tuple(self.signals[:size]),
        )
