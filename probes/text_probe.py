"""A readiness probe that reads text alone, so that it works with any model, or text and what a small reader sees.

It scores a value that the thinking has just called the answer, and is learned from recorded outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .artifact import KINDS, Artifact, ArtifactError, load, save
from .drift import KnownQuestions
from .network import Network
from .risk_control import Certificate

TEXT_FEATURES = (
    "log derivations",
    "log confirmations",
    "log statements that call it the answer",
    "log statements in a row",
    "log statements about the goal in a row",
    "log reconsiderations",
    "log tokens",
    "contested",
    "finality",
)
TEXT = KINDS[-1]
ANY_MODEL: Mapping[str, str] = {"name": "any model", "fingerprint": ""}
CLASSES = ("other", "final")


@dataclass(frozen=True, slots=True)
class TextProbe:
    """Scores values that are called the answer; `base` names the reader whose states it also reads, or any model."""

    network: Network
    certificate: Certificate
    known: KnownQuestions
    learned_from: frozenset[str] = frozenset()
    base: Mapping[str, str] = field(default_factory=lambda: ANY_MODEL)
    layer: int = 0  # of the reader's hidden states

    @property
    def reads_states(self) -> bool:
        return self.network.inputs > len(TEXT_FEATURES)

    def probabilities(self, rows: ArrayLike) -> NDArray[np.float64]:
        """How probably each value is final, [n]; rows: features and states, [n, inputs]."""
        return self.network.proba(rows)[:, 1].astype(np.float64)


RULE = 0.5


def combine(probability: ArrayLike, supported: ArrayLike) -> NDArray[np.float64]:
    """Scores by which all values that the rule of `convergence` supports come before all others: from `RULE` on.

    So one threshold is stricter than the rule, the rule itself, or more lenient.
    """
    p = np.asarray(probability, np.float64)
    return np.where(supported, (1 + p) / 2, 0.499 * p)


def save_text_probe(probe: TextProbe, folder: Path, provenance: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write a text probe; raises WriteError."""
    learned = {**provenance, "learned_from": sorted(probe.learned_from)}
    arrays = {f"known.{name}": array for name, array in probe.known.arrays().items()}
    certificates: Sequence[Mapping[str, Any]] = [asdict(probe.certificate)]
    features = TEXT_FEATURES
    facts = (TEXT, probe.network, CLASSES, probe.layer, features, dict(probe.base), learned, metrics)
    save(Artifact(*facts, certificates=certificates, arrays=arrays), folder)


def load_text_probe(folder: Path) -> TextProbe:
    """Read a text probe; raises ArtifactError."""
    found = load(folder, kind=TEXT)
    if found.features != TEXT_FEATURES:
        raise ArtifactError(f"{folder} reads other features than this version of tersely computes; calibrate again")
    try:
        known = {name.removeprefix("known."): array for name, array in found.arrays.items()}
        certificate = Certificate.from_dict(found.certificates[0])
        return TextProbe(
            found.network, certificate, KnownQuestions(**known), found.learned_from, found.base, found.layer
        )
    except (IndexError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} does not hold a usable probe: {error!r}; calibrate again") from None
