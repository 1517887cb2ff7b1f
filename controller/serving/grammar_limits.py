"""Refuses schemas that would end vLLM's server: for an array of 10^9 items its grammar takes all memory there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import RequestError

MAX_ITEMS = 10_000
"""Sum of all counts of items and properties in the schemas of a request."""
_FIELDS = ("structured_outputs", "response_format", "tools", "text", "output_config", "output_format")
_TEXTS = ("json", "structural_tag")
"""Fields with a schema that may be JSON in a text."""
_COUNTS = ("minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties")


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
        return abs(value) if name in _COUNTS and isinstance(value, int | float) else 0
    return sum(_count_items(one, key) for key, one in value.items())
