"""The idealized runtime: planted costs are recovered, and timings that leave one undetermined are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersely.evaluation.economics.latency import Timing, TimingError, fit_runtime, read_timings


def timed(prompt: int, output: int, cached: int = 0, noise: float = 0.0) -> Timing:
    seconds = 0.05 + 2e-4 * (prompt - cached) + 0.03 * max(output - 1, 0)
    return Timing(prompt=prompt, output=output, cached=cached, seconds=seconds + noise)


SPREAD = [(p, o) for p in (10, 400, 3000) for o in (1, 30, 900)]


def test_planted_costs_are_recovered() -> None:
    found = fit_runtime([timed(p, o) for p, o in SPREAD])
    costs = (found.start, found.per_prompt, found.per_output)
    assert costs == pytest.approx((0.05, 2e-4, 0.03), rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.timings == 9


def test_three_timings_suffice_without_an_error() -> None:
    found = fit_runtime([timed(10, 1), timed(1000, 1), timed(10, 100)])
    assert (found.start, found.per_prompt, found.per_output) == pytest.approx((0.05, 2e-4, 0.03))
    assert (found.error, found.relative_error) == (None, None)


def test_noise_shows_in_the_error() -> None:
    rng = np.random.default_rng(1)
    found = fit_runtime([timed(p, o + k, noise=float(rng.normal(0, 0.02))) for p, o in SPREAD for k in range(20)])
    assert found.per_output == pytest.approx(0.03, rel=0.01)
    assert found.error == pytest.approx(0.02, rel=0.2)
    assert found.relative_error is not None
    assert 0 < found.relative_error < 0.02


def test_a_queue_before_some_repeats_changes_nothing() -> None:
    calm, queued = [timed(p, o) for p, o in SPREAD], [timed(p, o, noise=9.0) for p, o in SPREAD]
    assert fit_runtime(calm + queued) == fit_runtime(calm)


def test_costs_are_never_negative() -> None:
    falling = [Timing(prompt=p, output=o, seconds=max(0.0, 1 - p / 5000) + 0.01 * o) for p, o in SPREAD]
    assert fit_runtime(falling).per_prompt == 0


def test_cached_tokens_cost_nothing() -> None:
    assert fit_runtime([timed(p, o, cached=p // 2) for p, o in SPREAD]).per_prompt == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("lengths", "code"),
    [
        ([], "too_few_timings"),
        ([(10, 5), (20, 9), (10, 5)], "too_few_timings"),
        ([(10, 5), (10, 9), (10, 50), (10, 7)], "dependent_timings"),
        ([(10, 1), (20, 1), (30, 1)], "dependent_timings"),
        ([(10, 11), (20, 21), (30, 31), (40, 41)], "dependent_timings"),
    ],
)
def test_too_few_timings_are_refused(lengths: list[tuple[int, int]], code: str) -> None:
    with pytest.raises(TimingError) as caught:
        fit_runtime([timed(p, o) for p, o in lengths])
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("\n", "log.jsonl"),
        ('{"prompt": 1, "output": 2}', "line 1: field 'seconds'"),
        ('{"prompt": 1, "output": 2, "secs": 1}', "did you mean 'seconds'"),
        ('\n{"prompt": -1, "output": 2, "seconds": 1}', "line 2: prompt is -1"),
        ('{"prompt": 1, "output": 2, "seconds": 1, "cached": 5}', "line 1: cached is 5"),
        ("[1]", "line 1: got [1]"),
        ("nonsense", "line 1: not valid JSON"),
    ],
)
def test_bad_log(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TimingError) as caught:
        read_timings(path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
