"""`tersely quantize`: write a checkpoint with low-bit weights, and report the loss of quality."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..controller.options import flag
from ..errors import OptionError, check_known
from ..evaluation.cli_utils import takes
from ..io import announce_resume
from .options import Json, spinner

SCHEMES = ("w4a8-dgq",)


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """The options of `tersely quantize`."""

    model: Annotated[str, typer.Argument(help="An embedded model, a folder, or a name on the Hugging Face hub.")]
    out: Annotated[Path, typer.Argument(help="New folder for the checkpoint; an interrupted run is resumed.")]
    scheme: Annotated[str, flag("Quantization scheme: w4a8-dgq.")] = "w4a8-dgq"
    calib: Annotated[
        Path | None, flag("Text or JSONL to calibrate and measure on; by default the model writes it.")
    ] = None
    questions: Annotated[
        Path | None, flag("JSONL of {question}: calibrate on the model's own answers to these; best for chat models.")
    ] = None
    rows: Annotated[int, flag("Rows of text; every fourth is used to measure.", min=2)] = 40
    length: Annotated[int, flag("Tokens per row.", min=8)] = 512
    group_size: Annotated[int, flag("Inputs that share a scale: 32, 64 or 128.")] = 128
    head: Annotated[str, flag("The output head: preview, int8, int4 or keep.")] = "preview"
    keys: Annotated[
        str, flag("Layers for keys and values: int8, int4, or auto, which is int8 if heads share them.")
    ] = "auto"
    smooth: Annotated[bool, flag("Scale down outlier inputs.")] = False
    search: Annotated[bool, flag("Search the ranges of codes, in two phases.")] = True
    compensate: Annotated[bool, flag("Let later weights compensate errors of earlier ones.")] = True
    seed: Annotated[int, flag("Seed of the text that the model writes.", min=0)] = 0
    tasks: Annotated[
        str | None, flag("Measure accuracy before and after on tiny, gym:NAME, or a JSONL of {question, answer}.")
    ] = None
    limit: Annotated[int | None, flag("Questions of --tasks (default 100).", min=1)] = None
    max_new_tokens: Annotated[int | None, flag("Most tokens of an answer to --tasks (default 512).", min=1)] = None
    as_json: Json = False

    def check(self) -> None:
        """Raise OptionError for options that do not go together."""
        check_known("scheme", self.scheme, SCHEMES)
        if self.calib is not None and self.questions is not None:
            raise OptionError("--calib and --questions exclude each other; give one", code="conflicting_options")
        if self.tasks is None and (self.limit or self.max_new_tokens):
            raise OptionError("--limit and --max-new-tokens require --tasks", code="missing_option")


@takes(QuantizeOptions)
def quantize(options: QuantizeOptions) -> None:
    """Quantize the linear layers of a model to 4 bits, and report the loss of quality.

    To load the result in transformers, `import tersely.kernels.quantization` before `from_pretrained`.
    """
    from ..controller.engines.transformers.engine import load_engine
    from ..evaluation.runner import AccuracyCheck
    from ..kernels.quantization.calibration import CalibrationText
    from ..kernels.quantization.linear import ScaleSearch, Scheme
    from ..kernels.quantization.run import check_out, format_report, layers_folder, quantize_checkpoint

    options.check()
    out, test = options.out, None
    check_out(out)
    if options.tasks is not None:
        test = AccuracyCheck.load(options.tasks, options.limit or 100, options.max_new_tokens or 512)
    text = CalibrationText(options.calib, options.questions, options.rows, options.length, options.seed)
    scheme = Scheme(options.group_size, options.head, options.smooth, options.keys)
    search = ScaleSearch(options.search, options.compensate)
    layers = layers_folder(out)
    with announce_resume(layers, layers.exists), spinner("loading") as status:
        engine = load_engine(options.model, device="cpu")
        model, tokenizer, source = engine.model, engine.tokenizer, options.model
        report = quantize_checkpoint(model, tokenizer, source, out, scheme, text, search, status.update, test)
    typer.echo(json.dumps(report) if options.as_json else f"{format_report(report)}\nsaved to {out}")
