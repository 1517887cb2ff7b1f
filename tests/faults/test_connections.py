"""Slow, silent and wasteful clients: their connections end, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from unittest.mock import Mock

import httpx
import pytest
import uvicorn

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.serving import limits as connections
from tersely.controller.serving.limits import GRACE, GuardedProtocol
from tersely.controller.serving.rules import ServerSettings

from ..support.cpu_limit import limited
from ..support.serving import MODEL, Served, body, configured, served, until

KEY = "correct horse"
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(load_engine(MODEL), ServerSettings(configured(KEY)), api_key=KEY) as running:
        yield running


def connect(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 60)


def send_until_ended(client: socket.socket, data: bytes, times: int) -> None:
    """Raises TimeoutError where the server neither takes more nor ends the connection."""
    with suppress(ConnectionError):
        for _ in range(times):
            client.sendall(data)
            time.sleep(0.001)
        while client.recv(65_536):
            pass


def test_silent_connections_end_and_make_room(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    silent = [connect(server) for _ in range(3)]
    silent[0].sendall(b"GET /health HTTP/1.1\r\nhos")
    assert [one.recv(10) for one in silent] == [b"", b"", b""]
    for one in silent:
        one.close()
    monkeypatch.setattr(connections, "HEADER_SECONDS", 60.0)
    monkeypatch.setattr(connections, "max_connections", lambda: 20)
    idle = [connect(server) for _ in range(40)]
    for _ in range(3):
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    assert sum(map(has_ended, idle)) >= 20
    for one in idle:
        one.close()


def has_ended(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(10) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_server_that_ends_waits_for_clients_only_so_long() -> None:
    """vLLM's server says nothing about it, and would wait for the last of them."""

    async def accept() -> int | None:
        config = uvicorn.Config(Mock(), log_config=None, lifespan="off", timeout_graceful_shutdown=None)
        state = uvicorn.server.ServerState()
        protocol = GuardedProtocol(config, state, {}, asyncio.get_running_loop())  # type: ignore[call-arg]
        protocol.connection_made(Mock())
        protocol.connection_lost(None)
        seconds: int | None = config.timeout_graceful_shutdown
        return seconds

    assert asyncio.run(accept()) == GRACE


def test_a_busy_connection_is_not_ended_for_a_new_one(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply takes more than the seconds for headers, since a step of the engine does."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    steps = iter((0.0, 0.0, 1.0))
    hook = server.worker.session.engine.model.register_forward_pre_hook(lambda *_: time.sleep(next(steps, 0.0)))
    with httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=60) as http:
        fields = body(stream=True, max_tokens=200, tersely={"preset": "off"})
        with http.stream("POST", "/v1/chat/completions", json=fields) as response:
            lines = list(response.iter_lines())
    hook.remove()
    assert lines[-2:] == ["data: [DONE]", ""] and next(steps, None) is None


def test_a_client_that_reads_nothing_is_left(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key: it asks again and again, and the refusals fill its buffers."""
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(60)
        deaf.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        send_until_ended(deaf, b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n" * 200, 10_000)


@pytest.mark.parametrize("header", [b"", b"x-api-key: correct horse\r\n"])
@pytest.mark.parametrize("crumb", [b"1\r\n \r\n", b"0001;a=b\r\n \r\n"])
def test_a_body_in_crumbs_ends_its_connection(server: Served, header: bytes, crumb: bytes) -> None:
    with connect(server) as client, limited():  # a megabyte of them took seconds, and all others waited
        client.sendall(CHUNKED + header + b"content-type: application/json\r\n\r\n")
        send_until_ended(client, crumb * 20_000, 20)
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def test_half_a_body_counts_as_a_client_that_left(server: Served, capfd: pytest.CaptureFixture[str]) -> None:
    def count() -> float:
        return server.metrics().get('tersely_requests_total{status="499"}', 0.0)

    before = count()
    with connect(server) as client:
        client.sendall(CHUNKED + b"x-api-key: correct horse\r\n\r\n1\r\n{\r\n")
    until(lambda: count() > before)
    assert "Traceback" not in capfd.readouterr().err


def test_a_body_in_honest_chunks_is_read(server: Served) -> None:
    with httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=60) as http:
        for size in (7, 1_000):
            text = body("1 + 1", max_tokens=4, reasoning_effort="none", metadata={"a": "x" * 5_000})
            content = httpx.Request("POST", server.url, json=text).read()
            pieces = (content[at : at + size] for at in range(0, len(content), size))
            headers = {"content-type": "application/json"}
            assert http.post("/v1/chat/completions", content=pieces, headers=headers).status_code == 200
