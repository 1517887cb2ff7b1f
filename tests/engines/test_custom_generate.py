"""The decode loop behind `model.generate(custom_generate=...)`: streamers, stop strings, pipelines, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

from tersely.controller.engines.transformers.decode import as_custom_generate
from tersely.controller.types import Directive, Watcher
from tersely.errors import CapabilityError, OptionError

from ..support.models import letters, random_model
from ..support.refusals import refused
from ..support.script import Script


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[list[Any]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_prompt_and_tokens() -> None:
    model = random_model()
    ids = torch.tensor([[5, 6, 7]])
    theirs, ours = Recorder(), Recorder()
    model.generate(ids, max_new_tokens=10, streamer=theirs)
    model.generate(ids, max_new_tokens=10, custom_generate=as_custom_generate(streamer=ours))
    assert ours.values == theirs.values
    assert ours.ended == theirs.ended == 1


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_a_streamer_gets_forced_tokens_once(kind: str) -> None:
    streamer = Recorder()
    fn = as_custom_generate(lambda prompt: Script(t3=Directive((30, 31, 32), retract=1)), streamer=streamer)
    out: Any = random_model(kind).generate(torch.tensor([[5, 6, 7]]), max_new_tokens=10, custom_generate=fn)
    assert streamer.values[0] == [[5, 6, 7]]
    assert [token for value in streamer.values[1:] for token in value] == out[0, 3:].tolist()
    assert out[0, 5:8].tolist() == [30, 31, 32]


def test_stop_strings() -> None:
    tokenizer = letters()
    model = random_model(eos=126)
    fn = as_custom_generate(
        lambda prompt: Script(t2=Directive(tuple(tokenizer("thi")["input_ids"]))),
        tokenizer=tokenizer,
        stop_strings="hix",
    )
    bias: Any = {(tokenizer.convert_tokens_to_ids("x"),): 100.0}
    ids = torch.tensor([[5, 6, 7]])
    out: Any = model.generate(ids, max_new_tokens=12, sequence_bias=bias, custom_generate=fn)
    assert tokenizer.decode(out[0, 3:]) == "xxthix"
    off = as_custom_generate(tokenizer=tokenizer, stop_strings=["xxx"])
    got: Any = model.generate(ids, max_new_tokens=12, sequence_bias=bias, custom_generate=off)
    expected: Any = model.generate(
        ids, max_new_tokens=12, sequence_bias=bias, tokenizer=tokenizer, stop_strings=["xxx"]
    )
    assert got.tolist() == expected.tolist()
    with refused(OptionError):
        as_custom_generate(stop_strings="x")


def test_watchers_get_prompts_without_padding_and_output_is_padded_on_the_right() -> None:
    model = random_model(eos=126)
    seen = []

    def make(prompt: list[int]) -> Watcher | None:
        seen.append(prompt)
        return Script(t2=Directive((126,))) if prompt == [5] else None

    ids = torch.tensor([[0, 0, 5], [6, 7, 8]])
    out: Any = model.generate(
        ids, attention_mask=(ids > 0).long(), max_new_tokens=6, custom_generate=as_custom_generate(make)
    )
    assert seen == [[5], [6, 7, 8]]
    assert out.shape == (2, 9)
    assert out[0, :3].tolist() == [0, 0, 5]
    assert out[0, 5:].tolist() == [126, 0, 0, 0]


def test_each_returned_sequence_has_its_own_watcher() -> None:
    made: list[Watcher] = []

    def make(prompt: list[int]) -> Watcher:
        made.append(Script(t2=Directive((40 + len(made),))))
        return made[-1]

    out: Any = random_model(eos=126).generate(
        torch.tensor([[5, 6]]),
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=5,
        custom_generate=as_custom_generate(make),
    )
    assert out[:, 4].tolist() == [40, 41, 42]


def test_through_a_pipeline() -> None:
    model = random_model(eos=126)
    generator = pipeline("text-generation", model=model, tokenizer=letters(), device="cpu")
    fn = as_custom_generate(lambda prompt: Script(t1=Directive(tuple(letters()("hint")["input_ids"]))))
    text = generator("abc", max_new_tokens=8, do_sample=False, custom_generate=fn, return_full_text=False)
    assert "hint" in text[0]["generated_text"]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 2, "num_return_sequences": 2},
        {"return_dict_in_generate": True, "output_attentions": True},
        {"return_dict_in_generate": True, "output_hidden_states": True},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any]) -> None:
    fn = as_custom_generate(lambda prompt: Script())
    with refused(CapabilityError):
        random_model().generate(torch.tensor([[5, 6]]), max_new_tokens=4, custom_generate=fn, **options)


def test_encoder_decoders_are_refused() -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    with refused(CapabilityError):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, custom_generate=as_custom_generate())
