"""Refusals in the shape that OpenAI's clients read. Knows no web framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ...errors import TerselyError, did_you_mean, shorten
from ...validation import format_error_details, format_location

CLIENT_LEFT = 499  # status of a request whose client disconnected; only the metrics see it
TIMED_OUT = 504
_LONGEST, _LONGEST_PARAM = 2000, 200
"""Characters of a refusal's message and of the field that it names: what was sent is not sent back whole."""
_NO_FIELDS = ("body", "str", "int", "float", "bool")
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_TYPES |= {503: "overloaded_error", 504: "timeout_error"}


class RequestError(TerselyError, code="invalid_request"):
    """A request that is not answered.

    `param` is the field at fault, as in `messages[0].content`; `retry_after` seconds later trying again may help.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message[:_LONGEST], code=code)
        self.status, self.param, self.retry_after = status, param and param[:_LONGEST_PARAM], retry_after
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
    message = f"unknown model {shorten(name)}; {did_you_mean(name, known)}"
    return RequestError(message, 404, param="model", code="model_not_found")


def from_validation_error(errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None) -> RequestError:
    """The refusal of a body in which pydantic found errors; `model` is what the body should have been."""
    error = errors[0]
    location = [
        step
        for step in error["loc"]  # which also names the members of unions
        if isinstance(step, int) or (step.isidentifier() and not step[0].isupper() and step not in _NO_FIELDS)
    ]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "not understood")
        return RequestError(f"the request body is not valid JSON: {reason}", code="invalid_json")
    if location:
        message = format_error_details({**error, "loc": location}, model)
        return RequestError(message, param=format_location(location), code=error["type"])
    if error["type"] == "value_error":
        return RequestError(str(error["ctx"]["error"]))
    return RequestError(f"the request body is not accepted: {error['msg']}; send a JSON object as application/json")
