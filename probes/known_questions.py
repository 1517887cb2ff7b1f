"""What the questions looked like that a probe knows, so that one of another kind is noticed at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import OptionError, TerselyError
from .arrays import ArrayRecord

Floats = NDArray[np.float64]
FALSE_ALARM = 0.01
_WORD = re.compile(r"[^\W\d_]+")  # digits and signs are in any question
LENGTHS = ("it is shorter", "it is longer")  # differences of a question whose words are known
_TESTS = 3
_SHOWN = 3


class KnownQuestionsError(OptionError):
    """Texts or stored arrays do not describe questions."""

    code = "invalid_known_questions"


@dataclass(frozen=True, slots=True, eq=False)
class KnownQuestions(ArrayRecord):
    """The words of questions that a probe learned from, as hashes, and the lengths and new words of further ones.

    A question is of another kind if it is shorter, longer, or has a larger share of new words than nearly all further
    ones: one like them with a probability of at most 1 %, or 3 / (n + 1) if n of them are fewer than 299 (conformal
    p-values, Vovk et al. 2005). Raises KnownQuestionsError for invalid arrays.
    """

    shapes: ClassVar[Mapping[str, str]] = {"words": "w", "lengths": "n", "shares": "n"}
    dtype: ClassVar[DTypeLike] = np.float64
    error: ClassVar[type[TerselyError]] = KnownQuestionsError
    words: Floats  # [w], rising hashes
    lengths: Floats  # [n], rising, in words and digits
    shares: Floats  # [n], rising shares of new words

    def _check(self) -> None:
        if not len(self.lengths) or any((np.diff(array) < 0).any() for array in self.arrays().values()):
            raise KnownQuestionsError("known questions need one length and share or more, and rising numbers")

    @classmethod
    def learn(cls, texts: Iterable[str], others: Sequence[str]) -> KnownQuestions:
        """Take the words of `texts`, and measure `others`, questions of the same kind."""
        words = np.unique([_hash(word) for text in texts for word in _find_words(text)])
        blank = cls(words, np.zeros(1), np.zeros(1))
        shares = [len(blank._find_new(text)) / max(1, len(_find_words(text))) for text in others]
        return cls(words, np.sort([float(_measure(text)) for text in others]), np.sort(shares))

    def find_difference(self, question: str) -> str | None:
        """What sets a question apart, in words; None if it is like the known ones or has no text."""
        if not question.strip():
            return None
        length, words, new = _measure(question), _find_words(question), self._find_new(question)
        most = max(1.0, FALSE_ALARM / _TESTS * (len(self.lengths) + 1)) - 1  # known ones that may lie beyond it
        count, share = len(self.lengths), len(new) / max(1, len(words))
        if new and count - np.searchsorted(self.shares, share, "left") <= most:
            shown = ", ".join(repr(word) for word in new[:_SHOWN])
            return f"{len(new)} of its {len(words)} words are new, such as {shown}"
        if np.searchsorted(self.lengths, length, "right") <= most:
            return LENGTHS[0] if words else "it has no words"
        if count - np.searchsorted(self.lengths, length, "left") <= most:
            return LENGTHS[1]
        return None

    def _find_new(self, text: str) -> list[str]:
        """The distinct words of a text that are not known."""
        words = _find_words(text)
        known = np.isin([_hash(word) for word in words], self.words)
        return [word for word, seen in zip(words, known, strict=True) if not seen]


def _find_words(text: str) -> list[str]:
    """The distinct words of a text in lower case, in order."""
    return list(dict.fromkeys(_WORD.findall(text.lower())))


def _measure(text: str) -> int:
    """The length of a text in words and digits."""
    return len(_WORD.findall(text)) + sum(map(str.isdigit, text))


def _hash(word: str) -> float:
    """A hash that a float64 holds exactly."""
    return float(int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=6).digest(), "big"))
