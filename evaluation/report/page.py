"""The HTML page of a report: tables, charts and sentences, without any script."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..html_page import make_environment, render_page
from . import formatting, tables
from .charts import DARK, LIGHT, draw_charts
from .schema import BenchmarkResult
from .tables import NamedResults

_PACKAGE = "tersely.evaluation.report"
_VERDICT_SIGNS: Mapping[str, tuple[str, str]] = {
    "non-inferior and saving": ("good", "✓"),
    "inferior": ("bad", "✕"),
    "not saving": ("bad", "✕"),
    "inconclusive": ("open", "?"),
}
"""A CSS class and a sign for each verdict, since not everyone can tell the colours apart."""
_FILTERS = (
    formatting.format_difference,
    formatting.format_interval,
    formatting.format_number,
    formatting.format_percent,
    formatting.format_points,
    formatting.format_significant,
    formatting.format_tokens,
    formatting.pluralize,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart as data URIs for light and dark pages."""

    light: str
    dark: str
    alt: str


def report_page(results: NamedResults, version: str) -> str:
    """Build the page of named results; the names tell the results apart."""
    environment = make_environment(_PACKAGE)
    environment.filters.update({function.__name__: function for function in _FILTERS})
    environment.filters["command_line"] = shlex.join
    environment.globals.update(
        tables=tables, signs=_VERDICT_SIGNS, list_facts=list_facts, list_omissions=list_omissions
    )
    environment.globals.update(format_difference=formatting.format_difference)
    return render_page(
        environment,
        "report.html",
        package=_PACKAGE,
        style="report.css",
        generator="tersely report",
        title=results[0][1].title if len(results) == 1 else f"{len(results)} benchmark results",
        results=[(result, draw_pictures(result)) for _, result in results],
        overview=tables.overview_table(results),
        version=version,
    )


def draw_pictures(result: BenchmarkResult) -> dict[str, Picture]:
    """Draw the charts of a result for the page."""
    light, dark = draw_charts(result, LIGHT), draw_charts(result, DARK)
    return {
        name: Picture(_data_uri(chart.to_svg()), _data_uri(dark[name].to_svg()), chart.alt)
        for name, chart in light.items()
    }


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def list_facts(result: BenchmarkResult) -> list[tuple[str, str]]:
    """List what one needs to know to read or repeat a run."""
    facts = [
        ("Model", result.model),
        ("Helper", result.helper),
        ("Tasks", ", ".join(result.tasks)),
        *(
            (f"Split {name}", f"{formatting.pluralize(split.n, 'question')}, hash {split.sha256}")
            for name, split in result.splits.items()
        ),
        ("Seed", f"{result.seed}, {formatting.pluralize(result.rollouts, 'rollout')} per question"),
        ("Effort", f"{result.effort}, at most {result.max_new_tokens:,} new tokens"),
        ("Margin", f"{formatting.format_points(result.margin)} of accuracy"),
        ("Engine", result.engine),
        ("Machine", result.machine),
        ("Date", result.date),
        ("tersely", result.tersely + (f", commit {result.commit}" if result.commit else "")),
        *result.versions.items(),
    ]
    return [(name, value) for name, value in facts if value]


def list_omissions(result: BenchmarkResult) -> Iterator[str]:
    """Say in a sentence each what a result does not contain."""
    if not any(arm.tokens.total for arm in result.arms):
        yield "The chart of accuracy over tokens is left out, because no arm generated any tokens."
    if not result.budget_curve:
        yield "Savings at equal accuracy are left out, because fixed budgets were not run."
    if not result.shared_levels():
        yield "The chart by level is left out, because the questions have no levels."
    if result.calibration is None or not result.calibration.n:
        yield "The calibration chart is left out, because there were no trial answers."
    for field, subject in (("seconds", "Wall times"), ("flops", "FLOPs"), ("usd", "Prices and the cost of a pass")):
        if all(getattr(arm, field) is None for arm in result.arms):
            yield f"{subject} are not known."
    if not result.rows:
        yield "The result contains no single generations, so rows.csv has a header only."
