"""What evaluation commands share: options, comma-separated lists, resuming, tables, HTML pages and a progress bar."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..controller.options import flag
from ..controller.options import takes as takes
from ..errors import OptionError, check_known

T = TypeVar("T", str, int, float)
LOG_SECONDS = 30.0  # between lines about the progress where stderr is not a terminal

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model name or folder.")]
Tasks = Annotated[str, flag("Tasks: tiny, tiny:KIND+KIND, gym:NAME, or JSONL files of {question, answer}.")]
Seed = Annotated[int, flag("Seed for drawing questions and for sampling.", min=0)]
Probes = Annotated[str | None, flag("Folder of `tersely calibrate`, instead of the pretrained probes.")]
Price = Annotated[str | None, flag("The model's price: a name in the price table.")]
Engine = Annotated[str, flag("Engine: transformers, or the faster vllm.")]
BatchSize = Annotated[int, flag("Rows decoded at a time.", min=1)]
Json = Annotated[bool, flag("Print the result as one JSON object.", "--json")]
MaxNewTokens = Annotated[int, flag("Maximum new tokens per generation.", min=2)]
MarkerPair = Annotated[
    str | None, flag("How the model opens and closes its thinking; else found.", metavar="OPEN,CLOSE")
]
ThinkPrompt = Annotated[bool, flag("Prompt a model without thinking markers to think.", "--think-prompt")]


def check_margin(margin: float | None) -> float | None:
    """The value of --margin; raises OptionError for one that is not a share."""
    if margin is not None and not 0 <= margin < 1:
        raise OptionError(f"--margin is {margin}; accepted: 0 or more and less than 1, e.g. 0.01 for one point")
    return margin


Margin = Annotated[float, flag("Largest acceptable accuracy loss, e.g. 0.01 for one point.", callback=check_margin)]


def identify(options: Any, without: str) -> dict[str, Any]:
    """The options that decide a result, as JSON: all but the named ones, which are separated by spaces."""
    given = {one.name: getattr(options, one.name) for one in fields(options) if one.name not in without.split()}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def parse_list(option: str, text: str, kind: Callable[[str], T], accepted: Sequence[T] = ()) -> tuple[T, ...]:
    """Parse a comma-separated list of distinct values; raises OptionError, also for one that is not `accepted`."""
    try:
        values = tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; accepted: numbers separated by commas") from None
    if len(set(values)) < len(values):
        raise OptionError(f"{option} {text!r} repeats a value; accepted: each at most once", code="repeated_value")
    if accepted:
        check_known(f"value of {option}", values, accepted)
    return values


@contextmanager
def show_progress(total: float) -> Iterator[Callable[[str, float], None]]:
    """Show a progress bar if stderr is a terminal, else log now and then; yields `advance(description, amount)`."""
    if not sys.stderr.isatty():
        yield _ProgressLog(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda description, amount: progress.update(task, advance=amount, description=description)


def log_step(text: str) -> None:
    """Log a step of a run to stderr, unless that is a terminal, which shows a progress bar."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


class _ProgressLog:
    """Logs the share that is done: at the beginning, and when `LOG_SECONDS` have passed."""

    def __init__(self, total: float) -> None:
        self._total, self._done, self._logged = total, 0.0, time.monotonic()
        log_step(f"running; progress follows every {LOG_SECONDS:.0f} seconds")

    def __call__(self, description: str, amount: float) -> None:
        self._done += amount
        if time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            log_step(f"{min(self._done / self._total, 1):.0%} {description}")


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], first: str = "<") -> str:
    """Lay out a table as text: the `first` column to the left (or right, ">"), the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    forms = [f"{first}{widths[0]}", *(f">{width}" for width in widths[1:])]
    return "\n".join("  ".join(map(format, line, forms)).rstrip() for line in lines)


def format_interval(value: float | None, ends: Sequence[float] | None, form: str, scale: float = 1.0) -> str:
    """Format a value and its interval, such as "+1.0 [-2.0, +3.0]"; empty without a value."""
    if value is None or ends is None:
        return ""
    low, high = ends
    return f"{scale * value:{form}} [{scale * low:{form}}, {scale * high:{form}}]"


_FOLDER = Path(__file__).parent / "pages"
_HEAD_BYTES = 2048


def render_page(name: str, filters: Mapping[str, Any] | None = None, **context: Any) -> str:
    """Render `name`.html, which extends base.html, with its style sheet `name`.css and, if there is one, `name`.js.

    The page is one file that loads nothing: its content security policy allows its own style and script by their hashes
    alone. All text passes through Jinja, which escapes it.
    """
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(filters or {})
    css = _read("base.css") + _read(f"{name}.css")
    code = _read(f"{name}.js") if (_FOLDER / f"{name}.js").exists() else ""
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(css)}'; "
    policy += f"script-src '{_hash(code)}'; " if code else ""
    policy += "base-uri 'none'; form-action 'none'"
    page = environment.get_template(f"{name}.html")
    return page.render(policy=policy, style=Markup(css), script=Markup(code), **context)


def is_page_by(path: Path, generator: str) -> bool:
    """Return whether a file is a page that a command of ours wrote, such as `tersely view`."""
    with path.open("rb") as file:
        return f'<meta name="generator" content="{generator}">'.encode() in file.read(_HEAD_BYTES)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
