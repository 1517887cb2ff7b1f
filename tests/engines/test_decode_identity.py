"""Control off is off: the decode loop puts out what `model.generate` does, token for token."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from tersely.controller.engines.transformers.decode import as_custom_generate
from tersely.controller.types import KEEP, Directive, StepInfo
from tersely.models import get_model_path

from ..support.models import random_model

EMBEDDED = get_model_path("tersely-tiny-small")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
}


class Idle:
    """A watcher that never acts."""

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        return KEEP


def ends_early(kind: str = "full", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with two ends of sequence."""
    return random_model(kind, [1, 7], dtype)


def padded(prompts: list[list[int]]) -> dict[str, Any]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
    }


def random_batch(rows: int, seed: int = 0) -> dict[str, Any]:
    rng = random.Random(seed)
    return padded([[rng.randint(3, 127) for _ in range(rng.randint(3, 24))] for _ in range(rows)])


def both(model: Any, ours: Any, seed: int = 0, **arguments: Any) -> tuple[Any, Any]:
    """Run `generate` and the loop from the same seed, and check that they leave the same random state."""
    torch.manual_seed(seed)
    expected = model.generate(**arguments)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    got = model.generate(**arguments, custom_generate=ours)
    assert torch.equal(state, torch.get_rng_state())
    return expected, got


@pytest.mark.parametrize("watched", [False, True], ids=["off", "idle"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "rows"),
    [(torch.float32, 1), (torch.float32, 16), (torch.bfloat16, 16)],
    ids=["fp32-1", "fp32-16", "bf16-16"],
)
def test_random_model(dtype: torch.dtype, rows: int, mode: str, watched: bool) -> None:
    model = ends_early(dtype=dtype)
    ours = as_custom_generate((lambda prompt: Idle()) if watched else None)
    expected, got = both(model, ours, **random_batch(rows), **MODES[mode], max_new_tokens=20)
    assert torch.equal(expected, got)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "extra",
    [
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"min_new_tokens": 20},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": 5},
        {"eos_token_id": None, "pad_token_id": None},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_options(extra: dict[str, Any], mode: str) -> None:
    expected, got = both(
        ends_early(), as_custom_generate(), **random_batch(5), **MODES[mode], **extra, max_new_tokens=20
    )
    assert torch.equal(expected, got)


@pytest.mark.parametrize("mode", MODES)
def test_sliding_window(mode: str) -> None:
    model = ends_early("sliding")
    expected, got = both(model, as_custom_generate(), **random_batch(5), **MODES[mode], max_new_tokens=48)
    assert torch.equal(expected, got)


class StopAt(StoppingCriteria):
    """Ends a row at a token; not an end-of-sequence criterion, so that ended rows are not padded by themselves."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        found = torch.isin(input_ids[:, -1], torch.tensor(self.tokens))
        assert isinstance(found, torch.BoolTensor)
        return found


@pytest.mark.parametrize("eos", [None, 7], ids=["no_eos", "eos"])
def test_stopping_criteria(eos: int | None) -> None:
    model = ends_early()
    model.generation_config.eos_token_id = eos  # type: ignore[assignment]
    criteria = StoppingCriteriaList([StopAt(*range(20, 40))])
    arguments = {**random_batch(6), **MODES["sampled"], "max_new_tokens": 60, "pad_token_id": 0}
    expected, got = both(model, as_custom_generate(), **arguments, stopping_criteria=criteria)
    assert torch.equal(expected, got)
    assert got.shape[1] < arguments["input_ids"].shape[1] + 60


def test_scores_and_logits() -> None:
    expected, got = both(
        ends_early(),
        as_custom_generate(),
        **random_batch(3),
        **MODES["sampled"],
        max_new_tokens=12,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert type(got) is type(expected)
    assert torch.equal(expected.sequences, got.sequences)
    assert torch.equal(torch.stack(expected.scores), torch.stack(got.scores))
    assert torch.equal(torch.stack(expected.logits), torch.stack(got.logits))


def test_a_conversation_goes_on_with_its_cache() -> None:
    model = ends_early()
    batch = random_batch(3)
    options = {**MODES["greedy"], "max_new_tokens": 10, "return_dict_in_generate": True, "eos_token_id": 126}
    outputs = []
    for ours in (None, as_custom_generate()):
        first: Any = model.generate(**batch, **options, custom_generate=ours)
        ids = torch.cat([first.sequences, torch.full((3, 4), 9)], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones(3, 14, dtype=torch.long)], dim=1)
        name = "cache" if "cache" in first else "past_key_values"
        outputs.append(
            model.generate(ids, attention_mask=mask, **options, **{name: first[name]}, custom_generate=ours).sequences
        )
    assert torch.equal(outputs[0], outputs[1])


def test_a_processor_may_write_into_the_scores() -> None:
    def favour(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, 10 + input_ids.shape[1] % 5] += 100
        return scores

    processors: Any = LogitsProcessorList([favour])
    arguments = {**random_batch(4), **MODES["greedy"], "max_new_tokens": 10, "logits_processor": processors}
    expected, got = both(ends_early(), as_custom_generate(), **arguments)
    assert torch.equal(expected, got)
    assert (got[:, -1] >= 10).all()


@pytest.mark.skipif(not (EMBEDDED / "model.safetensors").is_file(), reason="the embedded model is not there")
@pytest.mark.parametrize(("rows", "prompts", "tokens"), [(8, 16, 24), (1, 5, 12)])
@pytest.mark.parametrize("mode", MODES)
def test_embedded_model(mode: str, rows: int, prompts: int, tokens: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    rng = random.Random(rows)
    questions = [f"What is {rng.randint(1, 999)} + {rng.randint(1, 99)} * {rng.randint(1, 9)}?" for _ in range(prompts)]
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in questions
    ]
    lengths = set()
    for start in range(0, prompts, rows):
        batch = padded(ids[start : start + rows])
        expected, got = both(model, as_custom_generate(), start, **batch, **MODES[mode], max_new_tokens=tokens)
        assert torch.equal(expected, got)
        lengths.add(batch["attention_mask"].sum().item())
    assert len(lengths) > 1  # the prompts were not all alike
