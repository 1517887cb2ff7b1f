"""`tersely calibrate`: from collected data to probes with certificates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def calibrate(
    data: Annotated[Path, typer.Argument(help="Folder of `tersely collect`, or of shadow mode.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the probes into.")],
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="A collection of its own for the certificates.")
    ] = None,
    test: Annotated[Path | None, typer.Option("--test", help="A collection of its own for the figures.")] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Share of questions that an exit may harm.")] = 0.02,
    delta: Annotated[float, typer.Option("--delta", help="Chance that more are harmed nevertheless.")] = 0.1,
    margin: Annotated[float, typer.Option("--margin", help="Accuracy that the choice of tiers may cost.")] = 0.005,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Hidden layer; by default the best of those collected.")
    ] = None,
    labels: Annotated[
        str, typer.Option("--labels", help="What is learnt: tiers (which will do), or diffadapt.")
    ] = "tiers",
    curve: Annotated[Path | None, typer.Option("--curve", help="Draw entropy over difficulty, PNG or SVG.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Learn a difficulty and a readiness probe, certify thresholds, and say what they are worth beside controls.

    One collection is divided by question: half to learn from, the rest for certificates and figures.
    """
    from .plot import check_curve, draw_curve
    from .report import as_text
    from .run import CalibrationSettings, calibrate_into, split_questions

    settings = CalibrationSettings(alpha, delta, margin, layer, labels, seed)
    if curve is not None:
        check_curve(curve)
    report = calibrate_into(out, split_questions(data, calibrate, test), settings)
    if curve is not None:
        draw_curve(report, curve)
    typer.echo(_strict(report) if as_json else as_text(report))


def _strict(report: dict[str, Any]) -> str:
    """JSON as everyone reads it: what is no finite number becomes null."""
    return json.dumps(json.loads(json.dumps(report), parse_constant=lambda name: None))
