"""The W4A8 scheme of a checkpoint, its linear layers, and how transformers loads them, registered on import.

The scheme is the `quantization_config` in config.json; parameters are stored in the layout that the kernel reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...errors import ModelError, OptionError, check_known, unknown
from ..w4a8 import w4a8_linear, w4a8_op
from ..w4a8_layout import GROUP_SIZES, LINE, TILE, PackedLayout, to_huge_pages, unpack

METHOD = "tersely_w4a8"
FORMATS = (1, 2, 3)
"""The formats that can be read. Checkpoints are written in the lowest that fits: 3 for 8-bit keys, 2 for heads in
planes, else 1."""
HEADS = {"preview": PackedLayout.PLANES, "int8": PackedLayout.BYTES, "int4": PackedLayout.GRAINS, "keep": None}
"""Layouts of the output head; in planes, its 8 bits are read in two steps, see ../w4a8.py."""
KEYS = ("auto", "int8", "int4")
KEY_LAYERS = ("k_proj", "v_proj")  # the names of the layers for keys and values


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a model is quantized. Raises OptionError for unsupported values."""

    group_size: int = 128  # inputs that share a fine scale and a zero
    head: str = "preview"  # the output head: one of HEADS; "keep" leaves it unquantized
    smooth: bool = False
    """Whether outlier inputs are scaled down and their weights up, which helps activations at the cost of weights."""
    keys: str = "auto"
    """The layers for keys and values: one of KEYS. "auto" is int8 if several query heads share them: then they are
    small, and their errors count several times."""

    def __post_init__(self) -> None:
        for name, accepted in (("group_size", GROUP_SIZES), ("head", tuple(HEADS)), ("keys", KEYS)):
            check_known(name, getattr(self, name), accepted)

    def choose_layout(self, name: str, head: bool = False) -> PackedLayout:
        """The layout of a quantized layer; head: whether it is the output head."""
        if head:
            layout = HEADS[self.head]
            assert layout is not None, "a head that is kept has no layout"
            return layout
        assert self.keys != "auto", "resolve_scheme replaces it"
        eight_bits = self.keys == "int8" and name.rpartition(".")[2] in KEY_LAYERS
        return PackedLayout.BYTES if eight_bits else PackedLayout.GRAINS

    def to_dict(self) -> dict[str, Any]:
        number = 3 if self.keys == "int8" else 2 if self.head == "preview" else 1
        return {"quant_method": METHOD, "format": number, **asdict(self)}


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """How codes and scales are searched. The stored format does not depend on it."""

    ranges: bool = True  # whether the ranges of codes are searched; without, they are full
    compensate: bool = True
    """Whether later weights compensate rounding errors of earlier ones (GPTQ), if there is calibration text."""


def read_scheme(config: Mapping[str, Any]) -> Scheme:
    """Read the scheme of a checkpoint; raises ModelError for an unknown version or invalid values."""
    if config.get("format") not in FORMATS:
        raise ModelError(
            f"the checkpoint has format {config.get('format')!r} of {METHOD}; accepted: {FORMATS}; quantize the model "
            "again, or use the version of tersely that wrote it",
            code="unknown_format",
        )
    stored = dict(config) if config["format"] == 3 else {"keys": "int4"} | dict(config)
    try:
        scheme = Scheme(**{field.name: stored[field.name] for field in fields(Scheme)})
        if scheme.keys == "auto":
            raise unknown("keys", "auto", KEYS[1:])
    except (KeyError, OptionError) as error:
        raise ModelError(
            f"quantization_config is not valid ({error}); quantize the model again", code="invalid_config"
        ) from None
    return scheme


def parameter_shapes(
    inputs: int, outputs: int, layout: PackedLayout, scheme: Scheme
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of a layer's parameters."""
    tiles, groups = -(-outputs // TILE), -(-inputs // scheme.group_size)
    padded = groups * scheme.group_size if layout is PackedLayout.GRAINS else inputs
    packed = tiles, -(-padded // layout.inputs), LINE
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "channel_scale": ((outputs,), torch.float32),
        "weight": ((2, *packed) if layout is PackedLayout.PLANES else packed, torch.uint8),
    }
    if layout is PackedLayout.GRAINS:
        shapes["groups"] = (tiles, groups, 2, TILE), torch.uint8
    if scheme.smooth:
        shapes["input_scale"] = (inputs,), torch.float32
    return shapes


class W4A8Linear(nn.Module):
    """A linear layer with 8-bit activations, and 4-bit or 8-bit weights; `bias` is the dtype of the bias, if any."""

    weight: Tensor
    groups: Tensor | None
    channel_scale: Tensor
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, layout: PackedLayout, bias: torch.dtype | None, scheme: Scheme
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.layout, self.scheme = in_features, out_features, layout, scheme
        for name in ("groups", "input_scale", "bias"):
            self.register_parameter(name, None)
        for name, (shape, dtype) in parameter_shapes(in_features, out_features, layout, scheme).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False))
        if bias is not None:
            self.bias = nn.Parameter(torch.empty(out_features, dtype=bias), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute [..., out_features] from [..., in_features]; gradients pass straight through to x."""
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _StraightThrough.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        layer = w4a8_op if torch.compiler.is_compiling() else w4a8_linear  # which cannot be traced
        return layer(x, self.weight, self.groups, self.channel_scale, self.input_scale, self.bias)

    def dequantized(self) -> Tensor:
        """The weight that x is multiplied by, float32 [out_features, in_features]."""
        integers = unpack(self.weight, self.groups)[: self.out_features, : self.in_features].float()
        weight = integers * self.channel_scale[:, None]
        return weight if self.input_scale is None else weight * self.input_scale

    def extra_repr(self) -> str:
        kinds = {PackedLayout.BYTES: "8-bit weights", PackedLayout.PLANES: "8-bit weights in two planes"}
        kind = kinds.get(self.layout, f"4-bit weights in groups of {self.scheme.group_size}")
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {kind}"


class _StraightThrough(torch.autograd.Function):
    """A quantized layer with the gradient of its dequantized weights (straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: W4A8Linear) -> Tensor:
        ctx.layer = layer
        out: Tensor = layer(x.detach())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient.float() @ ctx.layer.dequantized()).to(gradient.dtype), None


def empty_like(linear: nn.Linear, scheme: Scheme, layout: PackedLayout) -> W4A8Linear:
    """An uninitialized quantized layer in place of a linear one."""
    bias = None if linear.bias is None else linear.bias.dtype
    return W4A8Linear(linear.in_features, linear.out_features, layout, bias, scheme)


def resolve_scheme(model: Any, scheme: Scheme) -> Scheme:
    """Replace `keys="auto"` by the choice for this model; raises ModelError for int8 keys without layers for them."""
    config = model.config.get_text_config(decoder=True)
    heads, kv_heads = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    has_keys = any(name.rpartition(".")[2] in KEY_LAYERS for name, _ in find_quantizable(model, scheme))
    if scheme.keys == "int8" and not has_keys:
        raise ModelError(
            f"no layer is called {' or '.join(KEY_LAYERS)}, so keys cannot have 8 bits; use --keys int4",
            code="no_key_layers",
        )
    if scheme.keys != "auto":
        return scheme
    shared = has_keys and heads is not None and kv_heads is not None and kv_heads < heads
    return replace(scheme, keys="int8" if shared else "int4")


def find_head(model: Any) -> str | None:
    """The name of the output head, if it is a plain linear layer."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head and type(module) is nn.Linear), None)


def find_quantizable(model: Any, scheme: Scheme) -> list[tuple[str, nn.Linear]]:
    """The layers of a model that the scheme quantizes, by name."""
    head = find_head(model)
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and (name != head or scheme.head != "keep")
    ]


class W4A8Config(QuantizationConfigMixin):
    """The `quantization_config` of a checkpoint in transformers; raises ModelError for an unknown version."""

    def __init__(self, **config: Any) -> None:
        self.scheme = read_scheme(config)
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        return self.scheme.to_dict()


class W4A8Quantizer(HfQuantizer):
    """Replaces a model's linear layers before transformers loads the weights."""

    quantization_config: W4A8Config
    requires_calibration = True  # so that transformers refuses a model that is not quantized yet
    is_trainable = is_qat_trainable = True  # of adapters and embeddings: gradients pass through quantized layers

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        scheme, head = self.quantization_config.scheme, find_head(model)
        for name, module in find_quantizable(model, scheme):
            model.set_submodule(name, empty_like(module, scheme, scheme.choose_layout(name, name == head)))
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for module in model.modules():
            if isinstance(module, W4A8Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.data = to_huge_pages(parameter.data)
        return model

    def is_serializable(self) -> bool:
        """Whether save_pretrained works: yes, parameters are stored as they are."""
        return True


if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(W4A8Config)
    register_quantizer(METHOD)(W4A8Quantizer)
