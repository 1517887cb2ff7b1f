"""An ablation of 4-bit quantization: one model, one text, leaving out one part at a time.

The results for each variant are the KL divergence of its next tokens from the unquantized model, on a text that was not
used for calibration; its relative increase over the first variant, with an interval over rows of text; and the
perplexity. Divergence distinguishes variants better than perplexity, because it does not depend on how predictable the
text is.

    python benchmarks/quantization_parts.py MODEL --calib train.jsonl --text dev.jsonl
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from measuring import make_parser, print_figures

from tersely.controller.engines.transformers.engine import load_engine
from tersely.errors import did_you_mean
from tersely.evaluation.stats import ratio_bootstrap
from tersely.kernels.quantization import Scheme, quantize_model
from tersely.kernels.quantization.calibration import cache_reference, kl_to_reference, tokenize_rows
from tersely.kernels.quantization.linear import ScaleSearch

PLAIN = ScaleSearch(ranges=False, compensate=False)
VARIANTS: dict[str, tuple[ScaleSearch, dict[str, Any]]] = {
    "all": (ScaleSearch(), {}),
    "without search": (ScaleSearch(ranges=False), {}),
    "without compensation": (ScaleSearch(compensate=False), {}),
    "plain rounding": (PLAIN, {}),
    "plain rounding, int8 head": (PLAIN, {"head": "int8"}),
    "all, inputs scaled": (ScaleSearch(), {"smooth": True}),
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all variants."""
    engine = load_engine(options.model, device="cpu")
    model, tokenizer = engine.model, engine.tokenizer
    calib = tokenize_rows(options.calib, tokenizer, options.calib_rows, options.length)
    text = tokenize_rows(options.text, tokenizer, options.rows, options.length)
    scheme = Scheme(options.group_size)
    expected, _ = cache_reference(model, text)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for name in options.variants:
        search, changed = VARIANTS[name]
        quantized = load_engine(options.model, device="cpu").model
        quantize_model(quantized, calib, replace(scheme, **changed), search)
        found[name] = kl_to_reference(quantized, text, expected)
        print(f"{name}: divergence {fmean(found[name][0]):.5f}", file=sys.stderr, flush=True)
    first = next(iter(found))
    saved = {name: ratio_bootstrap(apart, found[first][0]) for name, (apart, _) in found.items() if name != first}
    return {
        "tokens": {"calibration": calib.numel(), "text": text.numel()},
        "divergence": {name: fmean(apart) for name, (apart, _) in found.items()},
        f"divergence_over_{first}": {n: [1 - one.estimate, 1 - one.high, 1 - one.low] for n, one in saved.items()},
        "perplexity": {name: math.exp(fmean(losses)) for name, (_, losses) in found.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("model", help="embedded model, folder or hub name")
    parser.add_argument("--calib", type=Path, required=True, help="text or JSONL to calibrate on")
    parser.add_argument("--text", type=Path, required=True, help="another text to measure on")
    parser.add_argument("--calib-rows", type=int, default=24, help="rows of --calib (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="rows of --text (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens per row (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=128, help="inputs that share a scale (default: %(default)s)")
    parser.add_argument(
        "--variants", help=f"separated by commas, the first is the baseline (default: {','.join(VARIANTS)})"
    )
    options = parser.parse_args(argv)
    options.variants = options.variants.split(",") if options.variants else list(VARIANTS)
    for name in options.variants:
        if name not in VARIANTS:
            parser.error(f"unknown variant {name!r}; {did_you_mean(name, VARIANTS)}")
    found = measure(options)
    print_figures(found, options.json)


if __name__ == "__main__":
    main()
