"""A checkpoint log: finished pieces of work on disk, so that an interrupted run can resume.

The first line, `{"run": ...}`, identifies the run; each further one, `{"key": ..., "value": ..., "crc32": ...}`, is a
piece, synced before the next begins. An incomplete last line is dropped. Large results belong in files of their own.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import TerselyError
from .io import WriteError, append_line, cut_line

_HEAD, _SUM = "run", "crc32"


class CheckpointLogError(TerselyError, ValueError):
    """A checkpoint log cannot be resumed: it belongs to another run, or the file is not a checkpoint log."""

    code = "checkpoint_invalid"


class CheckpointLog:
    """Finished pieces of work by key, in memory only if the path is None; `run` is everything that decides the results.

    Raises CheckpointLogError if the file belongs to another run (code "checkpoint_mismatch"), or is something else.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any]) -> None:
        self.path = path
        self._head = {_HEAD: dict(run)}
        self.completed: dict[str, Any] = {}  # values of the finished pieces by key
        if path is not None and path.exists():
            self._read(path, json.loads(json.dumps(self._head)))

    def get_or_compute(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the stored value (JSON) of a piece, computing and storing it first if needed; raises WriteError."""
        if key not in self.completed:
            value = compute()
            line = json.dumps({"key": key, "value": value, _SUM: _checksum(key, value)})
            if self.path is not None:
                self._append(self.path, line)
            self.completed[key] = json.loads(line)["value"]  # as a resumed run would read it
        return self.completed[key]

    def remove(self) -> None:
        """Delete the file once the results are saved elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _append(self, path: Path, line: str) -> None:
        if not path.exists() or not path.stat().st_size:
            append_line(path, json.dumps(self._head).encode(), to_disk=True)
        append_line(path, line.encode(), to_disk=True)

    def _read(self, path: Path, head: dict[str, Any]) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WriteError(f"cannot read checkpoint log {path}: {error.strerror}; check its permissions") from None
        complete = data[: data.rfind(b"\n") + 1]
        lines = [self._parse(line, number) for number, line in enumerate(complete.splitlines(), 1)]
        if lines:
            self._check_run(lines[0], head)
        elif not f'{{"{_HEAD}": '.encode().startswith(data[: len(_HEAD) + 5]):  # not even cut off by a crash
            raise CheckpointLogError(f"{path} is not a checkpoint log; move it away, or choose another --out")
        self.completed = {line["key"]: line["value"] for line in lines[1:]}
        if len(complete) < len(data):
            cut_line(path, len(complete), len(data))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            item: Any = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        expected, name = ({_HEAD}, _HEAD) if number == 1 else ({"key", "value", _SUM}, "key")
        kind = dict if number == 1 else str
        wrong = not isinstance(item, dict) or set(item) != expected or not isinstance(item[name], kind)
        if wrong or (number > 1 and item[_SUM] != _checksum(item["key"], item["value"])):
            raise CheckpointLogError(
                f"{self.path}, line {number}: not a line of a checkpoint log; move the file away, or choose another "
                "--out"
            )
        return dict(item)

    def _check_run(self, stored: dict[str, Any], head: dict[str, Any]) -> None:
        ours, theirs = head[_HEAD], stored[_HEAD]
        if ours == theirs:
            return
        keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        changes = "; ".join(f"{key} was {_shorten(theirs.get(key))}, now {_shorten(ours.get(key))}" for key in keys[:3])
        raise CheckpointLogError(
            f"checkpoint log {self.path} belongs to another run ({changes}); repeat that run to finish it, "
            "delete the file, or choose another --out",
            code="checkpoint_mismatch",
        )


def _checksum(key: str, value: Any) -> int:
    return zlib.crc32(json.dumps([key, value]).encode())


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
