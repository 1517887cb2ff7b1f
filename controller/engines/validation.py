"""What an engine checks of its requests first: how much they may put out, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import OptionError, PromptError
from ..types import PromptRouter, Request


def check_max_new_tokens(request: Request, row: int, context: int | None, name: str) -> int:
    """The tokens that a request may put out: what was asked for, as far as the context of the model holds it.

    row, name: of the request and the model, for what is raised: PromptError for a prompt that is empty or fills the
    context, OptionError for a limit below one.
    """
    if request.max_new_tokens < 1:
        raise OptionError(f"max_new_tokens of request {row} is {request.max_new_tokens}; give at least 1")
    if not request.prompt_ids:
        raise PromptError(f"the prompt of request {row} is empty; give at least one token")
    if context is None:
        return request.max_new_tokens
    longest = request.opening.longest if request.opening is not None else 0
    room = context - len(request.prompt_ids) - longest
    if room < 1:
        raise PromptError(
            f"the prompt of request {row} has {len(request.prompt_ids)} tokens and {name!r} takes {context} in all; "
            "shorten it"
        )
    return min(request.max_new_tokens, room)


def collect_openings(requests: Sequence[Request]) -> list[PromptRouter] | None:
    """The openings of a batch, or None; raises OptionError where only some requests have one."""
    openings = [request.opening for request in requests if request.opening is not None]
    if openings and len(openings) < len(requests):
        raise OptionError(f"{len(openings)} of {len(requests)} requests have an opening; accepted: all of them or none")
    return openings or None
