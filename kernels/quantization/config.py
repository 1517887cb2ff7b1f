"""What a quantized checkpoint says about itself, under `quantization_config` in its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import ModelError, OptionError, unknown
from ..w4a8_layout import GROUP_SIZES, PackedLayout

METHOD = "tersely_w4a8"
FORMATS = (1, 2, 3)
"""What can be read. A checkpoint has the lowest that has all it uses; heads in planes are of 2, 8-bit keys of 3."""
HEADS = {"preview": PackedLayout.PLANES, "int8": PackedLayout.BYTES, "int4": PackedLayout.GRAINS, "keep": None}
"""How the layer that makes logits may lie; in planes, its 8 bits are read in two steps, see ../w4a8.py."""


KEYS = ("auto", "int8", "int4")
KEY_LAYERS = ("k_proj", "v_proj")
"""What layers that make keys and values are called."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a model is quantized. Raises OptionError for what there is not."""

    group_size: int = 128
    """Inputs that share a fine scale and a zero."""
    head: str = "preview"
    """The layer that makes logits: one of HEADS, "keep" to leave it as it is."""
    smooth: bool = False
    """Whether inputs that stand out are scaled down, and their weights up: it spares activations and costs weights."""
    keys: str = "auto"
    """Layers that make keys and values: one of KEYS, auto for int8 where several query heads share them. They are small
    then, and what is wrong with them counts several times."""

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            accepted = ", ".join(map(str, GROUP_SIZES))
            raise OptionError(f"groups of {self.group_size} inputs; accepted: {accepted}")
        if self.head not in HEADS:
            raise unknown("head", self.head, tuple(HEADS))
        if self.keys not in KEYS:
            raise unknown("keys", self.keys, KEYS)

    def form_of(self, name: str, head: bool = False) -> PackedLayout:
        """How the weights of a layer that is quantized lie; head: whether it makes logits."""
        if head:
            form = HEADS[self.head]
            if form is None:
                raise ValueError("a head that is kept has no form")
            return form
        if self.keys == "auto":
            raise ValueError("how keys lie is not settled")
        return (
            PackedLayout.BYTES if self.keys == "int8" and name.rpartition(".")[2] in KEY_LAYERS else PackedLayout.GRAINS
        )

    def written(self) -> dict[str, Any]:
        """As it stands in config.json."""
        number = 3 if self.keys == "int8" else 2 if self.head == "preview" else 1
        return {"quant_method": METHOD, "format": number, **asdict(self)}


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """How codes and scales are found. What is written has the same form whatever it is."""

    ranges: bool = True
    """Whether the ranges that codes span are searched, in two phases; without, they are full."""
    compensate: bool = True
    """Whether weights that are rounded later make up for the errors of those before, where there is text to read."""


def read_scheme(found: Mapping[str, Any]) -> Scheme:
    """The scheme that a checkpoint was written with; raises ModelError for one of another version."""
    if found.get("format") not in FORMATS:
        raise ModelError(
            f"the checkpoint has format {found.get('format')!r} of {METHOD}; accepted: {FORMATS}; quantize the model "
            "anew, or use the version of tersely that wrote it"
        )
    try:
        told = dict(found) if found["format"] == 3 else {"keys": "int4"} | dict(found)
        scheme = Scheme(**{field.name: told[field.name] for field in fields(Scheme)})
    except KeyError as error:
        raise ModelError(f"quantization_config lacks {error}; quantize the model anew") from None
    except OptionError as error:
        raise ModelError(f"quantization_config: {error}") from None
    if scheme.keys == "auto":
        raise ModelError("quantization_config has keys 'auto', which is for what is to be quantized; quantize anew")
    return scheme
