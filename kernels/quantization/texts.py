"""Text to calibrate on: from a file, or written by the model that is to be quantized."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import OptionError

_TOGETHER = 16  # questions that are answered at a time


def rows_of(file: Path, tokenizer: Any, count: int, length: int) -> Tensor:
    """Up to `count` rows of `length` tokens from a text file, or from all texts of a JSONL; int64 [rows, length].

    They are spread over the whole file. Raises OptionError if it cannot be read or is too short for two rows.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            text = "\n\n".join(_texts(json.loads(line)) for line in text.split("\n") if line.strip())
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} cannot be read: {error}; accepted: a text in UTF-8, or a JSONL of objects") from None
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    found = len(ids) // length
    if found < 2:
        raise OptionError(
            f"{file} has {len(ids)} tokens; accepted: at least {2 * length}, for two rows of {length}; give a longer "
            "file, or a smaller --length"
        )
    rows = ids[: found * length].view(found, length)
    return rows[torch.linspace(0, found - 1, min(count, found)).round().long()]


def _texts(item: Any) -> str:
    if not isinstance(item, dict):
        raise ValueError(f"a line is {type(item).__name__}, not an object")
    return "\n".join(value for value in item.values() if isinstance(value, str))


@torch.inference_mode()
def written_by(model: Any, count: int, length: int, seed: int) -> Tensor:
    """Rows that a model samples itself, each from a random first token; int64 [count, length].

    Nothing else is needed then, and it is what a reasoning model reads most: its own text.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ids = torch.randint(vocabulary, (count, 1))
        cache: Any = None
        for _ in range(length - 1):
            out = model(input_ids=ids[:, -1:] if cache is not None else ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            chances = out.logits[:, -1].float().softmax(dim=-1)
            ids = torch.cat((ids, torch.multinomial(chances, 1)), dim=1)
    return ids


@torch.inference_mode()
def answered_by(model: Any, tokenizer: Any, questions: Sequence[str], count: int, length: int, seed: int) -> Tensor:
    """Up to `count` rows of `length` tokens of conversations in which a model answers questions; int64 [rows, length].

    That is what a chat model reads when it is used: its template, and in it its own answers. They are sampled as the
    model's generation defaults say, of at most `length` tokens each, until there are enough. Raises OptionError for a
    tokenizer without a template, and if there is too little for two rows.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError("the tokenizer has no chat template, so questions cannot be asked; give a text (--calib)")
    ids: list[int] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(questions), _TOGETHER):
            if len(ids) >= count * length:
                break
            ids += _conversations(model, tokenizer, questions[start : start + _TOGETHER], length)
    found = min(count, len(ids) // length)
    if found < 2:
        raise OptionError(
            f"{len(questions)} questions and their answers are {len(ids)} tokens; accepted: at least {2 * length}, for "
            f"two rows of {length}; ask more of them, or give a smaller --length"
        )
    return torch.tensor(ids[: found * length]).view(found, length)


def _conversations(model: Any, tokenizer: Any, questions: Sequence[str], most: int) -> list[int]:
    """Questions as the chat template has them and sampled answers, one after the other."""
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]
    width = max(map(len, asked))
    prompts = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in asked])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in asked])
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    written = model.generate(
        prompts.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        max_new_tokens=most,
        pad_token_id=min(ends, default=0),
    )
    made: list[int] = []
    for prompt, answer in zip(asked, written[:, width:].tolist(), strict=True):
        whole = next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))
        made += [*prompt, *answer[:whole]]
    return made
