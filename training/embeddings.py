"""Tokens whose embeddings are trained while the model stays frozen: soft prompts that every engine reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..controller.policies.hint import HINT_TOKEN
from .config import RecipeError


@torch.no_grad()
def add_tokens(model: Any, tokenizer: Any, words: str) -> list[int]:
    """Add as many tokens as the words have, with their embeddings; their ids.

    What the head says of them is nothing where it is a matrix of its own. Where it is the embeddings themselves, these
    begin as likely as the words, and learn not to be written with everything else that is learnt.
    """
    from tokenizers import AddedToken

    ids = tokenizer.encode(words, add_special_tokens=False)
    names = [HINT_TOKEN.format(number) for number in range(len(ids))]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    added: list[int] = tokenizer.convert_tokens_to_ids(names)
    if max(added) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    table[added] = table[ids]
    if isinstance(head, torch.nn.Linear) and head.weight is not table:
        head.weight[added] = 0
    return added


def check_room(model: Any, tokenizer: Any, words: str) -> None:
    """Raise RecipeError where the table has no room for tokens and the head, of whole numbers, cannot grow with it."""
    needed = len(tokenizer) + len(tokenizer.encode(words, add_special_tokens=False))
    head, rows = model.get_output_embeddings(), model.get_input_embeddings().weight.shape[0]
    if needed > rows and head is not None and not isinstance(head, torch.nn.Linear):
        raise RecipeError(
            f"the embeddings have {rows} rows, none of them free, and the head is quantized, so that it cannot grow "
            "with them; quantize the model with --head keep"
        )


def freeze_but(model: Any, ids: Sequence[int]) -> None:
    """Train the embeddings of these tokens alone.

    The whole table has to be a parameter of the optimiser; without gradient and weight decay the other rows stay as
    they are, to the last bit.
    """
    model.requires_grad_(False)
    table = model.get_input_embeddings().weight
    chosen = torch.zeros(table.shape[0], 1, dtype=table.dtype)
    chosen[list(ids)] = 1
    table.requires_grad_(True)
    table.register_hook(lambda gradient: gradient * chosen.to(gradient.device))


@torch.no_grad()
def blend(model: Any, ids: Sequence[int], before: Tensor, strength: float) -> None:
    """Keep so much of what was learnt beside what the embeddings were."""
    table = model.get_input_embeddings().weight
    rows = list(ids)
    table[rows] = before + strength * (table[rows] - before)
