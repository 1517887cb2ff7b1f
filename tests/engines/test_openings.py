"""Prompts that an opening finishes: answered as the whole prompt is, and read once where rows may grow unequally."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import (
    KEEP,
    Completion,
    Directive,
    Request,
    RoutedPrompt,
    SamplingParams,
    State,
    StepInfo,
    Watcher,
)
from tersely.errors import OptionError, PromptError

from ..support.models import letters, random_model

GREEDY = SamplingParams(temperature=0)
KINDS = pytest.mark.parametrize("kind", ["full", "sliding"])
PREFIXES = ((5, 6, 7, 8), (9,), tuple(range(10, 23)), (21, 22), (23, 24, 25, 26, 27))
SUFFIXES = ((30,), (31, 32, 33), tuple(range(40, 51)), (34, 35))


class Choice:
    """Goes on with one of the suffixes, by where the state is largest."""

    longest = max(map(len, SUFFIXES))

    def __init__(self, watcher: Watcher | None = None, layer: int = -1, apart: bool = False) -> None:
        self.watcher, self.layer, self.apart = watcher, layer, apart
        self.states: list[State] = []
        self.chosen: tuple[int, ...] = ()

    def choose(self, state: State) -> RoutedPrompt:
        self.states.append(state)
        self.chosen = SUFFIXES[int(state.argmax()) % len(SUFFIXES)]
        return RoutedPrompt(self.chosen, self.watcher, apart=self.apart)


class Script:
    """Does given directives after given numbers of sampled tokens."""

    def __init__(self, **directives: Directive) -> None:
        self.at = {int(key.removeprefix("t")): value for key, value in directives.items()}
        self.heard: list[int] = []

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        self.heard.append(token)
        return self.at.get(len(self.heard), KEEP)


def engine_of(model: PreTrainedModel) -> TransformersEngine:
    return TransformersEngine(model, letters(), name="random")


def scripts(kind: str = "sliding") -> list[Script]:
    """A watcher for each row; with full attention one takes back all that its row has put out."""
    back = Directive() if kind == "sliding" else Directive((), drop=1)
    return [
        Script(t1=back, t2=back),
        Script(t3=Directive((60, 61, 62))),
        Script(t5=Directive((63,), drop=1)),
        Script(),
        Script(t2=Directive(tuple(range(70, 78))), t9=Directive((64, 65), drop=1)),
    ]


def split(
    engine: TransformersEngine,
    sampling: SamplingParams,
    watchers: Sequence[Watcher | None],
    layer: int = -1,
    **more: Any,
) -> tuple[list[Completion], list[Choice]]:
    openings = [Choice(watcher, layer) for watcher in watchers]
    asked = [Request(p, 20 + 5 * r, opening=o) for r, (p, o) in enumerate(zip(PREFIXES, openings, strict=True))]
    return engine.generate(asked, sampling, **more), openings


def whole(
    engine: TransformersEngine, sampling: SamplingParams, watchers: Sequence[Watcher | None], openings: Sequence[Choice]
) -> list[Completion]:
    rows = enumerate(zip(PREFIXES, watchers, openings, strict=True))
    return engine.generate([Request((*p, *o.chosen), 20 + 5 * r, w) for r, (p, w, o) in rows], sampling)


@pytest.mark.parametrize(
    ("sampling", "penalty"), [(GREEDY, 1.0), (GREEDY, 1.5), (SamplingParams(temperature=1.0, seed=4), 1.0)]
)
@KINDS
def test_a_prompt_in_two_parts_is_answered_as_the_whole(kind: str, sampling: SamplingParams, penalty: float) -> None:
    model = random_model(kind, eos=[1, 7])
    model.generation_config.repetition_penalty = penalty
    engine = engine_of(model)
    heard, again = scripts(kind), scripts(kind)
    done, openings = split(engine, sampling, heard)
    assert len({len(opening.chosen) for opening in openings}) > 2, "suffixes of different lengths"
    told = whole(engine, sampling, again, openings)
    assert [one.token_ids for one in done] == [one.token_ids for one in told]
    assert [one.forced for one in done] == [one.forced for one in told]
    assert [one.dropped for one in done] == [one.dropped for one in told]
    assert [script.heard for script in heard] == [script.heard for script in again]
    reread = [len(prefix) if kind == "sliding" else 0 for prefix in PREFIXES]
    assert [one.reprefilled for one in done] == reread
    assert not any(one.reprefilled for one in told)


@pytest.mark.parametrize(
    ("sampling", "penalty"), [(GREEDY, 1.0), (GREEDY, 1.5), (SamplingParams(temperature=1.0, seed=4), 1.0)]
)
@pytest.mark.parametrize("some", [True, False])
@KINDS
def test_what_was_read_for_the_choice_alone_is_forgotten(
    kind: str, some: bool, sampling: SamplingParams, penalty: float
) -> None:
    model = random_model(kind, eos=[1, 7])
    model.generation_config.repetition_penalty = penalty
    engine = engine_of(model)
    prefixes = [prefix * (200 // len(prefix)) for prefix in PREFIXES]  # more than the cache keeps for nothing
    openings = [Choice(watcher, apart=row != 2 or not some) for row, watcher in enumerate(scripts(kind))]
    asked = [Request(p, 20 + 5 * r, opening=o) for r, (p, o) in enumerate(zip(prefixes, openings, strict=True))]
    done = engine.generate(asked, sampling)
    prompts = [o.chosen if o.apart else (*p, *o.chosen) for p, o in zip(prefixes, openings, strict=True)]
    rows = enumerate(zip(prompts, scripts(kind), strict=True))
    told = engine.generate([Request(ids, 20 + 5 * row, script) for row, (ids, script) in rows], sampling)
    assert [one.token_ids for one in done] == [one.token_ids for one in told]
    assert [one.dropped for one in done] == [one.dropped for one in told]
    read = [len(p) if kind == "sliding" or o.apart else 0 for p, o in zip(prefixes, openings, strict=True)]
    assert [one.reprefilled for one in done] == read


def test_a_penalty_makes_a_difference_here() -> None:
    outputs = []
    for penalty in (1.0, 1.5):
        model = random_model(eos=[1, 7])
        model.generation_config.repetition_penalty = penalty
        done, _ = split(engine_of(model), GREEDY, scripts())
        outputs.append([one.token_ids for one in done])
    assert all(a != b for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("layer", [0, 1, -1])
@KINDS
def test_the_state_is_that_after_the_prefix(kind: str, layer: int) -> None:
    model: Any = random_model(kind)
    _, openings = split(engine_of(model), GREEDY, [None] * 5, layer)
    assert not any(part._forward_hooks for part in model.modules())
    for prefix, opening in zip(PREFIXES, openings, strict=True):
        with torch.no_grad():
            truth = model(torch.tensor([prefix]), output_hidden_states=True).hidden_states[layer][0, -1]
        (state,) = opening.states
        np.testing.assert_allclose(state, truth.numpy(), atol=2e-4, rtol=1e-3)


def test_only_the_suffixes_are_read_after_the_prefixes() -> None:
    model = random_model(eos=126)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    _, openings = split(engine_of(model), GREEDY, [None] * 5)
    widest = max(len(opening.chosen) for opening in openings)
    assert shapes[:3] == [(5, max(map(len, PREFIXES))), (5, widest), (5, 1)]


@KINDS
def test_the_sink_hears_the_output_alone(kind: str) -> None:
    heard: dict[int, list[int]] = {row: [] for row in range(5)}

    def sink(row: int, ids: Sequence[int], forced: bool) -> None:
        heard[row].extend(ids)

    done, _ = split(engine_of(random_model(kind)), GREEDY, scripts(), sink=sink)
    assert heard == {row: list(one.token_ids) for row, one in enumerate(done)}


@KINDS
def test_a_suffix_is_prompt_and_takes_up_context(kind: str) -> None:
    class Longest(Choice):
        def choose(self, state: State) -> RoutedPrompt:
            return RoutedPrompt(SUFFIXES[2])

    engine = engine_of(random_model(kind, eos=126))
    (limited,) = engine.generate([Request((5, 6), 7, opening=Longest())], GREEDY)
    assert len(limited.token_ids) == 7
    engine.context_length = 40
    (bounded,) = engine.generate([Request((5,) * 20, 100, opening=Longest())], GREEDY)
    assert len(bounded.token_ids) == 40 - 20 - 11
    with pytest.raises(PromptError):
        engine.generate([Request((5,) * 29, 100, opening=Longest())], GREEDY)


@KINDS
def test_a_batch_where_only_some_have_an_opening_is_refused(kind: str) -> None:
    asked = [Request((5, 6), 7, opening=Choice()), Request((5, 6), 7), Request((5,), 7)]
    with pytest.raises(OptionError, match="1 of 3 requests have an opening; accepted: all of them or none"):
        engine_of(random_model(kind)).generate(asked, GREEDY)


@KINDS
def test_hooks_go_when_an_opening_fails(kind: str) -> None:
    class Fails(Choice):
        def choose(self, state: State) -> RoutedPrompt:
            raise RuntimeError("undecided")

    model = random_model(kind)
    with pytest.raises(RuntimeError, match="undecided"):
        engine_of(model).generate([Request((5, 6), 7, opening=Fails())], GREEDY)
    assert not any(part._forward_hooks for part in model.modules())


@KINDS
def test_the_watcher_of_an_opening_reads_states_of_the_whole(kind: str) -> None:
    class Reader(Script):
        def __init__(self) -> None:
            super().__init__()
            self.states: list[State] = []

        def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
            assert seen is not None
            self.states.append(seen.state(1))
            return super().observe(token)

    model: Any = random_model(kind, eos=126)
    readers = [Reader() for _ in PREFIXES]
    openings = [Choice(reader) for reader in readers]
    asked = [Request(p, 6, layers=(1,), opening=o) for p, o in zip(PREFIXES, openings, strict=True)]
    done = engine_of(model).generate(asked, GREEDY)
    for prefix, opening, reader, one in zip(PREFIXES, openings, readers, done, strict=True):
        ids = torch.tensor([[*prefix, *opening.chosen, *one.token_ids]])
        with torch.no_grad():
            truth = model(ids, output_hidden_states=True).hidden_states[1][0, -7:-1]
        np.testing.assert_allclose(np.stack(reader.states), truth.numpy(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("prompt", [(), (5,) * 60])
@pytest.mark.parametrize("kind", ["full", pytest.param("sliding")])
def test_a_prompt_that_cannot_be_is_refused_before_anything_is_read(kind: str, prompt: tuple[int, ...]) -> None:
    engine, opening = engine_of(random_model(kind)), Choice()
    engine.context_length = 40
    with pytest.raises(PromptError):
        engine.generate([Request((5, 6), 7, opening=Choice()), Request(prompt, 7, opening=opening)], GREEDY)
    assert not opening.states
