"""The command `tersely report`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ...io import WriteError, write
from .charts import CHARTS, draw_charts, is_our_picture, require_matplotlib
from .formatting import pluralize
from .page import report_page
from .schema import load_result
from .tables import NamedResults, arms_csv, rows_csv


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
    _make_folder(out)
    for name, content in contents.items():
        write(out / name, content)
    _remove_stale_pictures(out, contents)
    typer.echo(f"{out}: {', '.join(contents)}")


def _result_names(paths: Sequence[Path]) -> list[str]:
    """Return the files' names, or their whole paths where names repeat."""
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
        subtitle = f"{pluralize(result.base.n, 'question')}, seed {result.seed}"
        for name, chart in draw_charts(result).items():
            yield f"{name}{number}.png", chart.to_png(result.title, subtitle)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise WriteError(f"--out {out} cannot be created: {reason}; accepted: a folder, new or not") from None


def _remove_stale_pictures(out: Path, written: Iterable[str]) -> None:
    """Remove charts of an earlier report that this one does not have, and nothing that we did not write."""
    for name in CHARTS:
        for path in out.glob(f"{name}*.png"):
            if path.name not in written and path.is_file() and is_our_picture(path):
                path.unlink()
