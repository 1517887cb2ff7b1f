"""Frozen records of arrays whose shapes must fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import OptionError, TerselyError


def check_arrays(
    arrays: Mapping[str, Any], shapes: Mapping[str, str], dtype: DTypeLike, error: type[TerselyError] = OptionError
) -> dict[str, NDArray[Any]]:
    """Copy arrays to read-only ones of a type; raises `error` unless all are given, finite and of fitting shapes.

    Shapes have a letter for each dimension and the same letter for equal sizes, such as "dh".
    """
    if set(arrays) != set(shapes):
        raise error(f"arrays are {', '.join(sorted(arrays))}; accepted: {', '.join(shapes)}")
    sizes: dict[str, int] = {}
    checked = {}
    for name, letters in shapes.items():
        array = np.array(arrays[name], dtype, order="C")
        if array.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, array.shape, strict=True)
        ):
            wanted = ", ".join(f"{letter} = {sizes[letter]}" if letter in sizes else letter for letter in letters)
            raise error(f"array {name} has shape {array.shape}; accepted: ({wanted})")
        if not np.isfinite(array).all():
            raise error(f"array {name} holds NaN or infinity; accepted: finite numbers")
        array.flags.writeable = False
        checked[name] = array
    return checked


class ArrayRecord:
    """Base of frozen dataclasses of arrays, see `check_arrays`; equal if all arrays are."""

    __slots__ = ()
    shapes: ClassVar[Mapping[str, str]]
    dtype: ClassVar[DTypeLike]
    error: ClassVar[type[TerselyError]] = OptionError

    def __post_init__(self) -> None:
        for name, array in check_arrays(self.arrays(), self.shapes, self.dtype, self.error).items():
            object.__setattr__(self, name, array)
        self._check()

    def _check(self) -> None:
        """Raise `error` for arrays whose shapes fit but whose values do not."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, which are the arguments of the class."""
        return {name: getattr(self, name) for name in self.shapes}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        mine, theirs = self.arrays(), other.arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]
