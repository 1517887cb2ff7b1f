"""Trial answers of real models: paid for, acted on, and without a trace in the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tersely.controller.engines.transformers.decode import as_custom_generate
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Close, Inject, PolicyView, Trial, TrialAnswer, Wait, Watching
from tersely.controller.policies.exits import Deer
from tersely.controller.session import Session
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.trace import GenerationResult
from tersely.controller.trials import MAX_TRIAL_TOKENS
from tersely.controller.types import Capability, Completion, Directive, Request, SamplingParams, State
from tersely.errors import CapabilityError

from ..support.models import letters, random_model
from ..support.refusals import refused
from ..support.script import Script
from ..support.trial_rows import CLOSE, GREEDY, INJECT, PROBLEMS, Asking, ask
from ..support.trial_rows import engine as engine  # the fixtures
from ..support.trial_rows import plain as plain


def test_trials_are_paid_for_and_change_nothing(engine: TransformersEngine, plain: list[GenerationResult]) -> None:
    policy, events, sizes = Asking(), list[TextDeltaEvent](), list[int]()
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    tried = ask(engine, policy, on_event=events.append)
    hook.remove()
    assert sizes[0] == 3 > sizes[-1], "rows that have ended leave the batch"
    assert [g.token_ids for g in tried] == [g.token_ids for g in plain]
    for row, (generation, heard) in enumerate(zip(tried, policy.heard, strict=True)):
        usage = generation.usage
        assert len(heard) == generation.thinking.count("\n\n") + 1 >= 3
        assert usage.trial == sum(reply.tokens for _, reply in heard if reply is not None) > 30
        assert (usage.injected, usage.discarded) == (0, 0)
        assert usage.total == len(generation.token_ids) + usage.trial
        streamed = "".join(event.text for event in events if event.row == row)
        assert streamed == generation.thinking + generation.answer
    _check_replies(engine, tried, policy.heard)


def _check_replies(
    engine: TransformersEngine, done: list[GenerationResult], heard: list[list[tuple[int, TrialAnswer | None]]]
) -> None:
    """Against plain greedy decoding of the texts closed by hand."""
    codec = get_adapter(engine.tokenizer)
    closed = codec.encode("</think>\n\nThe answer is \\boxed{")
    rows = [
        ((*row.request.prompt_ids, *one.token_ids[:end], *closed), reply)
        for row, one, mine in zip(Session(engine).prepare(PROBLEMS, GenerationOptions()), done, heard, strict=True)
        for end, reply in mine
    ]
    by_hand = engine.generate([Request(text, MAX_TRIAL_TOKENS, signals=True) for text, _ in rows], GREEDY)
    for (_, reply), one in zip(rows, by_hand, strict=True):
        pieces = [codec.decode([token]) for token in one.token_ids]
        size = next(i for i, piece in enumerate(pieces, 1) if "}" in piece)
        chances = [signals.chosen for signals in one.signals[:size] if signals is not None]
        assert reply is not None
        assert reply.answer == "".join(pieces[:size]).partition("}")[0]
        assert reply.answer.isdigit()
        assert reply.confidence == pytest.approx(math.prod(chances) ** (1 / size), rel=1e-3)
        assert reply.tokens == len(closed) + size


@pytest.mark.parametrize("then", [CLOSE, INJECT])
def test_what_follows_a_trial_stands_where_the_trial_stood(engine: TransformersEngine, then: Close | Inject) -> None:
    asking, acting = Asking(then), Asking(then, asks=False)
    tried, untried = (ask(engine, p, prompts=PROBLEMS[:2], max_new_tokens=100) for p in (asking, acting))
    for one, other, ((_, reply),) in zip(tried, untried, asking.heard, strict=True):
        assert reply is not None
        assert (one.token_ids, one.trace) == (other.token_ids, other.trace)
        assert (one.usage.trial, one.usage.discarded) == (reply.tokens, 0)
        assert one.usage.total == other.usage.total + reply.tokens


def test_in_shadow_and_without_room_none_is_asked(engine: TransformersEngine, plain: list[GenerationResult]) -> None:
    shadow, tight = Asking(), Asking()
    (unasked,) = ask(engine, shadow, prompts=PROBLEMS[:1], shadow=True)
    assert (unasked.token_ids, unasked.usage.trial) == (plain[0].token_ids, 0)
    assert {reply for _, reply in shadow.heard[0]} == {None}
    (cut,) = ask(engine, tight, prompts=PROBLEMS[:1], max_new_tokens=len(plain[0].token_ids) + 1)
    assert cut.token_ids == plain[0].token_ids
    asked = [reply is not None for _, reply in tight.heard[0]]
    assert asked == sorted(asked, reverse=True) and set(asked) == {True, False}


def test_what_a_trial_was_asked_before_comes_back(engine: TransformersEngine, plain: list[GenerationResult]) -> None:
    for tried, untried in zip(ask(engine, Deer(threshold=1.0)), plain, strict=True):
        assert tried.token_ids == untried.token_ids
        asked = untried.thinking.count("Wait")
        assert tried.usage.injected == tried.usage.discarded == asked > 0
        assert tried.usage.trial > 8 * asked


def test_thinking_that_is_closed_at_a_trial_ends_before_it(
    engine: TransformersEngine, plain: list[GenerationResult]
) -> None:
    for closed, free in zip(ask(engine, Deer(threshold=0.0)), plain, strict=True):
        assert closed.thinking.strip() == free.thinking[: free.thinking.index("Wait")].strip()
        assert closed.answer.strip().startswith("The answer is")
        assert closed.usage.total == len(closed.token_ids) + closed.usage.trial + 1


def test_an_engine_that_cannot_crop_takes_no_trials(engine: TransformersEngine) -> None:
    sliding = TransformersEngine(random_model("sliding"), engine.tokenizer, name="sliding")
    with refused(CapabilityError):
        Session(sliding).prepare(PROBLEMS, GenerationOptions(policies=(Asking(),)))


@dataclass(frozen=True)
class Reading(Asking):
    """Reads a hidden state before and after its first question."""

    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LOGIT_SIGNALS, Capability.KV_ROLLBACK, Capability.HIDDEN_STATES}
    )
    states: list[State] = field(default_factory=list)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return (-1,)

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=view.tokens + 1, boundary="thought")
        self.states.append(view.state(-1))
        yield Trial()
        self.states.append(view.state(-1))


def test_a_trial_leaves_the_state_that_a_policy_reads(engine: TransformersEngine) -> None:
    policy = Reading()
    ask(engine, policy, prompts=PROBLEMS[:1], max_new_tokens=100)
    before, after = policy.states
    np.testing.assert_array_equal(before, after)


ASKS, DONE = Directive((40, 41, 42), trial=True), Directive(retract=9, trial=False)
"""A trial of three forced tokens and six sampled ones."""


def twice() -> Script:
    """Tries after the fifth token, and once more three tokens later."""
    return Script(t5=ASKS, t11=DONE, t14=ASKS, t20=DONE)


def decode(model: Any, *watchers: Script | None, sampling: SamplingParams = GREEDY, **more: Any) -> list[Completion]:
    asked = [Request((9, 9, 5)[row % 2 :], 30 - 6 * row, watcher) for row, watcher in enumerate(watchers)]
    return TransformersEngine(model, letters(), name="random").generate(asked, sampling, **more)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trial_is_greedy_and_leaves_no_trace_in_any_row(temperature: float) -> None:
    model, sampling = random_model(eos=126), SamplingParams(temperature=temperature, seed=3)
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def sink(row: int, ids: Sequence[int], forced: bool) -> None:
        heard[row] = [*heard[row], *ids] if ids else heard[row][:-1]

    script = twice()
    untried = decode(model, None, None, None, sampling=sampling)
    tried = decode(model, script, None, twice(), sampling=sampling, sink=sink)
    assert tried[1] == untried[1]
    size = len(untried[0].token_ids) if temperature == 0 else 5
    assert tried[0].token_ids[:size] == untried[0].token_ids[:size]
    assert [(one.trial, one.dropped) for one in tried] == [(18, 0), (0, 0), (18, 0)]
    assert not any(any(one.forced) for one in tried)
    assert heard == {row: list(one.token_ids) for row, one in enumerate(tried)}
    for place, begin in ((5, 5), (8, 14)):
        text = (9, 9, 5, *tried[0].token_ids[:place], 40, 41, 42)
        (by_hand,) = TransformersEngine(model, letters()).generate([Request(text, 6)], GREEDY)
        assert script.seen[begin : begin + 6] == list(by_hand.token_ids)


def test_neither_an_end_of_sequence_nor_a_criterion_ends_a_trial() -> None:
    model = random_model(eos=126)
    script = twice()
    untried, tried = decode(model, None), decode(model, script)
    said = [token for token in script.seen[5:11] if token not in untried[0].token_ids]
    model.generation_config.eos_token_id = [126, said[0]]
    assert decode(model, twice()) == tried
    model.generation_config.eos_token_id = 126
    seen: list[list[int]] = []

    def says_it(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        seen.append(ids[0].tolist())
        return ids[:, -1] == said[0]

    criteria: Any = StoppingCriteriaList([says_it])
    ids = torch.tensor([[9, 9, 5]])
    fn = as_custom_generate(lambda prompt: twice())
    out = model.generate(ids, max_new_tokens=30, stopping_criteria=criteria, custom_generate=fn)
    assert out[0].tolist() == [9, 9, 5, *untried[0].token_ids]
    assert any(row[-1] == said[0] for row in seen), "it was asked, and said stop"
    assert seen[-1] == out[0].tolist(), "what it sees is rid of trials"


def test_a_streamer_is_shown_no_trial() -> None:
    class Recorder(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            values.extend(value.flatten().tolist())

        def end(self) -> None:
            pass

    values: list[int] = []
    fn = as_custom_generate(lambda prompt: twice(), streamer=Recorder())
    out = random_model(eos=126).generate(torch.tensor([[9, 9, 5]]), max_new_tokens=20, custom_generate=fn)
    assert values == out[0].tolist()
