"""The `quantization_config` of a quantized checkpoint's config.json, and the options that produce one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import ModelError, OptionError, unknown
from ..w4a8_layout import GROUP_SIZES, PackedLayout

METHOD = "tersely_w4a8"
FORMATS = (1, 2, 3)
"""The formats that can be read. Checkpoints are written in the lowest that fits: 3 for 8-bit keys, 2 for heads in
planes, else 1."""
HEADS = {"preview": PackedLayout.PLANES, "int8": PackedLayout.BYTES, "int4": PackedLayout.GRAINS, "keep": None}
"""Layouts of the output head; in planes, its 8 bits are read in two steps, see ../w4a8.py."""
KEYS = ("auto", "int8", "int4")
KEY_LAYERS = ("k_proj", "v_proj")
"""The names of the layers for keys and values."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a model is quantized. Raises OptionError for unsupported values."""

    group_size: int = 128
    """Inputs that share a fine scale and a zero."""
    head: str = "preview"
    """The output head: one of HEADS; "keep" leaves it unquantized."""
    smooth: bool = False
    """Whether outlier inputs are scaled down and their weights up, which helps activations at the cost of weights."""
    keys: str = "auto"
    """The layers for keys and values: one of KEYS. "auto" is int8 if several query heads share them: then they are
    small, and their errors count several times."""

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            accepted = ", ".join(map(str, GROUP_SIZES))
            raise OptionError(f"groups of {self.group_size} inputs; accepted: {accepted}")
        if self.head not in HEADS:
            raise unknown("head", self.head, tuple(HEADS))
        if self.keys not in KEYS:
            raise unknown("keys", self.keys, KEYS)

    def choose_layout(self, name: str, head: bool = False) -> PackedLayout:
        """The layout of a quantized layer; head: whether it is the output head."""
        if head:
            layout = HEADS[self.head]
            if layout is None:
                raise ValueError("a head that is kept has no layout")
            return layout
        if self.keys == "auto":
            raise ValueError("keys are still 'auto'; call resolve_scheme first")
        eight_bits = self.keys == "int8" and name.rpartition(".")[2] in KEY_LAYERS
        return PackedLayout.BYTES if eight_bits else PackedLayout.GRAINS

    def to_dict(self) -> dict[str, Any]:
        """The scheme as stored in config.json."""
        number = 3 if self.keys == "int8" else 2 if self.head == "preview" else 1
        return {"quant_method": METHOD, "format": number, **asdict(self)}


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """How codes and scales are searched. The stored format does not depend on it."""

    ranges: bool = True
    """Whether the ranges of codes are searched; without, they are full."""
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
    try:
        stored = dict(config) if config["format"] == 3 else {"keys": "int4"} | dict(config)
        scheme = Scheme(**{field.name: stored[field.name] for field in fields(Scheme)})
    except KeyError as error:
        raise ModelError(
            f"quantization_config lacks {error}; quantize the model again", code="invalid_config"
        ) from None
    except OptionError as error:
        raise ModelError(f"quantization_config: {error}", code="invalid_config") from None
    if scheme.keys == "auto":
        raise ModelError(
            "quantization_config has keys 'auto'; accepted in a checkpoint: int8, int4; quantize the model again",
            code="invalid_config",
        )
    return scheme
