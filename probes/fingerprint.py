"""By which a probe knows the model again that it was learnt on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EDGE = 64
_HEAD = "lm_head.weight"


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of the names, the shapes, and the first and last 64 values of all parameters, each rounded to bfloat16.

    A checkpoint gives the same value in float32 and in bfloat16, on any device; tied weights count once. Other weights,
    another size, a merged adapter or added parameters give another. Not noticed: values changed only between the edges
    of a tensor, or by less than bfloat16 tells apart; another tokenizer, chat template or code. float32 weights in
    float16, and quantized ones, count as another model: learn a probe on them as they run. Raises ModelError for
    weights that were not loaded.
    """
    found = []
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"parameter {name} was not loaded (it is on `meta`); load the whole model")
        flat = parameter.detach().reshape(-1)
        found.append((name, tuple(parameter.shape), [flat[:EDGE], flat[EDGE:][-EDGE:]]))
    return _digest(found)


def checkpoint_fingerprint(folder: Path | str) -> str:
    """The fingerprint of a model from its safetensors files, one or many, of which only the edges are read.

    It agrees with `fingerprint` where the model's parameters are called and laid out as in its files; that is so for
    most, not where loading renames, joins or drops tensors, or files hold buffers: then it is another value, and a
    probe is refused rather than misused. Raises ModelError if the files are not there or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    place, found = Path(folder), []
    try:
        for file in _files(place):
            with safe_open(file, framework="pt") as tensors:
                found += [(name, *_edges(tensors.get_slice(name))) for name in tensors.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{place} cannot be read: {error}; accepted: a folder with a checkpoint in safetensors"
        ) from None
    if any(name == _HEAD for name, *_ in found) and _tied(place):
        found = [part for part in found if part[0] != _HEAD]
    return _digest(found)


def _files(place: Path) -> list[Path]:
    index = place / "model.safetensors.index.json"
    if not index.is_file():
        return [place / "model.safetensors"]
    try:
        return [place / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is no index of a checkpoint; fetch the model again") from None


def _edges(part: Any) -> tuple[tuple[int, ...], list[Tensor]]:
    """The shape of a tensor on disk, and its first and last values, read in whole rows."""
    shape = tuple(part.get_shape())
    if math.prod(shape) <= 2 * EDGE:
        flat = part[:].reshape(-1) if shape else part[...].reshape(-1)
        return shape, [flat[:EDGE], flat[EDGE:]]
    rows = -(-EDGE // math.prod(shape[1:]))
    return shape, [part[:rows].reshape(-1)[:EDGE], part[shape[0] - rows :].reshape(-1)[-EDGE:]]


def _tied(place: Path) -> bool:
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(place).get_text_config().tie_word_embeddings)


def _digest(found: Iterable[tuple[str, tuple[int, ...], Sequence[Tensor]]]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, shape, edges in sorted(found, key=lambda part: part[0]):
        values = torch.cat([*edges]).to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(f"{name}\0{shape}\0".encode() + values.tobytes())
    return digest.hexdigest()
