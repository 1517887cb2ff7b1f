"""Training of depth shortcuts from the model's own thinking, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tersely.cli.app import main
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.probes.artifact import ArtifactError, save
from tersely.probes.research.learned import Shortcut
from tersely.training.config import Optimizer, RecipeError, validate_recipe_values
from tersely.training.offline import SampledTrace
from tersely.training.research import shortcut as method
from tersely.training.research.shortcut import (
    ShortcutSettings,
    choose_threshold,
    collect_states,
    find_thinking_tokens,
    train_adapter,
)
from tersely.training.run import train as run

from ...support.shortcuts import NEVER, PROBLEMS, arrays, shortcut
from ...support.shortcuts import engine as engine  # the fixture

RECIPE: dict[str, Any] = {
    "method": "shortcut",
    "data": {"questions": 8, "split": "fit"},
    "rollouts": {"prompts": 2, "max_new_tokens": 100, "batch": 32},
    "optimizer": {"steps": 40, "learning_rate": 4e-3},
    "shortcut": {"layer": 3, "agreement": 0.9, "tokens": 128},
}


def test_a_saved_shortcut_is_loaded_and_checked(engine: TransformersEngine, tmp_path: Path) -> None:
    made = shortcut(engine, metrics={"left": 0.5, "odd": float("nan")}, provenance={"seed": 3})
    save(made, tmp_path)
    found = Shortcut.load(tmp_path, engine.fingerprint())
    assert found == made
    assert (found.layer, found.layers, found.threshold, found.metrics["odd"]) == (2, 4, 30.0, None)
    np.testing.assert_array_equal(found.arrays["gate_in"], made.arrays["gate_in"])
    assert found != shortcut(engine, threshold=1.0)
    with pytest.raises(ArtifactError):
        Shortcut.load(tmp_path, "cd" * 32, "qwen")
    with pytest.raises(ArtifactError):
        Shortcut.load(tmp_path, None)
    save(shortcut(engine, arrays=arrays(128, seed=1)), tmp_path / "other")
    (tmp_path / "probe.safetensors").write_bytes((tmp_path / "other" / "probe.safetensors").read_bytes())
    with pytest.raises(ArtifactError):
        Shortcut.load(tmp_path, engine.fingerprint())
    about = tmp_path / "probe.json"
    about.write_text(about.read_text("utf-8").replace('"layer": 2', '"layer": 3'), "utf-8")
    with pytest.raises(ArtifactError):
        Shortcut.load(tmp_path, engine.fingerprint())


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": 4},
        {"threshold": NEVER},
        {"base": {"name": "x"}},
        {"arrays": {"down": np.zeros((2, 2))}},
        {"arrays": arrays(128) | {"up": np.zeros((3, 8))}},
        {"arrays": arrays(128) | {"up_bias": np.full(128, np.nan)}},
        {"arrays": arrays(128) | {"down": np.zeros(128)}},
    ],
)
def test_invalid_shortcuts_are_refused(engine: TransformersEngine, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError) as error:
        shortcut(engine, **changes)
    assert error.value.code == "invalid_artifact"


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"shortcut": {"layer": 4}}, "layer_out_of_range"),
        ({"shortcut": {"layer": 0}}, "invalid_value"),
        ({"shortcut": {}}, "invalid_value"),
        ({"shortcut": {"layer": 2, "agreemnt": 1}}, "invalid_value"),
        ({"shortcut": {"layer": 2, "held_out": 0.01}}, "too_few_questions"),
        ({"shortcut": {"layer": 2}, "optimizer": {"lora": {}}}, "no_lora"),
        ({"shortcut": {"layer": 2}, "optimizer": {"weight_decay": 0.1}}, "no_weight_decay"),
    ],
)
def test_invalid_recipes_are_refused(sections: dict[str, Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        method.METHOD.validate(
            validate_recipe_values({**RECIPE, "out": tmp_path, **sections}, method.ShortcutRecipe, "the test")
        )
    assert refused.value.code == code


def test_unsupported_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "FAMILIES", ("llama",))
    recipe = validate_recipe_values({**RECIPE, "out": tmp_path}, method.ShortcutRecipe, "the test")
    with pytest.raises(RecipeError) as refused:
        method.METHOD.validate(recipe)
    assert refused.value.code == "unsupported_model"


def test_only_thinking_of_the_model_is_learned() -> None:
    trace = SampledTrace([1, 2], [3, 4, 5, 9, 6], [1, 0, 1, 1, 1], right=True, finished=True)
    assert find_thinking_tokens(trace, close=9) == [False, False, True, False, True, False, False]
    assert find_thinking_tokens(trace, close=7) == [False, False, True, False, True, True, True]


def test_without_agreement_no_tokens_leave(engine: TransformersEngine) -> None:
    draw = np.random.default_rng(0)
    traces = [
        SampledTrace([5], draw.integers(20, 900, 40).tolist(), [1] * 40, right=True, finished=True) for _ in range(3)
    ]
    states = collect_states(engine.model, traces, 1, close=2)
    assert states.early.shape == states.final.shape == (120, 128)
    optimizer = Optimizer(steps=1, learning_rate=1e-4)
    settings = ShortcutSettings(layer=1, width=8, gate=4, tokens=32, agreement=1.0)
    arrays = train_adapter(engine.model, states, settings, optimizer, 0, print)
    chosen = choose_threshold(engine.model, arrays, traces, settings, 2)
    assert chosen.threshold is None or chosen.agreement_left == chosen.agreement_stayed == 1.0
    wrong = {name: array.clone() for name, array in arrays.items()}
    wrong["up_bias"] = 1000 * torch.randn(128)
    assert (
        choose_threshold(engine.model, wrong, traces, settings.model_copy(update={"agreement": 0.9}), 2).threshold
        is None
    )


@pytest.mark.slow
def test_a_shortcut_is_trained_and_used(
    engine: TransformersEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    config, said, again = tmp_path / "recipe.yaml", list[str](), list[str]()
    config.write_text(json.dumps({**RECIPE, "out": str(out)}), "utf-8")  # which is YAML as well
    run("shortcut", config, log=said.append)
    found = Shortcut.load(out / "shortcut", engine.fingerprint())
    assert found.threshold is not None and found.metrics["left"] > 0.05, said
    assert min(found.metrics["agreement_left"], found.metrics["agreement_stayed"]) >= 0.9
    assert len(found.learned_from) == 8
    steps = [float(line.split("divergence ")[1].split()[0]) for line in said if line.startswith("step ")]
    assert steps[-1] < 0.8 * steps[0]
    run("shortcut", config, resume=True, log=again.append)
    assert Shortcut.load(out / "shortcut", engine.fingerprint()) == found
    assert again[-1] == said[-1]
    words = [
        "run",
        PROBLEMS[0],
        "--preset",
        "off",
        "--modifier",
        "shortcut",
        "--probes",
        str(out),
        "--max-new-tokens",
        "80",
        "--json",
    ]
    assert main([*words, "--max-new-tokens", "80"]) == 0
    (decision,) = json.loads(capsys.readouterr().out)["decisions"]
    assert decision["action"] == "leave" and decision["reason"].endswith("thinking tokens left after layer 3 of 4")
