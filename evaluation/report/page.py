"""One self-contained HTML page out of results: templates, style and charts in a single file, no script at all.

The page asks the network for nothing and could not: its content security policy allows its own style by a hash and
nothing else. All text goes through the templates, which escape it.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from . import charts, tables
from . import formatting as words
from .result import Result, levels
from .scene import Scene
from .svg import svg

_MARKS: Mapping[str, tuple[str, str]] = {
    "non-inferior and saving": ("good", "✓"),
    "inferior": ("bad", "✕"),
    "not saving": ("bad", "✕"),
    "inconclusive": ("open", "?"),
}
"""Verdict -> class in the style sheet, and a sign, since colour alone does not tell everyone."""


def page(results: Sequence[tuple[str, Result]], version: str) -> str:
    """The page of named results; a name tells results apart, the file's say."""
    style = _asset("report.css")
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    return (
        _environment()
        .get_template("report.html")
        .render(
            policy=policy,
            title=title(results[0][1]) if len(results) == 1 else f"{len(results)} benchmark results",
            style=Markup(style),
            results=[result for _, result in results],
            overview=tables.overview(results),
            version=version,
        )
    )


def title(result: Result) -> str:
    """What a result is called."""
    return f"{result.model} on {', '.join(result.tasks)}"


def facts(result: Result) -> list[tuple[str, str]]:
    """What one has to know of a run in order to read or repeat it."""
    splits = result.splits.items()
    known = [
        ("Model", result.model),
        ("Helper", result.helper),
        ("Tasks", ", ".join(result.tasks)),
        *((f"Split {name}", f"{words.pluralize(split.n, 'question')}, hash {split.sha256}") for name, split in splits),
        ("Seed", f"{result.seed}, {words.pluralize(result.rollouts, 'rollout')} a question"),
        ("Effort", f"{result.effort}, at most {result.max_new_tokens:,} new tokens"),
        ("Margin", f"{words.points(result.margin)} of accuracy"),
        ("Engine", result.engine),
        ("Machine", result.machine),
        ("Date", result.date),
        ("tersely", result.tersely + (f", commit {result.commit}" if result.commit else "")),
        *result.versions.items(),
    ]
    return [(name, value) for name, value in known if value]


def omitted(result: Result) -> Iterator[str]:
    """What a result does not hold, a sentence each."""
    if not any(arm.tokens.total for arm in result.arms):
        yield "No arm has written a token, so there is no plot of accuracy over tokens."
    if not result.budget_curve:
        yield "There is no curve of fixed budgets, and so nothing that was saved at equal accuracy."
    if not levels(result):
        yield "The questions have no levels, so there is no plot by level."
    if result.calibration is None or not result.calibration.n:
        yield "No trial answers were asked for, so there is no calibration plot."
    for name, what in (("seconds", "wall time"), ("flops", "FLOPs"), ("usd", "prices and the cost of a pass")):
        if all(getattr(arm, name) is None for arm in result.arms):
            yield f"Nothing is known of {what}."
    if not result.rows:
        yield "The result holds no rows, so rows.csv has a head and nothing else."


def _both(chart: Callable[[Result, charts.Size], Scene | None], result: Result) -> Markup | None:
    """A chart for wide and for narrow pages; the style sheet shows one of them."""
    wide, narrow = chart(result, charts.WIDE), chart(result, charts.NARROW)
    return None if wide is None or narrow is None else Markup(svg(wide, "wide") + svg(narrow, "narrow"))


def _environment() -> Environment:
    env = Environment(loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined)
    used = (
        words.pluralize,
        words.format_number,
        words.format_percent,
        words.points,
        words.significant,
        words.span,
        words.tokens,
    )
    env.filters.update({function.__name__: function for function in (*used, words.signed)})
    env.filters["command_line"] = shlex.join
    env.globals.update(charts=charts, tables=tables, words=words, marks=_MARKS)
    env.globals.update(both=_both, facts=facts, omitted=omitted, title_of=title)
    return env


def _asset(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
