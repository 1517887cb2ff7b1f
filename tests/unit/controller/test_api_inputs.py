"""What `tersely.generate` accepts as model, prompts, markers and options, and how it refuses everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tersely
from tersely.controller.api import resolve_engine, split_prompts
from tersely.controller.budgets import TIERS, Budget
from tersely.controller.options import GenerationOptions, OptionsDict, make_options
from tersely.controller.text.markers import Markers, resolve_markers
from tersely.controller.types import SamplingParams
from tersely.errors import MarkerError, ModelError, OptionError, PromptError, TerselyError

QUESTION = "Compute 3 + 6."
MESSAGES = [{"role": "user", "content": QUESTION}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Compute "}, {"type": "text", "text": "3 + 6."}]}]


def answer(prompts: Any, **options: Any) -> Any:
    return tersely.generate("tersely-tiny-small", prompts, **{"temperature": 0, "max_new_tokens": 200, **options})


def test_a_text_messages_and_content_parts_are_the_same_prompt() -> None:
    text = answer(QUESTION).text
    assert answer(MESSAGES).text == answer(PARTS).text == text
    assert [one.text for one in answer([QUESTION, MESSAGES])] == [text, text]


@pytest.mark.parametrize(
    ("prompts", "code"),
    [
        (None, "invalid_prompt_type"),
        (17, "invalid_prompt_type"),
        ((text for text in [QUESTION]), "invalid_prompt_type"),
        ([QUESTION, 17], "invalid_prompt_type"),
        ([None], "invalid_prompt_type"),
        ("  ", "invalid_prompt"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "invalid_content_part"),
        ([{"role": "usr", "content": QUESTION}], "unknown_role"),
        ([{"content": QUESTION}], "unknown_role"),
    ],
)
def test_what_is_not_a_prompt_is_refused(prompts: Any, code: str) -> None:
    with pytest.raises(PromptError) as caught:
        answer(prompts)
    assert caught.value.code == code


def test_prompts_are_single_or_many() -> None:
    assert split_prompts(QUESTION) == ([QUESTION], True)
    assert split_prompts(MESSAGES) == ([MESSAGES], True)
    assert split_prompts((QUESTION,)) == ([QUESTION], False)
    assert split_prompts([]) == ([], False)


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"max_new_tokens": "many"}, OptionError, "invalid_option"),
        ({"max_new_tokens": 0}, OptionError, "invalid_option"),
        ({"thinking_budget": 0}, OptionError, "invalid_option"),
        ({"thinking_budget": 64, "effort": "none"}, OptionError, "contradicting_options"),
        ({"effort": "norml"}, OptionError, "unknown_name"),
        ({"effort": 3}, OptionError, "invalid_option"),
        ({"preset": "balance"}, OptionError, "unknown_name"),
        ({"policies": 3}, OptionError, "invalid_option"),
        ({"policies": [3]}, OptionError, "invalid_policy"),
        ({"modifiers": ["steeer"]}, OptionError, "unknown_name"),
        ({"temperature": "hot"}, OptionError, "invalid_option"),
        ({"sampling": {"sed": 3}}, OptionError, "invalid_option"),
        ({"strategy": {"normal": 10}}, OptionError, "invalid_option"),
        ({"strategy": {"easi": {}}}, OptionError, "unknown_name"),
        ({"strategy": None}, OptionError, "unknown_name"),
        ({"options": {"effort": "easy"}}, OptionError, "invalid_option"),
        ({"seeds": 1}, OptionError, "unknown_name"),
        ({"stop": ["."]}, OptionError, "no_stop_strings"),
        ({"markers": "<a>"}, OptionError, "invalid_option"),
        ({"markers": ("<a>", 3)}, OptionError, "invalid_option"),
        ({"markers": 3}, OptionError, "invalid_option"),
        ({"probes": "no/such/folder"}, TerselyError, "no_probe"),
    ],
)
def test_options_are_refused_with_a_code(options: dict[str, Any], error: type[TerselyError], code: str) -> None:
    with pytest.raises(error) as caught:
        answer(QUESTION, **options)
    assert caught.value.code == code


def test_numbers_as_text_and_fields_as_mappings_work() -> None:
    assert make_options(max_new_tokens="100").max_new_tokens == 100
    assert make_options(sampling={"top_k": 5}, seed=3).sampling == SamplingParams(top_k=5, seed=3)
    changed = make_options(strategy={"easy": {"thinking": 9}, "hard": Budget("hard", 5)}).strategy
    assert changed == {**TIERS, "easy": replace(TIERS["easy"], thinking=9), "hard": Budget("hard", 5)}


def test_markers_as_pairs_and_text_work() -> None:
    pair = Markers("<a>", "</a>")
    assert resolve_markers(("<a>", "</a>")) == resolve_markers("<a>,</a>") == resolve_markers(pair) == pair
    assert resolve_markers(None) is None


@pytest.mark.parametrize(("model", "code"), [(None, "invalid_model"), (17, "invalid_model")])
def test_what_is_not_a_model_is_refused(model: Any, code: str) -> None:
    with pytest.raises(OptionError) as caught:
        tersely.generate(model, QUESTION)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"model": None}, "invalid_model"),
        ({"dtype": 3}, "unknown_name"),
        ({"dtype": "torch.relu"}, "unknown_name"),
        ({"device": "gpu"}, "invalid_device"),
        ({"device": "cuda:99"}, "invalid_device"),
    ],
)
def test_an_engine_refuses_what_it_cannot_load(settings: dict[str, Any], code: str) -> None:
    with pytest.raises(OptionError) as caught:
        tersely.load_engine(**{"model": "tersely-tiny-small", **settings})
    assert caught.value.code == code


def test_a_dtype_may_be_torchs_own() -> None:
    assert tersely.load_engine("tersely-tiny-small", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_model_object_needs_its_tokenizer_and_a_name_must_exist(tmp_path: Path) -> None:
    model = tersely.load_engine("tersely-tiny-small").model
    for tokenizer, code in ((None, "missing_tokenizer"), ("name", "invalid_tokenizer")):
        with pytest.raises(OptionError) as caught:
            tersely.generate(model, QUESTION, tokenizer=tokenizer)
        assert caught.value.code == code
    with pytest.raises(OptionError) as caught:
        tersely.custom_generate(None)
    assert caught.value.code == "invalid_tokenizer"
    for message in ("written by save_pretrained", "it is an adapter"):
        with pytest.raises(ModelError) as refusal:
            tersely.generate(str(tmp_path), QUESTION)
        assert message in str(refusal.value)
        (tmp_path / "adapter_config.json").write_text("{}")


def test_a_model_by_name_is_loaded_once() -> None:
    assert resolve_engine("tersely-tiny-small") is resolve_engine("tersely-tiny-small")


def test_options_as_one_value_and_as_keywords_are_the_same() -> None:
    options = GenerationOptions(preset="off", max_new_tokens=80)
    assert (
        answer(QUESTION, options=options, max_new_tokens=80).text
        == answer(QUESTION, preset="off", max_new_tokens=80).text
    )
    named = set(OptionsDict.__annotations__)
    fields = set(GenerationOptions.__dataclass_fields__)
    assert named == fields - {"sampling"} | {"temperature", "top_p", "top_k", "seed"}


def test_a_model_without_markers_is_refused() -> None:
    engine = tersely.load_engine("tersely-tiny-small")
    engine.tokenizer.chat_template = "{{ messages[-1].content }}"
    engine.tokenizer.get_added_vocab = dict
    with pytest.raises(MarkerError) as caught:
        tersely.generate(engine, QUESTION)
    assert caught.value.code == "unknown_markers"
