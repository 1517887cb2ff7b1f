"""Noticing what calibration has not seen: traffic that left its region, and questions of another kind."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..errors import OptionError, TerselyError
from .network import ArrayRecord

Floats = NDArray[np.float64]
BETS = 0.05, 0.2, 0.4, 0.6, 0.8  # exponents of power bets, from bold to timid
RANK = 64
MIN_ROWS = 20


class RegionError(OptionError, code="invalid_region"):
    """Features or stored arrays do not form a region."""


@dataclass(frozen=True, slots=True, eq=False)
class Region(ArrayRecord):
    """The region of feature space in which calibration questions lie; raises RegionError for invalid arrays.

    The distance of a row is Mahalanobis' under a covariance shrunk towards a multiple of the identity (Ledoit and Wolf,
    J. Multivar. Anal. 2004), of features scaled by their deviation: exact along the few widest axes, with one mean
    variance for the rest.
    """

    shapes: ClassVar[Mapping[str, str]] = {
        "mean": "d",
        "scale": "d",
        "axes": "rd",
        "variances": "r",
        "residual": "",
        "held_out": "m",
    }
    dtype: ClassVar[DTypeLike] = np.float64
    error: ClassVar[type[TerselyError]] = RegionError
    mean: Floats  # [d], as `scale`
    scale: Floats
    axes: Floats  # [rank, d], orthonormal
    variances: Floats  # [rank]
    residual: Floats  # mean variance along all other axes
    held_out: Floats  # [m], rising distances of rows that took no part in the fit

    def _check(self) -> None:
        smallest = min(self.scale.min(initial=1), self.variances.min(initial=1), float(self.residual))
        if not len(self.mean) or not len(self.held_out) or smallest <= 0 or (np.diff(self.held_out) < 0).any():
            raise RegionError("a region needs features, scales and variances above 0, and rising distances")

    @classmethod
    def fit(cls, features: ArrayLike, *, rank: int = RANK, seed: int = 0) -> Self:
        """Fit a region to a random half of rows [n, d], one row a question; the other half is held out."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        rows = _check_finite(features, 2)
        if len(rows) < MIN_ROWS or rank < 1:
            raise RegionError(f"{len(rows)} rows, rank {rank}; accepted: {MIN_ROWS} rows or more, rank 1 or more")
        rows = rows[np.random.default_rng(seed).permutation(len(rows))]
        fitted, held_out = np.array_split(rows, 2)
        mean, scale = fitted.mean(axis=0), fitted.std(axis=0)
        scale[scale <= 1e-9 * np.maximum(np.abs(mean), 1e-300)] = 1.0  # a constant feature
        scaled = (fitted - mean) / scale
        n, d = scaled.shape
        _, lengths, axes = np.linalg.svd(scaled, full_matrices=False)
        spectrum = lengths**2 / n
        shrinkage = max(float(ledoit_wolf_shrinkage(scaled, assume_centered=True)), 1 / n)
        level = max(float(spectrum.sum()) / d, 1e-12)
        kept = min(rank, len(spectrum), d)
        rest = float(spectrum[kept:].sum()) / max(d - kept, 1)
        shrunk = (1 - shrinkage) * np.append(spectrum[:kept], rest) + shrinkage * level
        blank = cls(mean, scale, axes[:kept], shrunk[:-1], shrunk[-1], np.zeros(1))
        return cls(mean, scale, axes[:kept], shrunk[:-1], shrunk[-1], np.sort(blank.distances(held_out)))

    def distances(self, features: ArrayLike) -> Floats:
        """Mean squared distances of rows [n, d], around 1 for rows of the region: [n]; raises RegionError."""
        rows = _check_finite(features, 2)
        if rows.shape[1] != len(self.mean):
            raise RegionError(
                f"rows have {rows.shape[1]} features; accepted: {len(self.mean)}, as in the fit of the region"
            )
        scaled = (rows - self.mean) / self.scale
        along = scaled @ self.axes.T
        # Vectors are subtracted, not squared lengths, which would cancel if little is left.
        left = scaled - along @ self.axes
        squares = (along**2 / self.variances).sum(axis=1) + (left**2).sum(axis=1) / self.residual
        return np.asarray(squares / len(self.mean))


def _check_finite(features: ArrayLike, ndim: int) -> Floats:
    rows = np.asarray(features, np.float64)
    if rows.ndim != ndim or not rows.size:
        raise RegionError(f"features have the shape {list(rows.shape)}; accepted: {ndim} dimensions, all non-empty")
    if not np.isfinite(rows).all():
        raise RegionError("features hold NaN or infinity; check for overflow in the model and for padding")
    return rows


@dataclass(frozen=True, slots=True)
class DriftState:
    """State of a monitor after a row."""

    seen: int  # rows so far
    p_value: float  # of the last row; 1 before the first
    log_wealth: float  # natural logarithm of the wealth of a bettor against "nothing changed" who started with 1
    since: int | None  # the row, counted from 1, at which the alarm was raised; None if it was not


class DriftMonitor:
    """Watches a stream of rows, one a question, for leaving a region; may be used from several threads.

    Guarantee: while rows are exchangeable with the held-out calibration rows, the probability that the alarm is ever
    raised, however long the stream, is at most `false_alarm`. Each row's rank among the held-out and all earlier rows,
    with random tie-breaking, gives p-values that are independent and uniform (Vovk et al., "Testing exchangeability on-
    line", ICML 2003). Bets eps * p ** (eps - 1) on small p-values multiply a wealth that only drift makes grow (Ville's
    inequality); it is split over several eps, and over all rows k at which drift may begin, 1 / (k * (k + 1)).

    Limits: it says nothing about harm, and does not detect drift within the region, or of answers alone. Slow drift is
    absorbed into the known rows, which take 8 bytes each until a reset, after which the guarantee begins again.
    """

    def __init__(self, region: Region, false_alarm: float = 0.01, seed: int = 0) -> None:
        if not 0 < false_alarm < 1:
            raise OptionError(f"false_alarm is {false_alarm}; accepted: a share above 0 and below 1, such as 0.01")
        self.region, self.false_alarm = region, false_alarm
        self._rng = np.random.default_rng(seed)
        self._lock = Lock()
        self._exponents = np.array(BETS)
        self.reset()

    def reset(self) -> DriftState:
        """Forget the stream, its alarm and its rows, but not the held-out rows."""
        with self._lock:
            self._known = array("d", self.region.held_out)
            self._logs = np.full(len(BETS), -np.inf)
            self.state = DriftState(seen=0, p_value=1.0, log_wealth=0.0, since=None)
            return self.state

    def observe(self, features: ArrayLike) -> DriftState:
        """Add the features [d] of one question; raises RegionError, without adding them, if they are not finite."""
        distance = float(self.region.distances(_check_finite(features, 1)[None])[0])
        with self._lock:
            seen = self.state.seen + 1
            p = self._rank(distance)
            self._bet(p, seen)
            reserve = -math.log(seen + 1)  # wealth for drift that begins later
            wealth = float(np.logaddexp.reduce(np.append(self._logs, reserve)))
            alarm = self.state.since is None and wealth >= -math.log(self.false_alarm)
            self.state = DriftState(seen, p, wealth, seen if alarm else self.state.since)
            return self.state

    def _rank(self, distance: float) -> float:
        """Compute the p-value of a distance among all known ones and itself, and add it to them."""
        above = len(self._known) - bisect_right(self._known, distance)
        equal = bisect_right(self._known, distance) - bisect_left(self._known, distance) + 1
        insort(self._known, distance)
        return float(above + (1 - self._rng.random()) * equal) / len(self._known)

    def _bet(self, p: float, row: int) -> None:
        """Bet the wealth so far, together with the share reserved for drift that begins at this row."""
        share = -math.log(row * (row + 1) * len(BETS))
        self._logs = np.logaddexp(self._logs, share) + np.log(self._exponents) + (self._exponents - 1) * math.log(p)


FALSE_ALARM = 0.01
_WORD = re.compile(r"[^\W\d_]+")  # digits and signs are in any question
LENGTHS = ("it is shorter", "it is longer")  # differences of a question whose words are known
_TESTS = 3
_SHOWN = 3


class KnownQuestionsError(OptionError, code="invalid_known_questions"):
    """Texts or stored arrays do not describe questions."""


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
    def learn(cls, texts: Iterable[str], others: Sequence[str]) -> Self:
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
        words = _find_words(text)
        known = np.isin([_hash(word) for word in words], self.words)
        return [word for word, seen in zip(words, known, strict=True) if not seen]


def _find_words(text: str) -> list[str]:
    return list(dict.fromkeys(_WORD.findall(text.lower())))


def _measure(text: str) -> int:
    return len(_WORD.findall(text)) + sum(map(str.isdigit, text))


def _hash(word: str) -> float:
    """A hash that a float64 holds exactly."""
    return float(int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=6).digest(), "big"))
