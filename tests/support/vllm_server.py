"""Real vLLM servers on an embedded model, started as users start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tersely.models import get_model_path

from . import vllm_engine

NAME, KEY = "tiny", "sesame"
_SMALL = "--enforce-eager --max-model-len 1024 --block-size 32 --dtype float32 --gpu-memory-utilization 0.3".split()
START, STOP = 300.0, 30.0
"""Seconds that starting and stopping may take."""


@dataclass
class VllmServer:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[tuple[int, str]]:
        """Process ids and names of the server and all that it has started."""
        return [(pid, Path(f"/proc/{pid}/comm").read_text().strip()) for pid in _family(self.process.pid)]

    def cpu_seconds(self) -> float:
        """What all its processes have computed."""
        lines = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid, _ in self.processes())
        return sum(sum(map(int, line.split()[11:13])) for line in lines) / os.sysconf("SC_CLK_TCK")

    def requests(self) -> float:
        """Requests under way and waiting, by the server's own count."""
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{", "tersely_requests_in_flight ")
        return sum(map(self.metric, names))

    def ended(self) -> float:
        """Requests for completions that were answered, or whose clients were seen to leave."""
        return self.metric('http_requests_total{handler="/v1/completions"')

    def metric(self, name: str) -> float:
        """The sum of the samples that begin like this."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def wait_idle(self) -> None:
        self.wait_until(lambda: not self.requests())

    def wait_until(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < end, "the server goes on with what nobody listens to"
            time.sleep(0.05)


def _family(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [pid, *(one for child in children for one in _family(child))]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def shared(start: Callable[[], AbstractContextManager[VllmServer]]) -> Iterator[Callable[[], VllmServer]]:
    """A function that returns the server, started with the first call and again after a test has ended it."""
    with ExitStack() as stack:
        started: list[VllmServer] = []

        def running() -> VllmServer:
            if not started or started[-1].process.poll() is not None:
                started.append(stack.enter_context(start()))
            return started[-1]

        yield running


def vllm_server(
    model: str, folder: Path, *flags: str, forked_engine: bool = False
) -> AbstractContextManager[VllmServer]:
    """`tersely serve --engine vllm`; folder takes its log."""
    program = [vllm_engine.__file__, "tersely.cli"] if forked_engine else ["-m", "tersely.cli"]
    command = [*program, "serve", model, "--engine", "vllm", "--name", NAME, "--metrics", "open"]
    return _started([*command, *_SMALL, *flags], folder)


def plain_vllm_server(model: str | Path, folder: Path, *flags: str) -> AbstractContextManager[VllmServer]:
    """vLLM's own program, with nothing of ours in it, on an embedded model or a folder."""
    path = model if isinstance(model, Path) else get_model_path(model)
    command = [vllm_engine.__file__, "vllm.entrypoints.openai.api_server", "--model", str(path)]
    return _started([*command, "--served-model-name", NAME, "--host", "127.0.0.1", *_SMALL, *flags], folder)


def gateway_server(upstream: str, model: str, folder: Path, key: str = "") -> AbstractContextManager[VllmServer]:
    """`tersely serve --upstream` before a server."""
    command = ["-m", "tersely.cli", "serve", "--upstream", upstream, "--tokenizer", str(get_model_path(model))]
    return _started([*command, "--upstream-key", key, "--metrics", "open"], folder)


@contextmanager
def _started(command: list[str], folder: Path) -> Iterator[VllmServer]:
    """Start a program of Python and end it."""
    port, log = free_port(), folder / "log"
    command = [sys.executable, *command, "--port", str(port), "--api-key", KEY]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, cwd=folder)
    server = VllmServer(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_up(server)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_up(server: VllmServer) -> None:
    end = time.monotonic() + START
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health").is_success:
                return
        assert server.process.poll() is None and time.monotonic() < end, server.log.read_text()[-3000:]
        time.sleep(0.5)
