"""What samples of one prompt need of the engine: one reading of the prompt, and rows that end by what others did."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from tersely.controller.engines.transformers.custom_generate import as_custom_generate
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import KEEP, Completion, Directive, Request, SamplingParams, SteeringVector, StepInfo

from ..support.models import letters, random_model

GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=1.0, seed=4)
KINDS = pytest.mark.parametrize("kind", ["full", "sliding"])
FIRST, SECOND = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14), (20, 21, 22)
PROMPTS = (FIRST, SECOND, FIRST, FIRST, (0, *SECOND), SECOND)


@dataclass
class Row:
    """Does directives after given numbers of sampled tokens, and ends when `flag` is up; keeps what it was told."""

    at: dict[int, Directive] = field(default_factory=dict)
    flag: list[int] = field(default_factory=list)
    raises_at: int = -1
    heard: int = 0
    trial: int = 0
    told: list[Completion] = field(default_factory=list)

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        if self.flag:
            return Directive(drop=self.trial + 1, trial=False, stop=True) if self.trial else Directive(stop=True)
        self.heard += 1
        directive = self.at.get(self.heard, KEEP)
        self.trial = len(directive.force) if directive.trial else self.trial and self.trial + 1
        if self.heard == self.raises_at:
            self.flag.append(self.heard)
        return directive

    def ended(self, done: Completion) -> None:
        self.told.append(done)


def engine_of(kind: str, **options: Any) -> TransformersEngine:
    return TransformersEngine(random_model(kind, **options), letters(), name="random")


def shapes_of(engine: TransformersEngine) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@KINDS
def test_equal_prompts_are_read_once_and_answered_as_if_each_were_read(kind: str, sampling: SamplingParams) -> None:
    engine = engine_of(kind, eos=[1, 7])
    shapes = shapes_of(engine)
    done = engine.generate([Request(prompt, 40) for prompt in PROMPTS], sampling)
    assert shapes[:2] == [(3, 10), (6, 1)], "a prompt that begins with what pads others is none of theirs"
    ids, mask = engine._padded(PROMPTS)
    torch.manual_seed(sampling.seed or 0)
    plain = engine.model.generate(
        ids, attention_mask=mask, do_sample=bool(sampling.seed), temperature=1.0, top_k=50, max_new_tokens=40
    )
    for row, one in enumerate(done):
        assert one.token_ids == tuple(plain[row, 10 : 10 + len(one.token_ids)].tolist())
    if sampling is DRAWN:
        assert len({one.token_ids for one in done}) == len(done), "samples of one prompt differ"


def test_directives_and_states_are_as_with_prompts_of_their_own() -> None:
    engine = engine_of("full")
    shapes = shapes_of(engine)
    acts = {2: Directive((60, 61, 62)), 5: Directive((63,), drop=3), 9: Directive((), drop=1)}
    together = engine.generate([Request(FIRST, 30, Row(acts if n == 1 else {})) for n in range(3)], GREEDY)
    alone = [engine.generate([Request(FIRST, 30, Row(acts if n == 1 else {}))], GREEDY)[0] for n in range(3)]
    assert together == alone
    shapes.clear()
    engine.generate([Request(FIRST, 3, layers=(1,))] * 3, GREEDY)
    assert shapes[0] == (3, 10), "states are kept of every row"
    pushed = SteeringVector(1, np.full(64, 2.0, np.float32), lambda: True)
    steered, plain = engine.generate([Request(FIRST, 9, steering=pushed), Request(FIRST, 9)], GREEDY)
    assert [steered] == engine.generate([Request(FIRST, 9, steering=pushed)], GREEDY)
    assert [plain] == engine.generate([Request(FIRST, 9)], GREEDY)
    assert steered.token_ids != plain.token_ids


def test_without_control_prompts_are_read_as_generate_reads_them() -> None:
    engine = engine_of("full")
    shapes = shapes_of(engine)
    engine.model.generate(torch.tensor([FIRST] * 3), max_new_tokens=2, custom_generate=as_custom_generate())
    assert shapes == [(3, 10), (3, 1)]


@KINDS
def test_a_conversation_that_goes_on_shares_nothing(kind: str) -> None:
    model = random_model(kind, eos=126)
    shared = as_custom_generate(lambda prompt: Row())
    first: Any = model.generate(
        torch.tensor([FIRST, SECOND + FIRST[3:]]), max_new_tokens=5, return_dict_in_generate=True
    )
    ids = torch.cat([first.sequences, torch.full((2, 2), 9)], dim=1)
    ids[1] = ids[0]
    name = "cache" if "cache" in first else "past_key_values"
    copies = [copy.deepcopy(first[name]) for _ in range(2)]
    outputs = [
        model.generate(ids, max_new_tokens=8, custom_generate=ours, **{name: cache})
        for ours, cache in zip((None, shared), copies, strict=True)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0][0], outputs[0][1]), "equal ids, unequal pasts"


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@KINDS
def test_a_row_ends_by_what_another_did(kind: str, sampling: SamplingParams) -> None:
    engine = engine_of(kind, eos=126)
    shapes = shapes_of(engine)
    flag: list[int] = []
    rows = [Row(flag=flag), Row(flag=flag, raises_at=6), Row(flag=flag), Row()]
    asked = [Request(FIRST, 20, row) for row in rows]
    done = engine.generate(asked, sampling)
    assert [one.finish_reason for one in done] == ["stopped", "stopped", "stopped", "length"]
    # Those behind the one that decides hear of it in the same step, the others at their next token.
    assert [len(one.token_ids) for one in done] == [7, 7, 6, 20]
    undisturbed = engine.generate([replace(request, watcher=None) for request in asked], sampling)
    for one, other in zip(done, undisturbed, strict=True):
        assert one.token_ids == other.token_ids[: len(one.token_ids)]
    assert [row.told for row in rows] == [[one] for one in done], "each is told once, of what came of it"
    if kind == "full":
        assert shapes[7:20] == [(1, 1)] * 13, "they leave the batch"


def test_a_stop_ends_a_trial_and_takes_it_back() -> None:
    engine = engine_of("full", eos=126)
    flag: list[int] = []
    trying = Row({3: Directive((60, 61), trial=True)}, flag)
    rows = [trying, Row(raises_at=6, flag=flag), Row()]
    done = engine.generate([Request(FIRST, 20, row, signals=True) for row in rows], GREEDY)
    assert [one.finish_reason for one in done] == ["stopped", "stopped", "length"]
    stopped, plain = done[0], done[2]
    assert stopped.token_ids == plain.token_ids[:3]
    assert (stopped.trial, stopped.dropped, len(stopped.signals)) == (2 + 4, 0, 3)


def test_a_stop_may_come_with_tokens() -> None:
    engine = engine_of("full", eos=126)
    said, full, ended = (
        Row({4: Directive((60, 61), drop=2, stop=True)}),
        Row({4: Directive((60, 61, 62), stop=True)}),
        Row({4: Directive((60, 126, 62), stop=True)}),
    )
    done = engine.generate([Request(FIRST, 6, row) for row in (said, full, ended)], GREEDY)
    assert [one.finish_reason for one in done] == ["stopped", "length", "stop"]
    assert done[0].token_ids[2:] == (60, 61)
    assert done[1].token_ids[4:] == (60, 61)
    assert done[2].token_ids[4:] == (60,)
    assert [row.told for row in (said, full, ended)] == [[one] for one in done]


def test_an_end_of_its_own_goes_before_a_stop() -> None:
    engine = engine_of("full", eos=list(range(3, 128)))
    row = Row(flag=[1])
    (done,) = engine.generate([Request(FIRST, 6, row)], GREEDY)
    assert (done.finish_reason, done.token_ids) == ("stop", ())
    assert row.told == [done]
