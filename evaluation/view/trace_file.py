"""Trace files with one record per line: reading names the line of an error, appending writes all or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from ...errors import TerselyError
from ...io import WriteError, append_line
from ...validation import format_validation_error
from .record import VERSION, TraceRecord

_HINT = "accepted: one record per line, as written by `tersely run PROMPT --trace FILE`"


class TraceError(TerselyError, ValueError):
    """A trace file cannot be read, or a line of it is not a record."""

    code = "invalid_trace"


def load_records(path: Path) -> list[TraceRecord]:
    """Load all records of a trace file in order; blank lines are skipped. Raises TraceError."""
    records = list(_iterate_records(path))
    if not records:
        raise TraceError(f"{path} holds no records; {_HINT}", code="empty_trace")
    return records


def _iterate_records(path: Path) -> Iterator[TraceRecord]:
    if not path.exists():
        raise TraceError(f"trace file {str(path)!r} does not exist; {_HINT}", code="no_such_file")
    if path.is_dir():
        raise TraceError(f"{path} is a folder; accepted: a trace file", code="not_a_file")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield parse_record(line.removeprefix(b"\xef\xbb\xbf"), f"{path}, line {number}")
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}; check the file and its permissions") from None


def parse_record(line: bytes, source: str) -> TraceRecord:
    """Parse one line; raises TraceError, whose message begins with the source."""
    try:
        return TraceRecord.model_validate_json(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        message = f"{source}: not UTF-8 text (byte {error.start} of the line); save it as UTF-8"
        raise TraceError(message, code="not_utf8") from None
    except ValidationError as error:
        raise _explain(error, source) from None


def _explain(error: ValidationError, source: str) -> TraceError:
    """Build the error for an invalid record; another version explains everything else that is wrong."""
    for details in error.errors(include_url=False):
        if details["loc"] == ("version",) and details["type"] == "literal_error":
            message = f"version is {details['input']!r}; accepted: {VERSION}; update tersely or the file"
            return TraceError(f"{source}: {message}", code="unsupported_version")
        if not details["loc"] and details["type"] in ("json_invalid", "model_type"):
            return TraceError(f"{source}: {format_validation_error(error)}; {_HINT}", code="not_a_record")
    return TraceError(f"{source}: {format_validation_error(error, TraceRecord)}")


def check_appendable(path: Path) -> None:
    """Refuse a place where no record can be appended, before any work is done; raises TraceError or WriteError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise WriteError(f"--trace {path} cannot be written; accepted: a file, new or a trace, in a folder that exists")
    if path.is_file() and path.stat().st_size and next(_iterate_records(path), None) is None:
        raise TraceError(f"--trace {path} is not a trace; accepted: a file, new or a trace", code="empty_trace")
    target = path if path.exists() else path.absolute().parent
    if not os.access(target, os.W_OK):
        raise WriteError(f"--trace {path} cannot be written: no permission; choose another place")


def append_record(path: Path, record: TraceRecord) -> None:
    """Append a record as one line, all or nothing; raises WriteError."""
    append_line(path, record.model_dump_json(exclude_none=True).encode())
