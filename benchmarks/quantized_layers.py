"""Which layers of a quantized checkpoint cost most: the divergence that is left where some are as they were before.

Layers are taken by kind (the last word of their names) and by depth, some at a time, and stand again as in the model
that the checkpoint was made from. For each such set: its share of the weights, the divergence (KL, nats a token) of
next tokens from that model, and what share of the whole divergence is gone with it. Shares need not add up to one.

    python benchmarks/quantized_layers.py OUT MODEL --questions dev.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor
from transformers import AutoModelForCausalLM

import tersely.kernels.quantization  # noqa: F401  # teaches transformers the method
from tersely.controller.engines.checkpoints import resolve_checkpoint
from tersely.kernels.grouped_attention import use_grouped
from tersely.kernels.quantization.calibration import cache_reference, kl_to_reference
from tersely.kernels.quantization.calibration_text import read_questions, sample_answers, tokenize_rows
from tersely.kernels.quantization.linear import W4A8Linear, replace_module
from tersely.kernels.quantization.run import load


@contextmanager
def as_before(model: Any, whole: Any, wanted: Callable[[str], bool]) -> Iterator[int]:
    """Have layers stand as in another model while the context lasts; lends the number of their weights."""
    taken = {name: m for name, m in model.named_modules() if isinstance(m, W4A8Linear) and wanted(name)}
    for name in taken:
        replace_module(model, name, whole.get_submodule(name))
    try:
        yield sum(m.in_features * m.out_features for m in taken.values())
    finally:
        for name, module in taken.items():
            replace_module(model, name, module)


def sets_of(model: Any, blocks: int) -> dict[str, Callable[[str], bool]]:
    """Sets of layers: each kind, and each run of so many blocks."""
    names = [name for name, module in model.named_modules() if isinstance(module, W4A8Linear)]
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in names)
    depths = sorted({number for name in names if (number := _block(name)) is not None})
    made: dict[str, Callable[[str], bool]] = {
        kind: lambda name, kind=kind: name.rpartition(".")[2] == kind  # type: ignore[misc]
        for kind in kinds
    }
    for at in range(0, len(depths), blocks):
        part = depths[at : at + blocks]
        made[f"blocks {part[0]} to {part[-1]}"] = lambda name, part=part: _block(name) in part  # type: ignore[misc]
    return made


def _block(name: str) -> int | None:
    return next((int(word) for word in name.split(".") if word.isdigit()), None)


def text_of(options: argparse.Namespace, whole: Any, tokenizer: Any) -> Tensor:
    """The model's own answers to questions, or rows of a text."""
    if options.text is not None:
        return tokenize_rows(options.text, tokenizer, options.rows, options.length)
    return sample_answers(whole, tokenizer, read_questions(options.questions), options.rows, options.length, seed=0)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All sets, one after the other."""
    whole, tokenizer = load(resolve_checkpoint(options.model))
    model: Any = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype="auto").eval()
    for side in (whole, model):
        use_grouped(side)
    text = text_of(options, whole, tokenizer)
    expected, _ = cache_reference(whole, text)
    every = fmean(kl_to_reference(model, text, expected)[0])
    layers = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, W4A8Linear))
    found: dict[str, Any] = {"tokens": text.numel(), "divergence": every}
    for name, wanted in sets_of(model, options.blocks).items():
        with as_before(model, whole, wanted) as weights:
            left = fmean(kl_to_reference(model, text, expected)[0])
        found[name] = {"weights": weights / layers, "divergence": left, "gone": 1 - left / every}
        print(f"{name:16} {found[name]}", file=sys.stderr, flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder that tersely quantize wrote")
    parser.add_argument("model", help="what it was made from")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--questions", type=Path, help="JSONL of {problem}: measured where the model answers these")
    source.add_argument("--text", type=Path, help="text or JSONL to measure on")
    parser.add_argument("--rows", type=int, default=8, help="rows of text (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of a depth (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    found = measured(options)
    print(json.dumps(found) if options.json else "\n".join(f"{key:16} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
