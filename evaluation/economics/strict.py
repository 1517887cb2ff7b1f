"""Checked JSON: text becomes a pydantic record, or one line that says where, what was got and what is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import TerselyError, did_you_mean


class StrictRecord(BaseModel):
    """A frozen record that refuses what it does not know, infinities and not-a-numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


R = TypeVar("R", bound=StrictRecord)
_SHOWN = 60  # characters of a value


def read_text(path: Path, error: type[TerselyError]) -> str:
    """The text of a UTF-8 file; raises `error` with one line."""
    if not path.is_file():
        raise error(f"there is no file {str(path)!r}; check the path")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"{path} is not UTF-8 text (byte {fault.start}); save it as UTF-8") from None
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}; check the file and its permissions") from None


def parse(record: type[R], text: str, where: str, error: type[TerselyError]) -> R:
    """A record from JSON text; raises `error` naming the first fault and the place it is at."""
    try:
        return record.model_validate_json(text)
    except ValidationError as faults:
        # A misspelt field is also a missing one: the misspelling is what helps.
        first = min(faults.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
        raise error(f"{where}: {_sentence(record, first)}") from None


def _sentence(record: type[StrictRecord], fault: Any) -> str:
    """One fault of pydantic's in the words of the house."""
    *parents, name = [str(part) for part in fault["loc"]] or [""]
    place = ".".join([*parents, name]) or "it"
    if fault["type"] == "json_invalid":
        return f"not JSON ({fault['msg'].removeprefix('Invalid JSON: ')}); accepted: an object"
    if fault["type"] == "extra_forbidden":
        return f"unknown field {place!r}; {did_you_mean(name, _fields(record, parents))}"
    if fault["type"] == "missing":
        return f"field {place!r} is missing; add it"
    got = repr(fault["input"])
    accepted = fault["msg"].partition(" should ")[2].removeprefix("be ").removeprefix("have ") or fault["msg"]
    return f"{place} is {got if len(got) <= _SHOWN else f'{got[:_SHOWN]}...'}; accepted: {accepted}"


def _fields(record: type[StrictRecord], parents: list[str]) -> list[str]:
    """The fields accepted at a place: those of the record itself, or of the record that its dict holds."""
    for name in parents:
        field = record.model_fields.get(name)
        inner = [] if field is None else [a for a in getattr(field.annotation, "__args__", ()) if isinstance(a, type)]
        record = next((a for a in inner if issubclass(a, StrictRecord)), record)
    return list(record.model_fields)
