"""Speed of the low-bit products of kernels/research on a CPU compared with W4A8 and bfloat16, in alternating runs.

Each ratio `..._A_over_B` is the time of B over that of A, so above 1 means that A, the research operation, is faster;
`us` is a time in microseconds. `hot` uses a single copy of the data; `cold` cycles through copies that are together
larger than the caches.

`lut_w4` multiplies 4-bit weights by table lookup, `planes_w3a5` 3-bit weights and 5-bit activations by bit planes. Both
are integer products without scales. Our `w4a8` has bfloat16 input and output; its time includes quantizing activations
and scaling weights in groups of 128. `bf16` is torch's linear layer.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from measuring import make_parser, median_ratio, print_figures
from w4a8 import Layer, Maker, bf16, make_copies, measure, small_pages

from tersely.kernels.native import library
from tersely.kernels.research.bit_planes import LINE as PLANE_LINE
from tersely.kernels.research.bit_planes import BitPlanes, bit_plane_linear
from tersely.kernels.research.lut_gemv import CHUNK, LutWeight, lut_linear
from tersely.kernels.research.lut_gemv import TILE as LUT_TILE

SHAPES = {"0.5B_up": (4864, 896), "0.5B_down": (896, 4864), "0.5B_out": (896, 896)}
LUT_WIDTHS = (1, 2, 4)
PLANE_WIDTHS = ((1, 1), (2, 2), (3, 5), (4, 8))


def lut(outputs: int, inputs: int, rows: int, bits: int) -> tuple[Layer, int]:
    """A product by table lookup, and the bytes of its weights."""
    lines = torch.randint(256, (-(-outputs // LUT_TILE), -(-inputs // CHUNK), bits, 2 * LUT_TILE), dtype=torch.uint8)
    weight, codes = LutWeight(lines, outputs, inputs), torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
    return lambda x: lut_linear(codes, weight), lines.nbytes


def planes(outputs: int, inputs: int, rows: int, width: int, bits: int) -> tuple[Layer, int]:
    """A product by bit planes, and the bytes of its weights."""
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (outputs, width, -(-inputs // PLANE_LINE) * PLANE_LINE // 64))
    weight, codes = BitPlanes(words, inputs), torch.randint(1 << bits, (rows, inputs), dtype=torch.uint8)
    return lambda x: bit_plane_linear(codes, bits, weight), words.nbytes


def compare(shape: tuple[int, int], rows: int, total: int, repeats: int, clock: str) -> dict[str, float]:
    """Medians: microseconds of every variant, and the ratio of each of both products to W4A8 and bfloat16."""
    mine: dict[str, Maker] = {f"lut_w{bits}": partial(lut, rows=rows, bits=bits) for bits in LUT_WIDTHS}
    mine |= {
        f"planes_w{width}a{bits}": partial(planes, rows=rows, width=width, bits=bits) for width, bits in PLANE_WIDTHS
    }
    others: dict[str, Maker] = {"w4a8": small_pages, "bf16": bf16}
    copies = {name: make_copies(make, shape, total) for name, make in (mine | others).items()}
    taken = measure(copies, torch.randn(rows, shape[1], dtype=torch.bfloat16), repeats, clock)
    found = {f"{name}_us": 1e6 * statistics.median(seconds) for name, seconds in taken.items()}
    return found | {f"{name}_over_{one}": median_ratio(taken[one], taken[name]) for name in mine for one in others}


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the results."""
    parser = make_parser(__doc__, repeats=15, threads=1, clock="wall")
    parser.add_argument("--rows", type=int, default=1, help="rows of activations (default: %(default)s)")
    parser.add_argument(
        "--cold-mb", type=int, default=256, help="megabytes of each variant's copies (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if not library():
        raise SystemExit("the native library is missing; install tersely where there is a C compiler")
    found: dict[str, float] = {}
    for name, shape in SHAPES.items():
        for state, total in (("hot", 1), ("cold", options.cold_mb << 20)):
            figures = compare(shape, options.rows, total, options.repeats, options.clock)
            found |= {f"{name}_m{options.rows}_{state}_{key}": value for key, value in figures.items()}
    print_figures(dict(sorted(found.items())), options.json, 3)


if __name__ == "__main__":
    main()
