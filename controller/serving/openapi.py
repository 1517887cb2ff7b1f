"""What the OpenAPI description says beyond the bodies of requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response that is no answer."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Refused; the body says why."},
    "5XX": {"model": ErrorBody, "description": "Not answered; the body says why."},
}
JSON_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The reply, or with `stream` its server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}
METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Counters in Prometheus' text format.", "content": {"text/plain": {}}}
}
