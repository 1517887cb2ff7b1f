"""Answers as JSON that fits a schema: asked for in words, read out of the answer, and checked."""

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
    """What a call is given as `response_format`, in OpenAI's form."""
    if method == "json_mode":
        return {"type": "json_object"}
    described = convert_to_json_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": described.get("title", "answer"), "schema": described}}


def format_instruction(wanted: Any) -> str:
    """How a `response_format` is asked for in words, "" for plain text; raises OptionError for another form."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return ""
    if kind == "json_object":
        return "Answer with one JSON object and nothing else."
    if kind == "json_schema" and isinstance(wanted["json_schema"].get("schema"), Mapping):
        schema = json.dumps(wanted["json_schema"]["schema"], ensure_ascii=False)
        return f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    raise OptionError(
        f"response_format {wanted!r} not understood; accepted: type 'text', 'json_object', or 'json_schema' "
        "with json_schema={'schema': ...}"
    )


class SchemaOutputParser(BaseOutputParser):
    """Reads the JSON object of an answer; raises OutputParserException if there is none that fits.

    wanted: a pydantic class, whose instance comes out, or anything LangChain makes a JSON schema of. Of a JSON schema
    the required keys and the types of values are checked, but not what is inside of values.
    """

    wanted: Any

    def parse(self, text: str) -> Any:
        """The object that an answer states."""
        fenced = _FENCED.search(text)
        body = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
        try:
            found = json.loads(body)
        except ValueError as error:
            raise OutputParserException(
                f"the answer holds no JSON object ({error}): {text!r}", llm_output=text
            ) from None
        if isinstance(self.wanted, type) and is_basemodel_subclass(self.wanted):
            try:
                return _validated(self.wanted, found)
            except ValueError as error:
                raise OutputParserException(f"the answer does not fit: {error}", llm_output=text) from error
        if misfit := schema_error(found, convert_to_json_schema(self.wanted)):
            raise OutputParserException(f"the answer does not fit: {misfit}", llm_output=text)
        return found

    @property
    def _type(self) -> str:
        return "tersely-fitting"


def _validated(wanted: Any, found: Any) -> Any:
    """An instance of a pydantic class, of the library's first version too."""
    return wanted.model_validate(found) if hasattr(wanted, "model_validate") else wanted.parse_obj(found)


def schema_error(found: Any, schema: Mapping[str, Any]) -> str | None:
    """What keeps an object from fitting a JSON schema, None if nothing does; see `SchemaOutputParser` for what is
    checked.
    """
    if not isinstance(found, dict):
        return f"it is no object but {type(found).__name__}"
    for key in schema.get("required", ()):
        if key not in found:
            return f"{key!r} is missing"
    for key, about in schema.get("properties", {}).items():
        kinds = about.get("type")
        accepted = [kinds] if isinstance(kinds, str) else kinds or []
        types = tuple(t for kind in accepted for t in _TYPES.get(kind, (object,)))
        value = found.get(key)
        boolean = isinstance(value, bool) and bool not in types and object not in types
        if key in found and types and (boolean or not isinstance(value, types)):
            return f"{key!r} is {value!r}; accepted: {' or '.join(accepted)}"
    return None


def with_raw(model: Runnable, parser: Runnable) -> Runnable:
    """The model's message, and what the parser made of it or why it failed, as LangChain's `include_raw` has it."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
