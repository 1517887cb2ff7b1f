"""Calibration on a collection: fitting, certifying and evaluating both probes, and saving them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import CapabilityError, OptionError, check_known
from ...io import check_replaceable, render_text, write
from ..drift import Region
from ..estimator import held_out_log_loss
from ..io import DIFFICULTY, READINESS, choose_variant, save_stop_rule, save_tier_probe
from ..records import UNKNOWN, RecordsError, RecordTable
from ..risk_control import needed_questions
from ..rule import StopRule
from . import difficulty, readiness
from .data import BASE, Boundaries, QuestionParts, check_layer, concatenate

_CREATOR = "tersely calibrate"  # what our pictures name as the software that wrote them


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """Settings of a calibration."""

    alpha: float = 0.02  # share of questions that stopping early may harm
    delta: float = 0.1  # probability that it harms more
    margin: float = 0.005  # accuracy that choosing tiers may cost
    layer: int | None = None  # None chooses the best of those collected
    labels: str = "tiers"  # of `difficulty.LABELS`
    seed: int = 0

    def __post_init__(self) -> None:
        check_known("labels", self.labels, difficulty.LABELS)
        if not 0 <= self.margin < 1:
            raise OptionError(f"margin is {self.margin}; accepted: from 0 to below 1, such as 0.005 for half a point")
        needed_questions(self.alpha, self.delta)  # checks both


def calibrate_into(out: Path, parts: QuestionParts, settings: CalibrationSettings) -> dict[str, Any]:
    """Fit, certify, evaluate and save both probes; returns the report in JSON form."""
    plan = parts.fit.plan
    if BASE not in _list_thinking_tiers(parts.fit):
        raise RecordsError(
            f"rollouts of tier {BASE!r} are missing, which probes need; collect some", code="no_rollouts"
        )
    base = {"name": str(plan["model"]), "fingerprint": str(plan["fingerprint"])}
    origin = {"data": parts.fit.hash, "task": plan["task"], "split": plan["split"], "seed": plan["seed"]}
    report: dict[str, Any] = {"model": plan["model"], "alpha": settings.alpha, "delta": settings.delta}
    report[READINESS], exit_rule = _calibrate_readiness(out, parts, settings, base, origin)
    if (parts.fit["rollouts.right"] == UNKNOWN).any():
        report[DIFFICULTY] = {"skipped": "the correct answers are unknown"}
    else:
        report[DIFFICULTY] = _calibrate_difficulty(out, parts, settings, base, origin, exit_rule)
    return report


class _ExitRule(NamedTuple):
    """The readiness exit that users get by default: its rule, the layer it reads, and the certified threshold."""

    rule: StopRule
    layer: int
    threshold: float


def _calibrate_difficulty(
    out: Path,
    parts: QuestionParts,
    settings: CalibrationSettings,
    base: dict[str, str],
    origin: dict[str, Any],
    exit_rule: _ExitRule | None,
) -> dict[str, Any]:
    def evaluate(layer: int) -> float:
        learn, tune = (difficulty.make_examples(parts.questions(name, layer)) for name in ("learn", "tune"))
        return held_out_log_loss(learn, tune, settings.seed)

    layer = choose_layer(parts.fit, settings.layer, evaluate)
    plain = {name: parts.questions(name, layer) for name in ("learn", "tune", "test")}
    in_use = plain
    if exit_rule is not None:
        rule, read, threshold = exit_rule
        in_use = {
            name: difficulty.apply_exit(one, *parts.select(name), rule, read, threshold) for name, one in plain.items()
        }
    probe = difficulty.fit_difficulty(
        (plain["learn"], in_use["learn"]),
        (plain["tune"], in_use["tune"]),
        layer,
        settings.margin,
        settings.seed,
        settings.labels,
    )
    probe = replace(probe, exits=exit_rule is not None, known=parts.describe_questions())
    report = difficulty.evaluate_probe(probe, plain["learn"], plain["test"], in_use["test"], settings.seed)
    report["entropy curve"] = difficulty.compute_base_curve(plain["learn"])
    report["layer"] = layer
    report["learned from"] = len(plain["learn"]) + len(plain["tune"])
    learned_from = sorted({*plain["learn"].hashes, *plain["tune"].hashes})
    save_tier_probe(probe, out / DIFFICULTY, base, {**origin, "learned_from": learned_from}, report)
    return report


def _calibrate_readiness(
    out: Path, parts: QuestionParts, settings: CalibrationSettings, base: dict[str, str], origin: dict[str, Any]
) -> tuple[dict[str, Any], _ExitRule | None]:
    tiers = _list_thinking_tiers(parts.fit)

    def read_training(layer: int) -> Boundaries:
        return concatenate([parts.boundaries("learn", layer, tier, number=None) for tier in tiers])

    def evaluate(layer: int) -> float:
        learn, tune = (readiness.make_examples(b) for b in (read_training(layer), parts.boundaries("tune", layer)))
        return held_out_log_loss(learn, tune, settings.seed)

    layer = choose_layer(parts.fit, settings.layer, evaluate)
    learn = read_training(layer)
    tune, calibration, test = (parts.boundaries(name, layer) for name in ("tune", "calibrate", "test"))
    rules = readiness.fit_rule(learn, tune, settings.alpha, settings.seed)
    certificates = readiness.certify_rules(rules, tune, calibration, settings.alpha, settings.delta)
    report = readiness.evaluate_rules(rules, certificates, test, tune, calibration, settings.alpha, settings.delta)
    report["layer"] = layer
    report["certificates"] = {name: str(certificate) for name, certificate in certificates.items()}
    learned_from = sorted({*learn.question, *tune.question, *calibration.question})
    first_thoughts = calibration.rows[np.unique(calibration.rollout, return_index=True)[1]]
    region = Region.fit(first_thoughts, seed=settings.seed)
    provenance = {**origin, "learned_from": learned_from}
    known = parts.describe_questions()
    save_stop_rule(rules, certificates, region, layer, out / READINESS, base, provenance, report, known)
    variant = choose_variant(certificates)
    threshold = certificates[variant].threshold
    return report, None if threshold is None else _ExitRule(rules[variant == "trials"], layer, threshold)


def _list_thinking_tiers(records: RecordTable) -> list[str]:
    present = {records.plan["tiers"][number] for number in np.unique(records["rollouts.tier"])}
    return [tier for tier in (BASE, "easy", "hard") if tier in present]


def choose_layer(records: RecordTable, layer: int | None, evaluate: Callable[[int], float]) -> int:
    """Return the given hidden layer, or the collected one with the lowest loss; raises OptionError."""
    if layer is not None:
        check_layer(records, "boundaries", layer)
        return layer
    layers: Sequence[int] = records.plan["layers"]
    return layers[0] if len(layers) == 1 else min(layers, key=evaluate)


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn; raises OptionError, CapabilityError or WriteError."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise OptionError(f"--curve {path} ends in {path.suffix!r}; accepted: .png or .svg", code="unknown_format")
    if find_spec("matplotlib") is None:
        raise CapabilityError("--curve needs matplotlib, which is not installed; pip install 'tersely[bench]'")
    check_replaceable(path, lambda path: _CREATOR.encode() in path.read_bytes()[:2048], "--curve")


def draw_entropy_curve(report: Mapping[str, Any], path: Path) -> None:
    """Draw the entropy curve of a calibration report; raises OptionError if there is none."""
    from matplotlib.figure import Figure

    difficulty = report["difficulty"]
    if "entropy curve" not in difficulty:
        raise OptionError(f"the report has no entropy curve: {difficulty['skipped']}; leave out --curve")
    levels = difficulty["entropy curve"]["levels"]
    at, entropy, low, high, accuracy = (
        np.array([level[name] for level in levels]) for name in ("difficulty", "entropy", "low", "high", "accuracy")
    )
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    left = figure.subplots()
    left.errorbar(at, entropy, yerr=[entropy - low, high - entropy], marker="o", capsize=3, label="entropy")
    left.set(xlabel="difficulty", ylabel="mean token entropy, nats (95 %)")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(at, accuracy, color="tab:gray", linestyle="--", marker="s", label="accuracy")
    right.set(ylabel="accuracy", ylim=(0, 1))
    buffer = BytesIO()
    kind = path.suffix.lstrip(".").lower()
    figure.savefig(buffer, format=kind, metadata={{"png": "Software", "svg": "Creator"}[kind]: _CREATOR})
    write(path, buffer.getvalue())


def format_report(report: Mapping[str, Any]) -> str:
    """Format a report as text, one line a fact."""
    return render_text(Path(__file__).with_name("report.txt"), **report)
