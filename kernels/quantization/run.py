"""The work of `tersely quantize`: write a quantized copy of a checkpoint, all or nothing, and resumable."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from safetensors import SafetensorError

from ...io import WriteError, check_new_folder, share_files, write
from ..grouped_attention import use_grouped
from .calibration import CalibrationText, cache_reference, kl_to_reference
from .linear import ScaleSearch, Scheme, resolve_scheme
from .model import LayerCheckpoints, check_model, quantize_model

REPORT = "quantization_report.json"


class QuantizationCheck(Protocol):
    """A test that a model takes before and after quantization; `evaluation.runner.AccuracyCheck` implements it."""

    @property
    def digest(self) -> str:
        """A hash of everything that determines the outcome, except the model."""

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise TerselyError if the test cannot run on this model."""

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        """Whether the model answers each question correctly."""

    def compare(self, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
        """The section of the report."""


def quantize_checkpoint(
    model: Any,
    tokenizer: Any,
    source: str,
    out: Path,
    scheme: Scheme,
    text: CalibrationText,
    search: ScaleSearch | None = None,
    progress: Callable[[str], None] = lambda text: None,
    test: QuantizationCheck | None = None,
) -> dict[str, Any]:
    """Quantize a model into a new folder; returns the report, which is also written there. The model is changed.

    Until the end, everything is in `<out>.part`, from which a later run on the same `source` resumes. Raises ModelError
    if the model cannot be quantized, OptionError if `out` exists or there is too little text, CheckpointLogError if
    other options were given before, or WriteError.
    """
    search = search or ScaleSearch()
    check_out(out)
    check_model(model, scheme)
    scheme = resolve_scheme(model, scheme)
    use_grouped(model)  # for the text that it generates
    if test:
        test.check(model, tokenizer)
    origin = asdict(text) | {"file": str(text.file), "questions": str(text.questions)}
    plan = {"model": source, "scheme": scheme.to_dict(), "search": asdict(search), "text": origin}
    checkpoints = LayerCheckpoints(out.with_name(f"{out.name}.part"), plan)
    rows, _ = checkpoints.load_or_make("text", lambda: (text.split(model, tokenizer, progress), {}))
    calibrating, measured = rows["calibrating"], rows["measured"]
    progress(f"measuring on {measured.numel()} tokens")
    reference, before = checkpoints.load_or_make("before", lambda: cache_reference(model, measured))
    right = _run_test(test, "right", model, tokenizer, checkpoints, progress) if test else []
    result = quantize_model(model, calibrating, scheme, search, checkpoints, progress)
    progress("measuring again")
    divergences, losses = kl_to_reference(model, measured, reference)
    report = {
        "scheme": "w4a8-dgq",
        **scheme.to_dict(),
        "search": asdict(search),
        "calibrated on": text.source,
        "tokens": {"calibration": calibrating.numel(), "perplexity": measured.numel()},
        "perplexity": {"before": before["perplexity"], "after": exp(fmean(losses))},
        "divergence": fmean(divergences),
    }
    if test:
        report["task"] = test.compare(right, _run_test(test, "right-again", model, tokenizer, checkpoints, progress))
    report["bytes"] = {"before": result.bytes_before, "after": result.bytes_after}
    report["layers"] = result.layers
    progress("saving")
    _save(model, tokenizer, report, checkpoints.folder, out)
    return report


def _run_test(
    test: QuantizationCheck,
    name: str,
    model: Any,
    tokenizer: Any,
    checkpoints: LayerCheckpoints,
    progress: Callable[[str], None],
) -> list[bool]:
    """Run the test, unless its result is already saved. A resumed run may use another test: no layer depends on it."""
    progress("answering questions")
    right: list[bool] = checkpoints.log.get_or_compute(f"{name}-{test.digest}", lambda: test.run(model, tokenizer))
    return right


def check_out(out: Path) -> None:
    """Raise OptionError if the folder already exists, WriteError if it cannot be created."""
    check_new_folder(out)
    parent = out.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise WriteError(f"{out} cannot be written; accepted: a new folder inside one that exists")


def _save(model: Any, tokenizer: Any, report: dict[str, Any], folder: Path, out: Path) -> None:
    """Write the checkpoint to a temporary folder, and move it to `out` when it is complete."""
    checkpoint = folder / "checkpoint"
    try:
        shutil.rmtree(checkpoint, ignore_errors=True)
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        write(checkpoint / REPORT, json.dumps(report, indent=1) + "\n")
        share_files(checkpoint)
        if out.exists():
            out.rmdir()
        checkpoint.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"{out} cannot be written: {reason}; finished layers are in {folder}, run again") from None
    shutil.rmtree(folder, ignore_errors=True)


def format_report(report: dict[str, Any]) -> str:
    """Format a report for a terminal: totals, and the layers with the largest errors."""
    perplexity, size = report["perplexity"], report["bytes"]
    change = perplexity["after"] / perplexity["before"] - 1
    worst = sorted((layer for layer in report["layers"] if layer["bits"] == 4), key=lambda layer: -layer["error"])[:5]
    lines = [
        f"perplexity  {perplexity['before']:.4g} -> {perplexity['after']:.4g} ({change:+.1%}), "
        f"on {report['tokens']['perplexity']} tokens of {report['calibrated on']}",
        f"divergence  {report['divergence']:.4f} nats per token (KL of the next-token distributions), on the same",
    ]
    if "task" in report:
        task = report["task"]
        right, (points, low, high) = task["right"], (100 * value for value in task["change"])
        lines.append(
            f"accuracy    {right['before']:.1%} -> {right['after']:.1%}, {points:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}], on {task['questions']} questions of {task['name']}"
        )
    lines += [
        f"size        {size['before'] / 1e6:.4g} -> {size['after'] / 1e6:.4g} MB",
        "4-bit layers with the largest relative output errors (in parentheses: plain rounding):",
    ]
    for layer in worst:
        plain = layer.get("error of plain rounding")
        lines.append(f"  {layer['error']:.3%} ({'-' if plain is None else f'{plain:.3%}'})  {layer['name']}")
    return "\n".join(lines)
