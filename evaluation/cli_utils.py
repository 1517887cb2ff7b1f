"""Helpers of the evaluation commands: options that several share, comma-separated lists, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, TypeVar

import typer

from ..errors import OptionError, unknown

T = TypeVar("T", int, float)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model name or folder.")]
Tasks = Annotated[str, typer.Option("--tasks", help="Tasks: tiny, gym:NAME, or JSONL files of {id, problem, answer}.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed for drawing questions and for sampling.")]
Probes = Annotated[
    str | None, typer.Option("--probes", help="Folder of `tersely calibrate`, instead of the pretrained probes.")
]
Price = Annotated[str | None, typer.Option("--price", help="The model's price: a name in the price table.")]
Margin = Annotated[float, typer.Option("--margin", help="Largest acceptable accuracy loss, e.g. 0.01 for one point.")]
Engine = Annotated[str, typer.Option("--engine", help="Engine: transformers, or the faster vllm.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows decoded at a time.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=2, help="Maximum new tokens per generation.")]
ThinkPrompt = Annotated[bool, typer.Option("--think-prompt", help="Prompt a model without thinking markers to think.")]


def check_margin(margin: float) -> None:
    """Raise OptionError unless the margin is a share from 0 to below 1."""
    if not 0 <= margin < 1:
        raise OptionError(f"--margin is {margin}; accepted: 0 or more and less than 1, e.g. 0.01 for one point")


def split_list(option: str, text: str) -> tuple[str, ...]:
    """Split a comma-separated list of distinct values; raises OptionError for a repeated one."""
    parts = tuple(part.strip() for part in text.split(","))
    _check_distinct(option, text, parts)
    return parts


def parse_names(option: str, what: str, text: str, accepted: Sequence[str]) -> tuple[str, ...]:
    """Split a comma-separated list of names; raises OptionError for a name that is not accepted."""
    names = split_list(option, text)
    for name in names:
        if name not in accepted:
            raise unknown(what, name, accepted)
    return names


def parse_numbers(option: str, text: str, kind: Callable[[str], T], accepted: str = "numbers") -> tuple[T, ...]:
    """Parse a comma-separated list of distinct numbers; raises OptionError, saying what is `accepted`."""
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; accepted: {accepted} separated by commas") from None
    _check_distinct(option, text, numbers)
    return numbers


def _check_distinct(option: str, text: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise OptionError(f"{option} {text!r} repeats a value; accepted: each at most once", code="repeated_value")


@contextmanager
def show_progress(total: float) -> Iterator[Callable[[str, float], None]]:
    """Show a progress bar if stderr is a terminal; yields `advance(description, amount)`."""
    if not sys.stderr.isatty():
        yield lambda description, amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda description, amount: progress.update(task, advance=amount, description=description)
