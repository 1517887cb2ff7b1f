"""Keeps what users and tools write from becoming special tokens, with which it could end its turn and forge others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..text.sanitizer import SpecialTokenSanitizer


def sanitize_messages(
    messages: Sequence[Mapping[str, Any]], sanitize: SpecialTokenSanitizer
) -> list[Mapping[str, Any]]:
    """Messages in which the texts of users and tools, and all names, hold no special tokens.

    System prompts and earlier replies are the client's own.
    """
    return [_sanitize_message(message, sanitize) for message in messages]


def sanitize_tools(
    tools: Sequence[Mapping[str, Any]], sanitize: SpecialTokenSanitizer
) -> tuple[Mapping[str, Any], ...]:
    """Tools without special tokens in names, descriptions and parameters."""
    return tuple(_sanitize_value(tool, sanitize) for tool in tools)


def _sanitize_message(message: Mapping[str, Any], sanitize: SpecialTokenSanitizer) -> Mapping[str, Any]:
    changed = dict(message)
    for field in ("name", "tool_call_id"):
        if isinstance(changed.get(field), str):
            changed[field] = sanitize(changed[field])
    if changed.get("role") == "tool":
        changed["content"] = sanitize.sanitize_content(changed.get("content"))
    elif changed.get("role") == "user" and isinstance(changed.get("content"), str):
        changed["content"] = sanitize.break_markers(changed["content"])
    return changed


def _sanitize_value(value: Any, sanitize: SpecialTokenSanitizer) -> Any:
    if isinstance(value, str):
        return sanitize(value)
    if isinstance(value, Mapping):
        return {sanitize(str(key)): _sanitize_value(one, sanitize) for key, one in value.items()}
    return [_sanitize_value(one, sanitize) for one in value] if isinstance(value, list) else value
