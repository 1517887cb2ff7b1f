"""Choosing a tier for a question, by what each tier is expected to achieve and to cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drift import KnownQuestions
from .network import Network

Floats = NDArray[np.float64]
EASY, NORMAL, HARD = "easy", "normal", "hard"
MAX_PRICES = 512


@dataclass(frozen=True, slots=True, eq=False)
class TierTable:
    """Accuracy and tokens of each tier on questions of each class, both [classes, tiers]."""

    tiers: tuple[str, ...]
    accuracy: Floats
    tokens: Floats

    @classmethod
    def estimate(
        cls, tiers: tuple[str, ...], classes: int, label: NDArray[np.intp], right: Floats, tokens: Floats
    ) -> Self:
        """Estimate a table from questions of known class: label [n]; right and tokens [n, tiers].

        Accuracies are shrunk by half a success and half a failure; an empty class gets the tokens of all questions.
        """
        counts = np.array([(label == c).sum() for c in range(classes)])[:, None]
        sums = np.stack([right[label == c].sum(0) for c in range(classes)])
        spent = np.stack([tokens[label == c].mean(0) if (label == c).any() else tokens.mean(0) for c in range(classes)])
        return cls(tiers, (sums + 0.5) / (counts + 1.0), spent)

    def choose(self, proba: NDArray[np.floating], price: float) -> NDArray[np.intp]:
        """Tier numbers [n] that maximise expected accuracy minus price times expected tokens; proba: [n, classes]."""
        return np.asarray((proba @ (self.accuracy - price * self.tokens)).argmax(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class TierProbe:
    """A difficulty probe ready for use: network, classes and the table of tiers."""

    network: Network
    classes: tuple[str, ...]
    layer: int  # the hidden layer that the network reads
    table: TierTable
    price: float  # accuracy that one token is worth
    learned_from: frozenset[str] = frozenset()  # hashes of the questions it was trained on
    exits: bool = False  # whether the table assumes that the readiness exit is on
    known: KnownQuestions | None = None  # what the questions look like that it learned from
    name: ClassVar[str] = "difficulty"

    def find_difference(self, question: str) -> str | None:
        """What sets a question apart from those that it learned from; None if nothing does."""
        return None if self.known is None else self.known.find_difference(question)

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.table.tiers

    def choose(self, state: NDArray[np.float32], likeliest: bool = False) -> tuple[str, str]:
        """Choose the tier for a question's hidden state [width]; returns it with the reason.

        With `likeliest` the likeliest class is the tier, as in DiffAdapt (arXiv 2510.19669), whatever it costs.
        """
        proba = self.network.proba(state[None])
        best = int(self.table.choose(proba, self.price)[0])
        tier = self.classes[int(proba[0].argmax())] if likeliest else self.tiers[best]
        chances = ", ".join(f"{name} {chance:.2f}" for name, chance in zip(self.classes, proba[0], strict=True))
        return tier, f"{tier}, by the difficulty probe ({chances})"


def label_tiers(
    accuracy: ArrayLike, tokens: ArrayLike, tolerance: float = 0.05, tiers: Sequence[str] = (EASY, NORMAL, HARD)
) -> NDArray[np.str_]:
    """Label each question with its cheapest tier whose accuracy is within `tolerance` of its best tier's.

    Accuracy is [n, tiers], tokens are [n, tiers] or [tiers]. The last tier is only the label if no other suffices.
    """
    right = np.asarray(accuracy, np.float64)
    spent = np.array(np.broadcast_to(np.asarray(tokens, np.float64), right.shape))
    enough = right >= right.max(axis=1, keepdims=True) - tolerance - 1e-12
    spent[:, -1] = np.finfo(np.float64).max
    return np.asarray(np.asarray(tiers)[np.where(enough, spent, np.inf).argmin(axis=1)])


def find_price(
    table: TierTable, proba: ArrayLike, accuracy: ArrayLike, margin: float, doubt: float = 0.0
) -> float | None:
    """Find the largest price of a token at which choosing costs at most `margin` accuracy; None if 0 costs more.

    That is compared with always choosing `NORMAL`, with `doubt` standard errors added. Prices rise until one costs
    more. `proba` [n, classes] and accuracy [n, tiers] are of questions that nothing was trained on.
    """
    chances, right = np.asarray(proba, np.float64), np.asarray(accuracy, np.float64)
    rows, baseline = np.arange(len(right)), right[:, table.tiers.index(NORMAL)]
    best = None
    for price in _list_prices(table, chances):
        gained = right[rows, table.choose(chances, price)] - baseline
        if gained.mean() - doubt * gained.std() / math.sqrt(len(gained)) < -margin - 1e-12:
            break
        best = price
    return best


def _list_prices(table: TierTable, chances: Floats) -> list[float]:
    """List 0 and one price between any two at which some choice may change, or some of them if there are many."""
    right, spent = chances @ table.accuracy, chances @ table.tokens
    one, other = np.triu_indices(len(table.tiers), 1)
    gained, paid = right[:, one] - right[:, other], spent[:, one] - spent[:, other]
    with np.errstate(divide="ignore", invalid="ignore"):
        turns = gained / paid
    turns = np.unique(turns[np.isfinite(turns) & (turns > 0)])
    if not len(turns):
        return [0.0]
    between = np.concatenate([turns[:1] / 2, (turns[:-1] + turns[1:]) / 2, turns[-1:] * 2])
    step = -(-len(between) // MAX_PRICES)
    return [0.0, *between[::-1][::step][::-1].tolist()]
