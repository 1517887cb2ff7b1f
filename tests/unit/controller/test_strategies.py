"""Strategies: what tiers mean, and rows that are sampled at temperatures of their own."""

from __future__ import annotations

import pytest

import tersely
from tersely.controller.budgets import STRATEGIES, fit_budget
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import Completion, Request, SamplingParams
from tersely.errors import OptionError

from ...support.models import letters, random_model
from ...support.refusals import refused

PROMPTS = ((5, 6, 7, 8), (9, 10), (11, 12, 13))


def lines(done: list[Completion]) -> list[tuple[int, ...]]:
    return [d.token_ids for d in done]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(random_model(eos=127), letters(), name="random")


def test_a_row_is_sampled_at_its_own_temperature(engine: TransformersEngine) -> None:
    def requests(temperature: float | None) -> list[Request]:
        return [Request((*p, 30), 24, temperature=temperature) for p in PROMPTS]

    cool = lines(engine.generate(requests(0.3), SamplingParams(temperature=1.5, seed=4)))
    assert cool == lines(engine.generate(requests(None), SamplingParams(temperature=0.3, seed=4)))
    assert cool != lines(engine.generate(requests(None), SamplingParams(temperature=1.5, seed=4)))


def test_rows_keep_their_temperatures_when_others_leave(engine: TransformersEngine) -> None:
    limits, warmth = (3, 24, 24), (0.2, None, 0.2)

    def run(order: tuple[int, ...]) -> list[tuple[int, ...]]:
        rows = [Request(PROMPTS[i], limits[i], temperature=warmth[i]) for i in order]
        return lines(engine.generate(rows, SamplingParams(temperature=1.2, seed=1)))

    short, plain, cool = run((0, 1, 2))
    assert len(short) == 3
    greedy = lines(engine.generate([Request(PROMPTS[2], 24)], SamplingParams(temperature=0)))[0]
    agree = [sum(a == b for a, b in zip(row, greedy, strict=False)) for row in (cool, plain)]
    assert agree[0] > agree[1]


def test_greedy_decoding_knows_no_temperature(engine: TransformersEngine) -> None:
    plain = lines(engine.generate([Request(PROMPTS[0], 16)], SamplingParams(temperature=0)))
    assert lines(engine.generate([Request(PROMPTS[0], 16, temperature=2.0)], SamplingParams(temperature=0))) == plain


def test_a_strategy_says_what_a_tier_may_spend() -> None:
    caps = {tier: fit_budget(tier, 1064, 64, "diffadapt").thinking for tier in ("none", "easy", "normal", "hard")}
    assert caps == {"none": 0, "easy": 400, "normal": 1000, "hard": 500}
    assert [STRATEGIES["diffadapt"][t].temperature for t in ("easy", "normal", "hard")] == [0.5, 0.8, 0.4]
    assert fit_budget("easy", 1064, 64).thinking == 1000
    with refused(OptionError, "unknown_name"):
        fit_budget("easy", 200, strategy="difadapt")


def test_generate_takes_a_strategy() -> None:
    done = tersely.generate(
        "tersely-tiny-small",
        prompts="Compute (5 + 4) - 6.",
        effort="easy",
        strategy="diffadapt",
        max_new_tokens=164,
        preset="budget",
        seed=0,
    )
    assert done.usage.thinking <= 40
    with refused(OptionError, "unknown_name"):
        tersely.generate("tersely-tiny-small", prompts="2 + 2?", strategy="x")
