"""A journal of finished work: each piece is done once, whatever happens in between.

One JSON line a piece, `{"key": ..., "value": ...}`, written to disk before the next begins; the first line says which
run it belongs to. A line that a crash cut off is as if it had never been.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import TerselyError
from ...io import WriteError, append_line

_HEAD = "run"


class CheckpointLogError(TerselyError, ValueError):
    """A journal cannot be gone on with: it belongs to another run, or is none."""


class CheckpointLog:
    """Pieces of work by key; with no path it only remembers, for one process.

    run: what decides the results, in JSON form. Raises JournalError if the file belongs to another run.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any]) -> None:
        self.path = path
        self._head = {_HEAD: dict(run)}
        self._done: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path, json.loads(json.dumps(self._head)))

    @property
    def done(self) -> Mapping[str, Any]:
        """What pieces of work came to, by their keys."""
        return self._done

    def piece(self, key: str, make: Callable[[], Any]) -> Any:
        """What this piece of work, a JSON value, came to; made now if it never was. Raises WriteError."""
        if key not in self._done:
            line = json.dumps({"key": key, "value": make()})
            if self.path is not None:
                self._append(self.path, line)
            self._done[key] = json.loads(line)["value"]  # as a later run will read it
        return self._done[key]

    def _append(self, path: Path, line: str) -> None:
        if not path.exists() or not path.stat().st_size:
            append_line(path, json.dumps(self._head).encode(), to_disk=True)
        append_line(path, line.encode(), to_disk=True)

    def remove(self) -> None:
        """Delete the file: all is written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path, head: dict[str, Any]) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WriteError(f"journal {path} cannot be read: {error.strerror}; check its permissions") from None
        whole = data[: data.rfind(b"\n") + 1]
        lines = [self._parse(line, number) for number, line in enumerate(whole.splitlines(), 1)]
        if lines:
            self._check(lines[0], head)
        elif data and not head_like(data):
            raise CheckpointLogError(f"{path} is not a journal; move it away, or choose another --out")
        self._done = {line["key"]: line["value"] for line in lines[1:]}
        if len(whole) < len(data):
            with path.open("rb+") as file:
                file.truncate(len(whole))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            item = json.loads(line)
        except ValueError:
            item = None
        wanted = {_HEAD} if number == 1 else {"key", "value"}
        if not isinstance(item, dict) or set(item) != wanted:
            raise CheckpointLogError(
                f"{self.path}, line {number}: not a line of a journal; move the file away, or choose another --out"
            )
        return item

    def _check(self, found: dict[str, Any], head: dict[str, Any]) -> None:
        ours, theirs = head[_HEAD], found[_HEAD]
        if ours == theirs:
            return
        keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        said = "; ".join(f"{key} was {_short(theirs.get(key))} and is {_short(ours.get(key))}" for key in keys[:3])
        raise CheckpointLogError(
            f"journal {self.path} belongs to another run ({said}); repeat that run to finish it, "
            "delete the journal, or choose another --out"
        )


def head_like(data: bytes) -> bool:
    """Whether these bytes may be the beginning of a first line that a crash cut off."""
    return f'{{"{_HEAD}": '.encode().startswith(data[: len(_HEAD) + 5])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
