"""The tables of a report: as cells for the page's template, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from operator import attrgetter
from typing import Any

from ..bench.records import OVERHEADS, BenchRow
from .formatting import (
    format_difference,
    format_interval,
    format_p_value,
    format_percent,
    format_points,
    format_si,
    format_significant,
    format_tokens,
    pluralize,
    to_percent,
)
from .schema import BenchmarkResult, GroupMeans, ReportArm

NamedResults = Sequence[tuple[str, BenchmarkResult]]
Form = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table, with smaller text below."""

    text: str
    note: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of each row is its heading, and None is an empty cell."""

    caption: str
    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell | None]]


Column = tuple[Cell, Callable[[ReportArm], Cell | None]]
"""A heading, and the cell of each arm."""


def _column(text: str, note: str, field: str, form: Form, detail: Callable[[ReportArm], str] | None = None) -> Column:
    """Build a column with the value of a field (a path such as tokens.total), where it has one, above a detail."""
    get = attrgetter(field)

    def cell(arm: ReportArm) -> Cell | None:
        value = get(arm)
        return None if value is None else Cell(form(value), "" if detail is None else detail(arm))

    return Cell(text, note), cell


def _interval(text: str, note: str, field: str, form: Form, ends: Form) -> Column:
    """Build a column with a value and its interval."""

    def detail(arm: ReportArm) -> str:
        pair = getattr(arm, f"{field}_ci")
        return "" if pair is None else format_interval(pair, ends)

    return _column(text, note, field, form, detail)


def _bound(text: str, note: str, field: str, bound: str, words: str) -> Column:
    """Build a column with a share and its one-sided bound."""

    def detail(arm: ReportArm) -> str:
        end = getattr(arm, bound)
        return "" if end is None else f"{words} {to_percent(end)}"

    return _column(text, note, field, format_percent, detail)


def _per_thousand(value: float) -> str:
    return format_significant(1000 * value)  # prices of one question are too small to read


_DELTA = _interval("Δ accuracy", "points", "delta_accuracy", format_difference, format_difference)
_SAVED = _interval("Tokens saved", "95 % interval", "saving", format_percent, to_percent)
_RESULT_COLUMNS = (
    _interval("Accuracy", "95 % interval", "accuracy", format_percent, to_percent),
    _DELTA,
    _column("p", "McNemar", "mcnemar_p", format_p_value),
    _SAVED,
    _interval("At equal accuracy", "saved of a fixed budget", "iso_saving", format_percent, to_percent),
    _bound("Harm", "right made wrong", "harm", "harm_upper", "at most"),
    _bound("Help", "wrong made right", "help", "help_lower", "at least"),
    _column("Thinking", "tokens", "tokens.thinking", format_tokens),
    _column("Answer", "tokens", "tokens.answer", format_tokens),
    _column("Overhead", "weighted", "tokens.overhead", format_tokens),
    _column("Total", "tokens", "tokens.total", format_tokens),
)
_COST_COLUMNS = (
    _column("Wall time", "seconds in total", "seconds", format_significant),
    _column("FLOPs", "per question", "flops", format_si),
    _column("USD", "per 1,000 questions", "usd", _per_thousand),
    _column("Cost of pass", "USD per 1,000 right", "cost_of_pass", _per_thousand),
    _interval("Gain", "USD per 1,000, off the frontier", "gain", _per_thousand, _per_thousand),
    _interval("Essentialness", "of the frontier without it", "essentialness", format_percent, to_percent),
    _column("Idealized", "seconds per question", "ideal_seconds", format_significant),
    _column("Idealized", "USD per 1,000 questions", "ideal_usd", _per_thousand),
    _column("E³", "", "e3", format_significant),
)


def results_table(result: BenchmarkResult) -> Table:
    """Build the table of accuracies, savings and tokens of all arms."""
    caption = f"Accuracy and tokens of each arm, means of {pluralize(result.base.n, 'question')}"
    return _arm_table(caption, _RESULT_COLUMNS, result)


def costs_table(result: BenchmarkResult) -> Table | None:
    """Build the table of costs; None if no cost is known."""
    table = _arm_table(_costs_caption(result), _COST_COLUMNS, result)
    return table if len(table.columns) > 1 else None


def _costs_caption(result: BenchmarkResult) -> str:
    """Say what all arms together reach."""
    parts = ["Costs of each arm"]
    if edge := result.frontier:
        ends = format_interval(edge.usd_ci, _per_thousand)
        parts.append(f"the frontier over them is {_per_thousand(edge.usd)} USD per 1,000 right ({ends})")
    if limit := result.ceiling:
        most, bar = format_percent(limit.accuracy), to_percent(limit.confidence)
        parts.append(f"resampling until a trial answer is {bar} sure reaches at most {most}")
    return "; ".join(parts)


def token_kinds_table(result: BenchmarkResult) -> Table:
    """Build the table of tokens by kind, and of answers that are missing or cut off."""
    columns = [
        _column("Prompt", "", "prompt", format_tokens),
        _column("Forced", "within thinking", "forced", format_tokens),
    ]
    for kind in OVERHEADS:
        if any(arm.overhead.get(kind) for arm in result.arms):
            weight = result.weights.get("helper" if kind == "delegated" else kind, 1.0)
            cell = partial(lambda kind, arm: Cell(format_tokens(arm.overhead.get(kind, 0.0))), kind)
            columns.append((Cell(kind.capitalize(), f"overhead, × {weight:.3g}"), cell))
    columns += [
        _column("Cut off", "at the token limit", "capped", format_percent),
        _column("No answer", "", "unanswered", format_percent),
    ]
    return _arm_table("Other tokens of a generation by kind, means", columns, result)


def _arm_table(caption: str, columns: Sequence[Column], result: BenchmarkResult) -> Table:
    """Build a table with a row for each arm, without columns that are empty for all of them."""
    filled = [(heading, cell) for heading, cell in columns if any(map(cell, result.arms))]
    notes = {"baseline": "baseline", "judged": "judged", "cut": "from a cut", "other": ""}
    rows = [
        [Cell(arm.name, notes[role := result.get_role(arm)], role), *(cell(arm) for _, cell in filled)]
        for arm in result.arms
    ]
    return Table(caption, [Cell("Arm"), *(heading for heading, _ in filled)], rows)


def levels_table(result: BenchmarkResult) -> Table | None:
    """Build the table of levels; None if there are none."""
    return _group_table("By level", "Level", result.shared_levels(), result)


def tiers_table(result: BenchmarkResult) -> Table | None:
    """Build the table of effort tiers; None if there is only one."""
    tiers = result.shared_tiers()
    return _group_table("By tier of effort", "Tier", tiers, result) if len(tiers) > 1 else None


def _group_table(
    caption: str, kind: str, groups: Mapping[str, tuple[GroupMeans, GroupMeans]], result: BenchmarkResult
) -> Table | None:
    arms = (result.baseline, result.judged)
    columns = [Cell(kind), Cell("Questions")]
    columns += [Cell(text, arm) for text in ("Accuracy", "Thinking", "Total") for arm in arms]
    rows = []
    for name, pair in groups.items():
        counts = " / ".join(dict.fromkeys(f"{group.n:,}" for group in pair))
        texts = [format_percent(group.accuracy) for group in pair]
        texts += [format_tokens(group.thinking) for group in pair] + [format_tokens(group.total) for group in pair]
        rows.append([name, counts, *texts])
    return _text_table(f"{caption}, {result.baseline} and {result.judged}", columns, rows)


def budgets_table(result: BenchmarkResult) -> Table | None:
    """Build the table of fixed budgets; None if there are none."""
    columns = [Cell("Budget", "thinking tokens"), Cell("Accuracy"), Cell("Tokens", "per question")]
    points = result.budget_curve
    rows = [[f"{at.budget:,}", format_percent(at.accuracy), format_tokens(at.total)] for at in points]
    return _text_table(f"{result.baseline} with fixed thinking budgets", columns, rows)


def calibration_table(result: BenchmarkResult) -> Table | None:
    """Build the table of calibration bins; None if there are none."""
    bins = () if result.calibration is None else result.calibration.bins
    columns = [Cell("Confidence"), Cell("Right"), Cell("Answers")]
    rows = [[format_percent(one.confidence), format_percent(one.accuracy), f"{one.n:,}"] for one in bins if one.n]
    return _text_table("Trial answers by confidence", columns, rows)


def _text_table(caption: str, columns: Sequence[Cell], rows: Sequence[Sequence[str]]) -> Table | None:
    return Table(caption, columns, [[Cell(text) for text in row] for row in rows]) if rows else None


def overview_table(results: NamedResults) -> Table:
    """Build the table with one row for each result."""
    rows = []
    for name, result in results:
        base, judged = result.base, result.judged_arm
        rows.append(
            [
                Cell(result.title, f"{judged.name} · {name}"),
                Cell(f"{base.n:,}"),
                Cell(f"{format_percent(base.accuracy)} → {format_percent(judged.accuracy)}"),
                _DELTA[1](judged),
                Cell(f"{format_tokens(base.tokens.total)} → {format_tokens(judged.tokens.total)}"),
                _SAVED[1](judged),
                Cell(result.verdict, f"margin {format_points(result.margin)}"),
            ]
        )
    change = "baseline → judged"
    columns = [Cell("Accuracy", change), _DELTA[0], Cell("Tokens", change), _SAVED[0], Cell("Verdict")]
    return Table("All results", [Cell("Result"), Cell("Questions"), *columns], rows)


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
