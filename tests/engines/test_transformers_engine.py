"""The transformers engine: options, limits, random state, and what loading says when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, T5Config

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.types import Request, SamplingParams
from tersely.errors import ModelError, OptionError, PromptError

from ..support.refusals import refused

CONFIG = Qwen3Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    eos_token_id=1,
    pad_token_id=0,
)
PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12)]


def random_model() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(CONFIG).eval()


def words() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{index}": index for index in range(2, 64)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def engine() -> TransformersEngine:
    return TransformersEngine(random_model(), words(), name="random")


def outputs(engine: TransformersEngine, sampling: SamplingParams, size: int = 20) -> list[tuple[int, ...]]:
    return [done.token_ids for done in engine.generate([Request(prompt, size) for prompt in PROMPTS], sampling)]


def test_greedy_and_sampled_are_those_of_generate(engine: TransformersEngine) -> None:
    ids = torch.tensor([[0] * (4 - len(prompt)) + list(prompt) for prompt in PROMPTS])
    options: list[tuple[SamplingParams, dict[str, Any]]] = [
        (SamplingParams(temperature=0), {"do_sample": False}),
        (
            SamplingParams(temperature=1.5, top_p=0.9, top_k=30, seed=3),
            {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "top_k": 30},
        ),
    ]
    for sampling, arguments in options:
        torch.manual_seed(3)
        expected = engine.model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=20, **arguments)
        for row, got in zip(expected[:, 4:].tolist(), outputs(engine, sampling), strict=True):
            assert list(got) == (row[: row.index(1)] if 1 in row else row)


def test_a_seed_leaves_global_random_state_alone(engine: TransformersEngine) -> None:
    state = torch.get_rng_state()
    first = outputs(engine, SamplingParams(temperature=1.0, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    assert outputs(engine, SamplingParams(temperature=1.0, seed=5)) == first
    assert outputs(engine, SamplingParams(temperature=1.0, seed=6)) != first
    outputs(engine, SamplingParams(temperature=1.0))
    assert not torch.equal(state, torch.get_rng_state())


def test_the_models_defaults_hold_where_nothing_is_said(engine: TransformersEngine) -> None:
    engine.model.generation_config.do_sample = True
    engine.model.generation_config.top_k = 1
    greedy = outputs(engine, SamplingParams(temperature=0))
    assert outputs(engine, SamplingParams()) == greedy
    assert outputs(engine, SamplingParams(top_k=64, seed=0)) != greedy
    assert engine.model.generation_config.top_k == 1


def test_greedy_does_not_warn_of_the_models_sampling_defaults(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    said: list[object] = []
    from transformers.generation import configuration_utils

    monkeypatch.setattr(configuration_utils.logger, "warning_once", lambda *message: said.append(message))
    monkeypatch.setattr(configuration_utils.logger, "warning", lambda *message: said.append(message))
    outputs(engine, SamplingParams(temperature=0))
    assert said == []


def test_the_context_bounds_prompt_and_output(engine: TransformersEngine) -> None:
    assert engine.context_length == 64
    done = engine.generate([Request(tuple(range(2, 62)), 100), Request((5,), 3)], SamplingParams(temperature=0))
    assert [len(completion.token_ids) for completion in done] == [4, 3]
    with refused(PromptError):
        engine.generate([Request((5,) * 64, 1)], SamplingParams())
    with refused(PromptError):
        engine.generate([Request((5,), 1), Request((), 1)], SamplingParams())
    with refused(OptionError):
        engine.generate([Request((5,), 0)], SamplingParams())
    assert engine.generate([], SamplingParams()) == []


def test_a_closed_engine_says_so(engine: TransformersEngine) -> None:
    engine.close()
    with refused(ModelError, "engine_closed"):
        outputs(engine, SamplingParams())


def test_loading_from_a_folder(tmp_path: Path) -> None:
    random_model().to(torch.bfloat16).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    saved = load_engine(tmp_path, device="cpu")
    assert saved.name == str(tmp_path)
    assert saved.model.dtype is torch.bfloat16
    assert load_engine(str(tmp_path), dtype="float32", device="cpu").model.dtype is torch.float32
    assert len(outputs(saved, SamplingParams(temperature=0), 3)) == 3
    with refused(OptionError, "unknown_name"):
        load_engine(tmp_path, dtype="flaot32")


def test_loading_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with refused(ModelError):
        load_engine(tmp_path / "absent" / "model")
    with refused(ModelError):
        load_engine(tmp_path)
    (tmp_path / "file").touch()
    with refused(ModelError):
        load_engine(tmp_path / "file")
    T5Config().save_pretrained(tmp_path)
    with refused(ModelError):
        load_engine(tmp_path)
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with refused(ModelError):
        load_engine(tmp_path)
    CONFIG.save_pretrained(tmp_path)
    with refused(ModelError):
        load_engine(tmp_path)
    words().save_pretrained(tmp_path)
    with refused(ModelError):
        load_engine(tmp_path)


def test_names_of_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load_engine("tersely-tiny-smal")
    assert "offline" in str(caught.value)
    assert "\n" not in str(caught.value)

    def unreachable(*args: Any, **options: Any) -> None:
        assert options["timeout"] < 10
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    with refused(ModelError):
        load_engine("someone/some-model")
