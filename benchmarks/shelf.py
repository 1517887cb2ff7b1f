"""Speed of the shelf's operations on a CPU, timed turn by turn with what is used instead.

Each ratio `A_..._over_B` is the time of B over that of A, so above 1 means that A, the shelf's, is faster; `us` is a
time in microseconds. `hot` takes one copy of the data again and again; `cold` goes round copies that are together
larger than the caches, each way its own bytes.

`lut_w4` is a layer of 4-bit weights by tables, `planes_w3a5` one of 3-bit weights and 5-bit activations by bits. They
take whole numbers, give whole numbers, and know no scales. Our `w4a8` takes and gives bfloat16: that it quantizes
activations and scales weights in groups of 128 is part of its time. `bf16` is torch's linear layer.
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
    """How all comparisons are timed."""

    repeats: int
    clock: Callable[[], float]
    rows: int
    cold: int
    """Bytes of each way's copies."""


def in_turns(ways: dict[str, list[Call]], settings: Settings) -> dict[str, list[float]]:
    """Seconds of a call of each way, turn by turn; where a way has several calls, they take turns too."""
    turns = {name: cycle(calls) for name, calls in ways.items()}
    counts, clock = {}, settings.clock
    for name, calls in ways.items():
        for call in calls:
            call()  # what w4a8 checks of a layer it checks once
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
    return {name: values[1:] for name, values in found.items()}  # the first turn warms up


def compare(
    key: str, mine: dict[str, list[Call]], others: dict[str, list[Call]], settings: Settings
) -> dict[str, float]:
    """Medians: microseconds of every way, and for each of `mine` its ratio to each of the others."""
    taken = in_turns(mine | others, settings)
    found = {f"{name}_{key}_us": 1e6 * statistics.median(values) for name, values in taken.items()}
    for name in mine:
        for other in others:
            pairs = zip(taken[other], taken[name], strict=True)
            found[f"{name}_{key}_over_{other}"] = statistics.median(a / b for a, b in pairs)
    return found


def lut(outputs: int, inputs: int, rows: int, bits: int) -> tuple[Call, int]:
    """The shelf's layer by tables, and the bytes of its weights."""
    lines = torch.randint(256, (-(-outputs // LUT_TILE), -(-inputs // CHUNK), bits, 2 * LUT_TILE), dtype=torch.uint8)
    weight, x = LutWeight(lines, outputs, inputs), torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
    return lambda: lut_linear(x, weight), lines.nbytes


def planes(outputs: int, inputs: int, rows: int, width: int, bits: int) -> tuple[Call, int]:
    """The shelf's layer by bits, and the bytes of its weights."""
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (outputs, width, -(-inputs // PLANE_LINE) * PLANE_LINE // 64))
    weight, codes = BitPlanes(words, inputs), torch.randint(1 << bits, (rows, inputs), dtype=torch.uint8)
    return lambda: bit_plane_linear(codes, bits, weight), words.nbytes


def w4a8(outputs: int, inputs: int, rows: int) -> tuple[Call, int]:
    """Our layer of 4-bit weights in two grains."""
    weight = torch.randint(256, (outputs // TILE, inputs // 8, LINE), dtype=torch.uint8)
    groups = torch.randint(1, 9, (outputs // TILE, inputs // GROUP, 2, TILE), dtype=torch.uint8)
    scale, x = torch.rand(outputs), torch.randn(rows, inputs, dtype=torch.bfloat16)
    return lambda: w4a8_linear(x, weight, groups, scale), weight.nbytes + groups.nbytes


def bf16(outputs: int, inputs: int, rows: int) -> tuple[Call, int]:
    """torch.nn.functional.linear."""
    weight, x = torch.randn(outputs, inputs, dtype=torch.bfloat16), torch.randn(rows, inputs, dtype=torch.bfloat16)
    return lambda: F.linear(x, weight), weight.nbytes


def copies(make: Callable[..., tuple[Call, int]], total: int, *given: int) -> list[Call]:
    """Calls with data of their own that take at least so many bytes together."""
    first, size = make(*given)
    return [first, *(make(*given)[0] for _ in range(-(-total // size) - 1))]


def layers(settings: Settings) -> dict[str, float]:
    """Both layers of whole numbers on the shapes of a model of 0.5 billion weights."""
    found: dict[str, float] = {}
    for name, shape in SHAPES.items():
        for state, total in (("hot", 1), ("cold", settings.cold)):
            given = (total, *shape, settings.rows)
            mine = {f"lut_w{bits}": copies(lut, *given, bits) for bits in LUT_WIDTHS}
            mine |= {f"planes_w{width}a{bits}": copies(planes, *given, width, bits) for width, bits in PLANE_WIDTHS}
            others = {"w4a8": copies(w4a8, *given), "bf16": copies(bf16, *given)}
            found |= compare(f"{name}_m{settings.rows}_{state}", mine, others, settings)
    return found


COMPARISONS: dict[str, Callable[[Settings], dict[str, float]]] = {"layers": layers}
"""What is measured: each gives named numbers, names that no other gives."""


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    """Run the comparisons and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help="default: all")
    parser.add_argument("--rows", type=int, default=1, help="rows of activations (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each comparison (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--cold-mb", type=int, default=256, help="bytes of each way's copies (default: %(default)s)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu helps on a loaded machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if not library():
        raise SystemExit("the native library is missing; install tersely where there is a C compiler")
    settings = Settings(options.repeats, CLOCKS[options.clock], options.rows, options.cold_mb << 20)
    found: dict[str, float] = {}
    for name in options.only:
        found |= COMPARISONS[name](settings)
    ordered = {key: round(value, 3) for key, value in sorted(found.items())}
    print(json.dumps(ordered) if options.json else "\n".join(f"{key:44} {value:.4g}" for key, value in ordered.items()))


if __name__ == "__main__":
    main()
