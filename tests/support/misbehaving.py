"""A completions server that sends whatever a test wants."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from .remote_servers import serve_http

OK = {"choices": [{"index": 0, "text": "a", "token_ids": [5], "finish_reason": None}]}
END = {"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": "stop"}]}


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def forever(piece: bytes, pause: float = 0.0) -> Iterator[bytes]:
    while True:
        yield piece
        time.sleep(pause)


def choice(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, **fields}]})


class Misbehaving:
    """Serves one model; `stream` makes the bytes of a streamed reply after the first, with which it is looked at."""

    def __init__(self) -> None:
        self.stream: Callable[[], Iterator[bytes]] = lambda: iter([event(END)])
        self.models: Callable[[], Iterator[bytes]] = lambda: iter([b'{"data": [{"id": "m", "max_model_len": 4096}]}'])
        self.headers: dict[str, str] = {}
        self.status: Iterator[int] = itertools.repeat(200)
        self.asked: list[float] = []
        self.keys: list[str | None] = []
        self.first: dict[str, Any] = OK  # what it says to a request for one token
        self.sent = 0  # bytes that it could send
        self.url = ""


@contextmanager
def misbehaving() -> Iterator[Misbehaving]:
    server = Misbehaving()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            server.keys.append(self.headers.get("authorization"))
            self._send(200, server.models())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not body.get("stream"):
                self._send(200, iter([json.dumps({"choices": []}).encode()]))
            elif body["max_tokens"] == 1:
                self._send(200, iter([event(server.first), event(END)]))
            else:
                server.asked.append(time.monotonic())
                self._send(next(server.status), server.stream(), server.headers)

        def _send(self, status: int, pieces: Iterator[bytes], headers: Any = ()) -> None:
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in pieces:
                    self.wfile.write(piece)
                    server.sent += len(piece)
            except OSError:
                pass
            self.close_connection = True

    with serve_http(Handler) as server.url:
        yield server
