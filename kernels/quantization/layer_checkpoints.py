"""Finished layers in a folder beside the goal, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...errors import OptionError
from ...io import WriteError, write
from .model import Piece

_PLAN = "plan.json"


class LayerCheckpoints:
    """A folder of one file a layer, and one for what else is worked out once; all belong to one plan.

    plan: what decides the results, in JSON form. Raises OptionError if the folder belongs to another one.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        wanted = json.dumps(plan, indent=1)
        file = folder / _PLAN
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise WriteError(f"{folder} cannot be made: {error.strerror}; choose another place") from None
        if not file.exists():
            write(file, wanted)
        elif file.read_text(encoding="utf-8") != wanted:
            raise OptionError(
                f"{folder} was begun with other options or by another version; repeat them to finish it, delete it, or "
                "choose another OUT"
            )

    def drop_plan(self) -> None:
        """Leave nothing behind of a plan that nothing was done of."""
        if {file.name for file in self.folder.iterdir()} == {_PLAN}:
            (self.folder / _PLAN).unlink()
            self.folder.rmdir()

    def has(self, name: str) -> bool:
        """See `Store.has`."""
        return self._file(name).exists()

    def piece(self, name: str, make: Callable[[], Piece]) -> Piece:
        """See `Store.piece`."""
        if not self.has(name):
            tensors, told = make()
            write(self._file(name), save(tensors, {"told": json.dumps(told)}))
        try:
            with safe_open(self._file(name), framework="pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return found, json.loads(file.metadata()["told"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise WriteError(f"{self._file(name)} cannot be read: {error}; delete it and run again") from None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
