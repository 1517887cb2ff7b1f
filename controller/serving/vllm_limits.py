"""Refuses requests that would end vLLM's server, hold it up, or be an error of its own.

For an array of 10^9 items its grammar takes all memory there is; a thousand samples keep others waiting for seconds;
numbers beyond 64 bits, arguments nested a thousand times, and schemas and grammars that only refer to themselves are
status 500.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from ...errors import shorten
from .errors import RequestError
from .limits import check_shape

MAX_ITEMS = 10_000  # sum of all counts of items and properties in the schemas of a request
MAX_SAMPLES = 128  # most samples of a request, as in OpenAI's API
GRAMMAR_FIELDS = ("structured_outputs", "response_format", "tools", "text", "output_config", "output_format")
_TEXTS = ("json", "structural_tag")  # fields with a schema that may be JSON in a text
_MOST = 1e18  # so that sums can be shown
_SCHEMAS = ("json", "json_schema", "schema", "parameters", "input_schema")  # fields with a schema
_APPLICATORS = ("allOf", "anyOf", "oneOf")
_RULE = re.compile(r"^[^\S\n]*([\w-]+)\s*::=", re.MULTILINE)
_COUNTS = ("minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties")


def check_request(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a request, as JSON, that vLLM could not stand."""
    check_grammars(body)
    for name, value in body.items():
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise RequestError(f"{name} does not fit 64 bits; accepted: numbers that do", param=name)
    if (n := body.get("n")) is not None and not (isinstance(n, int) and n <= MAX_SAMPLES):
        raise RequestError(f"n is {shorten(n)}; accepted: a whole number of at most {MAX_SAMPLES}", param="n")
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
    """Raise RequestError where the schemas of a request to vLLM count too many items, or only refer to themselves."""
    fields = {field: body[field] for field in GRAMMAR_FIELDS if field in body}
    try:
        items = _count_items(fields)
        endless = any(_refers_to_itself(schema) for schema in _list_schemas(fields))
    except RecursionError:
        raise RequestError("a schema is nested too deeply", code="grammar_too_large") from None
    if not items <= MAX_ITEMS:  # nor what is not a number
        message = f"the schemas count {items:g} items; accepted: at most {MAX_ITEMS}, all {', '.join(_COUNTS)} together"
        raise RequestError(message, code="grammar_too_large")
    outputs = body.get("structured_outputs")
    grammar = outputs.get("grammar") if isinstance(outputs, dict) else None
    if endless or (isinstance(grammar, str) and _never_begins(grammar)):
        message = "a schema or grammar only refers to itself, so that no text fits it; let it say something first"
        raise RequestError(message, code="endless_grammar")


def _list_schemas(value: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """All whole schemas of a request, also those in texts."""
    if name in _TEXTS and isinstance(value, str):
        value = _parse(value)
    if isinstance(value, list):
        for one in value:
            yield from _list_schemas(one)
    elif isinstance(value, dict):
        if name in _SCHEMAS and not (name == "json_schema" and "schema" in value):
            yield value
            return
        for key, one in value.items():
            yield from _list_schemas(one, key)


def _refers_to_itself(root: dict[str, Any]) -> bool:
    """Whether a part of a schema is a reference that leads back to it through nothing but references."""
    parts: dict[int, dict[str, Any]] = {}

    def follow(part: int) -> int | None:
        target = _target(parts[part], root)
        return id(target) if id(target) in parts else None

    waiting: list[Any] = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            parts[id(value)] = value
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return _has_loop(parts, follow)


def _target(schema: dict[str, Any], root: Any) -> Any:
    """What a schema refers to if it is a local reference, or stands for its only part; else None."""
    pointer = schema.get("$ref")
    if pointer is None:
        return next(
            (one[0] for name in _APPLICATORS if isinstance(one := schema.get(name), list) and len(one) == 1), None
        )
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        return None
    for step in unquote(pointer).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(root, list) and step.isdecimal() and len(step) < 9 and int(step) < len(root):
            root = root[int(step)]
        else:
            root = root.get(step) if isinstance(root, dict) else None
    return root


def _never_begins(grammar: str) -> bool:
    """Whether a grammar in EBNF has a rule of nothing, or its root comes back to itself before it allows a letter."""
    pieces = _RULE.split(grammar)[1:]
    bodies = dict(zip(pieces[::2], (body.split() for body in pieces[1::2]), strict=True))

    def first(rule: str) -> str | None:
        body = bodies.get(rule) or [""]
        repeated = len(body) > 1 and body[1][0] in "*?{"
        return body[0] if body[0] in bodies and not repeated and not any("|" in part for part in body) else None

    return not all(bodies.values()) or _has_loop(["root"], first)


T = TypeVar("T", bound=Hashable)


def _has_loop(starts: Iterable[T], follow: Callable[[T], T | None]) -> bool:
    """Whether following leads from one of the starts back to where it was; linear in the number of steps."""
    done: set[T] = set()
    for start in starts:
        place: T | None = start
        path: set[T] = set()
        while place is not None and place not in done:
            if place in path:
                return True
            path.add(place)
            place = follow(place)
        done |= path
    return False


def _parse(text: str) -> Any:
    """The value of a JSON text; None for what vLLM refuses."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _count_items(value: Any, name: str = "") -> float:
    if name in _TEXTS and isinstance(value, str):
        value = _parse(value)
    if isinstance(value, list):
        return sum(_count_items(one) for one in value)
    if not isinstance(value, dict):
        return min(abs(value), _MOST) if name in _COUNTS and isinstance(value, int | float) else 0
    return sum(_count_items(one, key) for key, one in value.items())
