"""The generation method for the Hub, as transformers loads it from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, dynamic_module_utils
from transformers.generation.streamers import BaseStreamer

import tersely
from tersely.errors import CapabilityError, OptionError
from tersely.models import get_model_path

from ..support.refusals import refused

FOLDER = Path(__file__).parents[2] / "examples" / "integrations" / "hub"
QUESTIONS = ["Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai.", "Compute (48 + 27) - 36."]


class Loaded:
    """The model, and a batch of questions padded on the left."""

    def __init__(self) -> None:
        path = get_model_path("tersely-tiny-small")
        self.model: Any = AutoModelForCausalLM.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        options: dict[str, Any] = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        self.batch = self.tokenizer.apply_chat_template(chats, padding=True, **options)

    def generate(self, **arguments: Any) -> Any:
        return self.model.generate(**self.batch, **arguments)

    def controlled(self, **arguments: Any) -> Any:
        return self.generate(custom_generate=str(FOLDER), trust_remote_code=True, **arguments)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))  # transformers copies the code there
    monkeypatch.syspath_prepend(str(tmp_path))
    return Loaded()


@pytest.mark.parametrize("sampled", [False, True])
def test_off_is_plain_generate(loaded: Loaded, sampled: bool) -> None:
    assert not loaded.batch["attention_mask"].bool().all()
    outputs = []
    for call in (loaded.generate, loaded.controlled):
        torch.manual_seed(3)
        off = {} if call == loaded.generate else {"tersely_preset": "off"}
        outputs.append(call(max_new_tokens=80, do_sample=sampled, top_k=20, **off))
    assert outputs[0].tolist() == outputs[1].tolist()


def test_a_batch_equals_the_method_of_the_package(loaded: Loaded) -> None:
    control = tersely.custom_generate(loaded.tokenizer, preset="budget", effort="easy")
    expected = loaded.generate(max_new_tokens=150, do_sample=False, custom_generate=control)
    results: list[Any] = []
    config = GenerationConfig.from_model_config(loaded.model.config)
    config.update(max_new_tokens=150, do_sample=False, return_dict_in_generate=True)
    settings = {"tersely_preset": "budget", "tersely_effort": "easy", "tersely_results": results}
    output = loaded.controlled(generation_config=config, tokenizer=loaded.tokenizer, **settings)
    assert output.sequences.tolist() == expected.tolist()
    assert [(result.answer, result.trace) for result in results] == [(r.answer, r.trace) for r in control.results]
    assert [d.policy for result in results for d in result.trace if d.acted] == ["budget", "budget"]


def test_streamers_and_stop_strings_arrive(loaded: Loaded) -> None:
    class Counter(BaseStreamer):
        puts = 0

        def put(self, value: Any) -> None:
            self.puts += 1

        def end(self) -> None:
            pass

    loaded.batch = {name: values[:1] for name, values in loaded.batch.items()}
    counter = Counter()
    output = loaded.controlled(max_new_tokens=300, do_sample=False, streamer=counter, stop_strings="The answer")
    assert loaded.tokenizer.decode(output[0]).endswith("The answer")
    assert counter.puts == 1 + output.shape[1] - loaded.batch["input_ids"].shape[1]


def test_what_cannot_be_done_is_refused(loaded: Loaded) -> None:
    with refused(OptionError):
        loaded.controlled(max_new_tokens=64)  # which the reserve takes
    with refused(OptionError, "unknown_name"):
        loaded.controlled(max_new_tokens=300, tersely_preset="none")
    with refused(CapabilityError):
        loaded.controlled(max_new_tokens=300, tersely_preset="certified")
    with pytest.raises(ValueError, match="trust_remote_code"):
        loaded.generate(max_new_tokens=300, custom_generate=str(FOLDER), trust_remote_code=False)
