"""Intervals and verdicts on simulated benches whose truth is known; the simulation is `benchmarks/verdicts.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely.evaluation.bench.compare import GOOD, INFERIOR
from tersely.evaluation.stats import studentized_bootstrap

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "verdicts.py"
SIMS, RESAMPLES = 400, 300
LEAST, MOST = 0.92, 0.98
"""Bounds of a coverage that is to be 95 %: two points for chance and few resamples, and one for tokens being skewed."""


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_verdicts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted = _load()
APART = planted.World("apart", 200, shared=False)
SHARED = planted.World("shared", 300, rollouts=4)
EDGE = planted.World("rare", 300, discordance=0.02, delta=-0.02)


@pytest.mark.parametrize("world", [APART, SHARED], ids=["answers drawn apart", "difficulty shared, 4 rollouts"])
def test_intervals_hold_the_truth_as_often_as_they_say(world: Any) -> None:
    held = planted.coverage(world, SIMS, RESAMPLES)
    assert held.pop("harm_upper") >= 0.94  # one-sided, and with rollouts wider than need be
    assert {name: share for name, share in held.items() if not LEAST <= share <= MOST} == {}


def test_the_planted_truths_are_those_of_the_simulated_arms() -> None:
    for world in (APART, SHARED, EDGE):
        run = planted.draw(planted.replace(world, n=400_000, rollouts=1), np.random.default_rng(0))
        assert run.base_right.mean() == pytest.approx(world.base_right, abs=0.003)
        assert (run.our_right - run.base_right).mean() == pytest.approx(world.delta, abs=0.003)
        assert (run.base_right * (1 - run.our_right)).mean() == pytest.approx(world.harm, abs=0.003)
        assert 1 - run.our_tokens.mean() / run.base_tokens.mean() == pytest.approx(world.saving, abs=0.005)


def test_taking_rollouts_for_questions_would_be_noticed() -> None:
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        run = planted.draw(SHARED, rng)
        flat = (run.our_tokens - run.base_tokens).ravel()
        found = studentized_bootstrap(flat, resamples=200, seed=seed)
        held += found.low <= -SHARED.saving * planted.TOKENS <= found.high
    assert held / 200 < 0.85


def test_the_verdict_is_seldom_wrong_at_the_edge_of_the_margin() -> None:
    """The arm loses 2 % of the answers and wins none: at the margin, harm that is rare and easily missed."""
    words = planted.verdicts(EDGE, 0.02, SIMS, RESAMPLES)
    assert words[GOOD] <= 0.05
    assert words[INFERIOR] <= 0.05


def test_the_verdict_uses_its_room_at_the_edge_and_finds_what_is_plain() -> None:
    edge = planted.World("apart", 200, shared=False, delta=-0.1)
    assert 0.01 <= planted.verdicts(edge, 0.1, SIMS, RESAMPLES)[GOOD] <= 0.05
    assert planted.verdicts(planted.replace(edge, delta=0.0), 0.15, 300, RESAMPLES)[GOOD] >= 0.8
    assert planted.verdicts(planted.replace(edge, delta=-0.3), 0.1, 300, RESAMPLES)[INFERIOR] >= 0.9
