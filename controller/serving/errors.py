"""How a server says no: every error in the shape that OpenAI's clients read. Knows no web framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from ...errors import TerselyError, did_you_mean

CLIENT_LEFT = 499
"""The status of a request whose client went away, in the metrics alone."""
_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error", 504: "timeout_error"}


class RequestError(TerselyError):
    """A request that is not answered.

    status: of HTTP. param: the field at fault, as in `messages[0].content`. code: for programs. retry_after: seconds
    after which trying again may help.
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
        """The JSON of it."""
        fault = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, fault)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.sent_code}}

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


def unknown_model(got: str, known: Iterable[str]) -> RequestError:
    """The refusal of a model that is not served."""
    message = f"unknown model {got!r}; {did_you_mean(got, known)}"
    return RequestError(message, 404, param="model", code="model_not_found")


def from_validation_error(errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None) -> RequestError:
    """The refusal of a body that pydantic found fault with; model: what the body should have been."""
    error = errors[0]
    place = [step for step in error["loc"] if step != "body"]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "not understood")
        return RequestError(f"the body is no JSON: {reason}", code="invalid_json")
    if not place and error["type"] == "value_error":
        return RequestError(str(error["ctx"]["error"]))
    if not place:
        return RequestError(f"the body is not accepted: {error['msg']}; send a JSON object as application/json")
    param = _path(place)
    return RequestError(f"{param}: {_said(error, place, model)}", param=param, code=error["type"])


def _said(error: Mapping[str, Any], place: Sequence[Any], model: type[BaseModel] | None) -> str:
    """What is wrong, in words."""
    if error["type"] == "extra_forbidden":
        fields = _fields(model, place[:-1])
        return f"unknown or unsupported field; {did_you_mean(str(place[-1]), fields)}" if fields else "unknown field"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return "this field is required"
    got = error.get("input")
    shown = repr(got) if isinstance(got, (str, int, float, bool, type(None))) else type(got).__name__
    return f"{error['msg']}, not {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _path(place: Sequence[Any]) -> str:
    """A place as clients write it; what pydantic adds to tell the cases of a union apart is left out."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isidentifier() and not step[0].isupper() and step not in ("str", "int", "float", "bool"):
            text += f".{step}" if text else step
    return text


def _fields(model: type[BaseModel] | None, place: Sequence[Any]) -> list[str]:
    """The fields of the model that stands at a place, [] if that cannot be told."""
    for step in place:
        if model is None or isinstance(step, int) or step not in model.model_fields:
            continue
        model = _model_in(model.model_fields[step].annotation)
    return [] if model is None else list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The only model that an annotation speaks of."""
    if isinstance(annotation, type) and not isinstance(annotation, UnionType) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    found = {made for part in get_args(annotation) if (made := _model_in(part)) is not None}
    return found.pop() if len(found) == 1 else None
