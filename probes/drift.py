"""An alarm for traffic that left the region for which a threshold was calibrated."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError

Floats = NDArray[np.float64]
BETS = 0.05, 0.2, 0.4, 0.6, 0.8  # exponents of power bets, from bold to timid
RANK = 64
FEWEST = 20
_SHAPES = {"mean": 1, "scale": 1, "axes": 2, "variances": 1, "residual": 0, "held_out": 1}


class RegionError(OptionError):
    """Features or stored arrays that are no region's."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Where calibrated questions lie in feature space: how far off is a row, and how far off are known ones.

    The distance is Mahalanobis' under a covariance shrunk towards a multiple of the identity (Ledoit and Wolf, J.
    Multivar. Anal. 2004), of features scaled by their deviation: exact along the few widest axes, and with one mean
    variance for all that is left. So it stays defined with more features than rows.

    mean, scale: [d]; axes: [rank, d], orthonormal; variances: [rank]; residual: the mean variance of the rest;
    held_out: [m], rising distances of rows that took no part in the fit. Raises RegionError.
    """

    mean: Floats
    scale: Floats
    axes: Floats
    variances: Floats
    residual: Floats
    held_out: Floats

    def __post_init__(self) -> None:
        for name, ndim in _SHAPES.items():
            made = np.array(getattr(self, name), np.float64)
            if made.ndim != ndim or not np.isfinite(made).all():
                raise RegionError(f"{name} of a region is not {ndim}-dimensional and finite; fit the region anew")
            made.flags.writeable = False
            object.__setattr__(self, name, made)
        d, rank = len(self.mean), len(self.variances)
        if not d or len(self.scale) != d or self.axes.shape != (rank, d) or not len(self.held_out):
            raise RegionError(f"a region of {d} features, {rank} variances and axes {self.axes.shape}; fit it anew")
        positive = min(self.scale.min(), self.variances.min(initial=1), float(self.residual)) > 0
        if not positive or (np.diff(self.held_out) < 0).any():
            raise RegionError("scales and variances of a region are above 0 and its distances rise; fit it anew")

    @classmethod
    def fit(cls, features: ArrayLike, *, rank: int = RANK, seed: int = 0) -> Region:
        """The region of rows [n, d], one row a question; half of them at random fit it, the others are held out."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        rows = _finite(features, 2)
        if len(rows) < FEWEST or rank < 1:
            raise RegionError(f"{len(rows)} rows, rank {rank}; accepted: {FEWEST} rows or more, rank 1 or more")
        rows = rows[np.random.default_rng(seed).permutation(len(rows))]
        fitted, held_out = np.array_split(rows, 2)
        mean, scale = fitted.mean(axis=0), fitted.std(axis=0)
        scale[scale <= 1e-9 * np.maximum(np.abs(mean), 1e-300)] = 1.0  # a constant feature has no unit of its own
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
        rows = _finite(features, 2)
        if rows.shape[1] != len(self.mean):
            raise RegionError(
                f"rows have {rows.shape[1]} features; accepted: {len(self.mean)}, as the region was fitted"
            )
        scaled = (rows - self.mean) / self.scale
        along = scaled @ self.axes.T
        # Subtracting vectors, not squared lengths: these would cancel where hardly anything is left.
        left = scaled - along @ self.axes
        squares = (along**2 / self.variances).sum(axis=1) + (left**2).sum(axis=1) / self.residual
        return np.asarray(squares / len(self.mean))

    def arrays(self) -> dict[str, Floats]:
        """All that makes up the region, for safetensors and `from_arrays`."""
        return {name: getattr(self, name) for name in _SHAPES}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Region:
        """The region of `arrays`; raises RegionError where one is missing, unknown, misshapen or not finite."""
        if sorted(arrays) != sorted(_SHAPES):
            raise RegionError(f"arrays {', '.join(sorted(arrays)) or 'none'}; accepted: {', '.join(_SHAPES)}")
        return cls(**{name: np.asarray(arrays[name], np.float64) for name in _SHAPES})


def _finite(features: ArrayLike, ndim: int) -> Floats:
    rows = np.asarray(features, np.float64)
    if rows.ndim != ndim or not rows.size:
        raise RegionError(
            f"features have the shape {list(rows.shape)}; accepted: {ndim} dimensions, none of them empty"
        )
    if not np.isfinite(rows).all():
        raise RegionError("features hold NaN or infinity; the model's numbers overflowed, or padding was taken along")
    return rows


@dataclass(frozen=True, slots=True)
class DriftState:
    """What a monitor knows after a row.

    seen: rows so far; p_value: of the last row, 1 before any; log_wealth: natural logarithm of what a bettor against
    "nothing changed" made of 1; since: the row, from 1, at which the alarm rang, None if it never did.
    """

    seen: int
    p_value: float
    log_wealth: float
    since: int | None

    @property
    def wealth(self) -> float:
        """The evidence for drift, infinite where no float holds it."""
        return math.exp(self.log_wealth) if self.log_wealth < 709 else math.inf

    @property
    def drifted(self) -> bool:
        """Whether the alarm rang; it does not stop until the monitor is reset."""
        return self.since is not None


class DriftMonitor:
    """Watches a stream of rows, one a question, for leaving a region.

    Guarantee: while rows are exchangeable with the calibration rows that were held out (independent draws of the same
    traffic are), the probability that the alarm ever rings, however long the stream, is at most `false_alarm`.

    Why: each row's rank among the held-out rows and all rows before it, ties broken at random, gives p-values that are
    independent and uniform (Vovk et al., "Testing exchangeability on-line", ICML 2003); a fixed set of held-out rows
    would not, and its own luck would end in an alarm. Bets eps * p ** (eps - 1) on small p-values multiply a wealth
    that nothing but drift makes grow, and Ville's inequality bounds its chance ever to reach 1 / false_alarm. The
    wealth is split over several eps and over all rows at which drift may begin, 1 / (k * (k + 1)) for row k, so that
    calm weeks do not use it up.

    What it is not: a statement about harm. Drift within the region, or of answers alone, is not seen; a region may be
    left where the threshold still holds; no alarm is no proof. Rows of one question depend on each other: observe one
    of them, or the guarantee is void. Drift that begins slowly becomes part of what is known. A reset starts a new
    stream with a chance of its own.

    Memory grows by 8 bytes a row until a reset. Calls may come from several threads.
    """

    def __init__(self, region: Region, false_alarm: float = 0.01, seed: int = 0) -> None:
        if not 0 < false_alarm < 1:
            raise OptionError(f"false_alarm is {false_alarm}; accepted: a share above 0 and below 1, such as 0.01")
        self.region, self.false_alarm = region, false_alarm
        self._rng = np.random.default_rng(seed)
        self._lock = Lock()
        self._exponents = np.array(BETS)
        self.reset()

    @property
    def state(self) -> DriftState:
        """After the last row."""
        return self._state

    def reset(self) -> DriftState:
        """Forget the stream, its alarm and its rows; the held-out rows stay."""
        with self._lock:
            self._known = array("d", self.region.held_out)
            self._logs = np.full(len(BETS), -np.inf)
            self._state = DriftState(seen=0, p_value=1.0, log_wealth=0.0, since=None)
            return self._state

    def observe(self, features: ArrayLike) -> DriftState:
        """Take in the features [d] of one question; raises RegionError, and takes in nothing, if not finite."""
        distance = float(self.region.distances(_finite(features, 1)[None])[0])
        with self._lock:
            seen = self._state.seen + 1
            p = self._rank(distance)
            self._bet(p, seen)
            wealth = float(np.logaddexp.reduce(np.append(self._logs, -math.log(seen + 1))))  # with what is not yet bet
            rings = self._state.since is None and wealth >= -math.log(self.false_alarm)
            self._state = DriftState(seen, p, wealth, seen if rings else self._state.since)
            return self._state

    def _rank(self, distance: float) -> float:
        """The p-value of a distance among all that are known, itself with them; it is known from then on."""
        above = len(self._known) - bisect_right(self._known, distance)
        equal = bisect_right(self._known, distance) - bisect_left(self._known, distance) + 1
        insort(self._known, distance)
        return float(above + (1 - self._rng.random()) * equal) / len(self._known)

    def _bet(self, p: float, row: int) -> None:
        """Let the share of wealth that is kept for drift from this row on join, and bet all that has joined."""
        share = -math.log(row * (row + 1) * len(BETS))
        self._logs = np.logaddexp(self._logs, share) + np.log(self._exponents) + (self._exponents - 1) * math.log(p)
