"""Structured output: JSON is asked for in the prompt, read from the answer, and checked against the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from ....errors import OptionError

METHODS = ("function_calling", "json_schema", "json_mode")
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def response_format(schema: Any, method: str) -> dict[str, Any]:
    """The `response_format` of a call, as OpenAI defines it."""
    if method == "json_mode":
        return {"type": "json_object"}
    json_schema = convert_to_json_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": json_schema.get("title", "answer"), "schema": json_schema}}


def format_instruction(wanted: Any) -> str:
    """The instruction that asks for a `response_format`, "" for plain text; raises OptionError for unknown formats."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return ""
    if kind == "json_object":
        return "Answer with one JSON object and nothing else."
    if kind == "json_schema" and isinstance(wanted["json_schema"].get("schema"), Mapping):
        schema = json.dumps(wanted["json_schema"]["schema"], ensure_ascii=False)
        return f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    raise OptionError(
        f"unknown response_format {wanted!r}; accepted: type 'text', 'json_object', or 'json_schema' with "
        "json_schema={'schema': ...}",
        code="unknown_response_format",
    )


class SchemaOutputParser(BaseOutputParser):
    """Reads the JSON object in an answer; raises OutputParserException if it does not fit the schema.

    `wanted` is a pydantic class, which is instantiated, or anything that LangChain converts to a JSON schema. Of a JSON
    schema, the required keys and the types of values are checked, but not what is nested in them.
    """

    wanted: Any

    def parse(self, text: str) -> Any:
        """Parse and check the object in an answer."""
        fenced = _FENCED.search(text)
        body = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
        try:
            value = json.loads(body)
        except ValueError as error:
            message = f"the answer has no valid JSON object ({error}): {text!r}"
            raise OutputParserException(message, llm_output=text) from None
        if isinstance(self.wanted, type) and is_basemodel_subclass(self.wanted):
            try:
                return _validate(self.wanted, value)
            except ValueError as error:
                raise OutputParserException(f"the answer does not fit: {error}", llm_output=text) from error
        if mismatch := schema_error(value, convert_to_json_schema(self.wanted)):
            raise OutputParserException(f"the answer does not fit: {mismatch}", llm_output=text)
        return value

    @property
    def _type(self) -> str:
        return "tersely-schema"


def _validate(wanted: Any, value: Any) -> Any:
    """An instance of a pydantic class, of pydantic 1 as well."""
    return wanted.model_validate(value) if hasattr(wanted, "model_validate") else wanted.parse_obj(value)


def schema_error(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Why a value does not fit a JSON schema, None if it does; see `SchemaOutputParser` for what is checked."""
    if not isinstance(value, dict):
        return f"expected an object, got {type(value).__name__}"
    for key in schema.get("required", ()):
        if key not in value:
            return f"{key!r} is missing"
    for key, definition in schema.get("properties", {}).items():
        kinds = definition.get("type")
        accepted = [kinds] if isinstance(kinds, str) else kinds or []
        types = tuple(t for kind in accepted for t in _TYPES.get(kind, (object,)))
        item = value.get(key)
        boolean = isinstance(item, bool) and bool not in types and object not in types
        if key in value and types and (boolean or not isinstance(item, types)):
            return f"{key!r} is {item!r}; accepted: {' or '.join(accepted)}"
    return None


def include_raw_message(model: Runnable, parser: Runnable) -> Runnable:
    """A runnable that returns the message, its parsed object and the parsing error, like LangChain's `include_raw`."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
