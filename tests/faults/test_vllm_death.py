"""A vLLM server of which a part is killed: without its engine it ends with an error, without it nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.vllm_server import KEY, NAME, VllmServer, vllm_server

HEADERS = {"x-api-key": KEY}

pytestmark = [pytest.mark.vllm, pytest.mark.attack]  # each starts a server of its own


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def engine_of(server: VllmServer) -> int:
    return next(pid for pid, name in server.processes() if "EngineCor" in name)


def health_after_death(server: VllmServer) -> int:
    """What a server says of its health once that is not good; 0 if it ends before."""
    with suppress(httpx.TransportError):
        while (status := int(httpx.get(f"{server.url}/health", timeout=10).status_code)) == 200:
            time.sleep(0.1)
        return status
    return 0


def body(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": 4, **fields}


def test_a_server_whose_engine_has_died_says_so_and_ends_with_an_error(tmp_path: Path) -> None:
    with vllm_server("tersely-tiny-small", tmp_path) as server:
        fields = body(stream=True, tersely={"preset": "off"}, ignore_eos=True, max_tokens=900)
        url, lines, seen = f"{server.url}/v1/chat/completions", 0, 0
        with (
            suppress(httpx.TransportError),
            httpx.stream("POST", url, json=fields, headers=HEADERS, timeout=120) as reply,
        ):
            for line in reply.iter_lines():  # ends: a client does not hang
                assert '"finish_reason":"stop"' not in line
                lines += 1
                if lines == 10:
                    os.kill(engine_of(server), signal.SIGKILL)
                    seen = health_after_death(server)
        assert lines >= 10 and seen == 503
        assert server.process.wait(60) not in (0, None)
        assert "engine has died" in server.log.read_text()


def test_nothing_outlives_a_server_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))  # short, as it will hold sockets
    monkeypatch.setenv("TMPDIR", str(places))
    with vllm_server("tersely-tiny-small", tmp_path) as server:
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body(), headers=HEADERS, timeout=60)
        assert reply.status_code == 200
        family = [pid for pid, _ in server.processes()]
        assert len(family) > 1 and list(places.glob("tersely-*"))
        server.process.kill()
        server.process.wait()
        until(lambda: not any(alive(pid) for pid in family))
        assert not list(places.glob("tersely-*"))
    shutil.rmtree(places, ignore_errors=True)
