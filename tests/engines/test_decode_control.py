"""What watchers may do to a row, checked against a decoder that knows no cache and recomputes everything each step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    PreTrainedModel,
)

from tersely.controller.engines.transformers import decode_loop as loop
from tersely.controller.engines.transformers.decode import as_custom_generate
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import KEEP, Capability, Completion, Directive, Request, SamplingParams, StepInfo, Watcher
from tersely.errors import CapabilityError, OptionError

from ..support.models import VOCABULARY, letters, random_model
from ..support.refusals import refused
from ..support.script import Script

GREEDY = SamplingParams(temperature=0)


def engine_of(model: PreTrainedModel) -> TransformersEngine:
    return TransformersEngine(model, letters(), name="random")


class Wild:
    """Does directives drawn from a seed."""

    def __init__(self, seed: int, most_dropped: int, rate: float = 0.15) -> None:
        self.rng, self.most, self.rate, self.size = random.Random(seed), most_dropped, rate, 0

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.size += 1
        if self.rng.random() > self.rate:
            return KEEP
        drop = min(self.rng.randint(0, self.most), self.size)
        force = tuple(self.rng.randint(3, VOCABULARY - 1) for _ in range(self.rng.randint(self.most < 2, 9)))
        self.size += len(force) - drop
        return Directive(force, drop)


def recompute(model: Any, request: Request, eos: Sequence[int] = (1,)) -> Completion:
    """Decode one row greedily, with a forward over everything for each token."""
    out: list[int] = []
    forced: list[bool] = []
    dropped = 0
    while True:
        with torch.no_grad():
            logits = model(torch.tensor([[*request.prompt_ids, *out]]), use_cache=False).logits[0, -1]
        out, forced = [*out, int(logits.argmax())], [*forced, False]
        directive = request.watcher.observe(out[-1]) if request.watcher else KEEP
        if out[-1] in eos and not directive.retract:
            return Completion(tuple(out[:-1]), tuple(forced[:-1]), "stop", dropped)
        if len(out) <= request.max_new_tokens or directive.retract:
            end = len(out) - directive.retract
            out, forced = out[:end] + list(directive.force), forced[:end] + [True] * len(directive.force)
            dropped += directive.retract
            if directive.force and directive.force[-1] in eos and len(out) <= request.max_new_tokens:
                return Completion(tuple(out[:-1]), tuple(forced[:-1]), "stop", dropped)
        out, forced = out[: request.max_new_tokens], forced[: request.max_new_tokens]
        if len(out) == request.max_new_tokens:
            return Completion(tuple(out), tuple(forced), "length", dropped)


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randint(3, VOCABULARY - 1) for _ in range(rng.randint(2, 20))) for _ in range(count)]


def wild_requests(count: int, most_dropped: int) -> list[Request]:
    rng = random.Random(count)
    return [Request(prompt, rng.randint(20, 60), Wild(row, most_dropped)) for row, prompt in enumerate(prompts(count))]


class Forwards:
    """Counts forwards and notes the shapes of what went in."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.mask_widths: list[int] = []
        self.handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))
        mask = kwargs.get("attention_mask")
        self.mask_widths.append(0 if mask is None else mask.shape[1])


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_rows_in_a_batch_are_what_they_are_alone(kind: str) -> None:
    model = random_model(kind)
    most = 4 if kind == "full" else 1
    engine = engine_of(model)
    assert engine.capabilities == {
        Capability.LOGIT_SIGNALS,
        Capability.LOGPROBS,
        Capability.TOP_LOGPROBS,
        Capability.HIDDEN_STATES,
        Capability.FORWARD_MODIFIERS,
        Capability.RETRACT,
        *((Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RAGGED_BATCH) if kind == "full" else ()),
    }
    together = engine.generate(wild_requests(6, most), GREEDY)
    alone = [engine.generate([request], GREEDY)[0] for request in wild_requests(6, most)]
    truth = [recompute(model, request) for request in wild_requests(6, most)]
    assert together == truth
    assert alone == truth
    assert sum(completion.dropped for completion in truth) > 5
    assert sum(sum(completion.forced) for completion in truth) > 50


@pytest.mark.parametrize("rows", [1, 3])
def test_a_forced_hint_costs_one_forward(rows: int) -> None:
    model = random_model(eos=126)
    forwards = Forwards(model)
    watchers: list[Watcher | None] = [Script(t3=Directive(tuple(range(20, 30)))), *[None] * (rows - 1)]
    requests = [Request((5, 6, 7, 8), 33, watcher) for watcher in watchers]
    hinted, *others = engine_of(model).generate(requests, GREEDY)
    assert hinted.token_ids[3:13] == tuple(range(20, 30))
    assert hinted.forced == (False,) * 3 + (True,) * 10 + (False,) * 20
    assert all(len(other.token_ids) == 33 for other in others)
    # The prompt, the hint with the token sampled before it, and one for each further token but the last.
    steps = 33 if others else 23
    assert len(forwards.shapes) == steps
    assert forwards.shapes[0] == (1, 4), "equal prompts are read once"
    assert forwards.shapes[3] == (rows, 11)
    # The hinted row is full ten steps before the others and leaves the batch.
    assert forwards.shapes[4:] == [(rows, 1)] * 19 + [(rows - 1, 1)] * (steps - 23)


def test_in_a_large_batch_a_hint_is_fed_token_by_token_while_the_others_go_on() -> None:
    model = random_model(eos=126)
    forwards = Forwards(model)

    def requests() -> list[Request]:
        hints = {3: Directive(tuple(range(20, 30))), 5: Directive((40, 41, 42, 43, 44, 45, 46), retract=3)}
        return [
            Request(prompt, 30, Script(**{f"t{at}": hint for at, hint in hints.items()}) if row % 3 == 0 else None)
            for row, prompt in enumerate(prompts(12))
        ]

    done = engine_of(model).generate(requests(), GREEDY)
    forwards.handle.remove()
    assert {shape[1] for shape in forwards.shapes[1:]} == {1}
    assert done == [recompute(model, request, (126,)) for request in requests()]
    assert sum(sum(row.forced) for row in done) == 4 * (10 - 1 + 7), "three tokens were dropped, one of them forced"


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(1.0, seed=3), SamplingParams(1.0, seed=3, inverse_cdf=True)]
)
def test_rows_that_ended_leave_the_batch_and_change_nothing(
    sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(eos=[1, 7])
    forwards = Forwards(model)
    left = engine_of(model).generate(wild_requests(12, 4), sampling)
    monkeypatch.setattr(loop, "_SHRINK_BELOW", 0)
    leaving = len(forwards.shapes)
    stayed = engine_of(model).generate(wild_requests(12, 4), sampling)
    assert left == stayed
    rows = [shape[0] for shape in forwards.shapes]
    assert set(rows[leaving:]) == {12}
    assert rows[0] == 12 and rows[leaving - 1] <= 2
    assert sorted(rows[:leaving], reverse=True) == rows[:leaving]


def test_a_seed_draws_by_one_number_a_row_what_the_model_says() -> None:
    model = random_model(eos=126)
    engine, sampling = engine_of(model), SamplingParams(1.0, top_k=0, seed=3, inverse_cdf=True)
    requests = [Request((5, 6, 7, 8), 1)] * 4000
    tokens = [done.token_ids[0] for done in engine.generate(requests, sampling) if done.token_ids]
    assert tokens == [done.token_ids[0] for done in engine.generate(requests, sampling) if done.token_ids]
    with torch.no_grad():
        chances = torch.softmax(model(torch.tensor([[5, 6, 7, 8]])).logits[0, -1], dim=-1)
    chances[126] = 0
    shares = torch.bincount(torch.tensor(tokens), minlength=len(chances)) / len(requests)
    assert float((shares - chances).abs().max()) < 4 * (float(chances.max()) / len(requests)) ** 0.5
    assert float(chances.max()) > 3 * float(chances.median()), "or every way of drawing passes"


def test_without_holes_forced_tokens_are_fed_one_by_one() -> None:
    model = random_model("sliding", eos=126)
    forwards = Forwards(model)
    request = Request((5, 6, 7, 8), 33, Script(t3=Directive(tuple(range(20, 30)))))
    engine_of(model).generate([request], GREEDY)
    assert forwards.shapes == [(1, 4), *[(1, 1)] * 32]


def test_closing_by_replacing_the_sampled_token() -> None:
    model = random_model(eos=126)
    plain, closed = engine_of(model).generate(
        [Request((9, 9, 5), 12), Request((9, 9, 5), 12, Script(t5=Directive((40, 41), retract=1)))], GREEDY
    )
    assert closed.token_ids[:6] == (*plain.token_ids[:4], 40, 41)
    assert closed.dropped == 1
    assert len(closed.token_ids) == 12


def test_an_end_of_sequence_may_be_dropped_and_forced() -> None:
    model = random_model(eos=126)
    free = engine_of(model).generate([Request((9, 9, 5), 8)], GREEDY)[0]
    model.generation_config.eos_token_id = [127, free.token_ids[3]]
    place = free.token_ids.index(free.token_ids[3])
    key = {f"t{place + 1}": Directive((40, 127), retract=1)}
    seen: list[tuple[int, ...]] = []
    requests = [Request((9, 9, 5), 8), Request((9, 9, 5), 8, Script(**key))]
    ended, reopened = engine_of(model).generate(requests, GREEDY, lambda row, ids, forced: seen.append((row, *ids)))
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids[:place], "stop")
    assert (reopened.token_ids, reopened.finish_reason) == ((*free.token_ids[:place], 40), "stop")
    within = Request((9, 9, 5), 8, Script(**{f"t{place + 1}": Directive((40, 127, 41), retract=1)}))
    (went_on,) = engine_of(model).generate([within], GREEDY)
    assert went_on.token_ids[place : place + 3] == (40, 127, 41), "it ends nothing in the middle of a text"
    assert (1, 40) in seen
    assert not any(127 in ids or free.token_ids[3] in ids for ids in seen)


def test_limits_hold_for_each_row_and_cut_forced_tokens() -> None:
    model = random_model(eos=126)
    requests = [
        Request((5, 6), 1),
        Request((5, 6, 7), 7),
        Request((5,), 4, Script(t2=Directive((30, 31, 32, 33)))),
    ]
    done = engine_of(model).generate(requests, GREEDY)
    assert [len(completion.token_ids) for completion in done] == [1, 7, 4]
    assert [completion.finish_reason for completion in done] == ["length"] * 3
    assert done[2].token_ids[2:] == (30, 31)


def test_the_sink_hears_what_the_completion_says() -> None:
    heard: dict[int, list[tuple[int, bool]]] = {}

    def sink(row: int, ids: Sequence[int], forced: bool) -> None:
        said = heard.setdefault(row, [])
        if not ids:
            said.pop()
        said.extend((token, forced) for token in ids)

    done = engine_of(random_model()).generate(wild_requests(6, 4), GREEDY, sink)
    for row, completion in enumerate(done):
        assert heard.get(row, []) == list(zip(completion.token_ids, completion.forced, strict=True))


def test_processors_see_each_row_compact() -> None:
    model = random_model(eos=126)
    starts = [(5, 6, 7), (8, 9, 10, 11, 12, 13), (14,)]
    outputs: list[list[int]] = [[], [], []]
    leads = set()

    def sink(row: int, ids: Sequence[int], forced: bool) -> None:
        outputs[row] = outputs[row][:-1] if not ids else [*outputs[row], *ids]

    def check(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        live = [row for row, output in enumerate(outputs) if len(output) < 20]
        rows = [input_ids[row].tolist() for row in live]
        expected = [[*starts[row], *outputs[row]] for row in live]
        assert [row[len(row) - len(ids) :] for row, ids in zip(rows, expected, strict=True)] == expected
        spare = [row[: len(row) - len(ids)] for row, ids in zip(rows, expected, strict=True)]
        assert not any(any(lead) for lead in spare)
        if len(live) == 3:
            assert min(len(lead) for lead in spare) == 0
            leads.add(tuple(len(lead) for lead in spare))
        return scores

    scripts = {
        starts[0]: Script(t2=Directive(tuple(range(40, 50))), t6=Directive((), retract=3)),
        starts[2]: Script(t4=Directive((50, 51, 52), retract=2)),
    }
    fn = as_custom_generate(lambda prompt: scripts.get(tuple(prompt)), sink=sink)
    width = max(map(len, starts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in starts])
    processors: Any = LogitsProcessorList([check])
    model.generate(
        ids, attention_mask=(ids > 0).long(), logits_processor=processors, max_new_tokens=20, custom_generate=fn
    )
    assert len(leads) == 4  # as padded at first, then after each unequal step


def test_the_cache_sheds_its_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_MAX_CHUNK", {})
    model = random_model(eos=126)
    forwards = Forwards(model)

    def requests() -> list[Request]:
        return [
            Request(prompt, 120, Script(**{f"t{3 + 2 * row + 20 * turn}": Directive((30,) * 12) for turn in range(3)}))
            for row, prompt in enumerate(prompts(5))
        ]

    done = engine_of(model).generate(requests(), GREEDY)
    forwards.handle.remove()
    assert done == [recompute(model, request, (126,)) for request in requests()]
    widths = forwards.mask_widths
    assert any(after < before for before, after in pairwise(widths) if after)
    assert widths[-1] < sum(shape[1] for shape in forwards.shapes) - 64


@pytest.mark.parametrize(
    ("kind", "directive", "error"),
    [
        ("sliding", Directive((5,), retract=2), CapabilityError),
        ("sliding", Directive(retract=1), CapabilityError),
        ("full", Directive(retract=9), OptionError),
    ],
)
def test_drops_that_cannot_be_done(kind: str, directive: Directive, error: type[Exception]) -> None:
    request = Request((5, 6), 20, Script(t4=directive))
    with pytest.raises(error):
        engine_of(random_model(kind, eos=126)).generate([request], GREEDY)


def test_a_watcher_that_drops_for_ever_is_stopped() -> None:
    class Stubborn:
        def observe(self, token: int, step: StepInfo | None = None) -> Directive:
            return Directive(retract=1)

    with refused(CapabilityError):
        engine_of(random_model()).generate([Request((5, 6), 5, Stubborn())], GREEDY)


def test_ended_rows_do_not_run_out_of_learned_positions() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=126)
    engine = engine_of(GPT2LMHeadModel(config).eval())
    assert Capability.RAGGED_BATCH in engine.capabilities

    def requests() -> list[Request]:
        return [Request((5,) * 28, 4), Request((6, 7), 30, Script(t9=Directive((8, 9, 10))))]

    done = engine.generate(requests(), GREEDY)
    assert [len(completion.token_ids) for completion in done] == [4, 30]
    assert done == [engine.generate([request], GREEDY)[0] for request in requests()]
