"""Repetition exit: end a thinking that goes round in circles, as TrimR does (arXiv 2505.17155) by a rolling hash."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from .base import Close, PolicyView, Wait, Watching

_BASE, _PRIME = 1_000_003, (1 << 61) - 1


class Repeats:
    """Counts how often a run of `size` tokens has come within the last `window`, copies that overlap counted once.

    A few operations a token, however long the runs are.
    """

    def __init__(self, size: int, window: int) -> None:
        self.size, self.window = size, window
        self._run: deque[int] = deque()
        self._hash = 0
        self._out = pow(_BASE, size - 1, _PRIME)
        self._place = 0
        self._starts: dict[int, deque[int]] = {}  # places of copies that do not overlap, by the hash of the run
        self._order: deque[tuple[int, int]] = deque()

    def add(self, token: int) -> int:
        """Take in a token; how many copies of the run that it ends lie in the window."""
        if len(self._run) == self.size:
            self._hash = (self._hash - (self._run.popleft() + 1) * self._out) % _PRIME
        self._run.append(token)
        self._hash = (self._hash * _BASE + token + 1) % _PRIME
        self._place += 1
        self._forget()
        if len(self._run) < self.size:
            return 0
        starts = self._starts.setdefault(self._hash, deque())
        if not starts or self._place - starts[-1] >= self.size:
            starts.append(self._place)
            self._order.append((self._place, self._hash))
        return len(starts)

    def _forget(self) -> None:
        """Drop copies that no longer lie wholly in the window."""
        oldest = self._place - self.window + self.size
        while self._order and self._order[0][0] < oldest:
            _, key = self._order.popleft()
            starts = self._starts[key]
            starts.popleft()
            if not starts:
                del self._starts[key]


@dataclass(frozen=True, slots=True)
class Repetition:
    """Close once the same `size` tokens have come `times` times within the last `window`; the paper gives no numbers.

    every: tokens between two looks.
    """

    name: ClassVar[str] = "repetition"
    needs: ClassVar[frozenset[str]] = frozenset()
    size: int = 32
    times: int = 3
    window: int = 1024
    every: int = 64
    phrase: str = "I have thought enough and answer now."

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        repeats, read = Repeats(self.size, self.window), 0
        while True:
            view = yield Wait(at=view.tokens + self.every, boundary="token")
            new, read = view.thinking.ids[read:], view.tokens
            if max(map(repeats.add, new)) >= self.times:
                yield Close(f"the same {self.size} tokens came {self.times} times", self.phrase)
                return
