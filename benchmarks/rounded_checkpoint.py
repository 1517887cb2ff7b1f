"""Round a model to integers without calibration, in the format of compressed-tensors, as a baseline.

--bits 4: symmetric groups of --group inputs, unquantized activations (W4A16). --bits 8: one scale per output, and
activations quantized per token (W8A8). 2 or 3 bits, and any after --prune, which zeroes the smallest weights of each
matrix: evenly over the range of each group, stored as floats, so that only the quality is that of a smaller model.
Prints relative errors of the weights, root mean square: `error` of the rounding, and for 4 bits that are stored as such
`repack_error`, the additional error if our kernel rounds the group scales (TERSELY_INT4_KERNEL=1).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tersely.kernels.quantization.int4 import repack
from tersely.models import get_model_path

Errors = dict[str, float]


def round_to_int4(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Round a weight matrix to codes 0..15 [outputs, inputs] around 8, and scales [outputs, groups]."""
    groups = weight.float().unflatten(1, (-1, size))
    scale = (groups.abs().amax(dim=2) / 7.5).clamp(min=1e-8).bfloat16().float()
    codes = (groups / scale[..., None]).round().add(8).clamp(0, 15)
    return codes.flatten(1).long(), scale


def pack_words(codes: Tensor) -> Tensor:
    """Pack codes [outputs, inputs] into int32 [outputs, inputs / 8], the first in the lowest bits."""
    words = (codes.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(dim=2)
    return torch.where(words < 1 << 31, words, words - (1 << 32)).to(torch.int32)


def quantize_4_bits(value: Tensor, size: int) -> tuple[dict[str, Tensor], Errors]:
    """The tensors of a 4-bit weight; and the square sums of weights, rounding errors and repacking errors."""
    codes, scale = round_to_int4(value, size)
    weight = ((codes - 8).unflatten(1, (-1, size)) * scale[..., None]).flatten(1)
    words = pack_words(codes)
    error = repack(words, scale, torch.full(scale.shape, 8, dtype=torch.uint8), size).error
    square = weight.square().sum().item()
    lost = (weight - value.float()).square().sum().item()
    tensors = {
        "weight_packed": words,
        "weight_scale": scale.bfloat16(),
        "weight_shape": torch.tensor(value.shape),
    }
    return tensors, {"whole": square, "error": lost, "repack_error": error**2 * square}


def quantize_8_bits(value: Tensor) -> tuple[dict[str, Tensor], Errors]:
    """The same in 8 bits."""
    scale = (value.float().abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-8).bfloat16()
    codes = (value.float() / scale.float()).round().clamp(-127, 127)
    lost = (codes * scale.float() - value.float()).square().sum().item()
    tensors = {"weight": codes.to(torch.int8), "weight_scale": scale}
    return tensors, {"whole": value.float().square().sum().item(), "error": lost}


def round_to_floats(value: Tensor, bits: int, size: int, pruned: float) -> tuple[dict[str, Tensor], Errors]:
    """The same of weights that stay floats, without the share `pruned` of the smallest; zero stays zero."""
    weight = value.float().clone()
    if pruned:
        weight[weight.abs() <= weight.abs().flatten().kthvalue(max(1, int(pruned * weight.numel()))).values] = 0
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
    zero = (-low / scale).round()
    weight = ((groups / scale + zero).round().clamp(0, 2**bits - 1) - zero).mul(scale).flatten(1)
    lost = (weight - value.float()).square().sum().item()
    return {"weight": weight.to(value.dtype)}, {"whole": value.float().square().sum().item(), "error": lost}


def make_config(bits: int, size: int) -> dict[str, Any]:
    """The quantization_config for config.json."""
    whole = {"num_bits": bits, "type": "int", "symmetric": True}
    if bits == 4:
        form, group = "pack-quantized", {"weights": {**whole, "strategy": "group", "group_size": size}}
    else:
        given = {**whole, "strategy": "token", "dynamic": True}
        form, group = "int-quantized", {"weights": {**whole, "strategy": "channel"}, "input_activations": given}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
        "ignore": ["lm_head"],
    }


def make(model: Path, out: Path, bits: int, size: int, pruned: float = 0.0) -> Errors:
    """Write a copy of a model with its blocks' linear layers in `bits` bits; returns the errors."""
    out.mkdir()
    plain = bits < 4 or pruned > 0
    tensors: dict[str, Tensor] = {}
    sums: Errors = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                value = opened.get_tensor(key)
                if not key.endswith("proj.weight") or ((bits == 4 or plain) and value.shape[1] % size):
                    tensors[key] = value
                    continue
                if plain:
                    made, squares = round_to_floats(value, bits, size, pruned)
                else:
                    made, squares = quantize_4_bits(value, size) if bits == 4 else quantize_8_bits(value)
                tensors |= {f"{key.removesuffix('weight')}{name}": tensor for name, tensor in made.items()}
                sums = {name: sums.get(name, 0.0) + square for name, square in squares.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in (*model.glob("*.json"), *model.glob("*.jinja"), *model.glob("*.txt")):
        if not file.name.endswith(".index.json"):
            (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if not plain:
        config["quantization_config"] = make_config(bits, size)
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    whole = sums.pop("whole")
    return {name: math.sqrt(square / whole) for name, square in sums.items()}


def main(argv: list[str] | None = None) -> None:
    """Write the checkpoint and print its errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an embedded model, or a folder")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--bits", type=int, choices=(2, 3, 4, 8), default=4, help="per weight (default: %(default)s)")
    parser.add_argument("--group", type=int, default=128, help="inputs per group (default: %(default)s)")
    parser.add_argument("--prune", type=float, default=0.0, help="share of zeroed weights (default: %(default)s)")
    options = parser.parse_args(argv)
    print(json.dumps(make(get_model_path(options.model), options.out, options.bits, options.group, options.prune)))


if __name__ == "__main__":
    main()
