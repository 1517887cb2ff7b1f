"""The command `tersely report`: an HTML page of tables, sentences and charts drawn with matplotlib, without scripts."""

from __future__ import annotations

import base64
import io
import math
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...controller.options import MAX_OUTPUT_TOKENS, flag
from ...io import check_replaceable, make_folder, write
from ..cli_utils import is_page_by, render_page
from . import formatting
from .formatting import (
    NamedResults,
    arms_csv,
    format_number,
    format_percent,
    format_tokens,
    pluralize,
    rows_csv,
    shorten_label,
)
from .schema import BenchmarkResult, Role, load_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SOFTWARE = "tersely report"  # what our pages and PNG files name as the software that wrote them
_PAGE = "report.html"
_MARKERS = "os^Dv<>pPX*h"
_DRAWING_ORDER: Mapping[Role, int] = {"judged": 3, "baseline": 2, "other": 1, "cut": 0}


INK, SOFT, RULE, JUDGED, CURVE = "#1b2230", "#556072", "#e3e7ed", "#2f55d4", "#9a5200"
OTHERS = ("#00795c", "#b3399a", "#c25700", "#4f7ea8", "#8a6d00", "#7a5bbf")
"""Colours, which dark pages invert; `OTHERS` are for arms that are neither the baseline nor judged."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart, and a text that says what it shows."""

    figure: Figure
    alt: str

    def to_svg(self) -> bytes:
        """Render as SVG, with letters as outlines: the same everywhere, and without markup of the result's texts."""
        from matplotlib import rc_context

        with rc_context({"svg.hashsalt": "tersely", "svg.fonttype": "path"}):
            return self._save(format="svg", metadata={"Date": None})

    def to_png(self, title: str, subtitle: str) -> bytes:
        length = int(8 * self.figure.get_figwidth())  # characters that fit next to the legend
        text = f"{shorten_label(title, length)}\n{shorten_label(subtitle, length)}"
        self.figure.suptitle(text, x=0.01, ha="left", size=11, color=INK).set_parse_math(False)
        return self._save(format="png", dpi=200, metadata={"Software": _SOFTWARE, "Title": title})

    def _save(self, **options: Any) -> bytes:
        out = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
            self.figure.savefig(out, facecolor="white", **options)
        return out.getvalue()


def is_our_picture(path: Path) -> bool:
    """Return whether a file is a PNG that was written here."""
    with path.open("rb") as file:
        return _SOFTWARE.encode() in file.read(512)


def draw_charts(result: BenchmarkResult) -> dict[str, Chart]:
    """Draw the charts that a result has the numbers for, by name: pareto, levels, calibration.

    There are none without matplotlib.
    """
    if find_spec("matplotlib") is None:
        return {}
    drawn = {name: draw(result) for name, draw in CHARTS.items()}
    return {name: chart for name, chart in drawn.items() if chart is not None}


def draw_pareto(result: BenchmarkResult) -> Chart | None:
    """Draw accuracy over mean total tokens; None if no arm generated anything."""
    arms = [arm for arm in result.arms if arm.tokens.total > 0]
    if not arms:
        return None
    arms.sort(key=lambda arm: -_DRAWING_ORDER[result.get_role(arm)])
    figure, axes = _make_figure(8.6, max(4.3, 0.24 * len(arms) + 0.8))
    handles, others = [], 0
    for arm in arms:
        role, (low, high) = result.get_role(arm), arm.accuracy_ci
        color, marker = {"judged": (JUDGED, "o"), "baseline": (INK, "s")}.get(role, ("", ""))
        if not color:  # no two of the first arms are alike
            color, marker = OTHERS[others % len(OTHERS)], _MARKERS[(others + 2) % len(_MARKERS)]
            others += 1
        handles.append(
            axes.errorbar(
                arm.tokens.total,
                100 * arm.accuracy,
                yerr=[[100 * max(0.0, arm.accuracy - low)], [100 * max(0.0, high - arm.accuracy)]],
                color=color,
                marker=marker,
                markersize=8 if role == "judged" else 6.5,
                markerfacecolor="white" if role == "cut" else color,
                elinewidth=1.2,
                linestyle="none",
                zorder=2 + _DRAWING_ORDER[role],
            )
        )
    labels = [arm.name for arm in arms]
    if curve := [point for point in result.budget_curve if point.total > 0]:
        xs, ys = [point.total for point in curve], [100 * point.accuracy for point in curve]
        handles += axes.plot(xs, ys, color=CURVE, marker=".", linewidth=1.4, zorder=1.5)
        labels.append(f"{result.baseline}, fixed budgets")
    _use_log_tokens(axes)
    _set_titles(axes, "Accuracy in %, with 95 % interval", "Tokens per question, log scale")
    _add_legend(figure, handles, labels, "outside right upper")
    points = "; ".join(f"{a.name} {format_percent(a.accuracy)} at {format_tokens(a.tokens.total)} tokens" for a in arms)
    text = f"Accuracy over mean total tokens per question, tokens on a logarithmic scale: {points}."
    return Chart(figure, text)


def _use_log_tokens(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.08)
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    subs = next((subs for most, subs in ((1.6, (1, 2, 3, 5)), (2.6, (1, 2, 5)), (3.6, (1, 3))) if decades < most), (1,))
    # Within a decade, round steps say more than powers.
    axes.xaxis.set_major_locator(MaxNLocator(7) if decades < 1 else LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_levels(result: BenchmarkResult) -> Chart | None:
    """Draw accuracy and thinking of the baseline and the judged arm by level; None without levels."""
    levels = result.shared_levels()
    if not levels:
        return None
    figure, panels = _make_figure(8.6, 3.7, columns=2)
    handles: list[Any] = []
    for axes, title in zip(panels, ("Accuracy in %", "Thinking tokens per question"), strict=True):
        handles = []
        for i, (color, marker) in enumerate(((INK, "s"), (JUDGED, "o"))):
            groups = [pair[i] for pair in levels.values()]
            values = [100 * g.accuracy if axes is panels[0] else g.thinking for g in groups]
            handles += axes.plot(range(len(levels)), values, color=color, marker=marker, linewidth=2, markersize=5.5)
        names = [shorten_label(name) for name in levels]
        every = max(1, math.ceil(sum(len(name) + 2 for name in names) / 44))
        axes.set_xticks(range(0, len(names), every), names[::every], parse_math=False)
        axes.set_ylim(bottom=0, top=103 if axes is panels[0] else None)
        _set_titles(axes, title, "Level")
    _add_legend(figure, handles, [result.baseline, result.judged], "outside lower center", columns=2)
    names_text = f"{result.baseline} and {result.judged}"
    return Chart(figure, f"Accuracy and thinking tokens of {names_text} on {pluralize(len(levels), 'level')}.")


def draw_calibration(result: BenchmarkResult) -> Chart | None:
    """Draw the accuracy of trial answers over their confidence; None without any."""
    calibration = result.calibration
    if calibration is None or not calibration.n:
        return None
    bins = [one for one in calibration.bins if one.n]
    figure, axes = _make_figure(4.4, 4.4)
    axes.plot([0, 100], [0, 100], color=SOFT, linestyle=(0, (3, 4)), linewidth=1)
    xs, ys = [100 * one.confidence for one in bins], [100 * one.accuracy for one in bins]
    largest = max((one.n for one in bins), default=1)
    axes.plot(xs, ys, color=JUDGED, linewidth=1.4)
    axes.scatter(xs, ys, s=[max(12.0, 220 * one.n / largest) for one in bins], color=JUDGED, zorder=2)
    axes.set(xlim=(-3, 103), ylim=(-3, 103), xticks=range(0, 101, 25), yticks=range(0, 101, 25), aspect="equal")
    _set_titles(axes, "Right answers in %", "Confidence in %")
    text = (
        f"Share of right trial answers over their confidence, {pluralize(calibration.n, 'answer')}; "
        f"expected calibration error {format_number(calibration.ece, 3)}."
    )
    return Chart(figure, text)


CHARTS = {"pareto": draw_pareto, "levels": draw_levels, "calibration": draw_calibration}


def _make_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in figure.axes:
        one.set_facecolor("white")  # whatever the user's style says
        one.grid(axis="y", color=RULE, linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=SOFT, labelsize=9, length=0)
        one.spines[["left", "right", "top"]].set_visible(False)
        one.spines["bottom"].set_color(SOFT)
    return figure, axes


def _set_titles(axes: Axes, y: str, x: str) -> None:
    axes.set_title(y, loc="left", fontsize=10, color=INK, pad=10)
    axes.set_xlabel(x, loc="right", fontsize=10, color=INK)


def _add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], loc: str, columns: int = 1) -> None:
    # A label that begins with an underscore would be left out.
    shown = [f" {label}" if label.startswith("_") else label for label in map(shorten_label, labels)]
    legend = figure.legend(handles, shown, loc=loc, ncols=columns, frameon=False, fontsize=9, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)


_VERDICT_SIGNS: Mapping[str, tuple[str, str]] = {
    "non-inferior and saving": ("good", "✓"),
    "inferior": ("bad", "✕"),
    "not saving": ("bad", "✕"),
    "inconclusive": ("open", "?"),
}
"""A CSS class and a sign for each verdict, since not everyone can tell the colours apart."""


def report_page(results: NamedResults, version: str) -> str:
    """Build the page of named results; the names tell the results apart."""
    filters = {name: value for name, value in vars(formatting).items() if callable(value)}
    return render_page(
        "report",
        {**filters, "command_line": shlex.join},
        formatting=formatting,
        signs=_VERDICT_SIGNS,
        most_tokens=MAX_OUTPUT_TOKENS,
        generator=_SOFTWARE,
        title=results[0][1].title if len(results) == 1 else f"{len(results)} benchmark results",
        results=[(name, result, draw_pictures(result)) for name, result in results],
        version=version,
    )


def draw_pictures(result: BenchmarkResult) -> dict[str, dict[str, str]]:
    """Draw the charts of a result for the page: a data URI and a text for each."""
    return {
        name: {"alt": chart.alt, "src": f"data:image/svg+xml;base64,{base64.b64encode(chart.to_svg()).decode()}"}
        for name, chart in draw_charts(result).items()
    }


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Result files written by `tersely bench --out`.")
    ],
    out: Annotated[Path, flag("Output folder; created if it does not exist.")],
) -> None:
    """Write tables, charts and one self-contained HTML page of benchmark results; no charts without matplotlib."""
    loaded = [(name, load_result(path)) for name, path in zip(_result_names(results), results, strict=True)]
    contents = dict(_render(loaded))
    make_folder(out)
    page = out / _PAGE
    ours = page.is_file() and is_page_by(page, _SOFTWARE)
    for name in contents:
        check_replaceable(out / name, lambda _: ours)
    for name, content in contents.items():
        write(out / name, content)
    for path in (path for name in CHARTS for path in out.glob(f"{name}*.png")):  # charts of an earlier report of ours
        if path.name not in contents and path.is_file() and is_our_picture(path):
            path.unlink()
    typer.echo(f"{out}: {', '.join(contents)}")
    if find_spec("matplotlib") is None:
        typer.echo("no charts, as matplotlib is not installed; pip install 'tersely[bench]' adds it", err=True)


def _result_names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    unique = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [name.encode(errors="replace").decode() for name in unique]  # file names may contain invalid UTF-8


def _render(results: NamedResults) -> Iterator[tuple[str, str | bytes]]:
    """Yield file names and contents; charts are numbered if there are several results."""
    yield _PAGE, report_page(results, version("tersely"))
    yield "arms.csv", arms_csv(results)
    yield "rows.csv", rows_csv(results)
    for i, (_, result) in enumerate(results, 1):
        number = f"-{i}" if len(results) > 1 else ""
        subtitle = f"{pluralize(result.base.n, 'question')}, seed {result.seed}"
        for name, chart in draw_charts(result).items():
            yield f"{name}{number}.png", chart.to_png(result.title, subtitle)
