"""The command `tersely report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ...io import WriteError, write
from . import charts, csvs, png
from .formatting import pluralize
from .page import page, title
from .result import Result, read

_PICTURES = {"pareto": charts.pareto, "levels": charts.by_level, "calibration": charts.calibration}


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Result files, as `tersely bench --out` makes them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to; made if it is missing.")],
) -> None:
    """Make tables, pictures and one self-contained HTML page of benchmark results."""
    found = [(name, read(path)) for name, path in zip(_names(results), results, strict=True)]
    png.require()
    made = dict(_contents(found))
    _prepare(out)
    for name, content in made.items():
        write(out / name, content)
    _clear(out, made)
    print(f"{out}: {', '.join(made)}")


def _names(paths: Sequence[Path]) -> list[str]:
    """What tells results apart: the files' names, or whole paths where names repeat."""
    names = [path.name for path in paths]
    told = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [name.encode(errors="replace").decode() for name in told]  # a file's name may hold bytes that are no text


def _contents(results: Sequence[tuple[str, Result]]) -> Iterator[tuple[str, str | bytes]]:
    """File names and what they hold; pictures are numbered where there are several results."""
    yield "report.html", page(results, version("tersely"))
    yield "arms.csv", csvs.arms_csv(results)
    yield "rows.csv", csvs.rows_csv(results)
    for i, (_, result) in enumerate(results, 1):
        for name, chart in _PICTURES.items():
            scene = chart(result, charts.WIDE)
            if scene is not None:
                asked = f"{pluralize(result.base.n, 'question')}, seed {result.seed}"
                yield f"{name}{f'-{i}' if len(results) > 1 else ''}.png", png.png(scene, title(result), asked)


def _prepare(out: Path) -> None:
    """Make the folder; raises WriteError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise WriteError(f"--out {out} cannot be made: {what}; accepted: a folder, new or not") from None


def _clear(out: Path, made: dict[str, str | bytes]) -> None:
    """Take away pictures of an earlier report that this one does not have, and nothing that was not made here."""
    for name in _PICTURES:
        for path in out.glob(f"{name}*.png"):
            if path.name not in made and path.is_file() and png.is_picture(path):
                path.unlink()
