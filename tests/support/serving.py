"""Real servers on an embedded model in a thread of this process, with a client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tersely.controller.engines.openai.engine import RemoteEngine
from tersely.controller.serving.app import UvicornServer, create_app, serve
from tersely.controller.serving.auth_middleware import hash_key
from tersely.controller.serving.batch_worker import BatchWorker
from tersely.controller.serving.config import Rules
from tersely.controller.serving.gateway import NO_MARKERS
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.rules import LiveConfig, ServerSettings
from tersely.controller.serving.settings import bind_socket
from tersely.controller.serving.upstream_worker import UpstreamWorker
from tersely.controller.session import Session
from tersely.controller.types import Engine

MODEL = "tersely-tiny-small"
QUESTION = "Mia has 4 shells. Mia finds 3 shells. How many shells does Mia have now?"
PATIENCE = 180.0


@dataclass
class Served:
    """A running server; `http` is its client."""

    url: str
    worker: Any  # a RequestWorker, into which tests look
    server: UvicornServer
    http: httpx.Client

    def chat(self, content: str = QUESTION, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=body(content, **fields))

    def answered(self, content: str = QUESTION, **fields: Any) -> dict[str, Any]:
        response = self.chat(content, **fields)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply

    def refused(self, status: int = 400, **fields: Any) -> dict[str, Any]:
        return error_of(self.chat(**fields), status)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as in `x_total{tier="easy"}`."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.http.get("/metrics").text)
        return {
            s.name + ("{" + ",".join(f'{k}="{v}"' for k, v in s.labels.items()) + "}" if s.labels else ""): s.value
            for family in families
            for s in family.samples
        }


@contextmanager
def setting(event: threading.Event) -> Iterator[None]:
    """Sets an event in the end, also of a test that fails: threads that wait for it would delay the end."""
    try:
        yield
    finally:
        event.set()


def body(content: str = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error in a response, after checking its shape and status."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def chunks_of(lines: Iterator[str]) -> list[dict[str, Any]]:
    """The chunks of a stream, after checking its form."""
    events = list(lines)
    assert events[-2:] == ["data: [DONE]", ""]
    assert events[1::2] == [""] * (len(events) // 2)
    assert all(line.startswith("data: {") for line in events[:-2:2])
    return [json.loads(line.removeprefix("data: ")) for line in events[:-2:2]]


def texts_of(chunks: list[dict[str, Any]], row: int = 0) -> tuple[str, str]:
    """Thinking and answer of one row."""
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"] and c["choices"][0]["index"] == row]
    assert all(d.get("reasoning") == d.get("reasoning_content") for d in deltas)
    return "".join(d.get("reasoning") or "" for d in deltas), "".join(d.get("content") or "" for d in deltas)


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def configured(api_key: str | None = None, **rules: Any) -> LiveConfig:
    """A configuration without a file."""
    return LiveConfig(Rules.model_validate(rules), api_key=api_key and hash_key(api_key))


@contextmanager
def served(
    engine: Engine,
    settings: ServerSettings | None = None,
    *,
    drain: float = 10.0,
    thinks: bool = True,
    api_key: str | None = None,
    name: str = MODEL,
) -> Iterator[Served]:
    """Serve while the context lasts."""
    settings = settings or ServerSettings()
    metrics = Metrics()
    session = Session(engine, None if thinks else NO_MARKERS)
    kind = UpstreamWorker if isinstance(engine, RemoteEngine) else BatchWorker
    worker = kind(session, settings.limits, metrics, thinks)
    with running(settings, {name: worker}, metrics, drain=drain, api_key=api_key) as server:
        yield server


@contextmanager
def running(
    settings: ServerSettings,
    workers: dict[str, Any],
    metrics: Metrics,
    *,
    drain: float = 10.0,
    api_key: str | None = None,
) -> Iterator[Served]:
    """Serve these models while the context lasts."""
    server = UvicornServer(create_app(settings, workers, metrics), workers.values(), drain)
    bound = bind_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    thread = threading.Thread(target=serve, args=(server, bound), name="server")
    thread.start()
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    try:
        until(lambda: server.started or not thread.is_alive())
        with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as http:
            yield Served(url, next(iter(workers.values())), server, http)
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
