"""`tersely quantize`: a checkpoint in low-bit weights, and what that costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..errors import OptionError, unknown
from ..models import NAMES, get_model_path

SCHEMES = ("w4a8-dgq",)


def quantize(
    model: Annotated[str, typer.Argument(help="Embedded model, folder or hub name.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; a killed run goes on.")],
    scheme: Annotated[str, typer.Option("--scheme", help="How weights are kept: w4a8-dgq.")] = "w4a8-dgq",
    calib: Annotated[
        Path | None,
        typer.Option("--calib", help="Text or JSONL to calibrate and measure on; by default the model writes it."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            help="JSONL of {problem}: calibrate on the model's own answers to these, which is best for chat models.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=2, help="Rows of text; every fourth is measured on.")] = 40,
    length: Annotated[int, typer.Option("--length", min=8, help="Tokens of a row.")] = 512,
    group_size: Annotated[int, typer.Option("--group-size", help="Inputs that share a scale: 32, 64 or 128.")] = 128,
    head: Annotated[
        str, typer.Option("--head", help="The layer that makes logits: preview, int8, int4 or keep.")
    ] = "preview",
    keys: Annotated[
        str,
        typer.Option("--keys", help="Layers of keys and values: int8, int4, or auto for int8 where heads share them."),
    ] = "auto",
    smooth: Annotated[bool, typer.Option(help="Scale down inputs that stand out.")] = False,
    search: Annotated[bool, typer.Option(help="Search the ranges that codes span, in two phases.")] = True,
    compensate: Annotated[bool, typer.Option(help="Let later weights make up for errors of earlier ones.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what the model writes.")] = 0,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Ask these before and after: tiny, gym:NAME, or a JSONL of {id, problem, answer}."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions of --task (100).")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Of an answer to --task (512).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Quantize the linear layers of a model to 4 bits, and tell what that costs.

    `import tersely.kernels.quantization` before `from_pretrained` lets transformers load the result.
    """
    from ..evaluation.accuracy_check import AccuracyCheck
    from ..kernels.quantization.calibration_text import CalibrationText
    from ..kernels.quantization.config import ScaleSearch, Scheme
    from ..kernels.quantization.run import as_text, check_goal, quantize_into

    if scheme not in SCHEMES:
        raise unknown("scheme", scheme, SCHEMES)
    if calib is not None and questions is not None:
        raise OptionError("--calib and --questions are two sources of one text; give one of them")
    if task is None and (limit or max_tokens):
        raise OptionError("--limit and --max-tokens are of a --task, and none is given")
    check_goal(out)
    exam = None if task is None else AccuracyCheck.load(task, limit or 100, max_tokens or 512)
    source = str(get_model_path(model)) if model in NAMES else model
    text, how = CalibrationText(calib, questions, rows, length, seed), ScaleSearch(search, compensate)
    with _status() as say:
        report = quantize_into(source, out, Scheme(group_size, head, smooth, keys), text, how, say, exam)
    typer.echo(json.dumps(report) if as_json else f"{as_text(report)}\nsaved to {out}")


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Lend a function that tells a person who looks on what is being done."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("loading") as status:
        yield status.update
