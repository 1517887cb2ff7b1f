"""A whole calibration: parts of the data, the two probes, what they are worth, and the artifacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, unknown
from ..certificate import needed
from ..drift import Region
from ..features import FEATURES
from ..io import DIFFICULTY, READINESS, preferred, save_stop_rule, save_tier_probe
from ..records import UNKNOWN, RecordsError, RecordTable, read
from ..rule import StopRule
from . import difficulty, readiness
from .data import BASE, Boundaries, Questions, concatenate, get_part, read_boundaries, read_questions
from .exit_curve import compute_exit_curve

FEWEST = 40
"""Questions that a part must have to be learnt from."""


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """What is asked: the harm alpha that may be done, the chance delta that more is, the accuracy tiers may cost."""

    alpha: float = 0.02
    delta: float = 0.1
    margin: float = 0.005
    layer: int | None = None
    labels: str = "tiers"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.labels not in difficulty.LABELS:
            raise unknown("labels", self.labels, difficulty.LABELS)
        if not 0 <= self.margin < 1:
            raise OptionError(f"margin is {self.margin}; accepted: a share from 0 up to 1, as 0.005 for half a point")
        needed(self.alpha, self.delta)  # complains


@dataclass(frozen=True, slots=True)
class QuestionParts:
    """The data by what it is for; with one collection its questions are divided by their hashes."""

    fit: RecordTable
    calibrate: RecordTable
    test: RecordTable
    divided: bool

    def keep(self, name: str) -> tuple[RecordTable, NDArray[np.bool_]]:
        """The records of a part and which of their questions belong to it: learn, tune, calibrate or test."""
        records = {"calibrate": self.calibrate, "test": self.test}.get(name, self.fit)
        hashes = records.texts["hash"]
        whole = np.ones(len(hashes), bool)
        if self.divided:
            home = name if name in ("calibrate", "test") else "fit"
            whole = np.array([get_part(h) == home for h in hashes])
        if name in ("learn", "tune"):
            tuning = np.array([int(h[-1], 16) % 4 == 0 for h in hashes])
            whole &= tuning if name == "tune" else ~tuning
        return records, whole


def split_questions(fit: Path, calibrate: Path | None, test: Path | None) -> QuestionParts:
    """Read what is given; raises RecordsError if collections are of different models, or share questions."""
    if (calibrate is None) != (test is None):
        raise OptionError(
            "one of --calibrate and --test was given; accepted: both, or neither to divide one collection"
        )
    first = read(fit)
    if tuple(first.plan["features"]) != FEATURES:
        raise RecordsError(f"{fit} has other features than this version of tersely makes; collect anew")
    if calibrate is None or test is None:
        return QuestionParts(first, first, first, True)
    others = read(calibrate), read(test)
    for path, records in zip((calibrate, test), others, strict=True):
        for key in ("fingerprint", "features"):
            if records.plan[key] != first.plan[key]:
                raise RecordsError(f"{path} and {fit} were collected with another {key}; collect both alike")
    if others[1].plan["tiers"] != first.plan["tiers"]:
        raise RecordsError(f"{test} and {fit} were collected with other tiers; collect both alike")
    hashes = [set(r.texts["hash"]) for r in (first, *others)]
    shared = (hashes[0] & hashes[1]) | (hashes[0] & hashes[2]) | (hashes[1] & hashes[2])
    if shared:
        raise RecordsError(f"{len(shared)} questions are in two collections; a guarantee needs questions of its own")
    return QuestionParts(first, *others, False)


def calibrate_into(
    out: Path, parts: QuestionParts, settings: CalibrationSettings, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Fit, certify, examine and save both probes; the report in JSON form."""
    plan = parts.fit.plan
    if BASE not in _thinking_tiers(parts.fit):
        raise RecordsError(f"there is no rollout of tier {BASE!r} here, from which probes learn; collect some")
    base = {"name": str(plan["model"]), "fingerprint": str(plan["fingerprint"])}
    made_from = {"data": parts.fit.hash, "task": plan["task"], "split": plan["split"], "seed": plan["seed"]}
    report: dict[str, Any] = {"model": plan["model"], "alpha": settings.alpha, "delta": settings.delta}
    say("readiness")
    report[READINESS], stop = _readiness(out, parts, settings, base, made_from)
    if (parts.fit["rollouts.right"] == UNKNOWN).any():
        report[DIFFICULTY] = {"skipped": "nobody knows which answers are right here"}
    else:
        say("difficulty")
        report[DIFFICULTY] = _difficulty(out, parts, settings, base, made_from, stop)
    return report


def _difficulty(
    out: Path,
    parts: QuestionParts,
    settings: CalibrationSettings,
    base: dict[str, str],
    made_from: dict[str, Any],
    stop: _Stop | None,
) -> dict[str, Any]:
    def loss(layer: int) -> float:
        learn, tune = (_questions(parts, name, layer) for name in ("learn", "tune"))
        return difficulty.evaluate_loss(learn, tune, settings.seed)

    layer = best_layer(parts.fit, settings.layer, loss)
    plain = {name: _questions(parts, name, layer) for name in ("learn", "tune", "test")}
    acting = plain
    if stop is not None:
        rule, read, threshold = stop
        acting = {
            name: compute_exit_curve(sets, *parts.keep(name), rule, read, threshold) for name, sets in plain.items()
        }
    probe = difficulty.fit_difficulty(
        (plain["learn"], acting["learn"]),
        (plain["tune"], acting["tune"]),
        layer,
        settings.margin,
        settings.seed,
        settings.labels,
    )
    probe = replace(probe, exits=stop is not None)
    report = difficulty.examine(probe, plain["learn"], plain["test"], acting["test"], settings.seed)
    curve = difficulty.u_curve(plain["learn"])
    report["entropy curve"] = {"levels": [asdict(v) for v in curve.levels], "u-shaped": curve.u_shaped}
    report["layer"] = layer
    report["learned from"] = len(plain["learn"]) + len(plain["tune"])
    learned = {"learned_from": sorted(h for n in ("learn", "tune") for h in plain[n].hashes)}
    save_tier_probe(probe, out / DIFFICULTY, base, {**made_from, **learned}, report)
    return report


def _readiness(
    out: Path, parts: QuestionParts, settings: CalibrationSettings, base: dict[str, str], made_from: dict[str, Any]
) -> tuple[dict[str, Any], _Stop | None]:
    tiers = _thinking_tiers(parts.fit)

    def learnt_from(layer: int) -> Boundaries:
        return concatenate([_boundaries(parts, "learn", layer, tier, number=None) for tier in tiers])

    def loss(layer: int) -> float:
        tuning = _boundaries(parts, "tune", layer, BASE, number=0)
        return readiness.evaluate_loss(learnt_from(layer), tuning, settings.seed)

    layer = best_layer(parts.fit, settings.layer, loss)
    learn = learnt_from(layer)
    tune, held, test = (_boundaries(parts, name, layer, BASE, number=0) for name in ("tune", "calibrate", "test"))
    rules = readiness.fit_rule(learn, tune, settings.alpha, settings.seed)
    certificates = readiness.list_certificates(rules, tune, held, settings.alpha, settings.delta)
    report = readiness.examine(rules, certificates, test, tune, held, settings.alpha, settings.delta)
    report["layer"] = layer
    report["certificates"] = {name: str(c) for name, c in certificates.items()}
    learned = {"learned_from": sorted({*learn.question, *tune.question, *held.question})}
    region = Region.fit(held.rows[np.unique(held.rollout, return_index=True)[1]], seed=settings.seed)
    save_stop_rule(rules, certificates, region, layer, out / READINESS, base, {**made_from, **learned}, report)
    name = preferred(certificates)
    threshold = certificates[name].threshold
    return report, None if threshold is None else _Stop(rules[name == "trials"], layer, threshold)


class _Stop(NamedTuple):
    """The readiness exit that users get by default: its rule, the layer it reads, and the certified threshold."""

    rule: StopRule
    layer: int
    threshold: float


def _thinking_tiers(records: RecordTable) -> list[str]:
    """The tiers whose thinking is learnt from, as far as there are rollouts."""
    there = {records.plan["tiers"][number] for number in np.unique(records["rollouts.tier"])}
    return [tier for tier in (BASE, "easy", "hard") if tier in there]


def best_layer(records: RecordTable, wanted: int | None, loss: Callable[[int], float]) -> int:
    """The hidden layer to read: the one wanted, or of those collected the one with the least loss on held-out rows."""
    layers: Sequence[int] = records.plan["layers"]
    if wanted is not None and wanted not in layers:
        raise unknown("layer", str(wanted), map(str, layers))
    return wanted if wanted is not None else layers[0] if len(layers) == 1 else min(layers, key=loss)


def _questions(parts: QuestionParts, name: str, layer: int) -> Questions:
    records, keep = parts.keep(name)
    _enough(name, int(keep.sum()))
    return read_questions(records, layer, keep)


def _boundaries(parts: QuestionParts, name: str, layer: int, tier: str, number: int | None) -> Boundaries:
    records, keep = parts.keep(name)
    _enough(name, int(keep.sum()))
    return read_boundaries(records, layer, tier, keep, number)


def _enough(name: str, n: int) -> None:
    if n < FEWEST:
        raise RecordsError(f"the part to {name} has {n} questions; accepted: {FEWEST} or more; collect more")
