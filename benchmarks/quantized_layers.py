"""Which layers of a quantized checkpoint cost most: the divergence if some of them are restored.

Sets of layers, by kind (the last part of their names) and by depth, are replaced by those of the original model. The
results for each set are its share of the weights, the remaining KL divergence of next tokens from the original (nats
per token), and the share of the divergence that disappears. Shares need not sum to one.

    python benchmarks/quantized_layers.py OUT MODEL --questions dev.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from measuring import make_parser, print_figures
from torch import Tensor
from transformers import AutoModelForCausalLM

import tersely.kernels.quantization  # noqa: F401  # teaches transformers the method
from tersely.controller.engines.transformers.engine import load_engine
from tersely.kernels.attention import use_grouped
from tersely.kernels.quantization.calibration import (
    cache_reference,
    kl_to_reference,
    read_questions,
    sample_answers,
    tokenize_rows,
)
from tersely.kernels.quantization.linear import W4A8Linear


@contextmanager
def restored(model: Any, original: Any, wanted: Callable[[str], bool]) -> Iterator[int]:
    """Replace layers by those of the original while the context lasts; yields the number of their weights."""
    taken = {name: m for name, m in model.named_modules() if isinstance(m, W4A8Linear) and wanted(name)}
    for name in taken:
        model.set_submodule(name, original.get_submodule(name))
    try:
        yield sum(m.in_features * m.out_features for m in taken.values())
    finally:
        for name, module in taken.items():
            model.set_submodule(name, module)


def choose_sets(model: Any, blocks: int) -> dict[str, Callable[[str], bool]]:
    """Sets of layers: each kind, and each sequence of `blocks` blocks."""
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


def load_text(options: argparse.Namespace, original: Any, tokenizer: Any) -> Tensor:
    """The model's own answers to questions, or rows of a text."""
    if options.text is not None:
        return tokenize_rows(options.text, tokenizer, options.rows, options.length)
    return sample_answers(original, tokenizer, read_questions(options.questions), options.rows, options.length, seed=0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all sets."""
    engine = load_engine(options.model, device="cpu")
    original, tokenizer = engine.model, engine.tokenizer
    model: Any = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype="auto").eval()
    for side in (original, model):
        use_grouped(side)
    text = load_text(options, original, tokenizer)
    expected, _ = cache_reference(original, text)
    every = fmean(kl_to_reference(model, text, expected)[0])
    layers = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, W4A8Linear))
    found: dict[str, Any] = {"tokens": text.numel(), "divergence": every}
    for name, wanted in choose_sets(model, options.blocks).items():
        with restored(model, original, wanted) as weights:
            left = fmean(kl_to_reference(model, text, expected)[0])
        found[name] = {"weights": weights / layers, "divergence": left, "gone": 1 - left / every}
        print(f"{name:16} {found[name]}", file=sys.stderr, flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="folder that tersely quantize wrote")
    parser.add_argument("model", help="the original model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--questions", type=Path, help="JSONL of {problem}: measure on the model's answers to these")
    source.add_argument("--text", type=Path, help="text or JSONL to measure on")
    parser.add_argument("--rows", type=int, default=8, help="rows of text (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens per row (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=4, help="blocks per set (default: %(default)s)")
    options = parser.parse_args(argv)
    found = measure(options)
    print_figures(found, options.json)


if __name__ == "__main__":
    main()
