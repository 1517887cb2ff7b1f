"""Linear layers of low-bit weights as modules; their parameters are what files hold, ready for the kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..w4a8 import w4a8_linear, w4a8_op
from ..w4a8_layout import LINE, TILE, PackedLayout, unpack
from .config import KEY_LAYERS, Scheme


def parameter_shapes(
    inputs: int, outputs: int, form: PackedLayout, scheme: Scheme
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of a layer's parameters."""
    tiles, groups = -(-outputs // TILE), -(-inputs // scheme.group_size)
    padded = groups * scheme.group_size if form is PackedLayout.GRAINS else inputs
    lying = tiles, -(-padded // form.inputs), LINE
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "channel_scale": ((outputs,), torch.float32),
        "weight": ((2, *lying) if form is PackedLayout.PLANES else lying, torch.uint8),
    }
    if form is PackedLayout.GRAINS:
        shapes["groups"] = (tiles, groups, 2, TILE), torch.uint8
    if scheme.smooth:
        shapes["input_scale"] = (inputs,), torch.float32
    return shapes


class W4A8Linear(nn.Module):
    """A linear layer of 4-bit weights times 8-bit activations, or of 8-bit weights, as `form` says.

    bias: the dtype of a bias, None for none. scheme: how large groups are, and whether inputs are scaled first.
    """

    weight: Tensor
    groups: Tensor | None
    channel_scale: Tensor
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, form: PackedLayout, bias: torch.dtype | None, scheme: Scheme
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.form, self.scheme = in_features, out_features, form, scheme
        for name in ("groups", "input_scale", "bias"):
            self.register_parameter(name, None)
        for name, (shape, dtype) in parameter_shapes(in_features, out_features, form, scheme).items():
            self._put(name, torch.empty(shape, dtype=dtype))
        if bias is not None:
            self._put("bias", torch.empty(out_features, dtype=bias))

    def _put(self, name: str, value: Tensor) -> None:
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Take over the parameters of a layer; raises ValueError if they are not exactly those of this one."""
        expected = {name: (p.shape, p.dtype) for name, p in self.named_parameters()}
        if {name: (t.shape, t.dtype) for name, t in tensors.items()} != expected:
            raise ValueError(f"a layer of {expected} was to be filled with other tensors: {sorted(tensors)}")
        for name, value in tensors.items():
            self._put(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]; gradients go through to x as if nothing had been rounded."""
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _StraightThrough.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        layer = w4a8_op if torch.compiler.is_compiling() else w4a8_linear  # which cannot be traced
        return layer(x, self.weight, self.groups, self.channel_scale, self.input_scale, self.bias)

    def dequantized(self) -> Tensor:
        """The weight that x is multiplied by, float32 [out_features, in_features]."""
        whole = unpack(self.weight, self.groups)[: self.out_features, : self.in_features].float()
        weight = whole * self.channel_scale[:, None]
        return weight if self.input_scale is None else weight * self.input_scale

    def extra_repr(self) -> str:
        """What `print(model)` says."""
        kinds = {PackedLayout.BYTES: "8-bit weights", PackedLayout.PLANES: "8-bit weights in two planes"}
        kind = kinds.get(self.form, f"4-bit weights in groups of {self.scheme.group_size}")
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {kind}"


class _StraightThrough(torch.autograd.Function):
    """A layer of whole numbers, which has no gradient, with that of its weights in place of one: straight-through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: W4A8Linear) -> Tensor:
        ctx.layer = layer
        out: Tensor = layer(x.detach())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient.float() @ ctx.layer.dequantized()).to(gradient.dtype), None


def empty_like(linear: nn.Linear, scheme: Scheme, form: PackedLayout) -> W4A8Linear:
    """A layer that may stand in for a linear one, not yet filled."""
    bias = None if linear.bias is None else linear.bias.dtype
    return W4A8Linear(linear.in_features, linear.out_features, form, bias, scheme)


def settle_scales(model: Any, scheme: Scheme) -> Scheme:
    """The scheme with nothing left to be found out about the model; raises ModelError for keys that it has not."""
    config = model.config.get_text_config(decoder=True)
    heads, shared = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    found = any(name.rpartition(".")[2] in KEY_LAYERS for name, _ in quantizable(model, scheme))
    if scheme.keys == "int8" and not found:
        raise ModelError(f"no layer is called {' or '.join(KEY_LAYERS)}, so keys cannot have 8 bits; give --keys int4")
    if scheme.keys != "auto":
        return scheme
    wanted = found and heads is not None and shared is not None and shared < heads
    return dataclasses.replace(scheme, keys="int8" if wanted else "int4")


def find_head(model: Any) -> str | None:
    """The name of the module that makes logits, if it is a plain linear layer."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head and type(module) is nn.Linear), None)


def quantizable(model: Any, scheme: Scheme) -> list[tuple[str, nn.Linear]]:
    """The layers of a model that the scheme quantizes, by name."""
    head = find_head(model)
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and (name != head or scheme.head != "keep")
    ]


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place that a dotted name says."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
