"""Steering in the engine: what is added to which sequences and when, and that nothing is left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.engines.transformers.research.steering import Steer, SteeredSequence
from tersely.controller.types import KEEP, Directive, Request, SamplingParams, State, StepInfo
from tersely.errors import OptionError
from tersely.probes.research.learned import Direction

from ..support.models import letters, random_model
from ..support.refusals import refused

GREEDY = SamplingParams(temperature=0)
PROMPTS = ((5, 6, 7, 8), (9,), (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), (21, 22), (23, 24, 25, 26, 27))
SIZES = (8, 40, 12, 30, 24)
SPANS = ((2, 5), (4, 20), None, (1, 30), (10, 12))
"""From which sampled token to which a row is steered."""


class Spell:
    """Counts the tokens of its row; is on within a span of them."""

    def __init__(self, span: tuple[int, int] | None, fails_at: int | None = None) -> None:
        self.span, self.fails_at, self.size = span, fails_at, 0

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.size += 1
        if self.size == self.fails_at:
            raise RuntimeError("a watcher that breaks")
        return KEEP

    def active(self) -> bool:
        return self.span is not None and self.span[0] <= self.size < self.span[1]


def push(seed: int = 0, size: float = 30.0) -> State:
    vector = np.random.default_rng(seed).normal(size=64)
    return np.asarray(size * vector / np.linalg.norm(vector), np.float32)


def direction(**changes: Any) -> Direction:
    facts: dict[str, Any] = {
        "place": "tokens",
        "layers": (1,),
        "vectors": push(size=1.0)[None],
        "norms": np.array([10.0]),
        "base": {"name": "random", "fingerprint": "ab"},
    }
    return Direction(**(facts | changes))


STEER = Steer(layer=1, strength=1.0, direction=direction())


def requests(spells: list[Spell], steer: bool = True) -> list[Request]:
    return [
        Request(
            prompt,
            size,
            spell,
            modifiers=(SteeredSequence(STEER, spell.active, push(row)),) if steer and spell.span else (),
        )
        for row, (prompt, size, spell) in enumerate(zip(PROMPTS, SIZES, spells, strict=True))
    ]


def spells() -> list[Spell]:
    return [Spell(span) for span in SPANS]


def engine_of(model: PreTrainedModel) -> TransformersEngine:
    return TransformersEngine(model, letters(), name="random")


def hooks_of(model: PreTrainedModel) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def expected_ids(model: Any, row: int) -> tuple[int, ...]:
    """A row's output, greedy, by a forward over all of it for each token; steered position by position."""
    prompt, span = PROMPTS[row], SPANS[row] or (0, 0)
    out: list[int] = []

    def add(module: Any, inputs: Any, output: Any) -> Any:
        more = torch.zeros(1, len(prompt) + len(out), 64)
        more[0, [len(prompt) + k - 1 for k in range(1, len(out) + 1) if span[0] <= k < span[1]]] = torch.tensor(
            push(row)
        )
        return (output[0] + more, *output[1:]) if isinstance(output, tuple) else output + more

    handle = model.model.layers[0].register_forward_hook(add)
    while len(out) < SIZES[row]:
        with torch.no_grad():
            token = int(model(torch.tensor([[*prompt, *out]]), use_cache=False).logits[0, -1].argmax())
        if token == 1:
            break
        out.append(token)
    handle.remove()
    return tuple(out)


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_rows_are_steered_each_in_its_own_span(kind: str) -> None:
    model = random_model(kind)
    engine = engine_of(model)
    rows: list[int] = []
    watch = model.register_forward_pre_hook(
        lambda m, a, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    done = engine.generate(requests(spells()), GREEDY)
    watch.remove()
    assert (rows[-1] < rows[0]) == (kind == "full"), "rows that have ended leave the batch where they can"
    assert [d.token_ids for d in done] == [expected_ids(model, row) for row in range(len(PROMPTS))]
    plain = engine.generate(requests(spells(), steer=False), GREEDY)
    changed = [a.token_ids != b.token_ids for a, b in zip(done, plain, strict=True)]
    assert changed == [True, True, False, True, True]
    for row, span in enumerate(SPANS):
        before = SIZES[row] if span is None else span[0]
        assert done[row].token_ids[:before] == plain[row].token_ids[:before]


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    engine = engine_of(random_model())
    together = engine.generate(requests(spells()), GREEDY)
    assert [engine.generate([one], GREEDY)[0] for one in requests(spells())] == together


def test_no_strength_changes_no_token() -> None:
    engine = engine_of(random_model())
    nothing = np.zeros(64, np.float32)
    for sampling in (GREEDY, SamplingParams(temperature=1.0, seed=3)):
        plain = engine.generate(requests(spells(), steer=False), sampling)
        asked = [
            Request(p, s, modifiers=(SteeredSequence(STEER, lambda: True, nothing),))
            for p, s in zip(PROMPTS, SIZES, strict=True)
        ]
        assert [d.token_ids for d in engine.generate(asked, sampling)] == [d.token_ids for d in plain]


def test_half_precision_stays_half() -> None:
    engine = engine_of(random_model(dtype=torch.bfloat16))
    asked = Request(PROMPTS[0], 8, modifiers=(SteeredSequence(STEER, lambda: True, push()),))
    assert engine.generate([asked], GREEDY) != engine.generate([Request(PROMPTS[0], 8)], GREEDY)


def test_nothing_stays_behind() -> None:
    model = random_model()
    engine = engine_of(model)
    plain = engine.generate(requests(spells(), steer=False), GREEDY)
    broken = Spell((1, 30), fails_at=5)
    with pytest.raises(RuntimeError):
        engine.generate(
            [
                Request(
                    PROMPTS[0],
                    20,
                    broken,
                    layers=(-1,),
                    modifiers=(SteeredSequence(STEER, broken.active, push()),),
                )
            ],
            GREEDY,
        )
    for layer in (0, 2, -1, 3):
        steer = Steer(layer=layer, strength=1.0, direction=direction())
        wrong = Request(PROMPTS[0], 4, layers=(1,), modifiers=(SteeredSequence(steer, lambda: True, push()),))
        with refused(OptionError):
            engine.generate([wrong], GREEDY)
    assert hooks_of(model) == 0
    assert engine.generate(requests(spells(), steer=False), GREEDY) == plain
