"""A tier probe and a stop rule as artifacts, and back: what `tersely calibrate` writes is what a session reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import Artifact, ArtifactError, load, save
from .certificate import Certificate
from .drift import Region
from .features import FEATURES, TRIAL_FEATURES
from .network import Network
from .rule import Evidence, StopRule
from .tier_selector import TierProbe, TierTable

DIFFICULTY, READINESS = "difficulty", "readiness"


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A stop rule with the layer it reads and its certified threshold, None where nothing could be certified.

    region: where the questions that were calibrated on lie at the end of their first thought.
    """

    rule: StopRule
    layer: int
    threshold: float | None
    certificate: Certificate
    region: Region
    learned_from: frozenset[str]


def preferred(certificates: Mapping[str, Certificate]) -> str:
    """Whether the rule with `trials` or the `free` one saved more on the calibration split."""
    return "trials" if certificates["trials"].saved > certificates["free"].saved else "free"


def save_tier_probe(
    probe: TierProbe, folder: Path, base: Mapping[str, str], provenance: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """Write a difficulty probe with its table of tiers."""
    arrays = {"accuracy": probe.table.accuracy, "tokens": probe.table.tokens}
    save(
        Artifact(
            kind=DIFFICULTY,
            network=probe.network,
            classes=probe.classes,
            layer=probe.layer,
            features=(),
            base=dict(base),
            provenance={**provenance, "tiers": list(probe.tiers), "price": probe.price, "exits": probe.exits},
            metrics=dict(metrics),
            certificates=[],
            arrays={name: np.asarray(array, np.float32) for name, array in arrays.items()},
        ),
        folder,
    )


def load_tier_probe(folder: Path, fingerprint: str | None) -> TierProbe:
    """Read a difficulty probe; raises ArtifactError for one of another model, or one that was changed."""
    found = _load(folder, DIFFICULTY, fingerprint)
    table = TierTable(
        tuple(found.provenance["tiers"]),
        found.arrays["accuracy"].astype(np.float64),
        found.arrays["tokens"].astype(np.float64),
    )
    facts = found.provenance
    learned, exits = frozenset(facts.get("learned_from", ())), bool(facts["exits"])
    return TierProbe(found.network, tuple(found.classes), found.layer, table, float(facts["price"]), learned, exits)


def save_stop_rule(
    rules: tuple[StopRule, StopRule],
    certificates: Mapping[str, Certificate],
    region: Region,
    layer: int,
    folder: Path,
    base: Mapping[str, str],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write the rule without trials and the one with them; certificates by `free` and `trials`."""
    free, paid = rules
    arrays: dict[str, Any] = {f"region.{k}": v for k, v in region.arrays().items()}
    if paid.paid is not None:
        arrays |= {f"paid.{k}": v for k, v in paid.paid.network.arrays().items()}
    settings = {
        "low": paid.low,
        "high": paid.high,
        "overhead": paid.overhead,
        "paid classes": None if paid.paid is None else list(paid.paid.classes),
    }
    save(
        Artifact(
            kind=READINESS,
            network=free.free.network,
            classes=free.free.classes,
            layer=layer,
            features=(*FEATURES, *TRIAL_FEATURES),
            base=dict(base),
            provenance={**provenance, "rule": settings},
            metrics=dict(metrics),
            certificates=[{"name": name, **json.loads(c.as_json())} for name, c in certificates.items()],
            arrays=arrays,
        ),
        folder,
    )


def load_stop_rule(folder: Path, fingerprint: str | None, trials: bool | None) -> StoredRule:
    """Read a stop rule with trials, without, or (None) the one that saved more on the calibration split.

    Raises ArtifactError for another model's, or one that was changed.
    """
    found = _load(folder, READINESS, fingerprint)
    if tuple(found.features) != (*FEATURES, *TRIAL_FEATURES):
        raise ArtifactError(f"{folder} reads other features than this version of tersely makes; calibrate anew")
    free = Evidence(found.network, tuple(found.classes))
    settings = found.provenance["rule"]
    texts = {c["name"]: json.dumps({k: v for k, v in c.items() if k != "name"}) for c in found.certificates}
    certificates = {name: Certificate.from_json(text) for name, text in texts.items()}
    if trials is None:
        trials = preferred(certificates) == "trials"
    paid = None
    if trials and settings["paid classes"] is not None:
        paid = Evidence(Network.from_arrays(_part(found, "paid.")), tuple(settings["paid classes"]))
    certificate = certificates["trials" if trials else "free"]
    rule = StopRule(free, paid, settings["low"], settings["high"], settings["overhead"]) if paid else StopRule(free)
    learned = frozenset(found.provenance.get("learned_from", ()))
    region = Region.from_arrays(_part(found, "region."))
    return StoredRule(rule, found.layer, certificate.threshold, certificate, region, learned)


def _part(found: Artifact, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): a for name, a in found.arrays.items() if name.startswith(prefix)}


def _load(folder: Path, kind: str, fingerprint: str | None) -> Artifact:
    if fingerprint is None:
        raise ArtifactError(f"it cannot be told which model this engine runs, so {folder} may be another model's")
    found = load(folder, fingerprint=fingerprint)
    if found.kind != kind:
        raise ArtifactError(f"{folder} is a {found.kind} probe; accepted: a {kind} probe")
    return found
