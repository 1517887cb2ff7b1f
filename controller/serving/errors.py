"""Refusals in the shape that OpenAI's clients read. Knows no web framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from ...errors import TerselyError, did_you_mean

CLIENT_LEFT = 499
"""Status of a request whose client disconnected; only the metrics see it."""
_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error", 504: "timeout_error"}


class RequestError(TerselyError):
    """A request that is not answered.

    Args:
        status: The HTTP status.
        param: The field at fault, as in `messages[0].content`.
        code: The `code` of the error body; None sends null.
        retry_after: Seconds after which trying again may help.
    """

    code = "invalid_request"

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status, self.param, self.retry_after = status, param, retry_after
        self.sent_code = code

    @property
    def body(self) -> dict[str, Any]:
        """The error body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.sent_code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the status."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


def unknown_model(name: str, known: Iterable[str]) -> RequestError:
    """The refusal of a model that is not served."""
    message = f"unknown model {name!r}; {did_you_mean(name, known)}"
    return RequestError(message, 404, param="model", code="model_not_found")


def from_validation_error(errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None) -> RequestError:
    """The refusal of a body in which pydantic found errors; `model` is what the body should have been."""
    error = errors[0]
    location = [step for step in error["loc"] if step != "body"]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "not understood")
        return RequestError(f"the request body is not valid JSON: {reason}", code="invalid_json")
    if not location and error["type"] == "value_error":
        return RequestError(str(error["ctx"]["error"]))
    if not location:
        message = f"the request body is not accepted: {error['msg']}; send a JSON object as application/json"
        return RequestError(message)
    param = _format_location(location)
    return RequestError(f"{param}: {_explain(error, location, model)}", param=param, code=error["type"])


def _explain(error: Mapping[str, Any], location: Sequence[Any], model: type[BaseModel] | None) -> str:
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        return f"unknown or unsupported field; {did_you_mean(str(location[-1]), fields)}" if fields else "unknown field"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return "this field is required"
    value = error.get("input")
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return f"{error['msg']}, not {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _format_location(location: Sequence[Any]) -> str:
    """A location as clients write it, without the steps that pydantic adds for the members of a union."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isidentifier() and not step[0].isupper() and step not in ("str", "int", "float", "bool"):
            text += f".{step}" if text else step
    return text


def _fields_at(model: type[BaseModel] | None, location: Sequence[Any]) -> list[str]:
    """The fields of the model at a location, [] if they cannot be determined."""
    for step in location:
        if model is None or isinstance(step, int) or step not in model.model_fields:
            continue
        model = _model_in(model.model_fields[step].annotation)
    return [] if model is None else list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The only model in an annotation."""
    if isinstance(annotation, type) and not isinstance(annotation, UnionType) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    models = {model for part in get_args(annotation) if (model := _model_in(part)) is not None}
    return models.pop() if len(models) == 1 else None
