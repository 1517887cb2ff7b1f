"""Hidden states that watchers read: those of one forward over the whole text, whatever was forced, dropped or ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.engines.transformers.hooks import find_decoder_layer
from tersely.controller.types import KEEP, Directive, Request, SamplingParams, State, StepInfo
from tersely.errors import CapabilityError, OptionError, PromptError, TerselyError

from ..support.models import VOCABULARY, letters, random_model
from ..support.refusals import refused

GREEDY = SamplingParams(temperature=0)
LAYERS = (0, 1, -1)
PROMPTS = ((5, 6, 7, 8), (9,), (10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), (21, 22), (23, 24, 25, 26, 27))


class Noting:
    """Keeps what its row has put out, each sampled token with the states it was sampled from; does what it is told."""

    def __init__(self, **directives: Directive) -> None:
        self.at = {int(key.removeprefix("t")): value for key, value in directives.items()}
        self.size = 0
        self.kept: list[tuple[int, dict[int, State] | None]] = []

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        assert step is not None and step.signals is None
        self.size += 1
        self.kept.append((token, {layer: step.state(layer) for layer in LAYERS}))
        directive = self.at.get(self.size, KEEP)
        del self.kept[len(self.kept) - directive.retract :]
        self.kept += [(forced, None) for forced in directive.force]
        return directive


class Reads:
    """Reads one layer at the third token; None is given nothing to read."""

    def __init__(self, layer: int) -> None:
        self.layer, self.size = layer, 0

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.size += 1
        if self.size == 3:
            assert step is not None
            step.state(self.layer)
        return KEEP


def engine_of(model: PreTrainedModel) -> TransformersEngine:
    return TransformersEngine(model, letters(), name="random")


def hooks_of(model: PreTrainedModel) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def expected_states(model: Any, prompt: tuple[int, ...], output: tuple[int, ...]) -> dict[int, State]:
    """By layer, the states [output, width] that the tokens of an output were sampled from."""
    with torch.no_grad():
        states = model(torch.tensor([[*prompt, *output]]), output_hidden_states=True).hidden_states
    return {layer: states[layer][0, len(prompt) - 1 : -1].float().numpy() for layer in LAYERS}


def meddlers(kind: str) -> list[Noting]:
    """Watchers of five rows; the second and the last leave their row alone."""
    back = Directive((40, 41), retract=1)
    if kind == "full":
        return [
            Noting(t4=Directive(tuple(range(40, 50))), t9=Directive((), retract=3)),
            Noting(),
            Noting(t2=Directive((), retract=1), t6=Directive((50, 51, 52), retract=4)),
            Noting(t3=back),
            Noting(),
        ]
    return [Noting(t4=Directive(tuple(range(40, 50)))), Noting(), Noting(t3=back, t7=back), Noting(t5=back), Noting()]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_states_are_those_of_a_forward_over_all(kind: str, temperature: float) -> None:
    model = random_model(kind)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    watchers = meddlers(kind)
    asked = [
        Request(p, 16 + 5 * row, w, layers=LAYERS) for row, (p, w) in enumerate(zip(PROMPTS, watchers, strict=True))
    ]
    done = engine_of(model).generate(asked, SamplingParams(temperature=temperature, seed=3))
    handle.remove()
    assert (sizes[-1] < sizes[0]) == (kind == "full"), "rows that have ended leave the batch where they can"
    checked = 0
    for prompt, watcher, one in zip(PROMPTS, watchers, done, strict=True):
        truth = expected_states(model, prompt, one.token_ids)
        for place, (token, (said, states)) in enumerate(zip(one.token_ids, watcher.kept, strict=False)):
            assert token == said
            assert (states is None) == one.forced[place]
            for layer, state in (states or {}).items():
                assert state.dtype == np.float32
                np.testing.assert_allclose(state, truth[layer][place], atol=2e-4, rtol=1e-3)
                checked += 1
    assert checked > 100
    assert sum(sum(one.forced) for one in done) > 10


def test_states_of_half_precision_are_handed_out_whole() -> None:
    model = random_model(dtype=torch.bfloat16)
    watcher = Noting()
    (done,) = engine_of(model).generate([Request(PROMPTS[0], 6, watcher, layers=LAYERS)], GREEDY)
    truth = expected_states(model, PROMPTS[0], done.token_ids)
    for place, (_, states) in enumerate(watcher.kept):
        assert states is not None
        assert states[-1].dtype == np.float32
        np.testing.assert_allclose(states[-1], truth[-1][place], atol=0.05, rtol=0.05)


def test_reading_costs_no_forward_and_changes_nothing() -> None:
    model = random_model()
    forwards: list[None] = []
    model.register_forward_pre_hook(lambda *_: forwards.append(None))
    read = engine_of(model).generate([Request(p, 20, Noting(), layers=LAYERS) for p in PROMPTS], GREEDY)
    count = len(forwards)
    plain = engine_of(model).generate([Request(p, 20) for p in PROMPTS], GREEDY)
    assert (read, 2 * count) == (plain, len(forwards))


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_nothing_asked_is_nothing_given(kind: str) -> None:
    class Plain:
        def observe(self, token: int) -> Directive:
            return KEEP

    watchers: list[Any] = [Plain(), Plain()]
    asked = [Request(p, 5, w) for p, w in zip(PROMPTS, watchers, strict=False)]
    assert [len(one.token_ids) for one in engine_of(random_model(kind, eos=126)).generate(asked, GREEDY)] == [5, 5]


@pytest.mark.parametrize(
    "request_",
    [
        Request((5, 6), 9, Reads(1), layers=(0, -1)),
        Request((5, 6), 9, Reads(-1), signals=True),
        Request((5, 6), 9, Reads(3), layers=(3,)),
        Request((5, 6), 9, Reads(-4), layers=(-4,)),
    ],
)
def test_a_layer_that_is_not_there_is_named_and_no_hook_stays(request_: Request) -> None:
    model = random_model(eos=126)
    with refused(OptionError):
        engine_of(model).generate([request_], GREEDY)
    assert hooks_of(model) == 0


def test_hooks_go_when_a_run_ends_and_when_a_watcher_fails() -> None:
    class Fails(Noting):
        def observe(self, token: int, step: StepInfo | None = None) -> Directive:
            assert hooks_of(model) == len(LAYERS)
            if self.size == 2:
                raise RuntimeError("no more")
            return super().observe(token, step)

    model = random_model(eos=126)
    engine = engine_of(model)
    engine.generate([Request((5, 6), 4, Noting(), layers=LAYERS)], GREEDY)
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError):
        engine.generate([Request((5, 6), 4, Fails(), layers=LAYERS)], GREEDY)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    "request_",
    [Request((5, 6), 4, layers=(0, 1, 99)), Request((5, 6), 0, layers=LAYERS), Request((), 4, layers=LAYERS)],
)
def test_a_refused_request_leaves_no_hook(request_: Request) -> None:
    model = random_model()
    with pytest.raises(TerselyError) as caught:
        engine_of(model).generate([request_], GREEDY)
    assert isinstance(caught.value, (OptionError, PromptError))
    assert hooks_of(model) == 0


def test_layer_0_of_a_model_with_learned_positions_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=126)
    ).eval()
    watcher = Noting()
    (done,) = engine_of(model).generate([Request((5, 6), 3, watcher, layers=LAYERS)], GREEDY)
    truth = expected_states(model, (5, 6), done.token_ids)
    states = watcher.kept[2][1]
    assert states is not None
    for layer in (1, -1, 0):
        np.testing.assert_allclose(states[layer], truth[layer][2], atol=2e-4, err_msg=f"layer {layer}")


def test_a_model_without_a_list_of_its_layers_has_its_ends_only() -> None:
    model: Any = random_model()
    model.config.num_hidden_layers = 3
    assert find_decoder_layer(model, -1)[0] is model.get_decoder()
    assert find_decoder_layer(model, -4)[0] is find_decoder_layer(model, 0)[0] is model.get_input_embeddings()
    with refused(CapabilityError):
        find_decoder_layer(model, 1)


@pytest.mark.parametrize("layer", [0, 1, 2, -1])
@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_hidden_states_of_prompts_are_those_that_transformers_returns(kind: str, layer: int) -> None:
    """Prompts of unequal length in one batch, each as it is alone."""
    model = random_model(kind)
    prompts = [(5, 6, 7, 8), (9,), tuple(range(10, 23))]
    states = TransformersEngine(model, letters(), name="random").hidden_states(prompts, layer)
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()) == 0
    for prompt, state in zip(prompts, states, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[layer][0, -1]
        np.testing.assert_allclose(state, expected.numpy(), atol=1e-4)


def test_hidden_states_of_a_layer_that_is_not_there() -> None:
    with refused(OptionError):
        TransformersEngine(random_model(), letters(), name="random").hidden_states([(5, 6)], 9)
