"""Signals of sampled tokens: what a forward over the whole text says of them, whatever was forced, dropped or ended."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.engines.transformers.hooks import compute_signals
from tersely.controller.types import KEEP, Completion, Directive, Request, SamplingParams, StepInfo

PROMPTS = ("Compute 3 + 4.", "Compute (5 + 4) - 6.", "What is 5 * 12 - 7?")


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


class Meddler:
    """Forces some tokens after the 8th sampled one, and takes back four after the 20th."""

    def __init__(self, force: tuple[int, ...]) -> None:
        self.force, self.seen = force, 0

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.seen += 1
        return {8: Directive(self.force), 20: Directive(self.force[:2], retract=4)}.get(self.seen, KEEP)


def requests(engine: TransformersEngine, meddle: bool, signals: bool = True) -> list[Request]:
    ids = [tuple(engine.tokenizer(text)["input_ids"]) for text in PROMPTS]
    force = tuple(engine.tokenizer("Wait, again.")["input_ids"])
    return [
        Request(prompt, 20 + 10 * row, Meddler(force) if meddle and row != 1 else None, signals)
        for row, prompt in enumerate(ids)
    ]


def expected_signals(model: Any, prompt: tuple[int, ...], done: Completion) -> list[tuple[float, float, float]]:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *done.token_ids]])).logits[0, len(prompt) - 1 : -1]
    chances = logits.double().softmax(-1)
    entropy = -(chances * chances.log()).nansum(-1)
    chosen = chances[torch.arange(len(done.token_ids)), list(done.token_ids)]
    return list(zip(entropy.tolist(), chances.amax(-1).tolist(), chosen.tolist(), strict=True))


@pytest.mark.parametrize("meddle", [False, True])
def test_signals_are_those_of_a_forward_over_all(engine: TransformersEngine, meddle: bool) -> None:
    asked = requests(engine, meddle)
    forced = 0
    for request, done in zip(asked, engine.generate(asked, SamplingParams(temperature=1.5, seed=3)), strict=True):
        truth = expected_signals(engine.model, request.prompt_ids, done)
        assert len(done.signals) == len(done.token_ids)
        for was_forced, found, expected in zip(done.forced, done.signals, truth, strict=True):
            assert (found is None) == was_forced
            forced += was_forced
            if found is not None:
                assert (found.entropy, found.top, found.chosen) == pytest.approx(expected, abs=2e-4)
    assert (forced > 2) == meddle


def test_nobody_pays_for_signals_unasked(engine: TransformersEngine) -> None:
    sampling = SamplingParams(seed=5)
    plain = engine.generate(requests(engine, True, signals=False), sampling)
    measured = engine.generate(requests(engine, True), sampling)
    assert [done.token_ids for done in plain] == [done.token_ids for done in measured]
    assert all(done.signals == () for done in plain)


def test_a_certain_token_has_no_entropy() -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [1.0, 1.0, 1.0]])
    sure, unsure = compute_signals(logits, torch.tensor([0, 2]))
    assert (sure.entropy, sure.top, sure.chosen) == (0.0, 1.0, 1.0)
    assert (unsure.entropy, unsure.top, unsure.chosen) == pytest.approx((math.log(3), 1 / 3, 1 / 3))
