"""The work of `tersely quantize`: write a quantized copy of a checkpoint, all or nothing, and resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from ...io import WriteError, atomic_dir, check_new_folder, render_text, write
from ..attention import use_grouped
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

    Until the end, results are in `<out>.layers`, from which a later run on the same `source` resumes. Raises ModelError
    if the model cannot be quantized, OptionError if `out` exists or there is too little text, CheckpointLogError if
    other options were given before, or WriteError.
    """
    search, scheme = search or ScaleSearch(), _check(model, tokenizer, out, scheme, test)
    use_grouped(model)  # for the text that it generates
    checkpoints = _open_checkpoints(out, source, scheme, text, search)
    rows, _ = checkpoints.load_or_make("text", lambda: (text.split(model, tokenizer, progress), {}))
    measured = rows["measured"]
    progress(f"measuring on {measured.numel()} tokens")
    reference, before = checkpoints.load_or_make("before", lambda: cache_reference(model, measured))

    def run_test(name: str, test: QuantizationCheck) -> list[bool]:
        # A resumed run may use another test: no layer depends on it.
        progress("answering questions")
        return checkpoints.log.get_or_compute(f"{name}-{test.digest}", lambda: test.run(model, tokenizer))

    right = run_test("right", test) if test else []
    result = quantize_model(model, rows["calibrating"], scheme, search, checkpoints, progress)
    progress("measuring again")
    divergences, losses = kl_to_reference(model, measured, reference)
    report = {
        "scheme": "w4a8-dgq",
        **scheme.to_dict(),
        "search": asdict(search),
        "calibrated on": text.source,
        "tokens": {"calibration": rows["calibrating"].numel(), "perplexity": measured.numel()},
        "perplexity": {"before": before["perplexity"], "after": exp(fmean(losses))},
        "divergence": fmean(divergences),
        **({"task": test.compare(right, run_test("right-again", test))} if test else {}),
        "bytes": {"before": result.bytes_before, "after": result.bytes_after},
        "layers": result.layers,
    }
    progress("saving")
    _save(model, tokenizer, report, out)
    checkpoints.remove()
    return report


def _check(model: Any, tokenizer: Any, out: Path, scheme: Scheme, test: QuantizationCheck | None) -> Scheme:
    check_out(out)
    check_model(model, scheme)
    if test:
        test.check(model, tokenizer)
    return resolve_scheme(model, scheme)


def _open_checkpoints(
    out: Path, source: str, scheme: Scheme, text: CalibrationText, search: ScaleSearch
) -> LayerCheckpoints:
    origin = asdict(text) | {"file": str(text.file), "questions": str(text.questions)}
    plan = {"model": source, "scheme": scheme.to_dict(), "search": asdict(search), "text": origin}
    return LayerCheckpoints(layers_folder(out), plan)


def _save(model: Any, tokenizer: Any, report: dict[str, Any], out: Path) -> None:
    check_new_folder(out)  # others may have filled it in the meantime
    with atomic_dir(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write(part / REPORT, json.dumps(report, indent=1) + "\n")


def layers_folder(out: Path) -> Path:
    """Where a run keeps its results until the end."""
    return out.with_name(f"{out.name}.layers")


def check_out(out: Path) -> None:
    """Raise OptionError if the folder already exists, WriteError if it cannot be created."""
    check_new_folder(out)
    parent = out.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise WriteError(f"{out} cannot be written; accepted: a new folder inside one that exists")


def format_report(report: dict[str, Any]) -> str:
    """Format a report for a terminal: totals, and the layers with the largest errors."""
    quantized = (layer for layer in report["layers"] if layer["bits"] == 4)
    worst = sorted(quantized, key=lambda layer: -layer["error"])[:5]
    return render_text(Path(__file__).with_name("report.txt"), worst=worst, report=report, **{"task": None, **report})
