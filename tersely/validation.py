"""Strict pydantic models, and one wording for everything that pydantic finds wrong; needs only `errors`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import TerselyError, did_you_mean, shorten


class FrozenModel(BaseModel):
    """A frozen model that rejects unknown fields, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ExactModel(FrozenModel):
    """A frozen model that converts nothing, so a number in quotes is refused."""

    model_config = ConfigDict(strict=True)


Model = TypeVar("Model", bound=BaseModel)
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_PLAIN = {"tuple_type": "a list", "model_type": "an object", "mapping_type": "an object", "path_type": "a path"}
"""What is accepted, where pydantic's messages name Python types."""


def format_validation_error(error: ValidationError, model: type | None = None) -> str:
    """Describe the most helpful of pydantic's errors in one line; lists the fields of `model`, which was validated."""
    # A misspelt field is often also a missing one, and the misspelling explains both.
    first = min(error.errors(include_url=False), key=lambda details: details["type"] not in _UNKNOWN)
    return format_error_details(first, model)


def format_error_details(details: Mapping[str, Any], model: type | None = None) -> str:
    """Describe one error of `ValidationError.errors()` in one line."""
    location, message = details["loc"], details["msg"]
    path = format_location(location)
    match details["type"]:
        case "json_invalid":
            return f"not valid JSON ({message.removeprefix('Invalid JSON: ')})"
        case "extra_forbidden" | "unexpected_keyword_argument":
            accepted = list_fields(model, location[:-1])
            hint = did_you_mean(str(location[-1]), accepted) if accepted else "remove it"
            return f"unknown field {path!r}; {hint}"
        case "missing" | "missing_argument":
            return f"field {path!r} is missing; add it"
        case "value_error":
            reason = message.removeprefix("Value error, ")
            return f"{path}: {reason}" if path else reason
    subject = f"{path} is" if path else "got"
    wanted = _PLAIN.get(details["type"]) or _accepted(message)
    return f"{subject} {shorten(details['input'])}; accepted: {wanted}"


def format_location(location: Sequence[int | str]) -> str:
    """Write a location as a path, such as `messages[0].content`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def list_fields(model: type | None, location: Sequence[int | str] = ()) -> list[str]:
    """List the fields accepted at a location of a model; empty if they are not known."""
    for step in location:
        fields = _field_types(model)
        if step in fields:
            model = _find_model(fields[str(step)])
        # Any other step is an index or a key, which leads to a model that has been found already.
    return list(_field_types(model))


def _field_types(model: type | None) -> Mapping[str, Any]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return get_type_hints(model) if is_dataclass(model) else {}


def _find_model(annotation: Any) -> type | None:
    """Return the first model or dataclass that an annotation names."""
    if isinstance(annotation, type) and (is_dataclass(annotation) or issubclass(annotation, BaseModel)):
        return annotation
    return next((found for part in get_args(annotation) if (found := _find_model(part)) is not None), None)


def _accepted(message: str) -> str:
    """Return what a message of the form 'Input should be ...' asks for."""
    wanted = message.partition(" should ")[2]
    return wanted.removeprefix("be ").removeprefix("have ") or message


def parse_json(model: type[Model], text: str, source: str, error: type[TerselyError]) -> Model:
    """Parse JSON into a model; raises `error` with a message that begins with `source`, where the text is from."""
    try:
        return model.model_validate_json(text)
    except ValidationError as failure:
        raise error(f"{source}: {format_validation_error(failure, model)}") from None


def read_text(path: Path, error: type[TerselyError]) -> str:
    """Read a UTF-8 file, raising `error` if that is not possible."""
    if not path.is_file():
        raise error(f"file {str(path)!r} does not exist; check the path")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as failure:
        raise error(f"{path} is not UTF-8 text (byte {failure.start}); save it as UTF-8") from None
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}; check the file and its permissions") from None


def read_lines(path: Path, error: type[TerselyError]) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each after where it is from, raising `error` as `read_text`."""
    lines = read_text(path, error).removeprefix("\ufeff").split("\n")
    return ((f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())


def load_yaml(text: str, source: str, error: type[TerselyError], **codes: str) -> object:
    """Parse YAML; raises `error`, also for a duplicate key, of which YAML would silently keep the last.

    `codes` may have those of the error for `invalid` YAML and for a `duplicate` key.
    """
    try:
        import yaml
    except ImportError:
        raise error(f"{source} needs pyyaml; install it") from None

    class UniqueKeyLoader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node: yaml.MappingNode = super().compose_mapping_node(anchor)
            lines: dict[str, int] = {}
            for key, _ in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines:
                    message = f"{source} has the key {name!r} twice, on lines {lines[name]} and {line}; remove one"
                    raise error(message, code=codes.get("duplicate"))
                lines[name] = line
            return node

    try:
        return yaml.load(text, UniqueKeyLoader)
    except error:
        raise
    except RecursionError:
        raise error(f"{source} is nested too deeply; accepted: a few levels", code=codes.get("invalid")) from None
    except (yaml.YAMLError, ValueError) as failure:  # ValueError: of a number with thousands of digits
        message = f"{source} is not valid YAML: {' '.join(str(failure).split())}"
        raise error(message, code=codes.get("invalid")) from None
