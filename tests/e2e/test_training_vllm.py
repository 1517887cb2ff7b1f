"""Rollouts of a real vLLM, which decodes with the policy's current weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.types import Request, SamplingParams
from tersely.errors import OptionError
from tersely.training.config import Rollouts
from tersely.training.sampling import CompletionRequest, RolloutSampler, build_options
from tersely.training.vllm_sampler import VllmSampler, read_weights

from ..support.trainings import train

pytestmark = pytest.mark.vllm
BASE = "tersely-tiny-small"
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def policy() -> TransformersEngine:
    return load_engine(BASE)


@pytest.fixture(scope="session")
def writer() -> VllmSampler:
    options = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own imports warn
        return VllmSampler(load_engine(BASE), 16, options)


def requests(policy: TransformersEngine) -> list[Request]:
    texts = ["Kai has 3 shells and finds 4 more. How many?", "What is 12 times 7?"]
    return [Request(tuple(policy.tokenizer(text)["input_ids"]), 60) for text in texts]


def shake(model: Any, names: str = "") -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def test_completions_follow_the_weights(policy: TransformersEngine, writer: VllmSampler) -> None:
    asked = requests(policy)
    before = writer.generate(policy.model, asked, GREEDY)
    assert [one.token_ids for one in before] == [one.token_ids for one in policy.generate(asked, GREEDY)]
    saved = {name: value.clone() for name, value in policy.model.state_dict().items()}
    try:
        shake(policy.model)
        changed = policy.generate(asked, GREEDY)
        assert [one.token_ids for one in changed] != [one.token_ids for one in before]
        after = writer.generate(policy.model, asked, GREEDY)
        assert [one.token_ids for one in after] == [one.token_ids for one in changed]
    finally:
        policy.model.load_state_dict(saved)


def test_adapters_are_merged_in_vllm_only(policy: TransformersEngine, writer: VllmSampler) -> None:
    engine = load_engine(BASE)
    adapted: Any = get_peft_model(engine.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    shake(adapted, "lora_B")
    engine.model = adapted.get_base_model()
    asked = requests(engine)
    frozen = engine.model.model.layers[0].mlp.down_proj.base_layer.weight.clone()
    written = writer.generate(engine.model, asked, GREEDY)
    assert [one.token_ids for one in written] == [one.token_ids for one in engine.generate(asked, GREEDY)]
    assert [one.token_ids for one in written] != [one.token_ids for one in policy.generate(asked, GREEDY)]
    assert torch.equal(frozen, engine.model.model.layers[0].mlp.down_proj.base_layer.weight)
    merged = dict(read_weights(engine.model))
    assert merged.keys() == dict(read_weights(policy.model)).keys()


def test_forced_starts_and_budgets_work_on_vllm(policy: TransformersEngine, writer: VllmSampler) -> None:
    settings = Rollouts(max_new_tokens=96, thinking_budget=20, engine="vllm")
    sampler = RolloutSampler(policy, settings, share=0.5)
    sampler._vllm = writer
    asks = [CompletionRequest("What is 12 times 7?", start_mode=begun) for begun in ("free", "think", "no_think")]
    free, think, instant = sampler(asks, 0)
    assert instant.mode == "no_think" and instant.ids[0] == sampler.close
    assert think.first_token_logprob is not None and free.first_token_logprob is None
    assert any(think.forced) and think.thinking_tokens <= 40
    assert [one.ids for one in sampler(asks, 0)] == [free.ids, think.ids, instant.ids]


def test_a_run_on_vllm(tmp_path: Path, writer: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"engine": "vllm", "max_new_tokens": 120}
    monkeypatch.setattr("tersely.training.vllm_sampler.VllmSampler", lambda *_: writer)
    said = train("ser", tmp_path / "run", rollouts=options)
    assert any("step 2/2" in line for line in said)
    assert (tmp_path / "run" / "model" / "config.json").exists()


@pytest.mark.parametrize("name", ["max_model_length", "dtype"])
def test_unsupported_vllm_arguments_are_refused(policy: TransformersEngine, name: str) -> None:
    with pytest.raises(OptionError) as error:
        VllmSampler(policy, 2, {name: 3})
    assert error.value.code == "unknown_name"


def test_vllm_arguments_without_vllm_are_refused() -> None:
    with pytest.raises(OptionError) as error:
        build_options(Rollouts(vllm={"gpu_memory_utilization": 0.3}))
    assert error.value.code == "unused_vllm_arguments"
