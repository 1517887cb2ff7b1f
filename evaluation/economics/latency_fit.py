"""Idealized runtime (arXiv 2305.02440): seconds of a generation from its token counts, fitted to logged timings.

It prices controllers on equal hardware without running each: what queueing, a cold start or a neighbour's job did to
one run is neither merit nor fault of the controller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt

from ...errors import TerselyError
from ..stats import Array
from .strict import StrictRecord, parse, read_text

NEEDED = 3
_FORM = '{"prompt": ..., "output": ..., "seconds": ...} with an optional "cached"'


class TimingError(TerselyError, ValueError):
    """Timings cannot be used: no such file, a line that is none, or too few to tell the costs apart."""


class Timing(StrictRecord):
    """One logged generation: tokens of its prompt (those of them cached) and output, and the seconds it took."""

    prompt: NonNegativeInt
    output: NonNegativeInt
    seconds: float = Field(ge=0)
    cached: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class Runtime:
    """T = start + per_prompt * (prompt - cached + re-prefilled) + per_output * (output - 1), in seconds and tokens.

    The first output token comes with the prompt. Tokens re-prefilled after a splice are prompt tokens once more; cached
    ones are taken to be free. `error` is the fit's root mean square residual in seconds, and `relative_error` the mean
    absolute one as a share of the mean time; both are None where as many timings as costs leave nothing to test them.
    """

    start: float
    per_prompt: float
    per_output: float
    timings: int
    error: float | None
    relative_error: float | None

    def seconds(self, prompt: float, output: float, cached: float = 0, reprefilled: float = 0) -> float:
        """The idealized time of one generation."""
        prefilled = prompt - cached + reprefilled
        return self.start + self.per_prompt * prefilled + self.per_output * max(output - 1, 0)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def dollars(seconds: float, devices: int, usd_per_hour: float) -> float:
    """Idealized cost of a time on so many devices."""
    return seconds * devices * usd_per_hour / 3600


def fit(timings: Iterable[Timing]) -> Runtime:
    """Fit by non-negative least squares; raises TimingError if the timings leave a cost undetermined.

    Of repeated lengths only the fastest counts: whatever made the others slower was not the work.
    """
    fastest: dict[tuple[int, int], float] = {}
    for timing in timings:
        key = (timing.prompt - timing.cached, max(timing.output - 1, 0))
        fastest[key] = min(timing.seconds, fastest.get(key, math.inf))
    design = np.array([[1.0, *key] for key in fastest]).reshape(-1, 3)
    seconds = np.array(list(fastest.values()))
    scale = np.maximum(design.max(axis=0, initial=0.0), 1.0)  # thousands of tokens beside a one would lose precision
    _check(design / scale)
    from scipy.optimize import nnls

    costs = nnls(design / scale, seconds)[0] / scale
    start, per_prompt, per_output = map(float, costs)
    return Runtime(start, per_prompt, per_output, len(fastest), *_errors(design @ costs - seconds, seconds))


def _check(design: Array) -> None:
    if len(design) >= NEEDED and np.linalg.matrix_rank(design) == NEEDED:
        return
    reason = (
        f"{len(design)} different pair(s) of prompt and output length cannot be fitted"
        if len(design) < NEEDED
        else f"in these {len(design)} timings the prompt and output lengths do not vary independently"
    )
    raise TimingError(f"{reason}; needed: {NEEDED} or more, some that differ in the prompt only and some in the output")


def _errors(residuals: Array, seconds: Array) -> tuple[float | None, float | None]:
    spare = len(residuals) - NEEDED
    if not spare:
        return None, None
    mean = float(seconds.mean())
    return math.sqrt(float(residuals @ residuals) / spare), float(np.abs(residuals).mean()) / mean if mean else 0.0


def read_timings(path: Path) -> list[Timing]:
    """Timings from a JSONL file; raises TimingError."""
    timings = []
    for number, line in enumerate(read_text(path, TimingError).split("\n"), 1):
        if line.strip():
            timing = parse(Timing, line, f"{path}, line {number}", TimingError)
            if timing.cached > timing.prompt:
                raise TimingError(f"{path}, line {number}: more tokens cached than prompted; accepted: at most as many")
            timings.append(timing)
    if not timings:
        raise TimingError(f"{path} holds no timings; accepted: one a line, {_FORM}")
    return timings
