"""A small completions server that knows nothing beyond the standard: text in, text out."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import Request, SamplingParams

STANDARD = {"model", "prompt", "messages", "max_tokens", "stream", "temperature", "top_p", "seed", "reasoning_effort"}


class ConnectionBrokenError(Exception):
    """The client has closed the connection, or the server breaks it on purpose."""


@contextmanager
def serve_http(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port; yields the URL."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class TextServer:
    """Answers with what a model generates, in pieces that a seed cuts without regard to tokens.

    Attributes:
        strict: refuse fields that are not in the standard.
        ids: accept prompts of token ids as well.
        key: the API key that is required.
        chat: the reply of the chat endpoint; None has no such endpoint.
        models: the names that it lists.
        breaks: after how many pieces the connection of a request breaks, by its number; 0 refuses it with status 503.
        may_write: no request gets a piece before it is set.
        running: how many requests are running.
        requests: the bodies of all requests.
    """

    engine: TransformersEngine
    strict: bool = False
    ids: bool = False
    key: str | None = None
    chat: dict[str, Any] | None = None
    models: Sequence[str] = ("tiny",)
    breaks: Callable[[int], int | None] = lambda number: None
    may_write: threading.Event = field(default_factory=_set_event)
    running: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    @contextmanager
    def serve(self) -> Iterator[TextServer]:
        """Serve on a free port."""
        with serve_http(_make_handler(self)) as self.url:
            yield self

    def find_problem(self, body: dict[str, Any]) -> str | None:
        """What is wrong with a request; None for nothing."""
        unknown = set(body) - STANDARD if self.strict else None
        return f"unknown fields {sorted(unknown)}" if unknown else None

    def generate(self, body: dict[str, Any], send: Callable[[str, str | None], None]) -> None:
        """Generate after a prompt; `send` takes pieces of text, the last with a finish reason."""
        tokenizer = self.engine.tokenizer
        prompt = body["prompt"]
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt
        left, rng = "", random.Random(str(prompt))

        def sink(index: int, tokens: Sequence[int], forced: bool) -> None:
            nonlocal left
            left += tokenizer.decode([token for token in tokens if token != tokenizer.eos_token_id])
            while len(left) > 3:
                size = rng.randint(1, len(left) - 1)
                send(left[:size], None)
                left = left[size:]

        sampling = SamplingParams(body.get("temperature"), body.get("top_p"), None, body.get("seed"))
        with self.lock:
            done = self.engine.generate([Request(tuple(ids), body["max_tokens"])], sampling, sink)[0]
        send(left, done.finish_reason)


class JsonHandler(BaseHTTPRequestHandler):
    """Answers by JSON, and logs nothing."""

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)


def _make_handler(server: TextServer) -> type[BaseHTTPRequestHandler]:
    class Handler(JsonHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": name} for name in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = len(server.requests)
            server.requests.append(body)
            if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                self.reply(401, {"error": "Unauthorized"})
            elif body["model"] not in server.models:
                self.reply(404, {"error": {"message": f"no model {body['model']}"}})
            elif problem := server.find_problem(body):
                self.reply(400, {"error": {"message": problem}})
            elif self.path == "/v1/chat/completions" and server.chat is not None:
                choices = server.chat["choices"]
                streamed = [{"delta": one["message"], "finish_reason": one["finish_reason"]} for one in choices]
                self._stream_events({**server.chat, "choices": streamed})
            elif self.path != "/v1/completions":
                self.reply(404, {"detail": "Not Found"})
            elif not isinstance(body["prompt"], str) and not server.ids:
                self.reply(400, {"error": {"message": "the prompt must be a text"}})
            elif server.breaks(number) == 0:
                self.reply(503, {"error": {"message": "busy"}})
            else:
                server.running += 1
                try:
                    self._write(body, server.breaks(number))
                except (ConnectionBrokenError, ConnectionError):
                    self.close_connection = True
                finally:
                    server.running -= 1

        def _write(self, body: dict[str, Any], pieces_left: int | None) -> None:
            assert server.may_write.wait(60)
            text = []

            def send(piece: str, finish: str | None) -> None:
                nonlocal pieces_left
                if pieces_left is not None:
                    pieces_left -= 1
                    if pieces_left < 0:
                        raise ConnectionBrokenError
                text.append(piece)
                if body.get("stream"):
                    event = {"choices": [{"index": 0, "text": piece, "finish_reason": finish}]}
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

            if not body.get("stream"):
                server.generate(body, send)
                prompt = (
                    server.engine.tokenizer(body["prompt"])["input_ids"]
                    if isinstance(body["prompt"], str)
                    else body["prompt"]
                )
                self.reply(200, {"choices": [{"text": "".join(text)}], "usage": {"prompt_tokens": len(prompt)}})
                return
            self._stream_events()
            server.generate(body, send)
            self.wfile.write(b"data: [DONE]\n\n")

        def _stream_events(self, *events: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.close_connection = True
            for event in events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    return Handler
