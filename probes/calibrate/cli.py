"""`tersely calibrate`: from collected data to probes with certificates, and the report as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ...errors import CapabilityError, OptionError
from ...io import check_writable, write
from ..artifact import to_json
from ..io import DIFFICULTY, READINESS

FORMATS = ("png", "svg")


def calibrate(
    data: Annotated[Path, typer.Argument(help="Folder written by `tersely collect` or by shadow mode.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder for the probes.")],
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="Separate collection for the certificates; needs --test.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="Separate collection for the report; needs --calibrate.")
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Share of questions that stopping early may harm.")] = 0.02,
    delta: Annotated[float, typer.Option("--delta", help="Probability that more are harmed nevertheless.")] = 0.1,
    margin: Annotated[float, typer.Option("--margin", help="Accuracy that choosing tiers may cost.")] = 0.005,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Hidden layer to read; default: the best of those collected.")
    ] = None,
    labels: Annotated[
        str, typer.Option("--labels", help="Labels for difficulty: tiers (cheapest sufficient one) or diffadapt.")
    ] = "tiers",
    curve: Annotated[
        Path | None, typer.Option("--curve", help="Draw entropy by difficulty into a PNG or SVG file.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a difficulty and a readiness probe, certify thresholds, and compare them with simple baselines.

    A single collection is split by question: half for training, the rest for certificates and the report.
    """
    from .run import CalibrationSettings, calibrate_into, split_questions

    settings = CalibrationSettings(alpha, delta, margin, layer, labels, seed)
    if curve is not None:
        check_picture(curve)
    report = calibrate_into(out, split_questions(data, calibrate, test), settings)
    if curve is not None:
        draw_entropy_curve(report, curve)
    typer.echo(json.dumps(to_json("report", report, nonfinite=True)) if as_json else format_report(report))


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn; raises OptionError, CapabilityError or WriteError."""
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise OptionError(f"--curve {path} ends in {path.suffix!r}; accepted: .png or .svg", code="unknown_format")
    if find_spec("matplotlib") is None:
        raise CapabilityError("--curve needs matplotlib, which is not installed; pip install 'tersely[bench]'")
    check_writable(path, "--curve")


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
    figure.savefig(buffer, format=path.suffix.lstrip(".").lower())
    write(path, buffer.getvalue())


def format_report(report: Mapping[str, Any]) -> str:
    """Format a report as text, one line a fact."""
    difficulty = _format_difficulty(report[DIFFICULTY])
    readiness = _format_readiness(report[READINESS], report["alpha"])
    return "\n".join([str(report["model"]), "", *difficulty, "", *readiness])


def _format_difficulty(report: Mapping[str, Any]) -> Iterator[str]:
    if "skipped" in report:
        yield f"difficulty: not trained, {report['skipped']}"
        return
    yield f"difficulty, from hidden layer {report['layer']}, trained on {report['learned from']} questions"
    for name, row in report.items():
        if isinstance(row, Mapping) and "probe" in row:
            yield from _format_target(name, row)
    curve = report["entropy curve"]
    levels = ", ".join(f"{v['difficulty']:g}: {v['entropy']:.3f}" for v in curve["levels"])
    shape = "U-shaped" if curve["u-shaped"] else "not significantly U-shaped"
    yield f"  mean entropy by difficulty, in nats, is {shape} ({levels})"
    names = {"choice": "effort auto", "choice alone": "its tiers alone"}
    for choice, name in ((report[key], name) for key, name in names.items() if key in report):
        shares = ", ".join(f"{k} {v:.0%}" for k, v in choice["shares"].items() if v)
        yield (
            f"  {name} on {choice['n']} unseen questions: {choice['saved']:.1%} of the tokens saved, accuracy "
            f"{choice['accuracy change']:+.3f} (standard error {choice['standard error']:.3f}); {shares}"
        )


def _format_target(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    probe, baselines = row["probe"], {key: row[key]["auroc"] for key in ("length", "words")}
    best = max(baselines, key=lambda key: baselines[key])
    yield (
        f"  {name}: AUROC {probe['auroc']:.3f} [{probe['low']:.3f}, {probe['high']:.3f}], "
        f"Brier {probe['brier']:.3f}, ECE {probe['ece']:.3f} (n = {probe['n']}, true for {probe['share']:.0%})"
    )
    shown = ", ".join(f"{key} {value:.3f}" for key, value in baselines.items())
    verb = "adds" if probe["low"] > baselines[best] else "adds nothing significant"
    yield f"    baselines: {shown}, shuffled labels {row['shuffled']['auroc']:.3f}; the probe {verb} to {best} alone"


def _format_readiness(report: Mapping[str, Any], alpha: float) -> Iterator[str]:
    yield (
        f"readiness, from hidden layer {report['layer']}, on {report['questions']} unseen questions with "
        f"{report['boundaries']} boundaries"
    )
    names = {"free": "free evidence", "trials": "with trials if undecided", "confidence": "raw trial confidence"}
    for key, name in names.items():
        if (row := report.get(key)) is None:
            continue
        at = "never stops" if row["threshold"] is None else f"stops from {row['threshold']:.4f}"
        yield (
            f"  {name}: AUROC {row['quality']['auroc']:.3f}, ECE {row['quality']['ece']:.3f}; {at}: saves "
            f"{row['saved']:.1%} net, harms {row['harm']:.1%} (allowed: {alpha:.1%}); best in hindsight "
            f"{row['oracle']:.1%}; {row['asked']:.1f} trials a question"
        )
    for key in ("free", "trials"):
        resampled = report[key]["resampled"]
        yield (
            f"  {resampled['draws']} calibrations of {resampled['n']} questions, {names[key]}: "
            f"{resampled['exceeded']:.1%} harm more than allowed; they save {resampled['efficiency']:.0%} of what the "
            "best threshold in hindsight saves"
        )
    for key, text in report["certificates"].items():
        yield f"  certificate, {names[key]}: {text}"
    if "confidence" not in report:
        return
    gain = max(report[key]["saved"] for key in ("free", "trials")) - report["confidence"]["saved"]
    yield f"  the probe saves {gain * 100:+.1f} points of tokens compared with raw confidence, net of all overhead"
