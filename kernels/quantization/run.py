"""`tersely quantize`, from a checkpoint to a quantized one beside it; whole or not at all, and resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from safetensors import SafetensorError

from ...errors import ModelError, OptionError
from ...io import WriteError, check_new_folder, write
from ..grouped_attention import use_grouped
from .calibration_text import CalibrationText
from .checks import check_model
from .config import ScaleSearch, Scheme
from .kl_divergence import cache_reference, kl_to_reference
from .layer_checkpoints import LayerCheckpoints
from .linear import settle_scales
from .model import quantize_model

REPORT = "quantization_report.json"


class QuantizationCheck(Protocol):
    """Questions that a model is asked before and after."""

    @property
    def digest(self) -> str:
        """What decides its outcome beside the model, hashed."""
        ...

    def check(self, model: Any, tokenizer: Any) -> None:
        """Raise TerselyError for what cannot be asked."""
        ...

    def run(self, model: Any, tokenizer: Any) -> list[bool]:
        """Which of them a model gets right."""
        ...

    def compare(self, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
        """What there is to report."""
        ...


def quantize_into(
    source: str,
    out: Path,
    scheme: Scheme,
    text: CalibrationText,
    search: ScaleSearch | None = None,
    progress: Callable[[str], None] = lambda text: None,
    exam: QuantizationCheck | None = None,
) -> dict[str, Any]:
    """Quantize a checkpoint into a new folder; returns the report, which is in the folder too.

    Until all is done, everything lies in `<out>.part`, from which a later run goes on. exam: taken before and after.
    Raises ModelError for a source that cannot be quantized, OptionError for an `out` that is there already, WriteError
    where there is no room, and what `exam.check` raises.
    """
    search = search or ScaleSearch()
    check_goal(out)
    model, tokenizer = load(source)
    check_model(model, scheme)
    scheme = settle_scales(model, scheme)
    use_grouped(model)  # for what it is to write
    if exam is not None:
        exam.check(model, tokenizer)
    plan = {
        "model": source,
        "scheme": scheme.written(),
        "search": asdict(search),
        "text": text.written(),
    }
    pieces = LayerCheckpoints(out.with_name(f"{out.name}.part"), plan)
    try:
        rows, _ = pieces.piece("text", lambda: (text.split(model, tokenizer, progress), {}))
    except OptionError:
        pieces.drop_plan()
        raise
    calibrating, measured = rows["calibrating"], rows["measured"]
    progress(f"measuring on {measured.numel()} tokens")
    expected, before = pieces.piece("before", lambda: cache_reference(model, measured))
    retake = _examined(exam, model, tokenizer, pieces, progress)
    done = quantize_model(model, calibrating, scheme, search, pieces, progress)
    progress("measuring again")
    divergences, losses = kl_to_reference(model, measured, expected)
    report = {
        "scheme": "w4a8-dgq",
        **scheme.written(),
        "search": asdict(search),
        "calibrated on": text.source,
        "tokens": {"calibration": calibrating.numel(), "perplexity": measured.numel()},
        "perplexity": {"before": before["perplexity"], "after": exp(fmean(losses))},
        "divergence": fmean(divergences),
        **retake(),
        "bytes": {"before": done.bytes_before, "after": done.bytes_after},
        "layers": done.layers,
    }
    progress("saving")
    _save(model, tokenizer, report, pieces.folder, out)
    return report


def _examined(
    exam: QuantizationCheck | None,
    model: Any,
    tokenizer: Any,
    pieces: LayerCheckpoints,
    progress: Callable[[str], None],
) -> Callable[[], dict[str, Any]]:
    """Take the exam now; what is returned takes it again, and makes the part of the report.

    It decides nothing about the layers, so it may be another when a run goes on.
    """
    if exam is None:
        return dict
    progress("answering questions")

    def take(name: str) -> list[bool]:
        _, told = pieces.piece(f"{name}-{exam.digest}", lambda: ({}, {"right": exam.run(model, tokenizer)}))
        right: list[bool] = told["right"]
        return right

    before = take("right")

    def retake() -> dict[str, Any]:
        progress("answering them again")
        return {"task": exam.compare(before, take("right-again"))}

    return retake


def load(source: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, as saved; raises ModelError."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source)
        if getattr(config, "quantization_config", None) is not None:
            method = dict(config.quantization_config).get("quant_method", "unknown")
            raise ModelError(f"{source!r} is quantized already ({method}); give the checkpoint that it was made from")
        tokenizer = AutoTokenizer.from_pretrained(source)
        return AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval(), tokenizer
    except ModelError:
        raise
    except Exception as error:  # from_pretrained raises OSError, ValueError, KeyError, ImportError...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{source!r} cannot be loaded: {reason}; accepted: a causal language model with its tokenizer, in a folder "
            "written by save_pretrained or on the hub"
        ) from error


def check_goal(out: Path) -> None:
    """Raise OptionError for a folder that is there already, WriteError where none can be made."""
    check_new_folder(out)
    if not out.absolute().parent.is_dir():
        raise WriteError(f"{out} cannot be written; accepted: a place in a folder that exists")


def _save(model: Any, tokenizer: Any, report: dict[str, Any], folder: Path, out: Path) -> None:
    """Write the checkpoint aside, and put it in its place once it is whole."""
    made = folder / "checkpoint"
    try:
        shutil.rmtree(made, ignore_errors=True)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        write(made / REPORT, json.dumps(report, indent=1) + "\n")
        if out.exists():
            out.rmdir()
        made.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"{out} cannot be written: {reason}; what is done waits in {folder}") from None
    shutil.rmtree(folder, ignore_errors=True)


def as_text(report: dict[str, Any]) -> str:
    """A report for a terminal: sums, and the layers that lost most."""
    perplexity, size = report["perplexity"], report["bytes"]
    change = perplexity["after"] / perplexity["before"] - 1
    worst = sorted((layer for layer in report["layers"] if layer["bits"] == 4), key=lambda layer: -layer["error"])[:5]
    lines = [
        f"perplexity  {perplexity['before']:.4g} -> {perplexity['after']:.4g} ({change:+.1%}), "
        f"on {report['tokens']['perplexity']} tokens of {report['calibrated on']}",
        f"divergence  {report['divergence']:.4f} nats a token there, of next tokens from what they were",
        *([_right(report["task"])] if "task" in report else ()),
        f"size        {size['before'] / 1e6:.4g} -> {size['after'] / 1e6:.4g} MB",
        "layers of 4 bits that lost most, as shares of the square of their outputs (plain rounding):",
    ]
    for layer in worst:
        plain = layer.get("error of plain rounding")
        lines.append(f"  {layer['error']:.3%} ({'-' if plain is None else f'{plain:.3%}'})  {layer['name']}")
    return "\n".join(lines)


def _right(task: dict[str, Any]) -> str:
    """Right answers before and after."""
    change, low, high = (100 * value for value in task["change"])
    right = task["right"]
    return (
        f"right       {right['before']:.1%} -> {right['after']:.1%}, {change:+.1f} points [{low:+.1f}, {high:+.1f}], "
        f"of {task['questions']} questions of {task['name']}"
    )
