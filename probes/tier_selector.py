"""From class probabilities of a question to a tier, by what each tier is expected to bring and to cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from .network import Network

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TierTable:
    """What each tier brings to questions of each class: accuracy and tokens, both [classes, tiers].

    tiers: their names, in the order of the columns. Raises OptionError if shapes do not fit.
    """

    tiers: tuple[str, ...]
    accuracy: Floats
    tokens: Floats

    def __post_init__(self) -> None:
        if self.accuracy.shape != self.tokens.shape or self.accuracy.shape[1:] != (len(self.tiers),):
            shapes = f"{self.accuracy.shape} and {self.tokens.shape}"
            raise OptionError(f"tables of shapes {shapes} for {len(self.tiers)} tiers; accepted: (classes, tiers)")

    @classmethod
    def of(
        cls, tiers: tuple[str, ...], classes: int, label: NDArray[np.intp], right: Floats, tokens: Floats
    ) -> TierTable:
        """Estimate from questions of known class: label [n], and right and tokens of each tier, [n, tiers].

        Accuracies are shrunk by half a success and half a failure, tokens of an empty class are those of all.
        """
        counts = np.array([(label == c).sum() for c in range(classes)])[:, None]
        sums = np.stack([right[label == c].sum(0) for c in range(classes)])
        spent = np.stack([tokens[label == c].mean(0) if (label == c).any() else tokens.mean(0) for c in range(classes)])
        return cls(tiers, (sums + 0.5) / (counts + 1.0), spent)

    def choose(self, proba: NDArray[np.floating], price: float) -> NDArray[np.intp]:
        """Tier numbers [n] that maximise expected accuracy less price times expected tokens; proba is [n, classes]."""
        return np.asarray((proba @ (self.accuracy - price * self.tokens)).argmax(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class TierProbe:
    """A difficulty probe ready for use: the network on a hidden layer, its classes, and the table it decides by.

    exits: the table counts on the readiness exit, which then has to be there.
    """

    network: Network
    classes: tuple[str, ...]
    layer: int
    table: TierTable
    price: float
    learned_from: frozenset[str] = frozenset()
    exits: bool = False
    name: ClassVar[str] = "difficulty"

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers it chooses among."""
        return self.table.tiers

    def choose(self, state: NDArray[np.float32]) -> tuple[str, str]:
        """The tier for a question's hidden state [width], and the reason."""
        proba = self.network.proba(state[None])
        tier = self.tiers[int(self.table.choose(proba, self.price)[0])]
        chances = ", ".join(f"{name} {chance:.2f}" for name, chance in zip(self.classes, proba[0], strict=True))
        return tier, f"{tier}, by the difficulty probe ({chances})"
