"""The depth shortcut: off it changes nothing, on it leaves later tokens the right keys; learnt, kept and refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

import tersely
from tersely.cli.app import main
from tersely.controller.engines.shortcut import FAMILIES, leaving
from tersely.controller.engines.transformers import TransformersEngine, load_engine
from tersely.controller.options import Options
from tersely.controller.policies import make_policy
from tersely.controller.policies.base import Policy
from tersely.controller.policies.shortcut import DepthShortcut
from tersely.controller.probing import ProbeError
from tersely.controller.session import Session
from tersely.controller.trace import Generation
from tersely.errors import CapabilityError, OptionError
from tersely.evaluation.bench.checks import CheckError, check_unseen
from tersely.evaluation.tasks.questions import Question, hash_of
from tersely.probes.artifact import ArtifactError
from tersely.probes.shortcut import Shortcut, load_shortcut, save_shortcut
from tersely.training.config import RecipeError, checked
from tersely.training.distilling import choose, learn, read, thinking_of
from tersely.training.methods import shortcut as method
from tersely.training.run import train as run
from tersely.training.traces import Trace

from .models import random_model

PROBLEMS = ["Set a to 6 + 4. What is a?", "Compute 9 - 4 + 2."]
BASE = "tersely-tiny-small"
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
ALWAYS, NEVER = -float("inf"), float("inf")
RECIPE: dict[str, Any] = {
    "method": "shortcut",
    "data": {"questions": 8, "split": "fit"},
    "rollouts": {"prompts": 2, "max_new_tokens": 100, "batch": 32},
    "optimiser": {"steps": 40, "learning_rate": 4e-3},
    "shortcut": {"layer": 3, "agreement": 0.9, "tokens": 128},
}


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine(BASE)


@pytest.fixture(scope="module")
def off(engine: TransformersEngine) -> list[tuple[int, ...]]:
    return tokens(ask(engine))


def arrays(width: int, seed: int = 0, size: float = 0.0) -> dict[str, np.ndarray]:
    """An adapter that changes nothing, or states by so much, and a gate by chance."""
    draw = np.random.default_rng(seed)
    return {
        "down": draw.normal(size=(8, width)),
        "down_bias": np.zeros(8),
        "up": size * draw.normal(size=(width, 8)),
        "up_bias": np.zeros(width),
        "gate_in": draw.normal(size=(4, width)),
        "gate_in_bias": np.zeros(4),
        "gate_out": draw.normal(size=4),
        "gate_out_bias": np.zeros(()),
    }


def shortcut(engine: TransformersEngine, **changes: Any) -> Shortcut:
    facts: dict[str, Any] = {
        "layer": 2,
        "layers": 4,
        "arrays": arrays(128, size=0.1),
        "base": {"name": BASE, "fingerprint": engine.fingerprint()},
        "threshold": 30.0,  # which about half of the states reach
    }
    return Shortcut(**(facts | changes))


def ask(engine: TransformersEngine, *policies: Policy, **options: Any) -> list[Generation]:
    settings = {"policies": policies, "temperature": 0, "max_new_tokens": 70, "probes": None, "prompts": PROBLEMS}
    made: list[Generation] = tersely.generate(engine, **{**settings, **options})
    return made


def tokens(made: Sequence[Generation]) -> list[tuple[int, ...]]:
    return [one.token_ids for one in made]


def told(one: Generation) -> tuple[int, int]:
    """How many thinking tokens left, of how many, as the trace has it."""
    (reason,) = (d.reason for d in one.trace if d.policy == "shortcut")
    words = reason.split()
    assert words[3:] == ["thinking", "tokens", "left", "after", "layer", "2", "of", "4"]
    return int(words[0]), int(words[2])


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[family](**SIZES, attn_implementation="sdpa")
    if family == "mistral":
        config.sliding_window = None
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


def _answer(chosen: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    return chosen


@torch.no_grad()
def stepwise(model: PreTrainedModel, ids: torch.Tensor, goes: torch.Tensor, layer: int) -> torch.Tensor:
    """Logits [rows, length, vocabulary] of tokens that are fed one by one, some of which leave."""
    cache, found = DynamicCache(config=model.config), []
    for place in range(ids.shape[1]):
        mask = goes[:, place : place + 1]
        chosen = mask if bool(mask.any()) else None
        with leaving(model, layer, lambda h: 0.9 * h, partial(_answer, chosen)):
            found.append(model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, dim=1)


def test_every_family_has_a_model_here() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_layers_hold_the_keys_they_would_make_themselves(family: str) -> None:
    """One row at a time the projections alone are run; in one forward over all tokens, the layers are."""
    model = model_of(family)
    torch.manual_seed(1)
    ids, goes = torch.randint(0, 64, (1, 12)), torch.rand(1, 12) < 0.5
    assert 3 < goes.sum() < 9
    for layer in (1, 2, 3):
        with torch.no_grad(), leaving(model, layer, lambda h: 0.9 * h, lambda h: goes):
            whole = model(ids).logits
        torch.testing.assert_close(stepwise(model, ids, goes, layer), whole, rtol=1e-4, atol=1e-4)


def test_those_that_stay_read_exact_keys_where_one_layer_is_skipped() -> None:
    model = model_of("qwen3")
    torch.manual_seed(2)
    ids, goes = torch.randint(0, 64, (3, 12)), torch.rand(3, 12) < 0.5
    goes[:, 5] = True  # a step that all leave, the others are mixed
    with torch.no_grad():
        full = model(ids).logits
    found = stepwise(model, ids, goes, 3)
    torch.testing.assert_close(found[~goes], full[~goes], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[goes], full[goes], atol=0.1)
    deeper = stepwise(model, ids, goes, 1)
    assert not torch.allclose(deeper[~goes], full[~goes], atol=0.1), "elsewhere they are those of another state"


def test_layers_that_do_nothing_may_be_left_out() -> None:
    model = model_of("qwen3")
    with torch.no_grad():
        for block in model.model.layers[2:]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    ids = torch.randint(0, 64, (2, 10))
    every = torch.ones(2, 10, dtype=torch.bool)
    with torch.no_grad():
        full = model(ids).logits
        with leaving(model, 2, lambda h: h, lambda h: every):
            early = model(ids).logits
    torch.testing.assert_close(early, full)


def test_the_model_is_left_as_it_was_and_others_are_refused() -> None:
    model = model_of("llama")
    with suppress(ZeroDivisionError), leaving(model, 1, lambda h: h, lambda h: None):
        assert all("forward" in vars(block) for block in model.model.layers[1:])
        _ = 1 / 0
    assert not any("forward" in vars(block) or block._forward_hooks for block in model.model.layers)
    with pytest.raises(OptionError, match="nothing can leave after hidden layer 4; accepted: 1 to 3"):
        leaving(model, 4, lambda h: h, lambda h: None).__enter__()
    other = random_model()
    other.config.model_type = "gpt2"
    with pytest.raises(CapabilityError, match="tokens of a 'gpt2' model cannot leave early; accepted: llama, "):
        leaving(other, 1, lambda h: h, lambda h: None).__enter__()
    assert "shortcut" not in TransformersEngine(other, None).capabilities


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_without_exits_no_token_changes(engine: TransformersEngine, options: dict[str, Any]) -> None:
    none = ask(engine, DepthShortcut(shortcut=shortcut(engine), threshold=NEVER), **options)
    off = ask(engine, **options)
    # A controller closes a thinking in which the model ends its turn; elsewhere it is as if there were none.
    alone = [i for i, one in enumerate(none) if len(one.trace) == 1]
    assert alone
    assert [none[i].token_ids for i in alone] == [off[i].token_ids for i in alone]
    assert all(left == 0 and thought > 5 for left, thought in map(told, none))


def test_it_leaves_while_it_thinks_and_says_so(engine: TransformersEngine, off: list[tuple[int, ...]]) -> None:
    found = ask(engine, DepthShortcut(shortcut=shortcut(engine)))
    assert any(0 < left < thought for left, thought in map(told, found))
    every = ask(engine, DepthShortcut(shortcut=shortcut(engine), threshold=ALWAYS))
    assert tokens(every) != off
    for one in every:
        left, thought = told(one)
        # What ends the thinking is no thinking token, and what the controller closed it with is none of the model's.
        assert left == thought <= one.usage.thinking
    assert tokens(ask(engine)) == off, "nothing stays behind"


def test_only_thinking_tokens_may_leave(engine: TransformersEngine) -> None:
    session = Session(engine)
    (row,) = session.prepare(PROBLEMS[:1], Options(policies=(DepthShortcut(shortcut=shortcut(engine)),)))
    may, watcher = row.request.leaving, row.request.watcher
    assert may is not None and watcher is not None
    assert not may.active(), "the prompt is read in full"
    seen = []
    for token in session.codec.encode("One.\n\nTwo is</think>\n\nThe answer is 2.\n\n"):
        watcher.observe(token)
        seen += [token] if may.active() else []
    assert session.codec.decode(seen) == "One.\n\nTwo is"


def test_rows_in_a_batch_are_what_they_are_alone(engine: TransformersEngine) -> None:
    """Mixed steps, rows that have ended, forced tokens in chunks: none of them changes who leaves."""
    policies = make_policy("budget"), DepthShortcut(shortcut=shortcut(engine, threshold=20.0))
    together = ask(engine, *policies, max_new_tokens=80)
    alone = [ask(engine, *policies, max_new_tokens=80, prompts=[problem])[0] for problem in PROBLEMS]
    assert tokens(together) == tokens(alone)
    assert [told(one) for one in together] == [told(one) for one in alone]
    assert any(decision.policy == "budget" for one in together for decision in one.trace)


def test_shadow_and_no_thinking_leave_all_as_it_is(engine: TransformersEngine, off: list[tuple[int, ...]]) -> None:
    policy = DepthShortcut(shortcut=shortcut(engine), threshold=ALWAYS)
    made = ask(engine, policy, shadow=True)
    assert tokens(made) == off
    assert [(d.policy, d.action, d.acted) for d in made[0].trace] == [("shortcut", "leave", False)]
    none = ask(engine, policy, effort="none")
    assert tokens(none) == tokens(ask(engine, effort="none"))
    assert all(one.trace == () for one in none)


def test_what_does_not_belong_is_refused(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProbeError, match="no shortcut for 'tersely-tiny-small'; learn one with `tersely train short"):
        ask(engine, DepthShortcut())
    other = {"name": "another", "fingerprint": "ab" * 32}
    with pytest.raises(ArtifactError, match="learnt on another, and 'tersely-tiny-small' is another model"):
        ask(engine, DepthShortcut(shortcut=shortcut(engine, base=other)))
    with pytest.raises(OptionError, match="no threshold was found"):
        ask(engine, DepthShortcut(shortcut=shortcut(engine, threshold=None)))
    with pytest.raises(OptionError, match="the threshold is not a number"):
        ask(engine, DepthShortcut(shortcut=shortcut(engine), threshold=float("nan")))
    with pytest.raises(TypeError, match="bound"):
        DepthShortcut().leaving(lambda: "thought")
    with pytest.raises(CapabilityError, match="use tersely"):
        tersely.custom_generate(engine.tokenizer, policies=[DepthShortcut(shortcut=shortcut(engine))])
    monkeypatch.setattr(engine, "capabilities", engine.capabilities - {"shortcut"})
    with pytest.raises(CapabilityError, match="lacks shortcut"):
        ask(engine, DepthShortcut(shortcut=shortcut(engine)))


def test_a_benchmark_knows_what_it_was_learnt_from(engine: TransformersEngine) -> None:
    question = Question("q", "What is 2 + 2?", "4")
    found = shortcut(engine, provenance={"learned_from": [hash_of(question)]})
    policies, _ = Session(engine).learnt(Options(policies=(DepthShortcut(shortcut=found),)))
    with pytest.raises(CheckError, match="'shortcut' has learnt from 1 of the questions"):
        check_unseen(policies, [question])


def test_it_is_kept_and_known_again(engine: TransformersEngine, tmp_path: Path) -> None:
    made = shortcut(engine, metrics={"left": 0.5, "odd": float("nan")}, provenance={"seed": 3})
    save_shortcut(made, tmp_path)
    found = load_shortcut(tmp_path, engine.fingerprint())
    assert found == made
    assert (found.layer, found.layers, found.threshold, found.metrics["odd"]) == (2, 4, 30.0, None)
    np.testing.assert_array_equal(found.arrays["gate_in"], made.arrays["gate_in"])
    assert found != shortcut(engine, threshold=1.0)
    with pytest.raises(ArtifactError, match=r"learnt on tersely-tiny-small .* and qwen is another one"):
        load_shortcut(tmp_path, "cd" * 32, "qwen")
    with pytest.raises(ArtifactError, match="cannot be told which model"):
        load_shortcut(tmp_path, None)
    save_shortcut(shortcut(engine, arrays=arrays(128, seed=1)), tmp_path / "other")
    (tmp_path / "probe.safetensors").write_bytes((tmp_path / "other" / "probe.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"is not the file that probe\.json belongs to"):
        load_shortcut(tmp_path, engine.fingerprint())
    about = tmp_path / "probe.json"
    about.write_text(about.read_text("utf-8").replace('"layer": 2', '"layer": 3'), "utf-8")
    with pytest.raises(ArtifactError, match="was changed, or is no probe"):
        load_shortcut(tmp_path, engine.fingerprint())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 4}, "layer is 4 of 4; accepted: 1 to 3"),
        ({"threshold": NEVER}, "the threshold is inf; accepted: a finite score, or none"),
        ({"base": {"name": "x"}}, "accepted: `name` and `fingerprint`"),
        ({"arrays": {"down": np.zeros((2, 2))}}, "a shortcut has down; accepted: down, down_bias, up"),
        ({"arrays": arrays(128) | {"up": np.zeros((3, 8))}}, r"up has shape \(3, 8\); accepted: \(128, 8\)"),
        ({"arrays": arrays(128) | {"up_bias": np.full(128, np.nan)}}, "all numbers finite"),
        ({"arrays": arrays(128) | {"down": np.zeros(128)}}, "down and gate_in are no matrices"),
    ],
)
def test_what_could_not_be_used_is_not_made(engine: TransformersEngine, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        shortcut(engine, **changes)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"shortcut": {"layer": 4}}, "shortcut.layer is 4 and tersely-tiny-small has 4 layers; accepted: 1 to 3"),
        ({"shortcut": {"layer": 0}}, "'shortcut.layer' is 0"),
        ({"shortcut": {}}, "'shortcut.layer' is missing"),
        ({"shortcut": {"layer": 2, "agreemnt": 1}}, "unknown key 'shortcut.agreemnt'; did you mean 'agreement'"),
        ({"shortcut": {"layer": 2, "held_out": 0.01}}, "shortcut.held_out is 0.01 of 8 questions"),
        ({"shortcut": {"layer": 2}, "optimiser": {"lora": {}}}, "optimiser.lora trains weights"),
        ({"shortcut": {"layer": 2}, "optimiser": {"weight_decay": 0.1}}, "optimiser.weight_decay is of no use"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        method.look(checked({**RECIPE, "out": tmp_path, **sections}, method.Kind, "the test"))
    assert message in str(refused.value)


def test_a_model_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "FAMILIES", ("llama",))
    recipe = checked({**RECIPE, "out": tmp_path}, method.Kind, "the test")
    with pytest.raises(RecipeError, match=r"tokens of a 'qwen3' model \(tersely-tiny-small\) cannot leave early"):
        method.look(recipe)


def test_what_is_learnt_is_thinking_that_the_model_wrote() -> None:
    trace = Trace([1, 2], [3, 4, 5, 9, 6], [1, 0, 1, 1, 1], right=True, whole=True)
    assert thinking_of(trace, close=9) == [False, False, True, False, True, False, False]
    assert thinking_of(trace, close=7) == [False, False, True, False, True, True, True]


def test_where_nothing_agrees_nothing_leaves(engine: TransformersEngine) -> None:
    draw = np.random.default_rng(0)
    traces = [Trace([5], draw.integers(20, 900, 40).tolist(), [1] * 40, right=True, whole=True) for _ in range(3)]
    found = read(engine.model, traces, 1, close=2)
    assert found.early.shape == found.final.shape == (120, 128)
    settings: dict[str, Any] = {"width": 8, "gate": 4, "tokens": 32, "rate": 1e-4, "warmup": 0, "clip": 1.0, "seed": 0}
    parts = learn(engine.model, found, steps=1, say=lambda line: None, **settings)
    chosen = choose(engine.model, parts, traces, 1, 2, agreement=1.0)
    assert chosen.threshold is None or chosen.agreement_left == chosen.agreement_stayed == 1.0
    wrong = {name: part.clone() for name, part in parts.items()}
    wrong["up_bias"] = 1000 * torch.randn(128)
    assert choose(engine.model, wrong, traces, 1, 2, agreement=0.9).threshold is None


def test_it_is_learnt_from_the_models_own_thinking_and_used(
    engine: TransformersEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    config, said, again = tmp_path / "recipe.yaml", list[str](), list[str]()
    config.write_text(json.dumps({**RECIPE, "out": str(out)}), "utf-8")  # which is YAML as well
    run("shortcut", config, say=said.append)
    found = load_shortcut(out / "shortcut", engine.fingerprint())
    assert found.threshold is not None and found.metrics["left"] > 0.05, said
    assert min(found.metrics["agreement_left"], found.metrics["agreement_stayed"]) >= 0.9
    assert len(found.learned_from) == 8
    steps = [float(line.split("divergence ")[1].split()[0]) for line in said if line.startswith("step ")]
    assert steps[-1] < 0.8 * steps[0]
    run("shortcut", config, resume=True, say=again.append)
    assert load_shortcut(out / "shortcut", engine.fingerprint()) == found
    assert again[-1] == said[-1]
    words = ["run", PROBLEMS[0], "--policy", "shortcut", "--probes", str(out), "--max-new-tokens", "80", "--json"]
    assert main(words) == 0
    (decision,) = json.loads(capsys.readouterr().out)["decisions"]
    assert decision["action"] == "leave" and decision["reason"].endswith("thinking tokens left after layer 3 of 4")
