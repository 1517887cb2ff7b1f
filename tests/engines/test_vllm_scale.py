"""Two vLLM engines behind one server, as `--data-parallel-size 2` starts them: both control and tell what they did."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tersely.evaluation.tasks.questions import load

from ..support.vllm_server import KEY, NAME, VllmServer, vllm_server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        (os.cpu_count() or 1) < 4 and not os.environ.get("TERSELY_SCALE"),
        reason="four processes take minutes on fewer than four cores; TERSELY_SCALE=1 runs it all the same",
    ),
]

PROBLEMS = [question.problem for question in load("tiny", "test", 8, 5)]


def answered_by(server: VllmServer) -> dict[str, float]:
    """How many requests each engine has finished, by the server's own count."""
    found: dict[str, float] = {}
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("vllm:request_success_total{"):
            engine = line.split('engine="')[1].split('"')[0]
            found[engine] = found.get(engine, 0) + float(line.split()[-1])
    return found


def test_each_of_two_engines_controls_and_tells(tmp_path: Path) -> None:
    flags = ("--data-parallel-size", "2", "--api-server-count", "1", "--kv-cache-memory-bytes", "200000000")
    with (
        vllm_server("tersely-tiny-small", tmp_path, *flags) as server,
        httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=180) as http,
        ThreadPoolExecutor(8) as several,
    ):

        def ask(problem: str) -> dict[str, object]:
            message = {"role": "user", "content": problem}
            fields = {"messages": [message], "max_tokens": 400, "temperature": 0, "thinking_token_budget": 40}
            response = http.post("/v1/chat/completions", json={"model": NAME, **fields})
            assert response.status_code == 200, response.text
            made: dict[str, object] = response.json()["choices"][0]
            return made

        replies = list(several.map(ask, PROBLEMS * 3))
        assert all(count > 0 for count in answered_by(server).values()) and len(answered_by(server)) == 2
    for reply in replies:
        told = reply["tersely"]
        assert isinstance(told, dict) and told["budget"] == 40
        assert told["decisions"], "each engine's trace comes back"
    # The same question has the same tokens and the same decisions, whichever engine answers.
    assert replies[:8] == replies[8:16] == replies[16:]
