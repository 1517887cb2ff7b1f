"""The command `tersely report`, and its HTML page: tables, charts and sentences, without any script."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ...controller.options import MAX_OUTPUT_TOKENS
from ...io import make_folder, write
from ..cli_utils import render_page
from . import formatting
from .charts import CHARTS, draw_charts, is_our_picture, require_matplotlib
from .formatting import NamedResults, arms_csv, rows_csv
from .schema import BenchmarkResult, load_result

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
        generator="tersely report",
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
    out: Annotated[Path, typer.Option(help="Output folder; created if it does not exist.")],
) -> None:
    """Write tables, charts and one self-contained HTML page of benchmark results."""
    loaded = [(name, load_result(path)) for name, path in zip(_result_names(results), results, strict=True)]
    require_matplotlib()
    contents = dict(_render(loaded))
    make_folder(out)
    for name, content in contents.items():
        write(out / name, content)
    for path in (path for name in CHARTS for path in out.glob(f"{name}*.png")):  # charts of an earlier report of ours
        if path.name not in contents and path.is_file() and is_our_picture(path):
            path.unlink()
    typer.echo(f"{out}: {', '.join(contents)}")


def _result_names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    unique = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [name.encode(errors="replace").decode() for name in unique]  # file names may contain invalid UTF-8


def _render(results: NamedResults) -> Iterator[tuple[str, str | bytes]]:
    """Yield file names and contents; charts are numbered if there are several results."""
    yield "report.html", report_page(results, version("tersely"))
    yield "arms.csv", arms_csv(results)
    yield "rows.csv", rows_csv(results)
    for i, (_, result) in enumerate(results, 1):
        number = f"-{i}" if len(results) > 1 else ""
        subtitle = f"{formatting.pluralize(result.base.n, 'question')}, seed {result.seed}"
        for name, chart in draw_charts(result).items():
            yield f"{name}{number}.png", chart.to_png(result.title, subtitle)
