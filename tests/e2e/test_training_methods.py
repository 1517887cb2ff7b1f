"""Every method on TRL's trainers: a few steps of an adapter change it and write a model that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from safetensors.torch import load_file

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.training import training_run as running
from tersely.training.methods import adar1
from tersely.training.methods.vsrm import StepRollouts
from tersely.training.preflight import check_recipe
from tersely.training.rewards import Correctness
from tersely.training.sampling import CompletionRequest, RolloutSampler
from tersely.training.training_run import MODEL

from ..support.trainings import make_recipe, train

LORA = {"rank": 2, "alpha": 4}
QUICK: dict[str, Any] = {
    "data": {"efforts": ["easy"]},
    "optimizer": {"lora": LORA, "learning_rate": 1e-3},
}
OWN: dict[str, dict[str, Any]] = {
    "adaptthink": {"adaptthink": {"reference_samples": 1, "no_think_tokens": 24, "brevity": 0.2}},
    "apo": {"apo": {"forced": 1}, "rollouts": {"max_new_tokens": 120}, "optimizer": {"autocast": True}},
    "ser": {"ser": {"adherence": 0.1, "kl": 0.01}},
    "vsrm": {"vsrm": {"answers": 2, "floor": 0, "spacing": 20}},
    "sft": {"sft": {"samples": 4}, "optimizer": {"micro_batch": 2}},
}


def curve(folder: Path) -> list[dict[str, Any]]:
    logs = [json.loads(line) for line in (folder / "curve.jsonl").read_text("utf-8").splitlines()]
    return [log for log in logs if "loss" in log]


def sections(name: str) -> dict[str, Any]:
    own = OWN[name]
    return {key: {**QUICK.get(key, {}), **own.get(key, {})} for key in {*QUICK, *own}}


@pytest.mark.parametrize("name", list(OWN))
def test_a_few_steps_of_an_adapter(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    said = train(name, out, **sections(name))
    logs = curve(out)
    assert [log["step"] for log in logs] == [1, 2]
    assert any(log["grad_norm"] > 0 for log in logs), logs
    assert name not in ("adaptthink", "ser") or all("rewards/group_brevity/mean" in log for log in logs), logs
    # Token advantages sum to zero, and so does the loss while the policy is the one that drew them.
    assert name == "vsrm" or any(log["loss"] != 0 for log in logs), logs
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any(bool(w.abs().max() > 0) for key, w in weights.items() if "lora_B" in key)
    ask = "Kai has 9 shells. Kai finds 3 shells. Count the shells."
    made = tersely.generate(str(out / MODEL), prompts=ask, effort="easy", max_new_tokens=16, answer_reserve=8)
    assert made.text
    assert any("s/step" in line and "left" in line for line in said)


def test_adar1_goes_through_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, models, most = tmp_path / "adar1", WeakSet[torch.nn.Module](), 0

    def counted(*arguments: Any) -> TransformersEngine:
        nonlocal most
        engine = load_engine(*arguments)
        models.add(engine.model)
        most = max(most, len(models))
        return engine

    for module in (running, adar1):
        monkeypatch.setattr(module, "load_engine", counted)
    own: dict[str, Any] = {
        "adar1": {"samples": 4, "short": {"steps": 1, "micro_batch": 2, "learning_rate": 1e-4}},
        "optimizer": {"micro_batch": 2, "steps": 2, "learning_rate": 1e-4, "lora": None},
        "data": {"efforts": ["easy"]},
    }
    said = train("adar1", out, **own)
    logs = curve(out)
    assert [log["step"] for log in logs] == [1, 2] and logs[0]["grad_norm"] > 0
    assert logs[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=0.05), "policy and reference agree"
    assert [name in " ".join(said) for name in ("merged 80%", "long-answers: 4/4", "short-answers: 4/4")] == [True] * 3
    assert (out / "short" / MODEL).is_dir() and (out / MODEL).is_dir()
    assert most == 2, "models in memory at once, as estimated"


def test_vsrm_rewards_steps_and_penalises_unfinished_completions(tmp_path: Path) -> None:
    made = make_recipe("vsrm", tmp_path, rollouts={"max_new_tokens": 120}, **OWN["vsrm"])
    rows = check_recipe(made).rows
    sampler = RolloutSampler(load_engine(made.model), made.rollouts)
    with Correctness(sampler.session.markers.close) as correct:
        rollouts = StepRollouts(sampler, made.vsrm, correct, made.seed)
        asked = [row for row in rows for _ in range(4)]
        done = rollouts.sample([CompletionRequest(row["prompt"], row["tier"]) for row in asked], asked, 0)
        more = rollouts.extra_columns(done, asked, 0)
        rewards, values = more["token_rewards"], more["token_values"]
    assert all(
        0 <= chance <= 1 and place <= one.thinking_tokens
        for one, v in zip(done, values, strict=True)
        for place, chance in v
    )
    assert [len(v) > 1 for v in values] == [one.finish_reason == "stop" for one in done], "where thinking ended"
    for one, steps in zip(done, rewards, strict=True):
        charged = [step for step in steps if step == (len(one.ids) - 1, -10.0)]
        assert len(charged) == (one.finish_reason == "length")
        assert all(abs(reward) <= 1 for step in steps if step not in charged for reward in step[1:])
    assert {one.finish_reason for one in done} == {"length", "stop"}


Places = list[tuple[int, float]]


def advantages(scores: list[float], steps: list[Places], values: list[Places], sizes: list[int]) -> torch.Tensor:
    """The advantages of two questions' completions, two each."""
    from accelerate import Accelerator

    from tersely.training.trainer import AdaptiveTrainer

    trainer = object.__new__(AdaptiveTrainer)
    trainer.accelerator, trainer.num_generations, trainer.reward_weights = Accelerator(cpu=True), 2, torch.ones(1)
    trainer._rewards = torch.tensor(scores)[:, None]
    trainer.rollout_inputs = [
        {"token_rewards": rewards, "token_values": known} for rewards, known in zip(steps, values, strict=True)
    ]
    mask = torch.tensor([[1] * size + [0] * (max(sizes) - size) for size in sizes])
    return trainer._token_advantages(trainer.rollout_inputs, {"completion_mask": mask})


def test_token_advantages_are_relative_to_their_baseline() -> None:
    none: list[Places] = [[], [], [], []]
    assert (advantages([1, 1, 0, 0], none, none, [3, 2, 3, 3]) == 0).all(), "the mean of a question is its baseline"
    made = advantages([1, 0, 0, 0], none, none, [2, 2, 4, 2])
    assert (made[0, :2] > 0).all() and (made[1, :2] == -made[0, :2]).all()
    assert (made[2:] == 0).all() and (made[:2, 2:] == 0).all(), "padding has none"
    # The first returns 1.5, 1.5, 1 and 1; the baseline is 1.25, and 0.8 from its third token on.
    made = advantages([1, 1, 0, 0], [[(1, 0.5)], [], [], []], [[(2, 0.8)], [], [], []], [4, 2, 2, 2])
    wanted = torch.tensor([0.25, 0.25, 0.2, 0.2, -0.25, -0.25])
    scale = (wanted.square().sum() / 10).sqrt()
    torch.testing.assert_close(torch.cat([made[0], made[1, :2]]), wanted / scale, rtol=1e-3, atol=0)


def test_the_analysis_of_vsrm_trains_nothing(tmp_path: Path) -> None:
    out = tmp_path / "vsrm"
    own: dict[str, Any] = {"vsrm": {"train": False, "answers": 2, "floor": 0, "spacing": 20, "samples": 2}}
    said = train("vsrm", out, **own, rollouts={"max_new_tokens": 260})
    found = json.loads((out / "analysis.json").read_text("utf-8"))
    assert found["completions"] + found["without"] == 8 and found["completions"] > 3
    assert found["cuts"] > 1 and 0 < found["wasted"] < 1, "the embedded models re-check finished answers"
    assert not list(out.glob("checkpoint-*")) and "thinking tokens came after" in said[-1]
