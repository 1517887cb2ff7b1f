"""Keeps what users and tools write from becoming special tokens, with which it could end its turn and forge others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..text.sanitizer import SpecialTokenSanitizer

_NAMES = ("name", "tool_call_id", "call_id", "tool_use_id")
_OWN_ROLES = ("system", "developer", "assistant")
_RESULTS = ("tool_result", "function_call_output")
"""Types of items and blocks with what a tool returned."""
RENDERED = ("tools", "documents", "chat_template_kwargs")
"""Fields that chat templates render: all their text is sanitized."""


def sanitize_messages(
    messages: Sequence[Mapping[str, Any]], sanitize: SpecialTokenSanitizer
) -> list[Mapping[str, Any]]:
    """Messages in which the texts of users and tools, and all names, hold no special tokens.

    System prompts and earlier replies are the client's own.
    """
    return [_sanitize_message(message, sanitize) for message in messages]


def sanitize_body(body: Mapping[str, Any], sanitize: SpecialTokenSanitizer) -> dict[str, Any]:
    """A request to one of vLLM's chat APIs, as JSON, likewise; fields of a wrong form are left to vLLM."""
    changed = dict(body)
    for field in ("messages", "input"):
        if isinstance(given := body.get(field), list):
            changed[field] = sanitize_messages(given, sanitize)
    if isinstance(body.get("input"), str):
        changed["input"] = sanitize.break_markers(body["input"])
    return changed | {field: sanitize.sanitize_all(body[field]) for field in RENDERED if field in body}


def _sanitize_message(message: Any, sanitize: SpecialTokenSanitizer) -> Any:
    """A message, or a block or an item of one of the APIs."""
    if not isinstance(message, Mapping):
        return message
    changed = dict(message)
    for field in _NAMES:
        if isinstance(changed.get(field), str):
            changed[field] = sanitize(changed[field])
    if message.get("type") in _RESULTS or message.get("role") in ("tool", "function"):
        for field in ("content", "output"):
            if field in changed:
                changed[field] = sanitize.sanitize_content(changed[field])
    elif message.get("role") not in _OWN_ROLES and "content" in changed:
        changed["content"] = _sanitize_user(changed["content"], sanitize)
    return changed


def _sanitize_user(content: Any, sanitize: SpecialTokenSanitizer) -> Any:
    """What a user wrote; Anthropic's clients put the results of tools there as well."""
    if isinstance(content, list):
        content = [_sanitize_message(block, sanitize) for block in content]
    return sanitize.sanitize_content(content, switches=False)
