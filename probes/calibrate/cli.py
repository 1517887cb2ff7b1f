"""`tersely calibrate`: from collected data to probes with certificates, and the report as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ...errors import CapabilityError, OptionError
from ...io import check_writable, render_text, write
from ..artifact import to_json

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
    return render_text(Path(__file__).with_name("report.txt"), **report)
