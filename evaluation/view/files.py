"""Trace files, one record a line: read whole with errors that name the line, appended to whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from pydantic import ValidationError

from ...controller.trace import Decision, Usage
from ...errors import TerselyError, did_you_mean
from ...io import WriteError, append_line
from .record import VERSION, RunView, SegmentView, TokenView, TraceRecord

_FIELDS: Mapping[str, list[str]] = {
    "": list(TraceRecord.model_fields),
    "uncontrolled": list(RunView.model_fields),
    "usage": [field.name for field in fields(Usage)],
    "segments": list(SegmentView.model_fields),
    "tokens": list(TokenView.model_fields),
    "decisions": [field.name for field in fields(Decision)],
}
_MAKE = "make one with `tersely run PROMPT --trace FILE`"
_SHOWN = 60


class TraceError(TerselyError, ValueError):
    """A trace file cannot be read or written, or a line of it is no record."""


def read(path: Path) -> list[TraceRecord]:
    """All records of a trace file in order, blank lines skipped; raises TraceError."""
    records = list(_read(path))
    if not records:
        raise TraceError(f"{path} holds no records; accepted: a trace file with one a line; {_MAKE}")
    return records


def _read(path: Path) -> Iterator[TraceRecord]:
    if not path.exists():
        raise TraceError(f"no trace file {str(path)!r}; accepted: JSONL with one record a line; {_MAKE}")
    if path.is_dir():
        raise TraceError(f"{path} is a folder; accepted: a trace file; {_MAKE}")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield parse(line.removeprefix(b"\xef\xbb\xbf"), f"{path}, line {number}")
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from None


def parse(line: bytes, where: str) -> TraceRecord:
    """The record of one line; raises TraceError, which says where."""
    try:
        return TraceRecord.model_validate_json(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise TraceError(f"{where}: not UTF-8 text (byte {error.start} of the line); save it as UTF-8") from None
    except ValidationError as error:
        raise TraceError(f"{where}: {_why(error)}") from None


def _why(error: ValidationError) -> str:
    """The first thing that is wrong, another version before all that follows from it."""
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: (e["loc"] != ("version",), e["type"] != "extra_forbidden", errors.index(e)))
    names = [str(part) for part in first["loc"] if not isinstance(part, int)]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    got = repr(first.get("input"))
    got = got if len(got) <= _SHOWN else got[: _SHOWN - 1] + "…"
    match first["type"]:
        case "json_invalid":
            # The parser saw this line alone, which it calls line 1.
            what = first["msg"].removeprefix("Invalid JSON: ").replace("at line 1 column", "at column")
            return f"not JSON ({what}); accepted: one record a line; {_MAKE}"
        case "model_type" if not names:
            return f"got {got}, not an object; accepted: one record a line; {_MAKE}"
        case "missing" | "missing_argument":
            return f"{place!r} is missing; accepted here: {', '.join(_fields(names))}"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"unknown key {place!r}; {did_you_mean(names[-1], _fields(names))}"
        case "literal_error" if names == ["version"]:
            return f"version {got}; accepted: {VERSION}, the one that this tersely reads; update tersely or the file"
        case "value_error":
            return f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
    return f"{place!r} is {got}; accepted: {first['msg'].removeprefix('Input should be ')}"


def _fields(names: list[str]) -> list[str]:
    """What the part of a record may hold whose last name is given."""
    return _FIELDS.get(names[-2], _FIELDS[""]) if len(names) > 1 else _FIELDS[""]


def check_appendable(path: Path) -> None:
    """Refuse, before any work is done, a place where no record can be appended; raises TraceError or WriteError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise WriteError(f"--trace {path} cannot be written; accepted: a file, new or a trace, in a folder that exists")
    if path.is_file() and path.stat().st_size:
        first = next(_read(path), None)
        if first is None:
            raise TraceError(f"--trace {path} is not a trace; accepted: a file, new or a trace")
    target = path if path.exists() else path.absolute().parent
    if not os.access(target, os.W_OK):
        raise WriteError(f"--trace {path} cannot be written: no permission; choose another place")


def append(path: Path, record: TraceRecord) -> None:
    """Append a record as one line, whole or not at all; raises WriteError."""
    append_line(path, record.model_dump_json(exclude_none=True).encode())
