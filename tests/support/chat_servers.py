"""Servers with nothing but a chat endpoint: one streams what a test says, one judges."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from itertools import cycle
from typing import Any

from .remote_servers import JsonHandler, serve_http


@dataclass
class ChatServer:
    """Streams deltas.

    Attributes:
        deltas: What it streams.
        after_end: What it streams once it was told to end the thinking; until then it repeats `deltas`.
        owner: Whom it names as the owner of its models.
        refuses: Fields that it does not know.
        breaks: After how many deltas the next requests break.
        busy: How many of the next requests it refuses by 429.
        refusal: The status and body by which it refuses streams, `probe_refusal` all else; `rest` is the Retry-After.
        logprobs: Those of each piece.
        context: The context that it names for its models.
        usage: The usage at the end; None reports none.
        pause: Seconds between two deltas.
        bodies: The bodies of all streamed requests, `ids` what their headers call them.
        ended: The completions whose thinking it was told to end.
    """

    deltas: Sequence[dict[str, Any]]
    after_end: Sequence[dict[str, Any]] = ()
    owner: str = "somebody"
    refuses: frozenset[str] = frozenset()
    breaks: list[int] = field(default_factory=list)
    busy: int = 0
    refusal: tuple[int, Any] | None = None
    probe_refusal: tuple[int, Any] | None = None
    rest: str = "0"
    logprobs: dict[str, Any] | None = None
    context: int | None = None
    models: Sequence[str] = ("talker",)
    usage: dict[str, Any] | None = None
    finish: str = "stop"
    pause: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    running: int = 0
    url: str = ""

    @contextmanager
    def serve(self) -> Iterator[ChatServer]:
        with serve_http(_make_handler(self)) as self.url:
            yield self


def thinking(text: str) -> dict[str, Any]:
    return {"reasoning_content": text}


def content(text: str) -> dict[str, Any]:
    return {"content": text}


def _make_handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(JsonHandler, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            card = {"owned_by": server.owner, "max_model_len": server.context}
            self.reply(200, {"data": [{"id": name, **card} for name in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/chat/completions/control" and server.after_end:
                server.ended.append(body["id"])
                self.reply(200, {"success": body["action"] == "reasoning_end"})
            elif self.path != "/v1/chat/completions":
                self.reply(404, {"error": {"message": "no such endpoint"}})
            elif unknown := server.refuses & set(body):
                self.reply(400, {"error": {"message": f"unknown fields {sorted(unknown)}"}})
            elif not body.get("stream") and server.probe_refusal is not None:
                self.reply(*server.probe_refusal)
            elif not body.get("stream"):
                self.reply(200, {"choices": [{"message": {"content": "2"}}]})
            elif server.refusal is not None:
                server.bodies.append(body)
                self.reply(*server.refusal, retry_after=server.rest)
            elif server.busy:
                server.busy -= 1
                self.reply(429, {"error": {"message": "too many requests"}}, retry_after=server.rest)
            else:
                server.bodies.append(body)
                server.ids.append(self.headers.get("x-request-id"))
                server.running += 1
                try:
                    self._stream(body, server.breaks.pop() if server.breaks else None)
                except ConnectionError:
                    pass
                finally:
                    server.running -= 1
                self.close_connection = True

        def _stream(self, body: dict[str, Any], left: int | None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            name = f"chatcmpl-{len(server.bodies)}"
            source, ended = cycle(server.deltas) if server.after_end else iter(server.deltas), False
            while (delta := next(source, None)) is not None:
                if name in server.ended and not ended:
                    source, ended = iter(server.after_end), True
                    continue
                if left is not None:
                    left -= 1
                    if left < 0:
                        self.connection.close()
                        return
                time.sleep(server.pause)
                choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": server.logprobs}
                self._event({"id": name, "choices": [choice]})
            self._event({"id": name, "choices": [{"index": 0, "delta": {}, "finish_reason": server.finish}]})
            if server.usage is not None:
                self._event({"id": name, "choices": [], "usage": server.usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    return Handler


@dataclass
class Judge:
    """Says yes to each question once `answers` is set; `refuses` are fields that it does not take."""

    refuses: frozenset[str] = frozenset()
    answers: threading.Event = field(default_factory=threading.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    yes: float = 0.6
    no: float = 0.2

    @contextmanager
    def serve(self) -> Iterator[str]:
        judge = self

        class Handler(JsonHandler, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "judge"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.bodies.append(body)
                judge.answers.wait(30)
                with suppress(ConnectionError):  # the verifier was closed
                    self.reply(*judge.judge(body))

        with serve_http(Handler) as url:
            yield url
            self.answers.set()

    def judge(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refuses & body.keys():
            return 400, {"error": {"message": "unknown fields"}}
        choice: dict[str, Any] = {"message": {"content": " Yes, both are 5."}}
        if body.get("logprobs"):
            chances = {"Yes": self.yes / 2, " yes": self.yes / 2, "No": self.no, "Maybe": 1 - self.yes - self.no}
            tops = [{"token": word, "logprob": math.log(p)} for word, p in chances.items()]
            choice["logprobs"] = {"content": [{"token": "Yes", "top_logprobs": tops}]}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 40}}
