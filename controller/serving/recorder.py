"""Questions and replies of requests without control, written as `tersely replay` reads them; only on request."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import OptionError
from .replies import RowFinished
from .settings import ResolvedRequest

_log = logging.getLogger(__name__)


class ReplyRecorder:
    """Appends to a file, made for its owner alone; opened for each reply, so that it can be moved away meanwhile.

    Raises OptionError for a file that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._append("")
        except OSError as error:
            raise OptionError(f"--record {path} cannot be written: {error.strerror}; choose another file") from None

    def add(self, request: ResolvedRequest, rows: Sequence[RowFinished]) -> None:
        """Record the rows of a request, unless it was under control; an error is only logged."""
        if request.billing.control == "on":
            return
        asked = [str(message.get("content")) for message in request.messages if message.get("role") == "user"]
        about = {"model": request.model, "effort": request.effort, "question": asked[-1] if asked else ""}
        lines = []
        for row in rows:
            cut = row.result.finish_reason == "length" or any(d.action == "close" and d.acted for d in row.result.trace)
            texts = {"thinking": row.result.thinking, "answer": row.result.answer, "truncated": cut}
            lines.append(json.dumps({**about, **texts}) + "\n")
        try:
            self._append("".join(lines))
        except OSError as error:
            _log.error("a reply was not recorded: %s", error)

    def _append(self, text: str) -> None:
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="ascii") as file:
            file.write(text)
