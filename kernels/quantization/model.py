"""Quantizing all linear layers of a model where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..w4a8_layout import PackedLayout, pack, pack_bytes, pack_planes
from .calibration import Inputs, capture_inputs, read
from .checks import check_inputs, check_model
from .config import ScaleSearch, Scheme
from .gptq import compensate
from .hf import W4A8Config, W4A8Quantizer
from .linear import empty_like, find_head, quantizable, replace, settle_scales
from .scheme import dual_grained, eight_bits, input_scale

MOST_SUMS = 4 << 30
"""Bytes of sums of products that are kept at a time; the model is read anew for further layers."""
Piece = tuple[dict[str, Tensor], dict[str, Any]]


class TensorStore(Protocol):
    """Where finished layers are kept, so that a killed run need not do them again."""

    def has(self, name: str) -> bool:
        """Whether a layer is done."""

    def piece(self, name: str, make: Callable[[], Piece]) -> Piece:
        """The tensors of a layer and what is told about it; made now if it never was."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What became of each layer: name, shape, bits, errors (shares of the outputs' square), inputs scaled down."""

    layers: list[dict[str, Any]]
    bytes_before: int
    bytes_after: int


class _Memory:
    """A store of nothing."""

    def has(self, name: str) -> bool:
        return False

    def piece(self, name: str, make: Callable[[], Piece]) -> Piece:
        return make()


def quantize_model(
    model: Any,
    rows: Tensor | None = None,
    scheme: Scheme | None = None,
    search: ScaleSearch | None = None,
    store: TensorStore | None = None,
    progress: Callable[[str], None] = lambda text: None,
    inputs: Mapping[str, Inputs] | None = None,
) -> Quantized:
    """Replace the linear layers of a model of transformers by W4A8Linear, in place.

    rows: token rows [rows, length] to calibrate on; without, all inputs count alike and none is scaled down. inputs:
    what layers are given, where that is known already, in place of rows. The model can be saved with save_pretrained
    afterwards. Raises ModelError for a model that cannot be quantized.
    """
    scheme, search, store = scheme or Scheme(), search or ScaleSearch(), store or _Memory()
    check_model(model, scheme)
    scheme = settle_scales(model, scheme)
    layers, head = dict(quantizable(model, scheme)), find_head(model)
    check_inputs(layers, inputs, scheme, search)
    before = _bytes(model)
    found: list[dict[str, Any]] = []
    for part in _parts(layers, scheme, search):
        # Layers of 8 bits are rounded as they are; only scaling asks what their inputs were.
        missing = {
            n: layer
            for n, layer in part.items()
            if not store.has(n) and (scheme.smooth or scheme.form_of(n, n == head) is PackedLayout.GRAINS)
        }
        seen = collect_inputs(model, rows, missing, scheme, search, progress) if inputs is None else dict(inputs)
        for name, layer in part.items():
            progress(f"layer {len(found) + 1} of {len(layers)}")
            form = scheme.form_of(name, name == head)
            make = partial(_quantized, name, layer, form, seen.pop(name, None), scheme, search)
            tensors, told = store.piece(name, make)
            found.append({"name": name, "shape": [layer.out_features, layer.in_features], **told})
            module = empty_like(layer, scheme, form)
            module.fill(tensors if layer.bias is None else {**tensors, "bias": layer.bias.detach()})
            replace(model, name, module.to(layer.weight.device))
    config = model.config.get_text_config(decoder=True)
    config.tie_word_embeddings = model.config.tie_word_embeddings = config.tie_word_embeddings and head not in layers
    model.config.quantization_config = W4A8Config(**scheme.written())
    model.hf_quantizer = W4A8Quantizer(model.config.quantization_config)
    model.is_quantized, model.quantization_method = True, model.config.quantization_config.quant_method
    return Quantized(found, before, _bytes(model))


def _parts(layers: dict[str, nn.Linear], scheme: Scheme, search: ScaleSearch) -> Iterator[dict[str, nn.Linear]]:
    """The layers in their order, as many at a time as there is room for their sums."""
    part: dict[str, nn.Linear] = {}
    room = MOST_SUMS
    for name, layer in layers.items():
        size = 4 * layer.in_features * (layer.in_features if search.compensate else scheme.group_size)
        if part and size > room:
            yield part
            part, room = {}, MOST_SUMS
        part[name] = layer
        room -= size
    yield part


def collect_inputs(
    model: Any,
    rows: Tensor | None,
    layers: dict[str, nn.Linear],
    scheme: Scheme,
    search: ScaleSearch,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Inputs]:
    """What layers are given when the model reads rows, with those before them as they now are."""
    if rows is None or not layers:
        return {}
    progress(f"reading {rows.numel()} tokens")
    with capture_inputs(layers, scheme.group_size, whole=search.compensate) as seen:
        read(model, rows)
    return seen


@torch.no_grad()
def _quantized(
    name: str, layer: nn.Linear, form: PackedLayout, inputs: Inputs | None, scheme: Scheme, search: ScaleSearch
) -> Piece:
    """The tensors that stand for a layer, and what is told about it."""
    weight = layer.weight.detach().float().cpu()
    if not weight.isfinite().all():
        raise ModelError(f"layer {name} has weights that are NaN or infinite; check the checkpoint")
    scale = None
    if scheme.smooth:
        scale = torch.ones(layer.in_features) if inputs is None else input_scale(inputs.highest)
        weight = weight / scale
    about: dict[str, Any] = {} if scale is None else {"scaled inputs": int((scale < 1).sum())}
    if form is not PackedLayout.GRAINS:
        whole, channel_scale = eight_bits(weight)
        wrong = whole.float().mul_(channel_scale[:, None]).sub_(weight).square().sum() / weight.square().sum()
        packed = pack_planes(whole) if form is PackedLayout.PLANES else pack_bytes(whole)
        tensors = {"weight": packed, "channel_scale": channel_scale}
        about |= {"bits": 8, "error": float(wrong)}
    else:
        size = scheme.group_size
        given = None if inputs is None else inputs.scaled(scale)
        if given is not None and search.compensate:
            best = compensate(weight, size, given.sums, search=search.ranges)
        else:
            gram = None if given is None else given.within_groups().sums
            best = dual_grained(weight, size, gram, search=search.ranges)
        packed, groups = pack(best.codes, best.fine, best.zero, size)
        tensors = {"weight": packed, "groups": groups, "channel_scale": best.channel_scale}
        about |= {"bits": 4, "error": best.error, "error of plain rounding": best.plain_error}
    return (tensors if scale is None else tensors | {"input_scale": scale}), about


def _bytes(model: nn.Module) -> int:
    """Bytes of all parameters, shared ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
