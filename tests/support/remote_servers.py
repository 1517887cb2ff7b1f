"""A small server of completions in text alone: what an endpoint is that knows nothing beyond the standard."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.types import Request, SamplingParams

STANDARD = {"model", "prompt", "messages", "max_tokens", "stream", "temperature", "top_p", "seed", "reasoning_effort"}


class HungUpError(Exception):
    """The client has hung up, or is made to believe that the server has."""


@dataclass
class TextServer:
    """Answers with what a model writes, in pieces that a seed cuts without regard for tokens.

    strict: refuses fields that are not in the standard. ids: takes prompts of ids too. key: asked for. breaks: after
    how many pieces the connection of a request breaks, by its number; 0 refuses it with status 503. Notes what it was
    asked for; `running` are requests under way.
    """

    engine: TransformersEngine
    strict: bool = False
    ids: bool = False
    key: str | None = None
    chat: dict[str, Any] | None = None
    listed: Sequence[str] = ("tiny",)
    breaks: Callable[[int], int | None] = lambda number: None
    silent: float = 0.0
    running: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    @contextmanager
    def up(self) -> Iterator[TextServer]:
        """Serve on a port of its own."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def refusal(self, body: dict[str, Any]) -> str | None:
        """What is wrong with a request, if anything is."""
        unknown = set(body) - STANDARD if self.strict else None
        return f"unknown fields {sorted(unknown)}" if unknown else None

    def write(self, body: dict[str, Any], say: Callable[[str, str | None], None]) -> None:
        """Write on a prompt; `say` takes pieces of text, the last with a finish."""
        tokenizer = self.engine.tokenizer
        prompt = body["prompt"]
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt
        left, rng = "", random.Random(str(prompt))

        def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
            nonlocal left
            left += tokenizer.decode([token for token in tokens if token != tokenizer.eos_token_id])
            while len(left) > 3:
                size = rng.randint(1, len(left) - 1)
                say(left[:size], None)
                left = left[size:]

        sampling = SamplingParams(body.get("temperature"), body.get("top_p"), None, body.get("seed"))
        with self.lock:
            done = self.engine.generate([Request(tuple(ids), body["max_tokens"])], sampling, sink)[0]
        say(left, done.finish_reason)


def _handler(served: TextServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._reply(200, {"data": [{"id": name} for name in served.listed]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = len(served.asked)
            served.asked.append(body)
            if served.key is not None and self.headers.get("Authorization") != f"Bearer {served.key}":
                self._reply(401, {"error": "Unauthorized"})
            elif body["model"] not in served.listed:
                self._reply(404, {"error": {"message": f"no model {body['model']}"}})
            elif refusal := served.refusal(body):
                self._reply(400, {"error": {"message": refusal}})
            elif self.path == "/v1/chat/completions" and served.chat is not None:
                self._reply(200, served.chat)
            elif self.path != "/v1/completions":
                self._reply(404, {"detail": "Not Found"})
            elif not isinstance(body["prompt"], str) and not served.ids:
                self._reply(400, {"error": {"message": "the prompt must be a text"}})
            elif served.breaks(number) == 0:
                self._reply(503, {"error": {"message": "busy"}})
            else:
                served.running += 1
                try:
                    self._write(body, served.breaks(number))
                except (HungUpError, ConnectionError):
                    self.close_connection = True
                finally:
                    served.running -= 1

        def _write(self, body: dict[str, Any], left: int | None) -> None:
            if served.silent:
                time.sleep(served.silent)
            text = []

            def say(piece: str, finish: str | None) -> None:
                nonlocal left
                if left is not None:
                    left -= 1
                    if left < 0:
                        raise HungUpError
                text.append(piece)
                if body.get("stream"):
                    event = {"choices": [{"index": 0, "text": piece, "finish_reason": finish}]}
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

            if not body.get("stream"):
                served.write(body, say)
                prompt = (
                    served.engine.tokenizer(body["prompt"])["input_ids"]
                    if isinstance(body["prompt"], str)
                    else body["prompt"]
                )
                self._reply(200, {"choices": [{"text": "".join(text)}], "usage": {"prompt_tokens": len(prompt)}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            served.write(body, say)
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _reply(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
