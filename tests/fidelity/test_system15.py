"""System-1.5 Reasoning (arXiv 2505.18962): mixed states, exits, step shortcuts and losses, worked out by hand."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.evaluation.tasks.toy_programs import Operand, Step
from tersely.training.config import RecipeError, validate_recipe_values
from tersely.training.research.latent import Route, early_exit_loss, exit_weights, mix, think
from tersely.training.research.system15 import (
    METHOD,
    RESULT,
    System15Settings,
    alignment_loss,
    answer_loss,
    draw_problems,
    find_critical,
    make_example,
    pad,
    shortcut_loss,
    teacher_thoughts,
)

from ..support.trainings import train

SETTINGS = System15Settings()


def parts(gate: float, adds: float, width: int = 2) -> dict[str, Tensor]:
    """A router that always gives sigmoid(gate), and an adapter that adds a number to every component."""
    return {
        "down": torch.zeros(1, width),
        "down_bias": torch.full((1,), 30.0),  # silu(30) is 30
        "up": torch.full((width, 1), adds / 30),
        "up_bias": torch.zeros(width),
        "gate_in": torch.zeros(1, width),
        "gate_in_bias": torch.ones(1),
        "gate_out": torch.full((1,), gate / float(silu(torch.ones(())))),
        "gate_out_bias": torch.zeros(()),
    }


def test_a_layer_mixes_both_shortcuts_with_the_full_path() -> None:
    assert mix(torch.tensor(2.0), torch.tensor(5.0), torch.tensor(1.0), torch.tensor(0.25)).item() == 2.5
    # w = sigmoid(ln 3) = 3/4; (h_0 + 10) + (previous h_1 + 100) = 1 + 10 + 4 + 100 = 115; 115 * 3/4 + 7 * 1/4 = 88
    previous = [torch.zeros(1, 1, 2), torch.full((1, 1, 2), 4.0)]
    route = Route([parts(0, 10), parts(float(torch.tensor(3.0).log()), 100)], previous)
    assert route(1, torch.ones(1, 1, 2), torch.full((1, 1, 2), 7.0)).flatten().tolist() == pytest.approx([88, 88])


def test_a_thought_exits_at_the_first_layer_above_the_threshold_and_reuses_the_previous_one_there() -> None:
    shortcuts = [parts(9, 1), parts(0.0, 10), parts(1.0, 100), parts(9.0, 1000)]  # w of layers 1 to 3: 0.5, 0.73, 1.0
    previous = [torch.full((1, 1, 2), 1e4 * layer) for layer in range(4)]

    def run(threshold: float) -> tuple[list[float], float]:
        route, state, seen = Route(shortcuts, previous, threshold), torch.ones(1, 1, 2), list[float]()
        for layer in (1, 2, 3):
            state = route(layer, state, state + 1)
            seen.append(float(state[0, 0, 0]))
        return seen, float(route.computed)

    # Layer 1 is computed (1 + 1); layer 2 exits: (2 + 10) + (20000 + 100); layer 3 takes that over.
    assert run(0.6) == (pytest.approx([2, 20112, 20112]), 1)
    assert run(0.5)[1] == 1  # w has to be above the threshold
    assert run(0.49) == (pytest.approx([10012] * 3), 0)  # (1 + 1) + (10000 + 10), and no layer is computed
    assert run(0.99995) == (pytest.approx([2, 3, 4]), 3)


def test_early_exit_loss_weighs_layers_by_what_is_critical() -> None:
    weights = exit_weights(3, torch.tensor([[False, True]]))
    torch.testing.assert_close(weights, torch.tensor([[[3, 2, 1], [1, 2, 3]]]) / 6)
    full = torch.zeros(1, 2, 2)
    states = torch.tensor([[[[2.0, 0.0], [0, 0], [0, 0]], [[0.0, 0.0], [2, 2], [0, 0]]]])
    # ((4 + 0) / 2 * 3/6 + (4 + 4) / 2 * 2/6) / 2 thoughts
    assert early_exit_loss(states, full, weights).item() == pytest.approx((1 + 4 / 3) / 2)


def test_independent_steps_and_the_rest_are_not_critical() -> None:
    derived = Step("+", Operand(0, 0), Operand(5))
    program = (Step("*", Operand(2), Operand(3)), Step("*", Operand(4), Operand(5)), derived)
    assert find_critical(program, 4) == [False, False, True, False]


def test_thoughts_are_aligned_with_the_ends_of_values(small: TransformersEngine) -> None:
    problem = next(p for p in draw_problems("train", 0, SETTINGS) if len(p.program) == 2)
    example = make_example(small.tokenizer, "</think>", 3, problem)
    read = [small.tokenizer.decode(example.chain[: end + 1]) for end in example.ends]
    assert read[1].endswith(f"={problem.answer}") and read[2] == read[1] != read[0]
    assert small.tokenizer.decode(example.answer) == f"</think>\n\nThe answer is \\boxed{{{problem.answer}}}.<|im_end|>"
    found = teacher_thoughts(small.model, [example])
    alone = small.model.model(input_ids=torch.tensor([example.chain[: example.ends[0] + 1]])).last_hidden_state[0, -1]
    torch.testing.assert_close(found[0, 0], alone, atol=1e-4, rtol=1e-4)


def test_thoughts_are_the_last_states_fed_back(small: TransformersEngine) -> None:
    """Padding and caching change nothing: the model's own forward pass on embeddings says the same, row by row."""
    model: Any = small.model
    examples = [make_example(small.tokenizer, "</think>", 3, p) for p in islice(draw_problems("train", 0, SETTINGS), 3)]
    loss, count = 0.0, 0
    with torch.no_grad():
        thinking = think(model, *pad([example.prompt for example in examples]), 3)
        for row, example in enumerate(examples):
            inputs, answer = model.get_input_embeddings()(torch.tensor([example.prompt])), torch.tensor(example.answer)
            for _ in range(3):
                inputs = torch.cat([inputs, model.model(inputs_embeds=inputs).last_hidden_state[:, -1:]], dim=1)
            thoughts = model.model(inputs_embeds=inputs).last_hidden_state[0, -3:]
            torch.testing.assert_close(thinking.states[row, :, -1], thoughts, atol=1e-3, rtol=1e-3)
            inputs = torch.cat([inputs, model.get_input_embeddings()(answer[None])], dim=1)
            logits = model(inputs_embeds=inputs).logits[0, -len(answer) : -1]
            loss += float(cross_entropy(logits, answer[1:], reduction="sum"))
            count += len(answer) - 1
        assert float(answer_loss(model, thinking, examples)) == pytest.approx(loss / count, rel=1e-3)
    assert thinking.computed.tolist() == [12.0] * 3


def test_routers_that_never_let_go_change_nothing(small: TransformersEngine) -> None:
    problems = islice(draw_problems("train", 0, SETTINGS), 2)
    ids, valid = pad([make_example(small.tokenizer, "</think>", 3, p).prompt for p in problems])
    with torch.no_grad():
        plain = think(small.model, ids, valid, 3)
        never, always = (think(small.model, ids, valid, 3, [parts(gate, 0, 128)] * 5, 0.5) for gate in (-9.0, 9.0))
    torch.testing.assert_close(never.states, plain.states)
    assert never.computed.tolist() == [12.0] * 2 and always.computed.tolist() == [0.0] * 2


def test_both_losses_are_those_of_answers_plus_weighted_distances(small: TransformersEngine) -> None:
    examples = [make_example(small.tokenizer, "</think>", 3, p) for p in islice(draw_problems("train", 0, SETTINGS), 2)]
    prompts, shortcuts = pad([example.prompt for example in examples]), [parts(0.0, 0.1, 128)] * 5
    with torch.no_grad():
        full = think(small.model, *prompts, 3)
        thoughts, answer = full.states[:, :, -1], answer_loss(small.model, full, examples)
        distance = (thoughts - teacher_thoughts(small.model, examples)).square().mean()
        settings = System15Settings(align=0.5, exits=0.25)
        first = alignment_loss(small.model, small.model, examples, settings)
        assert float(first) == pytest.approx(float(answer + 0.5 * distance), rel=1e-4)
        mixed = think(small.model, *prompts, 3, shortcuts)
        weights = exit_weights(4, torch.tensor([example.critical for example in examples]))
        exits, answer = early_exit_loss(mixed.states, thoughts, weights), answer_loss(small.model, mixed, examples)
        second = shortcut_loss(small.model, shortcuts, examples, settings)
        assert float(second) == pytest.approx(float(answer + 0.25 * exits), rel=1e-4)


@pytest.mark.parametrize(
    "change", [{"data": {"task": "gsm8k"}}, {"data": {"split": "test"}}, {"model": "Qwen/Qwen3-8B"}]
)
def test_other_questions_and_models_are_refused(change: dict[str, Any]) -> None:
    recipe = validate_recipe_values({"method": "system15", "out": "x", **change}, METHOD.recipe, "the test")
    with pytest.raises(RecipeError) as refused:
        METHOD.validate(recipe)
    assert refused.value.code == "unsupported_data"


@pytest.mark.slow
def test_a_run_ends_with_a_comparison(tmp_path: Path) -> None:
    out, own = tmp_path / "out", {"held_out": 4, "shortcut_steps": 2, "thresholds": [0.0, 0.9]}
    train("system15", out, model="tersely-tiny-small", system15=own, rollouts={"prompts": 4, "max_new_tokens": 110})
    found = json.loads((out / RESULT).read_text("utf-8"))
    assert found["latent thoughts: 3"]["layers_per_thought"] == 4
    assert found["3, exits above 0"]["layers_per_thought"] == 0, "every router says more than nothing"
    assert found["words"]["thinking_tokens"] > 0 == found["no thinking"]["thinking_tokens"]
