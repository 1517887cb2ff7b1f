"""The page's tables as plain cells: which columns there are and what they say; the template draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .charts import arm_role
from .formatting import format_percent, p_value, plain, pluralize, points, prefixed, signed, significant, span, tokens
from .result import OVERHEADS, Cell, ReportArm, Result, levels, tiers

THOUSAND = 1000.0  # questions that prices are given for: those of one are too small to read


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in a cell, and what is smaller below it."""

    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """A column's or a row's name, what is smaller below it, and for an arm its role in the charts."""

    text: str
    note: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table; a None is an empty cell."""

    head: Head
    cells: Sequence[Entry | None]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its caption, the heads of all columns, its rows."""

    caption: str
    heads: Sequence[Head]
    lines: Sequence[TableRow]


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    note: str
    cell: Callable[[ReportArm], Entry | None]


def _interval(arm: ReportArm, name: str, form: Callable[[float], str], ends: Callable[[float], str]) -> Entry | None:
    value, pair = getattr(arm, name), getattr(arm, f"{name}_ci")
    return None if value is None else Entry(form(value), "" if pair is None else span(pair, ends))


def _maybe(name: str, form: Callable[[float], str], scale: float = 1.0) -> Callable[[ReportArm], Entry | None]:
    def cell(arm: ReportArm) -> Entry | None:
        value = getattr(arm, name)
        return None if value is None else Entry(form(scale * value))

    return cell


def _bounded(name: str, bound: str, words: str) -> Callable[[ReportArm], Entry | None]:
    """A share with its one-sided bound."""

    def cell(arm: ReportArm) -> Entry | None:
        value, end = getattr(arm, name), getattr(arm, bound)
        return None if value is None else Entry(format_percent(value), "" if end is None else f"{words} {plain(end)}")

    return cell


_GAINS = (
    _Column("Accuracy", "95 % interval", lambda arm: _interval(arm, "accuracy", format_percent, plain)),
    _Column("Δ accuracy", "points", lambda arm: _interval(arm, "delta_accuracy", signed, signed)),
    _Column("p", "McNemar", _maybe("mcnemar_p", p_value)),
    _Column("Tokens saved", "95 % interval", lambda arm: _interval(arm, "saving", format_percent, plain)),
    _Column(
        "At equal accuracy", "saved of a fixed budget", lambda arm: _interval(arm, "iso_saving", format_percent, plain)
    ),
    _Column("Harm", "right made wrong", _bounded("harm", "harm_upper", "at most")),
    _Column("Help", "wrong made right", _bounded("help", "help_lower", "at least")),
    _Column("Thinking", "tokens", lambda arm: Entry(tokens(arm.tokens.thinking))),
    _Column("Answer", "tokens", lambda arm: Entry(tokens(arm.tokens.answer))),
    _Column("Overhead", "weighted", lambda arm: Entry(tokens(arm.tokens.overhead))),
    _Column("Total", "tokens", lambda arm: Entry(tokens(arm.tokens.total))),
)
_COSTS = (
    _Column("Wall time", "seconds in all", _maybe("seconds", significant)),
    _Column("FLOPs", "a question", _maybe("flops", prefixed)),
    _Column("USD", "per 1,000 questions", _maybe("usd", significant, THOUSAND)),
    _Column("Cost of pass", "USD per 1,000 right", _maybe("cost_of_pass", significant, THOUSAND)),
    _Column("E³", "", _maybe("e3", significant)),
)


def gains(result: Result) -> Table:
    """What every arm gets right, what it saves and where its tokens go."""
    caption = f"What each arm gets right and what it takes, means of {pluralize(result.base.n, 'question')}"
    return _of_arms(caption, _GAINS, result)


def costs(result: Result) -> Table | None:
    """What every arm costs; None if nothing of it is known."""
    table = _of_arms("What each arm costs", _COSTS, result)
    return table if len(table.heads) > 1 else None


def spent(result: Result) -> Table:
    """Tokens beside thinking and answer by what they were spent on, and outputs that came to nothing."""
    used = [kind for kind in OVERHEADS if any(getattr(arm.overhead, kind) for arm in result.arms)]
    columns = [
        _Column("Prompt", "", lambda arm: Entry(tokens(arm.prompt))),
        _Column("Forced", "within thinking", lambda arm: Entry(tokens(arm.forced))),
        *(_Column(kind.capitalize(), _weight(kind, result.weights), _spent_on(kind)) for kind in used),
        _Column("Cut off", "at the token limit", lambda arm: Entry(format_percent(arm.capped))),
        _Column("No answer", "", lambda arm: Entry(format_percent(arm.unanswered))),
    ]
    return _of_arms("Mean tokens of one generation by kind, beside thinking and answer", columns, result)


def _spent_on(kind: str) -> Callable[[ReportArm], Entry]:
    return lambda arm: Entry(tokens(getattr(arm.overhead, kind)))


def _weight(kind: str, weights: Mapping[str, float]) -> str:
    weight = weights.get("helper" if kind == "delegated" else kind, 1.0)
    return f"overhead, × {weight:.3g}"


def _of_arms(caption: str, columns: Sequence[_Column], result: Result) -> Table:
    """A line an arm; columns that no arm has an entry for are left out."""
    cells = {column: [column.cell(arm) for arm in result.arms] for column in columns}
    kept = [column for column in columns if any(cells[column])]
    heads = [Head("Arm"), *(Head(column.name, column.note) for column in kept)]
    lines = [TableRow(_head(arm, result), [cells[column][i] for column in kept]) for i, arm in enumerate(result.arms)]
    return Table(caption, heads, lines)


def _head(arm: ReportArm, result: Result) -> Head:
    role = arm_role(arm, result)
    return Head(arm.name, {"cut": "cut afterwards", "other": ""}.get(role, role), role)


def by_level(result: Result) -> Table | None:
    """Levels of the baseline and the judged arm in numbers; None if there are none."""
    base, judged = result.base.per_level, result.judge.per_level
    return _pairs("By level", "Level", {name: (base[name], judged[name]) for name in levels(result)}, result)


def by_tier(result: Result) -> Table | None:
    """Tiers of effort in numbers; None if there is only one."""
    found = tiers(result)
    return _pairs("By tier of effort", "Tier", found, result) if len(found) > 1 else None


def _pairs(caption: str, what: str, cells: Mapping[str, tuple[Cell, Cell]], result: Result) -> Table | None:
    if not cells:
        return None
    arms = (result.baseline, result.judged)
    heads = [Head(what), Head("Questions")]
    heads += [Head(name, arm) for name in ("Accuracy", "Thinking", "Total") for arm in arms]
    lines = []
    for name, pair in cells.items():
        shown = [format_percent(cell.accuracy) for cell in pair]
        shown += [tokens(cell.thinking) for cell in pair] + [tokens(cell.total) for cell in pair]
        counts = dict.fromkeys(f"{cell.n:,}" for cell in pair)
        lines.append(TableRow(Head(name), [Entry(" / ".join(counts)), *map(Entry, shown)]))
    return Table(f"{caption}, {result.baseline} and {result.judged}", heads, lines)


def budgets(result: Result) -> Table | None:
    """The curve of fixed budgets in numbers; None if there is none."""
    heads = [Head("Budget", "thinking tokens"), Head("Accuracy"), Head("Tokens", "a question")]
    lines = [
        TableRow(Head(f"{p.budget:,}"), [Entry(format_percent(p.accuracy)), Entry(tokens(p.total))])
        for p in result.budget_curve
    ]
    return Table(f"{result.baseline} under fixed budgets of thinking", heads, lines) if lines else None


def bins(result: Result) -> Table | None:
    """Calibration in numbers; None if there is none."""
    if result.calibration is None:
        return None
    heads = [Head("Confidence"), Head("Right"), Head("Answers")]
    found = [b for b in result.calibration.bins if b.n]
    lines = [
        TableRow(Head(format_percent(b.confidence)), [Entry(format_percent(b.accuracy)), Entry(f"{b.n:,}")])
        for b in found
    ]
    return Table("Trial answers by confidence", heads, lines)


def overview(results: Sequence[tuple[str, Result]]) -> Table:
    """A line a result: who was judged on what, and what came of it."""
    heads = [
        Head("Result"),
        Head("Questions"),
        Head("Accuracy", "baseline → judged"),
        Head("Δ accuracy", "points"),
        Head("Tokens", "baseline → judged"),
        Head("Tokens saved", "95 % interval"),
        Head("Verdict"),
    ]
    lines = []
    for name, result in results:
        base, judged = result.base, result.judge
        cells = [
            Entry(f"{base.n:,}"),
            Entry(f"{format_percent(base.accuracy)} → {format_percent(judged.accuracy)}"),
            _interval(judged, "delta_accuracy", signed, signed),
            Entry(f"{tokens(base.tokens.total)} → {tokens(judged.tokens.total)}"),
            _interval(judged, "saving", format_percent, plain),
            Entry(result.verdict, f"margin {points(result.margin)}"),
        ]
        lines.append(TableRow(Head(f"{result.model} on {', '.join(result.tasks)}", f"{judged.name} · {name}"), cells))
    return Table("All results at a glance", heads, lines)
