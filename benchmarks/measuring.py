"""What the benchmarks share: options of their command lines, runs in turns, and how figures are printed."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tersely.controller.options import GenerationOptions
    from tersely.controller.trace import GenerationResult
    from tersely.evaluation.runner import SessionRunner
    from tersely.evaluation.tasks.questions import Question

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def make_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with --json, and with --repeats, --threads and --clock where a default is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if "repeats" in defaults:
        parser.add_argument("--repeats", type=int, help="repetitions of each measurement (default: %(default)s)")
    if "threads" in defaults:
        parser.add_argument("--threads", type=int, help="torch threads (default: %(default)s)")
    if "clock" in defaults:
        parser.add_argument("--clock", choices=sorted(CLOCKS), help="cpu helps on a loaded machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(**defaults)
    return parser


def time_in_turns(
    ways: Mapping[str, Callable[[], object]], repeats: int, clock: str = "wall", calls: Mapping[str, int] | int = 1
) -> dict[str, list[float]]:
    """Seconds per call of each way, in turns that change direction; without the first turn, which warms up."""
    now, taken = CLOCKS[clock], {name: list[float]() for name in ways}
    for turn in range(repeats + 1):
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            count = calls if isinstance(calls, int) else calls[name]
            start = now()
            for _ in range(count):
                ways[name]()
            taken[name].append((now() - start) / count)
    return {name: seconds[1:] for name, seconds in taken.items()}


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median of one over the other, turn by turn."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def print_figures(figures: Mapping[str, Any], as_json: bool, digits: int | None = None) -> None:
    """Print figures as one JSON object, or one per line; rounded to so many digits if given."""
    if digits is not None:
        figures = {name: round(value, digits) if isinstance(value, float) else value for name, value in figures.items()}
    if as_json:
        print(json.dumps(figures))
        return
    lines = dict(_flatten(figures))
    width = max(map(len, lines), default=0)
    for name, value in lines.items():
        print(f"{name:{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")


def _flatten(figures: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{name}  ")
        else:
            yield f"{path}{name}", value


def answer_all(
    runner: SessionRunner,
    questions: Sequence[Question],
    options: GenerationOptions,
    *,
    seed: int,
    size: int,
    advance: Callable[[int], None] | None = None,
) -> list[GenerationResult]:
    """Answer every question once, in order; `advance` is called with the number of rows after each batch."""
    from tersely.controller.options import with_seed
    from tersely.evaluation.runner import batch_seed, batches

    results: dict[int, GenerationResult] = {}
    for number, indices in enumerate(batches(questions, size)):
        seeded = with_seed(options, batch_seed(seed, 0, number))
        results.update(zip(indices, runner.answer([questions[i].problem for i in indices], seeded), strict=True))
        if advance is not None:
            advance(len(indices))
    return [results[i] for i in range(len(questions))]
