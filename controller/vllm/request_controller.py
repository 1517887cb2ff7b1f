"""One request under control inside vLLM.

A controller reads its request's output, and says which token must come next. Only tokens that are in the output count,
never calls: chunked prefill and preemption make vLLM ask more often than it samples. Knows no tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from ...errors import CapabilityError
from ..controller import Controller, ControllerState
from ..text.markers import Markers, closing_text
from ..text.tokenizer_adapter import TokenFlags, TokenizerAdapter
from ..trace import Decision
from ..types import Capability, Signals, State, StepInfo, Watcher

UNKNOWN, QUIET, SENTENCE, LINE, PARAGRAPH, FENCE, LOUD = range(7)
"""Kinds of tokens, by what they end: not known yet, nothing, a sentence, a line, a paragraph. A fence may be part of a
formula, code or a call but does not begin one. Any other token is loud."""


class RequestController:
    """Drives one watcher over a growing output.

    `end` are the tokens that end a turn: vLLM ends the request at them before a watcher is called. `reads` says which
    of signals and hidden states the watcher reads; `keep_signals` keeps the signals of every token. `lazy` lets tokens
    that wake no policy wait, see `patience`. So many tokens as `late` may come between a decision and what it forces.
    """

    def __init__(
        self,
        watcher: Watcher | None,
        end: Sequence[int],
        reads: frozenset[Capability] = frozenset(),
        keep_signals: bool = False,
        lazy: bool = False,
        late: int = 0,
    ) -> None:
        self.lazy, self.late = lazy, late
        self.watcher, self.end, self.reads, self.keep_signals = watcher, tuple(end), reads, keep_signals
        self.controller = watcher if isinstance(watcher, Controller) else None
        self.forced: list[bool] = []  # of each token that was read
        self.signals: list[Signals | None] = []
        self.output: Sequence[int] = ()
        self.stopped = False  # by the watcher
        self.above_grammars = False  # what is forced comes even if a grammar forbids it: vLLM then ends the request
        self.next_step: Callable[[], StepInfo] = lambda: _NO_STEP  # what the model says about the next token
        self.swap: Callable[[], bool] | None = None  # whether the end of the turn was swapped for the next token
        self._recalled = _Recall()
        self._finished = watcher is None  # nothing will be forced any more
        self.queue: deque[int] = deque()  # tokens that must come next
        self._late = 0  # tokens that may still come before those of the queue
        self.unseen = 0  # tokens that came so, which the watcher does not know
        self._closings: dict[str, int] = {}  # their first tokens, by the separator before them

    @property
    def done(self) -> bool:
        """Whether nothing is left to do for this request."""
        return self._finished and not self.keep_signals

    @property
    def settled(self) -> int:
        """How many tokens were read, without those of a forced piece that is not complete yet."""
        if not self.queue:
            return len(self.forced)
        return next((n for n in range(len(self.forced), 0, -1) if not self.forced[n - 1]), 0)

    @property
    def thinks(self) -> bool:
        """Whether the sequence is thinking and chooses its next token itself."""
        thinking = self.controller is not None and self.controller.state is ControllerState.THINKING
        return thinking and not self._finished and not self.queue

    @property
    def decisions(self) -> Sequence[Decision]:
        """The trace so far; empty for a watcher that is no `Controller`."""
        return () if self.controller is None else self.controller.decisions

    def patience(self, offered: int | None) -> tuple[int, int, int, int, int]:
        """How many more tokens may come before this has to read them, by the kind of the last, `QUIET` to `FENCE`.

        `offered` is the present `closing_starts`' first.
        """
        controller = self.controller
        if not self.lazy or controller is None or self.queue or self._finished or self.keep_signals:
            return 0, 0, 0, 0, 0
        if offered is None and not controller.shadow and self.thinks:
            return 0, 0, 0, 0, 0  # what stands for an end of the turn may change with the next token
        quiet, sentence = controller.patience("token"), controller.patience("sentence")
        line, paragraph = (sentence, controller.patience("thought")) if self.thinks else (0, 0)
        return quiet, sentence, line, paragraph, 0 if controller.thinking.may_call else quiet

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """Tokens after which nothing more is forced: those that end the turn, and the marker that ends the thinking."""
        controller = self.controller
        close = None if controller is None else controller.codec.added_tokens.get(controller.markers.close)
        return self.end if close is None else (*self.end, close)

    @property
    def wants_signals(self) -> bool:
        """Whether the next token's signals or hidden states will be read."""
        reads = bool(self.reads) and not self._finished and (self.controller is None or self.thinks)
        return self.keep_signals or reads

    @property
    def wants_states(self) -> bool:
        """Whether the hidden state that the next token is sampled from will be read."""
        return self.wants_signals and Capability.HIDDEN_STATES in self.reads

    def read(self, output: Sequence[int]) -> int | None:
        """Read what the output has grown by; return the token that must come next, None if any may."""
        self.output = output
        for index in range(len(self.forced), len(output)):
            latest = index == len(output) - 1
            step = self._step(index, latest) if self.reads or self.keep_signals else _NO_STEP
            swapped = latest and self.swap is not None and self.swap()
            self._read_token(output[index], step, swapped)
        return self.queue[0] if self.queue else None

    def skip(self, tokens: Sequence[int], signals: Sequence[Signals | None]) -> None:
        """Take the next tokens of the output, within `patience`; `signals` is empty or has one for each."""
        if signals:
            known = self._recalled.signals
            known += [None] * (len(self.forced) - len(known))
            known += signals
        self.forced += [False] * len(tokens)
        if self.controller is not None:
            self.controller.skip(tokens, signals)

    def _step(self, index: int, latest: bool) -> StepInfo:
        """What the model said about a token; kept, as far as it is read, for `replay`."""
        known = self._recalled
        if index < len(known.signals):
            return StepInfo(known.signals[index], known.states.get(index, _no_state))
        step = self.next_step() if latest else _NO_STEP
        known.signals += [None] * (index - len(known.signals))
        known.signals.append(step.signals)

        def state(layer: int) -> State:
            found = step.state(layer)
            known.states[index] = lambda layer: found
            return found

        return StepInfo(step.signals, state)

    def replay(self, before: Self, tokens: int) -> None:
        """Read again, for so many tokens, what the controller of this request read before it was preempted."""
        known = before._recalled
        states = {index: state for index, state in known.states.items() if index < tokens}
        self._recalled = _Recall(known.signals[:tokens], states)

    def _read_token(self, token: int, step: StepInfo, swapped: bool) -> None:
        if self.keep_signals:
            self.signals.append(None if self.queue else step.signals)
        if self._finished:
            self.forced.append(False)
            return
        if self.queue and self._late and token not in (self.queue[0], *self._ends):
            self._late -= 1
            self.unseen += 1
            self.forced.append(False)
            return
        if self.queue:
            self.forced.append(True)
            self._late = 0
            if self.queue.popleft() != token:
                self._give_up("vLLM wrote another token than the forced one (a grammar, or a limit of its own)")
            elif not self.queue:
                self._update_finished()
            return
        self.forced.append(False)
        if swapped and (starts := self.closing_starts()) is not None and starts[0] == token:
            self.forced[-1] = True
            self._observe(self.end[0], step, written=1)
        else:
            self._observe(token, step)

    def _observe(self, token: int, step: StepInfo, written: int = 0) -> None:
        """Show a token to the watcher, and queue what it forces; this many tokens of that are written already."""
        assert self.watcher is not None
        directive = self.watcher.observe(token, step) if self.reads else self.watcher.observe(token)
        if directive.retract > written or directive.trial is not None or directive.wait_for is not None:
            self._give_up("inside vLLM tokens cannot be retracted, tried or waited for")
            return
        self.queue.extend(directive.force[written:])
        self._late = 0 if written else self.late
        if directive.stop:
            self.stopped = True
            self.queue.extend(self.end[:1])
        self._update_finished()

    def _update_finished(self) -> None:
        self._finished = not self.queue and self.controller is not None and self.controller.finished

    def _give_up(self, reason: str) -> None:
        self.queue.clear()
        self._finished = True
        if self.controller is not None:
            self.controller.decisions.append(Decision("engine", "error", f"goes on alone: {reason}", len(self.forced)))

    def fail(self, error: Exception) -> None:
        """Leave the request alone after an error of ours, which must never reach vLLM."""
        self._give_up(f"{type(error).__name__}: {error}")

    def closing_starts(self) -> tuple[int, int, int, int] | None:
        """The first token of what closes the thinking here, and behind a next token in a line, of a line, a paragraph.

        It replaces an end of the turn. None where the sequence is not thinking, or nothing may be done.
        """
        controller = self.controller
        if controller is None or not self.thinks or controller.shadow or not self.end:
            return None
        thinking = controller.thinking
        if thinking.ends_in_call:
            return None  # the turn ends with the call
        behind, line, paragraph = map(self._closing_start, ("\n\n", "\n", ""))
        return self._closing_start(thinking.separator) if thinking.ends_line else behind, behind, line, paragraph

    def _closing_start(self, separator: str) -> int:
        """The first token of a closing behind a separator."""
        found = self._closings.get(separator)
        if found is None:
            assert self.controller is not None
            text = closing_text(self.controller.markers, "", separator)
            found = self._closings[separator] = self.controller.codec.encode(text)[0]
        return found


def classify(token: int, codec: TokenizerAdapter, markers: Markers, end: Sequence[int]) -> int:
    """The kind of a token. One that may end the turn or a marker, begin a call or a line, is loud."""
    added, flags = codec.added_tokens, codec.flags[token] & ~TokenFlags.DIGIT
    for marker in (markers.open, markers.close):
        if added.get(marker) == token or (marker not in added and codec.holds(token, marker[-1])):
            return LOUD
    if token in end or flags & TokenFlags.CALL:
        return LOUD
    if flags & TokenFlags.FENCE or codec.holds(token, "="):  # which begins a call in "<function="
        return LOUD if flags & (TokenFlags.SENTENCE | TokenFlags.NEWLINE) else FENCE
    if not flags & TokenFlags.NEWLINE:
        return SENTENCE if flags else QUIET
    ending = "\n\n" if flags & TokenFlags.BLANK else "\n"
    return (PARAGRAPH if flags & TokenFlags.BLANK else LINE) if codec.decode([token]).endswith(ending) else LOUD


@dataclass
class _Recall:
    """What was read of the model: signals of each token, and the state of those where it was asked for."""

    signals: list[Signals | None] = field(default_factory=list)
    states: dict[int, Callable[[int], State]] = field(default_factory=dict)


def _no_state(layer: int) -> State:
    raise CapabilityError(f"the hidden state of layer {layer} is not available inside vLLM; only the last one (-1) is")


_NO_STEP = StepInfo(None, _no_state)
