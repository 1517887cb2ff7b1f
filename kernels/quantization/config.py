"""What a quantized checkpoint says about itself, under `quantization_config` in its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import ModelError, OptionError, unknown
from ..w4a8_layout import GROUP_SIZES, Form

METHOD = "tersely_w4a8"
FORMATS = (1, 2)
"""What can be read. A checkpoint has the lowest that has all it uses; heads in planes came with 2."""
HEADS = {"preview": Form.PLANES, "int8": Form.BYTES, "int4": Form.GRAINS, "keep": None}
"""How the layer that makes logits may lie; in planes, its 8 bits are read in two steps, see ../w4a8.py."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a model is quantized. Raises OptionError for what there is not."""

    group_size: int = 128
    """Inputs that share a fine scale and a zero."""
    head: str = "preview"
    """The layer that makes logits: one of HEADS, "keep" to leave it as it is."""
    smooth: bool = False
    """Whether inputs that stand out are scaled down, and their weights up: it spares activations and costs weights."""

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            accepted = ", ".join(map(str, GROUP_SIZES))
            raise OptionError(f"groups of {self.group_size} inputs; accepted: {accepted}")
        if self.head not in HEADS:
            raise unknown("head", self.head, tuple(HEADS))

    def form_of(self, head: bool) -> Form:
        """How the weights of a head that is quantized, or of another layer, lie."""
        form = HEADS[self.head] if head else Form.GRAINS
        if form is None:
            raise ValueError("a head that is kept has no form")
        return form

    def written(self) -> dict[str, Any]:
        """As it stands in config.json."""
        number = 2 if self.head == "preview" else 1
        return {"quant_method": METHOD, "format": number, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Search:
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
        return Scheme(**{field.name: found[field.name] for field in fields(Scheme)})
    except KeyError as error:
        raise ModelError(f"quantization_config lacks {error}; quantize the model anew") from None
    except OptionError as error:
        raise ModelError(f"quantization_config: {error}") from None
