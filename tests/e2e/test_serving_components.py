"""The gateway next to servers of others: llama.cpp's, and a LiteLLM proxy in front of it or behind it.

llama.cpp comes with `make test EXTRAS=,llamacpp`; `TERSELY_LITELLM` is the command of a LiteLLM proxy (`pip install
'litellm[proxy]'` in an environment of its own).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tersely.controller.serving.config import Upstream
from tersely.controller.serving.gateway import Thinking, open_upstreams
from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.serving.settings import ServerLimits
from tersely.models import get_model_path

from ..support.llama_server import NAME, llama_server
from ..support.serving import MODEL, Served, body, chunks_of, running, texts_of
from ..support.vllm_server import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("xllamacpp") and find_spec("gguf")), reason="xllamacpp or gguf is not installed"),
]
LITELLM = shutil.which(os.environ.get("TERSELY_LITELLM", "litellm"))
needs_litellm = pytest.mark.skipif(LITELLM is None, reason="there is no LiteLLM proxy; name one in TERSELY_LITELLM")
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 240}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_server(get_model_path(MODEL), tmp_path_factory.mktemp("llama"), free_port()) as url:
        yield url


@contextmanager
def gateway(url: str, **fields: Any) -> Iterator[Served]:
    limits, metrics = ServerLimits(timeout=60), Metrics()
    upstream = Upstream(url=url, tokenizer=str(get_model_path(MODEL)), **fields)
    workers = open_upstreams([upstream], Path(), Thinking(), limits, metrics)
    with running(ServerSettings(limits=limits), workers, metrics) as server:
        yield server


@contextmanager
def litellm(url: str, folder: Path) -> Iterator[str]:
    """The URL of a LiteLLM proxy before a server; its model is `routed`."""
    port, config = free_port(), folder / "litellm.yaml"
    parameters = f"{{model: openai/{NAME}, api_base: '{url}/v1', api_key: none}}"
    config.write_text(f"model_list:\n  - model_name: routed\n    litellm_params: {parameters}\n")
    command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with (folder / "log").open("wb") as log:
        environment = {**inherited, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    proxy, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{proxy}/health/liveliness").is_success:
                    break
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield proxy
    finally:
        process.terminate()
        process.wait()


def ask(url: str, model: str, **fields: Any) -> dict[str, Any]:
    reply = httpx.post(f"{url}/v1/chat/completions", json=body(**GREEDY, **fields) | {"model": model}, timeout=120)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_full_control_on_llama_cpp(llama: str) -> None:
    with gateway(llama) as server:
        assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] == 1024
        free = ask(server.url, NAME, tersely={"preset": "off"})
        thinking, answer = (free["choices"][0]["message"][name] for name in ("reasoning", "content"))
        assert thinking and "boxed" in answer and free["choices"][0]["finish_reason"] == "stop"
        cut = ask(server.url, NAME, thinking_token_budget=100)
        assert cut["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 105
        assert thinking.startswith(cut["choices"][0]["message"]["reasoning"][:40])
        assert "boxed" in cut["choices"][0]["message"]["content"]
        assert [d for d in cut["choices"][0]["tersely"]["decisions"] if d["policy"] == "budget" and d["acted"]]
        assert not ask(server.url, NAME, reasoning_effort="none")["choices"][0]["message"]["reasoning"]
        fields = body(**GREEDY, stream=True, tersely={"preset": "off"}) | {"model": NAME}
        with server.http.stream("POST", "/v1/chat/completions", json=fields) as response:
            assert texts_of(chunks_of(response.iter_lines())) == (thinking, answer)


def test_the_chat_endpoint_of_llama_cpp(llama: str) -> None:
    with gateway(llama, kind="chat") as server:
        reply = server.http.post("/v1/chat/completions", json=body(**GREEDY) | {"model": NAME})
        assert reply.headers["x-tersely-control"] == "effort, budget"
        assert "boxed" in reply.json()["choices"][0]["message"]["content"]
        assert ask(server.url, NAME, thinking_token_budget=20)["choices"][0]["message"]["content"]


@needs_litellm
def test_a_litellm_proxy_before_the_gateway(llama: str, tmp_path: Path) -> None:
    with gateway(llama) as server, litellm(server.url, tmp_path) as proxy:
        ours = ask(server.url, NAME, tersely={"preset": "off"})["choices"][0]["message"]
        theirs = ask(proxy, "routed", tersely={"preset": "off"})["choices"][0]["message"]
        assert (theirs["content"], theirs["reasoning_content"]) == (ours["content"], ours["reasoning_content"])
        cut = ask(proxy, "routed", thinking_token_budget=100)
        assert cut["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 105
        wrong = httpx.post(f"{proxy}/v1/chat/completions", json=body(tersely={"preset": "none"}) | {"model": "routed"})
        assert wrong.status_code == 400


@needs_litellm
def test_a_litellm_proxy_behind_the_gateway(llama: str, tmp_path: Path) -> None:
    with litellm(llama, tmp_path) as proxy:
        for kind in ("chat", "completions"):
            with gateway(proxy, models=["routed"], kind=kind) as server:
                answer = ask(server.url, "routed")["choices"][0]["message"]["content"]
                assert "boxed" in answer
