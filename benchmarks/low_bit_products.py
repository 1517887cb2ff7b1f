"""Speed of the low-bit products of kernels/research on a CPU compared with W4A8 and bfloat16, in alternating runs.

Each ratio `A_..._over_B` is the time of B over that of A, so above 1 means that A, the research operation, is faster;
`us` is a time in microseconds. `hot` uses a single copy of the data; `cold` cycles through copies that are together
larger than the caches.

`lut_w4` multiplies 4-bit weights by table lookup, `planes_w3a5` 3-bit weights and 5-bit activations by bit planes. Both
are integer products without scales. Our `w4a8` has bfloat16 input and output; its time includes quantizing activations
and scaling weights in groups of 128. `bf16` is torch's linear layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
import torch.nn.functional as F

from tersely.kernels.native import library
from tersely.kernels.research.bit_planes import LINE as PLANE_LINE
from tersely.kernels.research.bit_planes import BitPlanes, bit_plane_linear
from tersely.kernels.research.lut_gemv import CHUNK, LutWeight, lut_linear
from tersely.kernels.research.lut_gemv import TILE as LUT_TILE
from tersely.kernels.w4a8 import w4a8_linear
from tersely.kernels.w4a8_layout import LINE, TILE

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SHAPES = {"0.5B_up": (4864, 896), "0.5B_down": (896, 4864), "0.5B_out": (896, 896)}
GROUP = 128
LUT_WIDTHS = (1, 2, 4)
PLANE_WIDTHS = ((1, 1), (2, 2), (3, 5), (4, 8))
Call = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """Settings of the measurements."""

    repeats: int
    clock: Callable[[], float]
    rows: int
    cold: int
    """Bytes of each variant's copies."""


def measure(ways: dict[str, list[Call]], settings: Settings) -> dict[str, list[float]]:
    """Seconds per call of each variant, in alternating runs; the calls of a variant alternate, too."""
    turns = {name: cycle(calls) for name, calls in ways.items()}
    counts, clock = {}, settings.clock
    for name, calls in ways.items():
        for call in calls:
            call()  # excludes what a layer does only once
        start = clock()
        next(turns[name])()
        counts[name] = max(1, min(50, int(2e-3 / max(clock() - start, 1e-9)), len(calls) if len(calls) > 1 else 50))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings.repeats + 1):
        for name in list(ways) if turn % 2 else reversed(ways):
            start = clock()
            for _ in range(counts[name]):
                next(turns[name])()
            found[name].append((clock() - start) / counts[name])
    return {name: values[1:] for name, values in found.items()}  # the first run warms up


def compare(
    key: str, mine: dict[str, list[Call]], others: dict[str, list[Call]], settings: Settings
) -> dict[str, float]:
    """Medians: microseconds of every variant, and the ratio of each of `mine` to each of the others."""
    taken = measure(mine | others, settings)
    found = {f"{name}_{key}_us": 1e6 * statistics.median(values) for name, values in taken.items()}
    for name in mine:
        for other in others:
            pairs = zip(taken[other], taken[name], strict=True)
            found[f"{name}_{key}_over_{other}"] = statistics.median(a / b for a, b in pairs)
    return found


def lut(outputs: int, inputs: int, rows: int, bits: int) -> tuple[Call, int]:
    """A product by table lookup, and the bytes of its weights."""
    lines = torch.randint(256, (-(-outputs // LUT_TILE), -(-inputs // CHUNK), bits, 2 * LUT_TILE), dtype=torch.uint8)
    weight, x = LutWeight(lines, outputs, inputs), torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
    return lambda: lut_linear(x, weight), lines.nbytes


def planes(outputs: int, inputs: int, rows: int, width: int, bits: int) -> tuple[Call, int]:
    """A product by bit planes, and the bytes of its weights."""
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (outputs, width, -(-inputs // PLANE_LINE) * PLANE_LINE // 64))
    weight, codes = BitPlanes(words, inputs), torch.randint(1 << bits, (rows, inputs), dtype=torch.uint8)
    return lambda: bit_plane_linear(codes, bits, weight), words.nbytes


def w4a8(outputs: int, inputs: int, rows: int) -> tuple[Call, int]:
    """Our W4A8 layer."""
    weight = torch.randint(256, (outputs // TILE, inputs // 8, LINE), dtype=torch.uint8)
    groups = torch.randint(1, 9, (outputs // TILE, inputs // GROUP, 2, TILE), dtype=torch.uint8)
    scale, x = torch.rand(outputs), torch.randn(rows, inputs, dtype=torch.bfloat16)
    return lambda: w4a8_linear(x, weight, groups, scale), weight.nbytes + groups.nbytes


def bf16(outputs: int, inputs: int, rows: int) -> tuple[Call, int]:
    """torch.nn.functional.linear."""
    weight, x = torch.randn(outputs, inputs, dtype=torch.bfloat16), torch.randn(rows, inputs, dtype=torch.bfloat16)
    return lambda: F.linear(x, weight), weight.nbytes


def make_copies(make: Callable[..., tuple[Call, int]], total: int, *given: int) -> list[Call]:
    """Calls with their own data, together at least `total` bytes."""
    first, size = make(*given)
    return [first, *(make(*given)[0] for _ in range(-(-total // size) - 1))]


def compare_layers(settings: Settings) -> dict[str, float]:
    """Both products on the layer shapes of a 0.5B model."""
    found: dict[str, float] = {}
    for name, shape in SHAPES.items():
        for state, total in (("hot", 1), ("cold", settings.cold)):
            given = (total, *shape, settings.rows)
            mine = {f"lut_w{bits}": make_copies(lut, *given, bits) for bits in LUT_WIDTHS}
            mine |= {
                f"planes_w{width}a{bits}": make_copies(planes, *given, width, bits) for width, bits in PLANE_WIDTHS
            }
            others = {"w4a8": make_copies(w4a8, *given), "bf16": make_copies(bf16, *given)}
            found |= compare(f"{name}_m{settings.rows}_{state}", mine, others, settings)
    return found


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1, help="rows of activations (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="repetitions of each comparison (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument(
        "--cold-mb", type=int, default=256, help="megabytes of each variant's copies (default: %(default)s)"
    )
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu helps on a loaded machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if not library():
        raise SystemExit("the native library is missing; install tersely where there is a C compiler")
    settings = Settings(options.repeats, CLOCKS[options.clock], options.rows, options.cold_mb << 20)
    found = compare_layers(settings)
    ordered = {key: round(value, 3) for key, value in sorted(found.items())}
    print(json.dumps(ordered) if options.json else "\n".join(f"{key:44} {value:.4g}" for key, value in ordered.items()))


if __name__ == "__main__":
    main()
