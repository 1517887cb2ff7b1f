"""Rows under control by slot, and what they want of each step as arrays, so that rows that are not due cost nothing.

Most tokens wake no policy. Such a token waits in an array with its signals, until one comes that its row has to see.
Knows no tensors: what is on a device comes as arrays of the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..policies.base import NEVER
from ..types import Signals, StepInfo
from .processes import send_trace
from .request_controller import FENCE, LINE, LOUD, PARAGRAPH, QUIET, UNKNOWN, RequestController

_WIDTH, _SPREAD = 128, 32
"""Most tokens of a row that wait to be read: fewer by up to the second, so that not all rows read in the same step."""
_KINDS = 1 << 20
_UNLIMITED = 2 * NEVER  # the patience of a slot without a row, more than that of any row
SIGNALS, STATES = 1, 2  # what a row wants to know of a step


def _width(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    return _WIDTH - slots % _SPREAD


def make_signals(values: NDArray[np.float32]) -> list[Signals | None]:
    """Signals of [tokens, 3], entropy, top probability and margin; None where these are NaN."""
    return [None if e != e else Signals(e, top, math.nan, margin) for e, top, margin in values.tolist()]


class StepReadings(Protocol):
    """What one step said about the next tokens of each row, by its place in the batch.

    `draft` says how many drafts of the step come before the token, see `step.DraftStep`.
    """

    def signals(self, places: NDArray[np.int64], draft: int) -> NDArray[np.float32]:
        """Entropy, top probability and margin, [places, 3]; NaN where they were not wanted."""

    def info(self, place: int, draft: int) -> StepInfo:
        """Signals and states."""

    def swapped(self, place: int, draft: int) -> bool:
        """Whether the end of the turn was swapped for the first token of a closing."""


@dataclass(slots=True)
class ControlledRow:
    """A request under control, with its output so far; tag and copy identify its trace, see `processes`."""

    controller: RequestController
    output: list[int]
    params: Any = None
    prompt: list[int] = field(default_factory=list)
    tag: str = ""
    copy: int = 0
    sent: int = 0  # decisions of the trace that were sent

    @property
    def bound(self) -> bool:
        """Whether a grammar can forbid what is forced."""
        grammar = getattr(self.params, "structured_outputs", None)
        return grammar is not None and not self.controller.above_grammars

    def send_trace(self) -> None:
        """Send the decisions that were not sent yet."""
        decisions = self.controller.decisions
        if len(decisions) > self.sent:
            self.sent = send_trace(self.tag, self.copy, decisions, self.sent)


class RowTable:
    """Rows by slot. `classify` says what a token is, see `request_controller`; `drafts` are the most of a step."""

    def __init__(self, classify: Callable[[int], int], drafts: int = 0) -> None:
        self.rows: dict[int, ControlledRow] = {}  # those that may have ended included
        self.finished: set[int] = set()  # slots of rows for which nothing is left to do
        self._eager: set[int] = set()  # slots of rows that are also read from outside
        self._classify = classify
        self._kinds = np.full(_KINDS, UNKNOWN, dtype=np.int8)
        self._kinds[-1] = LOUD  # that of all ids beyond
        self.forced = np.zeros(0, dtype=np.int64)  # the token that must come next, else -1
        self.bound = np.zeros(0, dtype=np.bool_)  # whether a grammar can forbid that token
        self.ahead = np.zeros((0, drafts), dtype=np.int64)  # the tokens that must come after that one, else -1
        self.offered = np.zeros(0, dtype=np.int64)  # what may stand for an end of the turn, else -1
        self._next_offered = np.zeros((0, LOUD + 1), dtype=np.int64)  # the same behind a next token, by its kind
        self._line_ended = np.zeros(0, dtype=np.bool_)  # whether the last token may have ended a line
        self.wanted = np.zeros(0, dtype=np.int8)
        self.seen = np.zeros(0, dtype=np.int64)  # in which step the row was in the batch
        self._patience = np.zeros((0, LOUD + 1), dtype=np.int64)  # by the kind of the token; a loud one never waits
        self._lengths = np.zeros(0, dtype=np.int64)  # of the outputs, tokens that wait included
        self._waiting = np.zeros(0, dtype=np.int64)
        self._tokens = np.zeros((0, _WIDTH), dtype=np.int64)
        self._signals = np.zeros((0, _WIDTH, 3), dtype=np.float32)  # of the tokens that wait
        self._readings = np.zeros(0, dtype=object)
        self._places = np.zeros(0, dtype=np.int64)

    def reserve(self, slots: int) -> None:
        """Make room for so many slots."""
        more = slots - len(self.forced)
        if more <= 0:
            return
        more = max(more, len(self.forced), 16)
        fills: dict[str, Any] = {
            "forced": -1,
            "ahead": -1,
            "offered": -1,
            "_next_offered": -1,
            "_readings": None,
            "_patience": _UNLIMITED,
        }
        for name, old in tuple(vars(self).items()):
            if isinstance(old, np.ndarray) and old is not self._kinds:
                new = np.full((more, *old.shape[1:]), fills.get(name, 0), dtype=old.dtype)
                setattr(self, name, np.concatenate((old, new)))

    def put(self, slot: int, row: ControlledRow, step: int = 0) -> None:
        """Add a row, and let it read its output."""
        self.reserve(slot + 1)
        self.rows[slot], self.bound[slot] = row, row.bound
        if not row.controller.lazy:
            self._eager.add(slot)
        self._lengths[slot], self._waiting[slot], self._readings[slot] = len(row.output), 0, None
        self._patience[slot], self._line_ended[slot] = 0, True
        self.seen[slot] = step
        self.read((slot,))

    def pop(self, slot: int) -> ControlledRow | None:
        """Remove a row; it keeps what it has not read yet."""
        row = self.rows.get(slot)
        if row is not None:
            self.flush(slot)
            row.send_trace()
            del self.rows[slot]
            self.finished.discard(slot)
            self._eager.discard(slot)
            self.forced[slot] = self.ahead[slot] = self.offered[slot] = self._next_offered[slot] = -1
            self.wanted[slot], self._readings[slot] = 0, None
            self._patience[slot], self._waiting[slot] = _UNLIMITED, 0
        return row

    def read(self, slots: Iterable[int], draft: int = 0) -> None:
        """Let rows read their outputs, and note what they want; `draft` is that of the last token in its step."""
        for slot in slots:
            row = self.rows[slot]
            controller, token, starts = row.controller, None, None
            self.flush(slot, due=1, draft=draft)
            try:
                token = controller.read(row.output)
                starts = controller.closing_starts()
                self._patience[slot, QUIET : FENCE + 1] = controller.patience(starts and starts[0])
            except Exception as error:  # an error of ours must not end the engine
                controller.fail(error)
            if controller.done:
                self.finished.add(slot)
            self.forced[slot] = -1 if token is None else token
            if drafts := self.ahead.shape[1]:
                ahead = [*islice(controller.queue, 1, 1 + drafts)]
                self.ahead[slot, : len(ahead)], self.ahead[slot, len(ahead) :] = ahead, -1
            self.offered[slot], behind, line, paragraph = starts or (-1, -1, -1, -1)
            self._next_offered[slot] = behind
            self._next_offered[slot, LINE : PARAGRAPH + 1] = line, paragraph
            self.wanted[slot] = controller.wants_signals * SIGNALS | controller.wants_states * STATES
            row.send_trace()

    def flush(self, slot: int, due: int = 0, draft: int = 0) -> None:
        """Move tokens that wait into the row's output; its controller takes them, but for the last if that is `due`."""
        row = self.rows[slot]
        if count := int(self._waiting[slot]):
            tokens = self._tokens[slot, :count].tolist()
            row.output.extend(tokens)
            self._waiting[slot] = 0
            if count > due:
                known = make_signals(self._signals[slot, : count - due]) if self.wanted[slot] & SIGNALS else []
                row.controller.skip(tokens[: count - due], known)
        readings: StepReadings | None = self._readings[slot]
        if readings is not None:
            place = int(self._places[slot])
            row.controller.next_step, row.controller.swap = (
                partial(readings.info, place, draft),
                partial(readings.swapped, place, draft),
            )

    def room(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many drafts rows accept in a step, by the kind of the last: [slots, kinds].

        They have to read the token after that, or another is offered then. Slots without a row have no limit.
        """
        waiting, forced = self._waiting[slots, None], self.forced[slots, None] >= 0
        ahead = np.count_nonzero(self.ahead[slots] >= 0, axis=1)
        room = np.minimum(self._patience[slots], _width(slots)[:, None] - 1) - waiting
        room[self.offered[slots] != self._next_offered[slots, QUIET]] = 0
        room[self._patience[slots, LINE] < _UNLIMITED, LINE : PARAGRAPH + 1] = 0
        return np.where(forced, ahead[:, None], room)

    def all_kinds(self, vocabulary: int) -> NDArray[np.int8]:
        """The kind of every token."""
        for token in range(min(vocabulary, _KINDS - 1)):
            self._learn(token)
        kinds: NDArray[np.int8] = self._kinds[np.minimum(np.arange(vocabulary), _KINDS - 1)]
        return kinds

    def _learn(self, token: int) -> None:
        if self._kinds[token] == UNKNOWN:
            self._kinds[token] = self._classify(token)

    def land(self, slots: NDArray[np.int64], lengths: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Take the latest tokens [slots, most] of slots, by the lengths of their outputs; due rows read them."""
        grown, most = lengths - self._lengths[slots], tokens.shape[1]
        for slot in slots[grown > most].tolist():
            self.rows[slot].controller.fail(ValueError("more tokens came in a step than vLLM was to draft"))
            self.finished.add(slot)
        grown[grown > most] = 0
        for draft in range(int(grown.max(initial=0))):
            new = np.flatnonzero(grown > draft)
            self._land(slots[new], tokens[new, most - grown[new] + draft], draft)

    def _land(self, slots: NDArray[np.int64], tokens: NDArray[np.int64], draft: int) -> None:
        """Take one more token of each slot, before which so many drafts came in its step."""
        waiting = self._waiting[slots]
        self._tokens[slots, waiting] = tokens
        if len(readers := np.flatnonzero(self.wanted[slots] & SIGNALS)):
            self._signals[slots[readers], waiting[readers]] = self._read_signals(slots[readers], draft)
        waiting += 1
        self._waiting[slots] = waiting
        self._lengths[slots] += 1
        ids = np.minimum(tokens, _KINDS - 1)
        for token in ids[self._kinds[ids] == UNKNOWN].tolist():
            self._learn(token)
        kinds = self._kinds[ids]
        lines = (kinds == LINE) | (kinds == PARAGRAPH)
        due = (waiting > self._patience[slots, kinds]) | (waiting >= _width(slots))
        due |= lines & self._line_ended[slots]  # an empty line
        for row in np.flatnonzero(~due & (tokens == self.offered[slots])).tolist():
            due[row] = self._is_swapped(slots[row], draft)
        self._line_ended[slots] = lines | (kinds == LOUD)
        self.offered[slots] = self._next_offered[slots, kinds]
        self.read(slots[due].tolist(), draft)

    def _is_swapped(self, slot: int, draft: int) -> bool:
        """Whether the latest token, which is the first of a closing, stands for the end of the turn."""
        readings: StepReadings | None = self._readings[slot]
        try:
            return readings is None or readings.swapped(int(self._places[slot]), draft)
        except Exception:  # what reads the row finds it too, and leaves the request alone
            return True

    def _read_signals(self, slots: NDArray[np.int64], draft: int) -> NDArray[np.float32]:
        """What was said of the latest tokens of slots, [slots, 3]; nearly always by the same step."""
        found = np.full((len(slots), 3), np.nan, dtype=np.float32)
        readings, places = self._readings[slots], self._places[slots]
        for one in set(readings.tolist()) - {None}:
            mine = readings == one
            found[mine] = one.signals(places[mine], draft)
        return found

    def note(self, slots: NDArray[np.int64], readings: StepReadings) -> None:
        """Keep the readings of a step for the rows in it; slots by place in the logits."""
        self._readings[slots] = readings
        self._places[slots] = np.arange(len(slots))
        if self._eager:
            for slot in self._eager.intersection(slots.tolist()):  # their last token is read when vLLM has ended them
                self.flush(slot)
