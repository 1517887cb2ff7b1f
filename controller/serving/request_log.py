"""One line per request on standard error, as text or JSON; never what was asked or answered."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers

LOG_FORMATS = ("text", "json", "off")
REQUEST_ID = "x-request-id"
_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PLAIN = re.compile(r"[!#-~]+")


def read_request_id(headers: Headers) -> str:
    """The id that a client or a proxy gave a request, if it is plain; else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _GIVEN.fullmatch(given) else uuid.uuid4().hex


def log_request(style: str, fields: Mapping[str, Any]) -> None:
    """Write one line with the time and these fields; `style` is one of `LOG_FORMATS`."""
    if style == "off":
        return
    fields = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
    if style == "json":
        line = json.dumps(fields)
    else:
        shown = {name: str(value) for name, value in fields.items()}
        line = " ".join(
            f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text)}" for name, text in shown.items()
        )
    print(line, file=sys.stderr, flush=True)
