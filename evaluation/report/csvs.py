"""Results as CSV: one line an arm, one line a row; the first columns tell which result it is from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .result import ReportRow, Result

Line = Mapping[str, Any]


def arms_csv(results: Sequence[tuple[str, Result]]) -> str:
    """All arms of named results; a nested value is named by its path, an interval's ends are .low and .high."""
    lines = (
        {"result": name, "model": result.model, "tasks": " ".join(result.tasks), **dict(_flat(arm.model_dump()))}
        for name, result in results
        for arm in result.arms
    )
    return _csv(lines)


def rows_csv(results: Sequence[tuple[str, Result]]) -> str:
    """All rows of named results."""
    lines = ({"result": name, "model": result.model, **dict(row)} for name, result in results for row in result.rows)
    return _csv(lines, ("result", "model", *ReportRow.model_fields))


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        elif isinstance(value, tuple):
            yield from ((f"{path}{name}.{end}", number) for end, number in zip(("low", "high"), value, strict=True))
        elif value is None and name.endswith("_ci"):
            yield from ((f"{path}{name}.{end}", None) for end in ("low", "high"))
        else:
            yield f"{path}{name}", value


def _csv(lines: Iterable[Line], first: Iterable[str] = ()) -> str:
    """Lines under the union of their names, in the order met; what is None or missing stays empty."""
    kept = list(lines)
    names = list(dict.fromkeys([*first, *(name for line in kept for name in line)]))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    return out.getvalue()
