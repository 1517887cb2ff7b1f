"""Loops in thinking: text that says for the third time what was said twice shortly before, exactly or nearly.

Each symbol (a token, or a whole number) is looked up together with the two before it in its sentence. A score rises
with what came twice before and falls with what is new, as in a CUSUM test, so one rule covers cycles of 1 to about 400
tokens, cycles with small changes, and sentences that come again and again in any order. A number that counts on (case
57, case 58) says nothing new. Other numbers that change do, so casework and tables are not loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, exp, log

_BITS = 18  # of a symbol; that larger token ids may look alike does no harm
_SYMBOL = (1 << _BITS) - 1
_RUN, _CONTEXT = (1 << 3 * _BITS) - 1, (1 << 2 * _BITS) - 1
_COUNTER = _SYMBOL - 1
_SPREAD = 0x9E3779B97F4A7C15  # spreads numbers over the symbols
_DIGIT_TOKENS = 8  # of a number that is read as one symbol; longer runs of digits are cut
_LONGEST_PERIOD = 420  # tokens, of what is called a cycle
_FAR, _FAR_WEIGHT = 128, 0.85
"""What is said again after more tokens than this counts less: long chains of facts may be written out three times."""
_NEW, _ONCE = 5, 1
"""What a symbol takes from the score that has not come before in the window, or only once."""
_COUNTERS = 2
"""Different numbers that count on in an enumeration that works something out."""
_MEMORY = 300
"""Tokens over which the score forgets, so that slow repetition does not add up."""


class LoopDetector:
    """Reads thinking token by token; `score` says how much of its end had been said twice before.

    `kinds` are those of `TokenizerAdapter`. The cost of a token does not depend on the length, and memory is bounded by
    `window`: the tokens in which all three must lie, twice the longest period that is found.
    """

    def __init__(self, kinds: Mapping[int, str] | Sequence[str], window: int = 810) -> None:
        self.window = window
        self.score = 0.0
        self._kinds = kinds
        self._keep = 1 - 1 / _MEMORY
        self._position = 0
        self._key = 0  # the last three symbols of the sentence
        self._digits, self._held = "", 0  # of a number that may go on
        self._last: dict[int, int] = {}  # where three symbols ended last, and where they did before that
        self._before: dict[int, int] = {}
        self._counted: dict[int, tuple[int, int]] = {}  # numbers that counted on: value and place, by what is before
        self._counts: dict[int, tuple[int, int]] = {}  # the number behind two symbols, and its step

    @staticmethod
    def score_after(tokens: int) -> float:
        """The score after so many tokens that say nothing new."""
        return _MEMORY * (1 - exp(-tokens / _MEMORY))

    def tokens_to(self, score: float) -> int:
        """The fewest tokens after which the score can be this high."""
        return max(1, ceil(_MEMORY * log((_MEMORY - self.score) / (_MEMORY - score))))

    @property
    def counts(self) -> bool:
        """Whether several different numbers count on in what is said again, as where cases are worked out."""
        recent = self._position - _LONGEST_PERIOD // 2
        return len({value for value, place in self._counted.values() if place >= recent}) >= _COUNTERS

    def read(self, tokens: Sequence[int]) -> float:
        """Append tokens; return the score after them."""
        kinds = self._kinds
        for token in tokens:
            self._position += 1
            kind = kinds[token]
            if not kind and not self._held:
                self._add(token)
            elif kind.isdigit():
                self._digits += kind
                self._held += 1
                if self._held == _DIGIT_TOKENS:
                    self._end_number()
            else:
                if self._held:
                    self._end_number()
                self._add(token)
                if kind:  # the end of a sentence, or a decimal point
                    self._key = 0
        if len(self._last) > 4 * self.window:
            self._forget()
        return self.score

    def _add(self, symbol: int, weight: int = 1) -> None:
        """Look the last three symbols up; `weight` is what the newest adds if they came twice before."""
        key = self._key = (self._key << _BITS | symbol) & _RUN
        position = self._position
        place = self._last.get(key)
        self._last[key] = position
        loss = _NEW
        if place is not None:
            older = self._before.get(key)
            self._before[key] = place
            if older is not None and position - older <= self.window:
                self.score = self.score * self._keep + (weight if position - place <= _FAR else _FAR_WEIGHT * weight)
                return
            if position - place <= self.window:
                loss = _ONCE
        self.score = max(0.0, self.score - loss)

    def _end_number(self) -> None:
        """Add a whole number; one that counts on adds nothing."""
        value, weight, context = int(self._digits), self._held, self._key & _CONTEXT
        self._digits, self._held = "", 0
        before, step = self._counts.get(context, (value, 0))
        self._counts[context] = (value, value - before)
        if step and value - before == step:
            self._counted[context] = value, self._position
            self._add(_COUNTER, 0)
        else:
            self._add(value * _SPREAD >> 20 & _SYMBOL | 1, weight)

    def _forget(self) -> None:
        """Drop what lies outside the window."""
        oldest = self._position - self.window
        self._last = {key: place for key, place in self._last.items() if place > oldest}
        self._before = {key: place for key, place in self._before.items() if place > oldest}
        if len(self._counts) > 4 * self.window:
            self._counts.clear()
            self._counted.clear()


def describe_loop(ids: Sequence[int]) -> str:
    """Say how the end of a text goes round in circles, e.g. "the same 31 tokens came 3 times"."""
    ids = ids[-3 * _LONGEST_PERIOD :]
    periods = range(1, min(_LONGEST_PERIOD, len(ids) // 2) + 1)
    for period in periods:
        if (copies := _count_copies(ids, period, 0)) >= 2.5:
            return f"the same {period} token{'s' * (period > 1)} came {round(copies)} times"
    for period in periods:
        if (copies := _count_copies(ids, period, period // 4)) >= 2.5:
            return f"the same {period} tokens came {round(copies)} times with small changes"
    return "the same statements came three times or more"


def _count_copies(ids: Sequence[int], period: int, changes: int) -> float:
    """How many copies of so many tokens a text ends with, if a copy may differ from the next in so many tokens."""
    matched = differing = 0
    for place in range(len(ids) - 1, period - 1, -1):
        if ids[place] != ids[place - period]:
            differing += 1
            if differing > changes:
                break
        matched += 1
        if matched % period == 0:
            differing = 0
    return 1 + matched / period
