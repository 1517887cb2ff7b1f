"""Checks that every engine makes before it generates."""

from __future__ import annotations

from ...errors import OptionError, PromptError
from ..types import Request


def check_max_new_tokens(request: Request, index: int, context: int | None, name: str) -> int:
    """Most tokens that a request may generate: what it asks for, as far as the model's context allows.

    Args:
        index, name: of the request and the model, for errors.

    Raises:
        PromptError: the prompt is empty or fills the context.
        OptionError: the limit is below one.
    """
    if request.max_new_tokens < 1:
        raise OptionError(f"max_new_tokens of request {index} is {request.max_new_tokens}; accepted: 1 or more")
    if not request.prompt_ids:
        raise PromptError(f"the prompt of request {index} is empty; pass at least one token")
    if context is None:
        return request.max_new_tokens
    room = context - len(request.prompt_ids)
    if room < 1:
        raise PromptError(
            f"the prompt of request {index} has {len(request.prompt_ids)} tokens and {name!r} takes {context} in all; "
            "shorten it"
        )
    return min(request.max_new_tokens, room)
