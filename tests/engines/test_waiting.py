"""Suspended sequences: the output is what forcing the same tokens at once gives."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import KEEP, Directive, Request, SamplingParams, StepInfo
from tersely.errors import CapabilityError

from ..support.models import VOCABULARY, letters, random_model
from ..support.refusals import refused

GREEDY = SamplingParams(temperature=0)
LOG: list[str] = []


class Later(Future[None]):
    """Done once it is waited for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def exception(self, timeout: float | None = None) -> None:
        LOG.append(self.name)
        self.set_result(None)


@dataclass
class Suspending:
    """Suspends, or forces at once, what a seed draws: the same tokens in both cases."""

    seed: int
    suspends: bool
    rate: float = 0.1
    size: int = 0
    coming: list[tuple[tuple[int, ...], int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.size += 1
        if self.rng.random() > self.rate:
            return KEEP
        drop = min(self.rng.randint(0, 4), self.size)
        first, later = (tuple(self.rng.choices(range(3, VOCABULARY), k=self.rng.randint(0, 4))) for _ in range(2))
        back = min(self.rng.choice((0, 0, 1, 6)), self.size - drop + len(first))  # of what stands when it wakes
        self.size += len(first) + len(later) - drop - back
        if not self.suspends:
            deeper = max(0, back - len(first))
            kept = first[: max(0, len(first) - back)]
            return Directive((*kept, *later), drop + deeper) if drop or deeper or kept or later else KEEP
        self.coming.append((later, back))
        return Directive(first, drop, wait_for=Later(str(self.seed)))

    def resume(self) -> Directive:
        force, drop = self.coming.pop(0)
        return Directive(force, drop)


def run(suspends: bool, rows: int = 6, sampling: SamplingParams = GREEDY, most: int = 90) -> list[Any]:
    engine = TransformersEngine(random_model(), letters(), name="random")
    prompts = [tuple(random.Random(row).choices(range(3, 29), k=3 + row)) for row in range(rows)]
    return engine.generate([Request(p, most, Suspending(i, suspends)) for i, p in enumerate(prompts)], sampling)


@pytest.mark.parametrize("rows", [1, 6])
def test_what_a_row_rested_for_stands_where_it_would_have_been_forced(rows: int) -> None:
    LOG.clear()
    rested, forced = run(True, rows), run(False, rows)
    standing = slice(-8)  # what fills a row up is not taken back, and the row does not rest on it
    assert [r.token_ids[standing] for r in rested] == [f.token_ids[standing] for f in forced]
    assert [r.forced[standing] for r in rested] == [f.forced[standing] for f in forced]
    assert all(r.dropped >= f.dropped for r, f in zip(rested, forced, strict=True))
    assert len(LOG) > rows


def test_rows_rest_for_no_time_that_a_clock_decides() -> None:
    """The same draws twice: a row wakes after a number of steps, not of seconds."""
    seeded = SamplingParams(temperature=1.0, seed=3)
    one, other = run(True, sampling=seeded), run(True, sampling=seeded)
    assert [r.token_ids for r in one] == [r.token_ids for r in other]


class Once:
    """Rests once, at its token number `at`."""

    def __init__(self, name: str, at: int, log: list[str]) -> None:
        self.name, self.left, self.log = name, at, log

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.left -= 1
        return Directive(wait_for=Later(self.name)) if self.left == 0 else KEEP

    def resume(self) -> Directive:
        self.log.append(self.name)
        return Directive(stop=True)


def test_rows_that_rest_wake_together_and_may_end_with_that() -> None:
    """The first waits for the second, so that what they rest for can be done in one go; a third does not hold them."""
    LOG.clear()
    woken: list[str] = []
    engine = TransformersEngine(random_model(eos=127), letters(), name="random")
    rows = [Request((5, 6, 7), 60, Once(name, at, woken)) for name, at in (("a", 4), ("b", 20), ("c", 99))]
    done = engine.generate(rows, GREEDY)
    assert LOG == woken == ["a", "b"]
    assert [d.finish_reason for d in done] == ["stopped", "stopped", "length"]
    assert [len(d.token_ids) for d in done] == [4, 20, 60]


def test_a_model_whose_cache_cannot_go_back_lets_no_row_rest() -> None:
    engine = TransformersEngine(random_model("sliding"), letters(), name="random")
    with refused(CapabilityError):
        engine.generate([Request((5, 6), 20, Once("a", 2, []))], GREEDY)
