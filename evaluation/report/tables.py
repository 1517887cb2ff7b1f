"""The tables of a report: as cells for the page's template, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from .schema import BenchmarkResult, GroupMeans, OverheadTokens, ReportArm, ReportRow

_THOUSAND = 1000.0  # prices are given for a thousand questions, since those of one are too small to read

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


@dataclass(frozen=True, slots=True)
class _Column:
    heading: Cell
    cell: Callable[[ReportArm], Cell | None]


def _value(text: str, note: str, field: str, form: Form, scale: float = 1.0) -> _Column:
    """Build a column with the value of a field, where it has one."""

    def cell(arm: ReportArm) -> Cell | None:
        value = getattr(arm, field)
        return None if value is None else Cell(form(scale * value))

    return _Column(Cell(text, note), cell)


def _interval(text: str, note: str, field: str, form: Form, ends: Form) -> _Column:
    """Build a column with a value and its interval."""
    return _Column(Cell(text, note), lambda arm: _interval_cell(arm, field, form, ends))


def _interval_cell(arm: ReportArm, field: str, form: Form, ends: Form) -> Cell | None:
    value, pair = getattr(arm, field), getattr(arm, f"{field}_ci")
    return None if value is None else Cell(form(value), "" if pair is None else format_interval(pair, ends))


def _bound(text: str, note: str, field: str, bound: str, words: str) -> _Column:
    """Build a column with a share and its one-sided bound."""

    def cell(arm: ReportArm) -> Cell | None:
        value, end = getattr(arm, field), getattr(arm, bound)
        return (
            None if value is None else Cell(format_percent(value), "" if end is None else f"{words} {to_percent(end)}")
        )

    return _Column(Cell(text, note), cell)


def _tokens(text: str, note: str, field: Callable[[ReportArm], float]) -> _Column:
    return _Column(Cell(text, note), lambda arm: Cell(format_tokens(field(arm))))


_RESULT_COLUMNS = (
    _interval("Accuracy", "95 % interval", "accuracy", format_percent, to_percent),
    _interval("Δ accuracy", "points", "delta_accuracy", format_difference, format_difference),
    _value("p", "McNemar", "mcnemar_p", format_p_value),
    _interval("Tokens saved", "95 % interval", "saving", format_percent, to_percent),
    _interval("At equal accuracy", "saved of a fixed budget", "iso_saving", format_percent, to_percent),
    _bound("Harm", "right made wrong", "harm", "harm_upper", "at most"),
    _bound("Help", "wrong made right", "help", "help_lower", "at least"),
    _tokens("Thinking", "tokens", lambda arm: arm.tokens.thinking),
    _tokens("Answer", "tokens", lambda arm: arm.tokens.answer),
    _tokens("Overhead", "weighted", lambda arm: arm.tokens.overhead),
    _tokens("Total", "tokens", lambda arm: arm.tokens.total),
)
_COST_COLUMNS = (
    _value("Wall time", "seconds in total", "seconds", format_significant),
    _value("FLOPs", "per question", "flops", format_si),
    _value("USD", "per 1,000 questions", "usd", format_significant, _THOUSAND),
    _value("Cost of pass", "USD per 1,000 right", "cost_of_pass", format_significant, _THOUSAND),
    _value("E³", "", "e3", format_significant),
)


def results_table(result: BenchmarkResult) -> Table:
    """Build the table of accuracies, savings and tokens of all arms."""
    caption = f"Accuracy and tokens of each arm, means of {pluralize(result.base.n, 'question')}"
    return _arm_table(caption, _RESULT_COLUMNS, result)


def costs_table(result: BenchmarkResult) -> Table | None:
    """Build the table of costs; None if no cost is known."""
    table = _arm_table("Costs of each arm", _COST_COLUMNS, result)
    return table if len(table.columns) > 1 else None


def token_kinds_table(result: BenchmarkResult) -> Table:
    """Build the table of tokens by kind, and of answers that are missing or cut off."""
    kinds = [kind for kind in OverheadTokens.model_fields if any(getattr(arm.overhead, kind) for arm in result.arms)]
    columns = [
        _tokens("Prompt", "", lambda arm: arm.prompt),
        _tokens("Forced", "within thinking", lambda arm: arm.forced),
        *(_overhead_column(kind, result.weights) for kind in kinds),
        _value("Cut off", "at the token limit", "capped", format_percent),
        _value("No answer", "", "unanswered", format_percent),
    ]
    return _arm_table("Other tokens of a generation by kind, means", columns, result)


def _overhead_column(kind: str, weights: Mapping[str, float]) -> _Column:
    weight = weights.get("helper" if kind == "delegated" else kind, 1.0)
    return _tokens(kind.capitalize(), f"overhead, × {weight:.3g}", lambda arm: getattr(arm.overhead, kind))


def _arm_table(caption: str, columns: Sequence[_Column], result: BenchmarkResult) -> Table:
    """Build a table with a row for each arm, without columns that are empty for all of them."""
    cells = {column: [column.cell(arm) for arm in result.arms] for column in columns}
    filled = [column for column in columns if any(cells[column])]
    notes = {"baseline": "baseline", "judged": "judged", "cut": "from a cut", "other": ""}
    rows = [
        [Cell(arm.name, notes[role := result.get_role(arm)], role), *(cells[column][i] for column in filled)]
        for i, arm in enumerate(result.arms)
    ]
    return Table(caption, [Cell("Arm"), *(column.heading for column in filled)], rows)


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
    if not groups:
        return None
    arms = (result.baseline, result.judged)
    columns = [Cell(kind), Cell("Questions")]
    columns += [Cell(text, arm) for text in ("Accuracy", "Thinking", "Total") for arm in arms]
    rows = []
    for name, pair in groups.items():
        counts = " / ".join(dict.fromkeys(f"{group.n:,}" for group in pair))
        texts = [format_percent(group.accuracy) for group in pair]
        texts += [format_tokens(group.thinking) for group in pair] + [format_tokens(group.total) for group in pair]
        rows.append([Cell(name), Cell(counts), *map(Cell, texts)])
    return Table(f"{caption}, {result.baseline} and {result.judged}", columns, rows)


def budgets_table(result: BenchmarkResult) -> Table | None:
    """Build the table of fixed budgets; None if there are none."""
    columns = [Cell("Budget", "thinking tokens"), Cell("Accuracy"), Cell("Tokens", "per question")]
    rows = [
        [Cell(f"{point.budget:,}"), Cell(format_percent(point.accuracy)), Cell(format_tokens(point.total))]
        for point in result.budget_curve
    ]
    return Table(f"{result.baseline} with fixed thinking budgets", columns, rows) if rows else None


def calibration_table(result: BenchmarkResult) -> Table | None:
    """Build the table of calibration bins; None if there are none."""
    if result.calibration is None:
        return None
    columns = [Cell("Confidence"), Cell("Right"), Cell("Answers")]
    rows = [
        [Cell(format_percent(one.confidence)), Cell(format_percent(one.accuracy)), Cell(f"{one.n:,}")]
        for one in result.calibration.bins
        if one.n
    ]
    return Table("Trial answers by confidence", columns, rows)


def overview_table(results: NamedResults) -> Table:
    """Build the table with one row for each result."""
    columns = [
        Cell("Result"),
        Cell("Questions"),
        Cell("Accuracy", "baseline → judged"),
        Cell("Δ accuracy", "points"),
        Cell("Tokens", "baseline → judged"),
        Cell("Tokens saved", "95 % interval"),
        Cell("Verdict"),
    ]
    rows = []
    for name, result in results:
        base, judged = result.base, result.judged_arm
        rows.append(
            [
                Cell(result.title, f"{judged.name} · {name}"),
                Cell(f"{base.n:,}"),
                Cell(f"{format_percent(base.accuracy)} → {format_percent(judged.accuracy)}"),
                _interval_cell(judged, "delta_accuracy", format_difference, format_difference),
                Cell(f"{format_tokens(base.tokens.total)} → {format_tokens(judged.tokens.total)}"),
                _interval_cell(judged, "saving", format_percent, to_percent),
                Cell(result.verdict, f"margin {format_points(result.margin)}"),
            ]
        )
    return Table("All results", columns, rows)


def arms_csv(results: NamedResults) -> str:
    """Write all arms as CSV; nested values are named by their path, and the ends of intervals .low and .high."""
    return _to_csv(
        {"result": name, "model": result.model, "tasks": " ".join(result.tasks), **dict(_flatten(arm.model_dump()))}
        for name, result in results
        for arm in result.arms
    )


def rows_csv(results: NamedResults) -> str:
    """Write all generations as CSV."""
    rows = ({"result": name, "model": result.model, **dict(row)} for name, result in results for row in result.rows)
    return _to_csv(rows, ("result", "model", *ReportRow.model_fields))


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
