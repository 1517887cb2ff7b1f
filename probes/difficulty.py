"""Difficulty before thinking: labels from outcomes, the curve of entropy, and the price of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError, unknown
from .artifact import ArtifactError
from .probe import Probe
from .tier_selector import TierTable

Floats = NDArray[np.float64]
EASY, NORMAL, HARD = "easy", "normal", "hard"
CLASSES = (EASY, NORMAL, HARD)
MOST_PRICES = 512


class DifficultyProbe(Probe):
    """Chances of a question's classes, from the hidden state of the last token of its prompt."""

    kind: ClassVar[str] = "difficulty"

    @property
    def table(self) -> TierTable:
        """What each tier brings to questions of each class; raises ArtifactError where none was saved with it."""
        found = self.artifact
        try:
            tiers, accuracy, tokens = found.provenance["tiers"], found.arrays["accuracy"], found.arrays["tokens"]
        except KeyError as error:
            raise ArtifactError(f"this probe was saved without a table of tiers: it has no {error}") from None
        return TierTable(tuple(tiers), accuracy.astype(np.float64), tokens.astype(np.float64))


def self_labels(
    accuracy: ArrayLike, entropy: ArrayLike, alpha: float = 0.8, beta: float | None = None, gamma: float = 0.2
) -> NDArray[np.str_]:
    """DiffAdapt's labels (arXiv 2510.19669) of questions [n], from the mean accuracy and token entropy of samples.

    In order: accuracy >= alpha and entropy <= beta is normal; accuracy < gamma is hard; all else is easy. beta None:
    the median entropy of questions with accuracy >= alpha. The paper gives no numbers; these defaults are ours.
    """
    right, unsure = _columns(accuracy=accuracy, entropy=entropy)
    if not 0 <= gamma <= alpha <= 1:
        raise OptionError(f"gamma is {gamma} and alpha {alpha}; accepted: 0 <= gamma <= alpha <= 1")
    well = right >= alpha
    bar = beta if beta is not None else float(np.median(unsure[well])) if well.any() else -math.inf
    return np.where(well & (unsure <= bar), NORMAL, np.where(right < gamma, HARD, EASY))


def tier_labels(
    accuracy: ArrayLike, tokens: ArrayLike, tolerance: float = 0.05, tiers: Sequence[str] = CLASSES
) -> NDArray[np.str_]:
    """The cheapest tier of each question whose accuracy is within `tolerance` of its best tier's.

    accuracy, tokens: [n, tiers], tokens also [tiers]; tiers: names of the columns. The last one is the label only where
    no other will do, however few tokens it spends: it is what a question has to need.
    """
    right = np.asarray(accuracy, np.float64)
    if right.ndim != 2 or right.shape[1] != len(tiers):
        raise OptionError(
            f"accuracies have shape {right.shape}; accepted: (questions, {len(tiers)}), one column a tier"
        )
    spent = np.array(np.broadcast_to(np.asarray(tokens, np.float64), right.shape))
    enough = right >= right.max(axis=1, keepdims=True) - tolerance - 1e-12
    spent[:, -1] = np.finfo(np.float64).max
    return np.asarray(np.asarray(tiers)[np.where(enough, spent, np.inf).argmin(axis=1)])


def price_for(
    table: TierTable, proba: ArrayLike, accuracy: ArrayLike, margin: float, base: str = NORMAL, doubt: float = 0.0
) -> float | None:
    """The largest price of a token up to which choosing costs at most `margin` accuracy against always `base`.

    proba: [n, classes]; accuracy: [n, tiers], of questions that neither probe nor table learnt from. doubt: standard
    errors that are added to a cost, so that few questions which happen to do well prove nothing. Prices go up until
    one costs more; None if even 0 does. A dearer one that happens to do well again is not trusted.
    """
    chances, right = np.asarray(proba, np.float64), np.asarray(accuracy, np.float64)
    if chances.shape != (len(right), len(table.accuracy)) or right.shape[1:] != (len(table.tiers),) or not len(right):
        wanted = f"(n, {len(table.accuracy)}) and (n, {len(table.tiers)}), n above 0"
        raise OptionError(f"chances {chances.shape} and accuracies {right.shape}; accepted: {wanted}")
    if base not in table.tiers:
        raise unknown("tier", base, table.tiers)
    rows, standing = np.arange(len(right)), right[:, table.tiers.index(base)]
    best = None
    for price in _prices(table, chances):
        gained = right[rows, table.choose(chances, price)] - standing
        if gained.mean() - doubt * gained.std() / math.sqrt(len(gained)) < -margin - 1e-12:
            break
        best = price
    return best


def _prices(table: TierTable, chances: Floats) -> list[float]:
    """0, and one price between any two at which some choice may change, or some of them if they are many."""
    right, spent = chances @ table.accuracy, chances @ table.tokens
    one, other = np.triu_indices(len(table.tiers), 1)
    gained, paid = right[:, one] - right[:, other], spent[:, one] - spent[:, other]
    with np.errstate(divide="ignore", invalid="ignore"):
        turns = gained / paid
    turns = np.unique(turns[np.isfinite(turns) & (turns > 0)])
    if not len(turns):
        return [0.0]
    between = np.concatenate([turns[:1] / 2, (turns[:-1] + turns[1:]) / 2, turns[-1:] * 2])
    step = -(-len(between) // MOST_PRICES)
    return [0.0, *between[::-1][::step][::-1].tolist()]


@dataclass(frozen=True, slots=True)
class Level:
    """Questions of one difficulty: mean entropy in nats with its t interval, accuracy, and how many there are."""

    difficulty: float
    entropy: float
    low: float
    high: float
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True)
class EntropyCurve:
    """Entropy by difficulty; `lowest` is the place of an inner level surely below both ends, None if there is none."""

    levels: tuple[Level, ...]
    lowest: int | None

    @property
    def u_shaped(self) -> bool:
        """Whether both ends are surely above some level between them."""
        return self.lowest is not None


def entropy_curve(
    difficulty: ArrayLike, entropy: ArrayLike, accuracy: ArrayLike, bins: int | None = None, level: float = 0.95
) -> EntropyCurve:
    """DiffAdapt's U-curve (arXiv 2510.19669): mean token entropy of questions [n] by their difficulty.

    bins: divide by difficulty into so many parts of equal size; None: a level is each value that occurs. It is U-shaped
    if both ends are above one inner level, by Welch's one-sided t tests, Bonferroni's correction for the inner ones.
    """
    hard, unsure, right = _columns(difficulty=difficulty, entropy=entropy, accuracy=accuracy)
    if bins is None:
        parts = [hard == value for value in np.unique(hard)]
    else:
        edges = np.unique(np.quantile(hard, np.linspace(0, 1, bins + 1)[1:-1]))
        places = np.searchsorted(edges, hard, side="right")
        parts = [places == place for place in np.unique(places)]
    levels = tuple(_level(hard[part], unsure[part], right[part], level) for part in parts)
    inner = range(1, len(parts) - 1)
    by_entropy = sorted(inner, key=lambda place: levels[place].entropy)
    for place in by_entropy:
        ends = (_chance_below(unsure[parts[place]], unsure[parts[end]]) for end in (0, -1))
        if max(ends) <= (1 - level) / len(inner):
            return EntropyCurve(levels, place)
    return EntropyCurve(levels, None)


def _level(hard: Floats, unsure: Floats, right: Floats, level: float) -> Level:
    from scipy import stats

    n, mean = len(unsure), float(unsure.mean())
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * unsure.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return Level(float(hard.mean()), mean, mean - half, mean + half, float(right.mean()), n)


def _chance_below(inner: Floats, end: Floats) -> float:
    """p-value against: the mean of `inner` is below that of `end`; 1 where there are too few to say."""
    from scipy import stats

    if min(len(inner), len(end)) < 2:
        return 1.0
    if not inner.std() and not end.std():
        return float(inner.mean() >= end.mean())
    moments = [value for part in (inner, end) for value in (part.mean(), part.std(ddof=1), len(part))]
    return float(stats.ttest_ind_from_stats(*moments, equal_var=False, alternative="less").pvalue)


def _columns(**columns: ArrayLike) -> list[Floats]:
    arrays = {name: np.asarray(values, np.float64) for name, values in columns.items()}
    first = next(iter(arrays.values()))
    for name, array in arrays.items():
        if array.ndim != 1 or array.shape != first.shape or not len(array) or not np.isfinite(array).all():
            raise OptionError(
                f"{name} has shape {array.shape}; accepted: one finite number a question, for one or more"
            )
    return list(arrays.values())
