"""Refuses requests that would end vLLM's server, hold it up, or be an error of its own.

For an array of 10^9 items its grammar takes all memory there is; a thousand samples keep others waiting for seconds;
numbers beyond 64 bits and arguments nested a thousand times are status 500.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .body_limits import check_shape
from .errors import RequestError

MAX_ITEMS = 10_000
"""Sum of all counts of items and properties in the schemas of a request."""
MAX_SAMPLES = 128
"""Most samples of a request, as in OpenAI's API."""
_FIELDS = ("structured_outputs", "response_format", "tools", "text", "output_config", "output_format")
_TEXTS = ("json", "structural_tag")
"""Fields with a schema that may be JSON in a text."""
_MOST = 1e18  # so that sums can be shown
_COUNTS = ("minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties")


def check_request(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a request, as JSON, that vLLM could not stand."""
    check_grammars(body)
    for name, value in body.items():
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise RequestError(f"{name} does not fit 64 bits; accepted: numbers that do", param=name)
    if isinstance(n := body.get("n"), int) and n > MAX_SAMPLES:
        raise RequestError(f"n is {n}; accepted: at most {MAX_SAMPLES}", param="n")
    for field in ("messages", "input"):
        for message in body[field] if isinstance(body.get(field), list) else ():
            for text in _list_arguments(message):
                check_shape(text.encode("utf-8", "replace"))


def _list_arguments(message: Any) -> list[str]:
    """The arguments of the calls in a message of a chat, or an item of a response, which vLLM parses."""
    if not isinstance(message, dict):
        return []
    calls = message.get("tool_calls")
    found = [message, *(calls if isinstance(calls, list) else ())]
    found += [one["function"] for one in found if isinstance(one, dict) and isinstance(one.get("function"), dict)]
    texts = [one.get("arguments") for one in found if isinstance(one, dict)]
    return [text for text in texts if isinstance(text, str)]


def check_grammars(body: Mapping[str, Any]) -> None:
    """Raise RequestError where the schemas of a request to vLLM count too many items."""
    try:
        items = sum(_count_items(body[field]) for field in _FIELDS if field in body)
    except RecursionError:
        raise RequestError("a schema is nested too deeply", code="grammar_too_large") from None
    if not items <= MAX_ITEMS:  # nor what is no number
        message = f"the schemas count {items:g} items; accepted: at most {MAX_ITEMS}, all {', '.join(_COUNTS)} together"
        raise RequestError(message, code="grammar_too_large")


def _count_items(value: Any, name: str = "") -> float:
    if name in _TEXTS and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:  # which vLLM refuses
            return 0
    if isinstance(value, list):
        return sum(_count_items(one) for one in value)
    if not isinstance(value, dict):
        return min(abs(value), _MOST) if name in _COUNTS and isinstance(value, int | float) else 0
    return sum(_count_items(one, key) for key, one in value.items())
