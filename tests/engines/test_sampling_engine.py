"""Samples of one prompt in the engine: the prompt is read once, and sequences may end because of others."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tersely.controller.engines.transformers import model_runner
from tersely.controller.engines.transformers.decode import as_custom_generate
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.engines.transformers.research.steering import Steer, SteeredSequence
from tersely.controller.types import KEEP, Completion, Directive, Request, SamplingParams, StepInfo
from tersely.kernels.attention import SharedPrefixLayer
from tersely.models import find_cache
from tersely.probes.research.learned import Direction

from ..support.models import letters, random_model

GREEDY = SamplingParams(temperature=0)
DRAWN = SamplingParams(temperature=1.0, seed=4)
KINDS = pytest.mark.parametrize("kind", ["full", "sliding"])
FIRST, SECOND = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14), (20, 21, 22)
PROMPTS = (FIRST, SECOND, FIRST, FIRST, (0, *SECOND), SECOND)


@dataclass
class ScriptedWatcher:
    """Returns directives after given numbers of sampled tokens, and ends its sequence once `flag` is not empty.

    Attributes:
        flags_at: the token after which it sets the flag.
        finished: the completions it was notified of.
    """

    directives: dict[int, Directive] = field(default_factory=dict)
    flag: list[int] = field(default_factory=list)
    flags_at: int = -1
    tokens: int = 0
    trial_tokens: int = 0
    finished: list[Completion] = field(default_factory=list)

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        if self.flag:
            if self.trial_tokens:
                return Directive(retract=self.trial_tokens + 1, trial=False, stop=True)
            return Directive(stop=True)
        self.tokens += 1
        directive = self.directives.get(self.tokens, KEEP)
        self.trial_tokens = len(directive.force) if directive.trial else self.trial_tokens and self.trial_tokens + 1
        if self.tokens == self.flags_at:
            self.flag.append(self.tokens)
        return directive

    def on_finish(self, completion: Completion) -> None:
        self.finished.append(completion)


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
def test_equal_prompts_are_read_once_with_the_same_answers(kind: str, sampling: SamplingParams) -> None:
    engine = engine_of(kind, eos=[1, 7])
    shapes = shapes_of(engine)
    done = engine.generate([Request(prompt, 40) for prompt in PROMPTS], sampling)
    assert shapes[:2] == [(3, 10), (6, 1)], "a prompt that begins with padding is not equal to the others"
    ids, mask = engine.pad(PROMPTS)
    torch.manual_seed(sampling.seed or 0)
    plain = engine.model.generate(
        ids, attention_mask=mask, do_sample=bool(sampling.seed), temperature=1.0, top_k=50, max_new_tokens=40
    )
    for row, one in enumerate(done):
        assert one.token_ids == tuple(plain[row, 10 : 10 + len(one.token_ids)].tolist())
    if sampling is DRAWN:
        assert len({one.token_ids for one in done}) == len(done), "samples of one prompt differ"


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_long_prompt_is_kept_once_with_the_same_answers(
    sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With holes in each row, which are removed once there are many, and rows that leave the batch."""
    engine = engine_of("full", eos=126)
    widths: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if layers := find_cache(kwargs)[1].layers:
            widths.append((len(kwargs["input_ids"]), layers[0].keys.shape[-2] if layers[0].is_initialized else 0))

    engine.model.register_forward_pre_hook(note, with_kwargs=True)

    def answers(pays: bool) -> list[Completion]:
        monkeypatch.setattr(model_runner, "prefix_pays", lambda rows, length: pays and rows >= 3)
        acts = [{at: Directive((60, 61, 62), retract=2) for at in range(4 + row, 90, 3 + row)} for row in range(5)]
        rows = [Request(FIRST, 40 + 30 * row, ScriptedWatcher(acts[row])) for row in range(5)]
        return engine.generate(rows, sampling)

    wanted = answers(pays=False)
    copied = widths[1:]
    widths.clear()
    assert answers(pays=True) == wanted
    kept = widths[1:]
    assert all(was - now == (10 if rows >= 3 else 0) for (rows, was), (_, now) in zip(copied, kept, strict=True))
    assert kept[-1][0] < 3, "rows have left"
    shrunk = [before > after for (_, before), (rows, after) in pairwise(kept) if rows >= 3]
    assert any(shrunk), "holes were removed"


def test_a_prompt_is_copied_where_keeping_it_once_could_change_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "prefix_pays", lambda rows, length: True)
    monkeypatch.setattr(SharedPrefixLayer, "__init__", None)
    asked = [Request(FIRST, 3, ScriptedWatcher({})) for _ in range(4)]
    for model in (random_model("sliding"), random_model(dtype=torch.bfloat16)):
        TransformersEngine(model, letters(), name="random").generate(asked, GREEDY)
    engine = engine_of("full")
    engine.generate([*asked, Request(FIRST[::-1], 3)], GREEDY)
    engine.generate([Request(FIRST, 3, layers=(1,))] * 3, GREEDY)
    engine.generate([Request(FIRST, 3)] * 4, GREEDY)  # as in transformers, to the token
    other = random_model("full")
    other.config.model_type = "diffllama"  # one of those that change keys or values behind the cache
    TransformersEngine(other, letters(), name="other").generate(asked, GREEDY)
    with pytest.raises(TypeError):
        engine.generate(asked, GREEDY)


def test_shared_prompts_do_not_mix_directives_states_and_modifiers() -> None:
    engine = engine_of("full")
    shapes = shapes_of(engine)
    acts = {2: Directive((60, 61, 62)), 5: Directive((63,), retract=3), 9: Directive((), retract=1)}
    together = engine.generate([Request(FIRST, 30, ScriptedWatcher(acts if n == 1 else {})) for n in range(3)], GREEDY)
    alone = [
        engine.generate([Request(FIRST, 30, ScriptedWatcher(acts if n == 1 else {}))], GREEDY)[0] for n in range(3)
    ]
    assert together == alone
    shapes.clear()
    engine.generate([Request(FIRST, 3, layers=(1,))] * 3, GREEDY)
    assert shapes[0] == (3, 10), "each prompt is read by itself for its hidden states"
    push = np.full(64, 2.0, np.float32)
    direction = Direction(
        "tokens", (1,), push[None] / np.linalg.norm(push), np.array([10.0]), {"name": "random", "fingerprint": "ab"}
    )
    steer = Steer(layer=1, strength=1.0, direction=direction)
    steering = (SteeredSequence(steer, lambda: True, push),)
    steered, plain = engine.generate([Request(FIRST, 9, modifiers=steering), Request(FIRST, 9)], GREEDY)
    assert [steered] == engine.generate([Request(FIRST, 9, modifiers=steering)], GREEDY)
    assert [plain] == engine.generate([Request(FIRST, 9)], GREEDY)
    assert steered.token_ids != plain.token_ids


def test_without_control_prompts_are_read_as_by_generate() -> None:
    engine = engine_of("full")
    shapes = shapes_of(engine)
    engine.model.generate(torch.tensor([FIRST] * 3), max_new_tokens=2, custom_generate=as_custom_generate())
    assert shapes == [(3, 10), (3, 1)]


@KINDS
def test_continued_conversations_are_not_shared(kind: str) -> None:
    model = random_model(kind, eos=126)
    shared = as_custom_generate(lambda prompt: ScriptedWatcher())
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
def test_a_sequence_can_end_because_of_another(kind: str, sampling: SamplingParams) -> None:
    engine = engine_of(kind, eos=126)
    shapes = shapes_of(engine)
    flag: list[int] = []
    rows = [
        ScriptedWatcher(flag=flag),
        ScriptedWatcher(flag=flag, flags_at=6),
        ScriptedWatcher(flag=flag),
        ScriptedWatcher(),
    ]
    asked = [Request(FIRST, 20, row) for row in rows]
    done = engine.generate(asked, sampling)
    assert [one.finish_reason for one in done] == ["stopped", "stopped", "stopped", "length"]
    # Sequences after the one that sets the flag see it in the same step, those before it at their next token.
    assert [len(one.token_ids) for one in done] == [7, 7, 6, 20]
    undisturbed = engine.generate([replace(request, watcher=None) for request in asked], sampling)
    for one, other in zip(done, undisturbed, strict=True):
        assert one.token_ids == other.token_ids[: len(one.token_ids)]
    assert [row.finished for row in rows] == [[one] for one in done], "each is notified once"
    if kind == "full":
        assert shapes[7:20] == [(1, 1)] * 13, "they leave the batch"


def test_a_stop_ends_and_drops_a_trial() -> None:
    engine = engine_of("full", eos=126)
    flag: list[int] = []
    trying = ScriptedWatcher({3: Directive((60, 61), trial=True)}, flag)
    rows = [trying, ScriptedWatcher(flags_at=6, flag=flag), ScriptedWatcher()]
    done = engine.generate([Request(FIRST, 20, row, signals=True) for row in rows], GREEDY)
    assert [one.finish_reason for one in done] == ["stopped", "stopped", "length"]
    stopped, plain = done[0], done[2]
    assert stopped.token_ids == plain.token_ids[:3]
    assert (stopped.trial, stopped.dropped, len(stopped.signals)) == (2 + 4, 0, 3)


def test_a_stop_may_force_tokens() -> None:
    engine = engine_of("full", eos=126)
    said, full, ended = (
        ScriptedWatcher({4: Directive((60, 61), retract=2, stop=True)}),
        ScriptedWatcher({4: Directive((60, 61, 62), stop=True)}),
        ScriptedWatcher({4: Directive((60, 126), stop=True)}),
    )
    done = engine.generate([Request(FIRST, 6, row) for row in (said, full, ended)], GREEDY)
    assert [one.finish_reason for one in done] == ["stopped", "length", "stop"]
    assert done[0].token_ids[2:] == (60, 61)
    assert done[1].token_ids[4:] == (60, 61)
    assert done[2].token_ids[4:] == (60,)
    assert [row.finished for row in (said, full, ended)] == [[one] for one in done]


def test_the_end_of_sequence_wins_over_a_stop() -> None:
    engine = engine_of("full", eos=list(range(3, 128)))
    row = ScriptedWatcher(flag=[1])
    (done,) = engine.generate([Request(FIRST, 6, row)], GREEDY)
    assert (done.finish_reason, done.token_ids) == ("stop", ())
    assert row.finished == [done]
