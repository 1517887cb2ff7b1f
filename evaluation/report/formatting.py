"""Numbers, tables of arms and CSV, as the page and the charts write them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from ..bench.records import OVERHEADS, BenchRow
from .schema import BenchmarkResult, ReportArm

MINUS, SPACE = "\u2212", "\u00a0"
_SI_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
NamedResults = Sequence[tuple[str, BenchmarkResult]]
Form = Callable[[float], str]


def format_number(value: float, digits: int = 1) -> str:
    """Format a number with thousands separators and a true minus; never a negative zero."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", MINUS)


def to_percent(share: float) -> str:
    """Format a share of 1 in percent, without the sign."""
    return format_number(100 * share)


def format_percent(share: float) -> str:
    """Format a share of 1 in percent, with the sign."""
    return f"{to_percent(share)}{SPACE}%"


def format_difference(share: float) -> str:
    """Format a difference of shares in points, with a plus or minus."""
    text = to_percent(share)
    return text if text.startswith(MINUS) or not float(text.replace(",", "")) else f"+{text}"


def format_interval(pair: tuple[float, float], form: Form = to_percent) -> str:
    """Format an interval by its ends."""
    return f"{form(pair[0])} to {form(pair[1])}"


def format_tokens(value: float) -> str:
    """Format a mean number of tokens, with a decimal where it matters."""
    return format_number(value, 1 if abs(value) < 10_000 else 0)


def format_significant(value: float, digits: int = 3) -> str:
    """Format a positive number to significant digits, without powers of ten."""
    if not value:
        return "0"
    return format_number(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def format_per_thousand(usd: float) -> str:
    """Format the price of one question as that of 1,000, since it is too small to read."""
    return format_significant(1000 * usd)


def format_si(value: float) -> str:
    """Format a count to three significant digits with an SI prefix."""
    power = min(int(math.log10(value) // 3) if value >= 1 else 0, len(_SI_PREFIXES) - 1)
    return f"{format_significant(value / 1000**power)}{SPACE}{_SI_PREFIXES[power]}".rstrip(SPACE)


def format_p_value(value: float) -> str:
    """Format a p-value; those below a thousandth are not told apart."""
    return f"<{SPACE}0.001" if value < 0.001 else format_number(value, 3)


def format_points(share: float) -> str:
    """Format a share of 1 as percentage points, with the decimals that it has."""
    text = f"{100 * share:.10g}"
    return f"{text}{SPACE}point{'' if text == '1' else 's'}"


def pluralize(n: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun; pass `plural` where an s does not do."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def shorten_label(name: str, length: int = 32) -> str:
    """Shorten a name for a chart, and replace what cannot be printed there."""
    text = "".join(character if character.isprintable() else "·" for character in name)
    return text if len(text) <= length else f"{text[: length - 1]}…"


class Column(NamedTuple):
    """A column of a table of arms: its heading with a note, and the field that it shows (a path as tokens.total).

    Below the value is its interval, if `ends` formats it, or `bound`: a field, and the words before it.
    """

    text: str
    note: str
    field: str
    form: Form
    ends: Form | None = None
    bound: tuple[str, str] | None = None

    def cell(self, arm: ReportArm) -> tuple[str, str] | None:
        """Return the value and what is below it; None for an arm without a value."""
        value: Any = arm
        for name in self.field.split("."):
            value = value.get(name, 0.0) if isinstance(value, Mapping) else getattr(value, name)
        if value is None:
            return None
        note = ""
        if self.ends is not None and (pair := getattr(arm, f"{self.field}_ci")) is not None:
            note = format_interval(pair, self.ends)
        if self.bound is not None and (end := getattr(arm, self.bound[0])) is not None:
            note = f"{self.bound[1]} {to_percent(end)}"
        return self.form(value), note


DELTA = Column("Δ accuracy", "points", "delta_accuracy", format_difference, ends=format_difference)
SAVED = Column("Tokens saved", "95 % interval", "saving", format_percent, ends=to_percent)
RESULTS = (
    Column("Accuracy", "95 % interval", "accuracy", format_percent, ends=to_percent),
    DELTA,
    Column("p", "McNemar", "mcnemar_p", format_p_value),
    SAVED,
    Column("At equal accuracy", "saved of a fixed budget", "iso_saving", format_percent, ends=to_percent),
    Column("Harm", "right made wrong", "harm", format_percent, bound=("harm_upper", "at most")),
    Column("Help", "wrong made right", "help", format_percent, bound=("help_lower", "at least")),
    Column("Thinking", "tokens", "tokens.thinking", format_tokens),
    Column("Answer", "tokens", "tokens.answer", format_tokens),
    Column("Overhead", "weighted", "tokens.overhead", format_tokens),
    Column("Total", "tokens", "tokens.total", format_tokens),
)
COSTS = (
    Column("Wall time", "seconds in total", "seconds", format_significant),
    Column("FLOPs", "per question", "flops", format_si),
    Column("USD", "per 1,000 questions", "usd", format_per_thousand),
    Column("Cost of pass", "USD per 1,000 right", "cost_of_pass", format_per_thousand),
    Column("Gain", "USD per 1,000, off the frontier", "gain", format_per_thousand, ends=format_per_thousand),
    Column("Essentialness", "of the frontier without it", "essentialness", format_percent, ends=to_percent),
    Column("Idealized", "seconds per question", "ideal_seconds", format_significant),
    Column("Idealized", "USD per 1,000 questions", "ideal_usd", format_per_thousand),
    Column("E³", "", "e3", format_significant),
)


def list_token_kinds(result: BenchmarkResult) -> list[Column]:
    """List the columns of tokens by kind, and of answers that are missing or cut off."""
    return [
        Column("Prompt", "", "prompt", format_tokens),
        Column("Forced", "within thinking", "forced", format_tokens),
        *(
            Column(kind.capitalize(), f"overhead, × {_get_weight(result, kind):.3g}", f"overhead.{kind}", format_tokens)
            for kind in OVERHEADS
            if any(arm.overhead.get(kind) for arm in result.arms)
        ),
        Column("Cut off", "at the token limit", "capped", format_percent),
        Column("No answer", "", "unanswered", format_percent),
    ]


def _get_weight(result: BenchmarkResult, kind: str) -> float:
    return result.weights.get("helper" if kind == "delegated" else kind, 1.0)


def select_filled(columns: Sequence[Column], result: BenchmarkResult) -> list[Column]:
    """Leave out the columns that are empty for all arms."""
    return [column for column in columns if any(map(column.cell, result.arms))]


def arms_csv(results: NamedResults) -> str:
    """Write all arms as CSV; nested values are named by their path, and the ends of intervals .low and .high."""
    return _to_csv(
        {"result": name, "model": result.model, "tasks": " ".join(result.tasks), **dict(_flatten(arm.model_dump()))}
        for name, result in results
        for arm in result.arms
    )


def rows_csv(results: NamedResults) -> str:
    """Write all generations as CSV."""
    rows = ({"result": name, "model": result.model, **asdict(row)} for name, result in results for row in result.rows)
    return _to_csv(rows, ("result", "model", *(field.name for field in fields(BenchRow))))


def _flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}{name}.")
        elif name.endswith("_ci"):
            low, high = (None, None) if value is None else value
            yield from ((f"{path}{name}.low", low), (f"{path}{name}.high", high))
        else:
            yield f"{path}{name}", value


def _to_csv(lines: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> str:
    """Write lines under the union of their keys, in order of appearance; None and missing values stay empty."""
    rows = list(lines)
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
