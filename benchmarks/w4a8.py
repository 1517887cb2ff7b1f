"""Speed of the W4A8 linear layer on a CPU compared with other implementations, in alternating runs.

Each ratio is the time of another implementation over ours, so above 1 means that ours is faster. Input and output are
bfloat16, and the time includes quantizing the activations. `bf16` is torch's linear layer, `int4pack` its 4-bit weights
with bfloat16 arithmetic. `vllm_bf16`, `vllm_int8` (W8A8) and `vllm_int4` (W4A8 with AMX, else W4A16, as vLLM chooses)
are vLLM's kernels, if available. `w8a8` is our layer with 8-bit weights, and `small_pages` ours with 4-bit weights in
ordinary pages instead of huge ones. `us` is our time in microseconds. `cold` cycles through copies of the weights that
are together larger than the caches; `hot` uses a single copy. `share` is the time in which torch sums as many bytes,
also cold and in huge pages, over ours, and `read_gb_s` its bandwidth.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from itertools import cycle

import torch
import torch.nn.functional as F
from measuring import make_parser, median_ratio, print_figures, time_in_turns
from torch import Tensor

from tersely.kernels.w4a8 import compiled, w4a8_linear
from tersely.kernels.w4a8_layout import LINE, TILE, to_huge_pages

SHAPES = {
    "0.5B_up": (4864, 896),
    "0.5B_down": (896, 4864),
    "1.5B_up": (8960, 1536),
    "1.5B_down": (1536, 8960),
    "7B_up": (18944, 3584),
    "7B_down": (3584, 18944),
}
ROWS = (1, 8, 32)
GROUP = 128
Layer = Callable[[Tensor], Tensor]
Maker = Callable[[int, int], tuple[Layer, int]]
"""Makes a layer with its own weights from the numbers of outputs and inputs; also returns their bytes."""


def ours(outputs: int, inputs: int, place: Callable[[Tensor], Tensor] = to_huge_pages) -> tuple[Layer, int]:
    """Our layer with dual-grained 4-bit weights."""
    weight = place(torch.randint(256, (outputs // TILE, inputs // 8, LINE), dtype=torch.uint8))
    groups = place(torch.randint(1, 9, (outputs // TILE, inputs // GROUP, 2, TILE), dtype=torch.uint8))
    scale = torch.rand(outputs)
    return lambda x: w4a8_linear(x, weight, groups, scale), weight.nbytes + groups.nbytes


def small_pages(outputs: int, inputs: int) -> tuple[Layer, int]:
    """`ours` with weights in ordinary pages."""
    return ours(outputs, inputs, lambda tensor: tensor)


def w8a8(outputs: int, inputs: int) -> tuple[Layer, int]:
    """Our layer with 8-bit weights."""
    weight = to_huge_pages(torch.randint(256, (outputs // TILE, inputs // 4, LINE), dtype=torch.uint8))
    scale = torch.rand(outputs)
    return lambda x: w4a8_linear(x, weight, None, scale), weight.nbytes


def sum_bytes(outputs: int, inputs: int) -> tuple[Layer, int]:
    """Not a layer: torch sums as many bytes as `ours` has, in pages of the same size."""
    memory = to_huge_pages(torch.ones(outputs * inputs * (GROUP + 4) // GROUP // 16, dtype=torch.int64))
    return lambda x: memory.sum(), memory.nbytes


def bf16(outputs: int, inputs: int) -> tuple[Layer, int]:
    """torch.nn.functional.linear."""
    weight = torch.randn(outputs, inputs, dtype=torch.bfloat16)
    return lambda x: F.linear(x, weight), weight.nbytes


def int4pack(outputs: int, inputs: int) -> tuple[Layer, int]:
    """torch's 4-bit weights for CPUs."""
    codes = torch.randint(16, (outputs, inputs), dtype=torch.int32)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(inputs // GROUP, outputs, 2).bfloat16()
    run = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda x: run(x, weight, GROUP, scales), weight.nbytes + scales.nbytes


def vllm_bf16(outputs: int, inputs: int) -> tuple[Layer, int]:
    """vLLM's oneDNN in bfloat16."""
    from vllm import _custom_ops as ops

    weight = torch.randn(outputs, inputs, dtype=torch.bfloat16)
    handler = ops.create_onednn_mm(weight.t(), 32)
    return lambda x: ops.onednn_mm(handler, x, None), weight.nbytes


def vllm_int8(outputs: int, inputs: int) -> tuple[Layer, int]:
    """vLLM's W8A8: its AMX kernel, or oneDNN."""
    from vllm import _custom_ops as ops

    weight, scale = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), torch.rand(outputs, 1)
    if hasattr(torch.ops._C, "int8_scaled_mm_with_quant"):
        packed = torch.ops._C.convert_weight_packed(weight)
        run = torch.ops._C.int8_scaled_mm_with_quant
        return lambda x: run(x, packed, scale.flatten(), None, x.dtype, True), weight.nbytes
    handler = ops.create_onednn_scaled_mm(weight.t(), scale, torch.bfloat16, True, False, 32)

    def multiply(x: Tensor) -> Tensor:
        x8, x_scale, zero = ops.onednn_scaled_int8_quant(x.contiguous(), None, None, True)
        out = torch.empty(len(x), outputs, dtype=x.dtype)
        return ops.onednn_scaled_mm(handler, x8, out, x_scale, zero, None, None)  # type: ignore[no-any-return]

    return multiply, weight.nbytes


def vllm_int4(outputs: int, inputs: int) -> tuple[Layer, int]:
    """vLLM's kernel for 4-bit GPTQ or compressed-tensors checkpoints."""
    from vllm import _custom_ops as ops

    count, any_int = inputs // GROUP, torch.iinfo(torch.int32)
    scales = torch.rand(count, outputs).bfloat16()

    def codes(*shape: int) -> Tensor:
        return torch.randint(any_int.min, any_int.max, shape, dtype=torch.int32)

    if hasattr(torch.ops._C, "int4_scaled_mm_cpu") and torch.cpu._is_amx_tile_supported():
        packed = codes(inputs, outputs // 8), codes(count, outputs // 8), scales
        weight, zeros, scales = ops.convert_weight_packed_scale_zp(*packed, ops.CPUQuantAlgo.AWQ)
        return lambda x: ops.int4_scaled_mm_cpu(x, weight, zeros, scales, None), outputs * inputs // 2
    weight = codes(outputs // 16, inputs * 2)
    return lambda x: ops.cpu_gemm_wna16(x, weight, scales, None, None, 8, "vec"), weight.nbytes


BASELINES: dict[str, Maker] = {
    "ours": ours,
    "small_pages": small_pages,
    "w8a8": w8a8,
    "bf16": bf16,
    "int4pack": int4pack,
}
VLLM: dict[str, Maker] = {"vllm_bf16": vllm_bf16, "vllm_int8": vllm_int8, "vllm_int4": vllm_int4}


def find_available(makers: dict[str, Maker]) -> dict[str, Maker]:
    """The implementations that work on this machine."""
    available = {}
    for name, make in makers.items():
        try:
            make(64, GROUP)[0](torch.ones(1, GROUP, dtype=torch.bfloat16))
        except (AttributeError, ImportError, NotImplementedError, RuntimeError) as error:
            print(f"# {name} left out: {str(error).splitlines()[0]}")
            continue
        available[name] = make
    return available


def make_copies(make: Maker, shape: tuple[int, int], total: int) -> list[Layer]:
    """Layers of one shape whose weights together have at least `total` bytes."""
    first, size = make(*shape)
    return [first, *(make(*shape)[0] for _ in range(-(-total // size) - 1))]


def measure(ways: dict[str, list[Layer]], x: Tensor, repeats: int, clock: str) -> dict[str, list[float]]:
    """Seconds per call of each implementation, in turns; the copies of an implementation take turns, too."""
    for layers in ways.values():
        for layer in layers:
            layer(x)  # excludes what a layer does only once, such as checking its tensors
    turns = {name: cycle(layers) for name, layers in ways.items()}
    single = {name: (lambda turn=turn: next(turn)(x)) for name, turn in turns.items()}  # type: ignore[misc]
    first = time_in_turns(single, 1, clock)
    calls = {
        name: max(1, min(50, int(2e-3 / max(first[name][0], 1e-9)), len(layers) if len(layers) > 1 else 50))
        for name, layers in ways.items()
    }
    return time_in_turns(single, repeats, clock, calls)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the ratios."""
    parser = make_parser(__doc__, repeats=9, threads=1, clock="wall")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="separated by commas (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="separated by commas (default: %(default)s)")
    parser.add_argument(
        "--cold-mb", type=int, default=512, help="megabytes of each variant's copies (default: %(default)s)"
    )
    parser.add_argument("--no-vllm", action="store_true", help="leave out vLLM's kernels")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if not compiled():
        raise SystemExit("the native library is missing; install tersely where there is a C compiler")
    with_vllm = not options.no_vllm and importlib.util.find_spec("vllm") is not None
    ways = find_available(BASELINES | (VLLM if with_vllm else {}))
    total, found = options.cold_mb << 20, dict[str, float]()
    for name in options.shapes.split(","):
        for state, least in (("hot", 1), ("cold", total)):
            made = ways | ({"read": sum_bytes} if state == "cold" else {})
            layers = {way: make_copies(make, SHAPES[name], least) for way, make in made.items()}
            for rows in map(int, options.rows.split(",")):
                x = torch.randn(rows, SHAPES[name][1], dtype=torch.bfloat16)
                taken = measure(layers, x, options.repeats, options.clock)
                key = f"{name}_m{rows}_{state}"
                found[f"{key}_us"] = 1e6 * statistics.median(taken["ours"])
                for way in made.keys() - {"ours"}:
                    found[f"{key}_{'share' if way == 'read' else way}"] = median_ratio(taken[way], taken["ours"])
                if state == "cold":
                    found[f"{name}_read_gb_s"] = sum_bytes(*SHAPES[name])[1] / statistics.median(taken["read"]) / 1e9
    print_figures(dict(sorted(found.items())), options.json, 3)


if __name__ == "__main__":
    main()
