"""Control that breaks never breaks the answer: the request goes on without it, and trace and metrics say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.chat_model import ChatModel
from tersely.controller.controller import Controller
from tersely.controller.engines.openai.client import OpenAIClient, ServedModel
from tersely.controller.engines.openai.completions import connect
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import make_options
from tersely.controller.serving.rules import ServerSettings
from tersely.controller.session import Session
from tersely.controller.streaming import StreamEmitter

from ..support.chat_servers import ChatServer, content, thinking
from ..support.remote_servers import TextServer
from ..support.serving import MODEL, QUESTION, Served, body, configured, error_of, served, texts_of

pytestmark = pytest.mark.filterwarnings("ignore:policy .* is disabled:RuntimeWarning")

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 240, "reasoning_effort": "low"}
POLICY = """
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from tersely.controller.policies.base import Policy, Wait

@dataclass(frozen=True)
class Broken(Policy):
    name: ClassVar[str] = "broken"
    def watch(self, view):
        yield Wait(at=5, boundary="token")
        raise ZeroDivisionError
"""


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return load_engine(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def plain(local: TransformersEngine) -> tuple[str, str]:
    """Thinking and answer without control."""
    done = Session(local).run(
        [QUESTION], make_options(max_new_tokens=240, temperature=0.0, preset="off", effort="easy")
    )[0]
    return done.thinking, done.answer


@pytest.fixture(params=["development", "gateway"])
def server(request: pytest.FixtureRequest, local: TransformersEngine) -> Iterator[Served]:
    if request.param == "development":
        with served(load_engine(MODEL, dtype="float32")) as running:
            yield running
        return
    with (
        TextServer(local, ids=True).serve() as upstream,
        served(connect(upstream.url, tokenizer=MODEL, api_key="")) as running,
    ):
        yield running


def failures(server: Served, stage: str) -> float:
    return server.metrics()[f'tersely_control_failures_total{{stage="{stage}"}}']


def errors_of(choice: dict[str, Any]) -> list[str]:
    return [d["policy"] for d in choice["tersely"]["decisions"] if d["action"] == "error"]


def test_a_controller_that_fails_in_the_thinking(
    server: Served, plain: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def observe(self: Controller, *args: Any) -> Any:
        if self.position >= 7:
            raise ZeroDivisionError
        return original(self, *args)

    original = Controller.observe
    monkeypatch.setattr(Controller, "observe", observe)
    choice = server.answered(**GREEDY)["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == plain
    assert errors_of(choice) == ["server"] and failures(server, "thinking") == 1
    with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True, **GREEDY)) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    assert texts_of([json.loads(line) for line in lines]) == plain


def test_a_controller_that_fails_in_a_trial(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = GREEDY | {"reasoning_effort": "medium"}  # thinks long enough for a trial
    off = server.answered(**fields, tersely={"preset": "off"})["choices"][0]["message"]
    failed: list[int] = []

    def observe(self: Controller, *args: Any) -> Any:
        directive = original(self, *args)
        if directive.trial:
            failed.append(0)
            return directive
        if failed and len(failed) == 1:
            failed.append(1)
            raise ZeroDivisionError
        return directive

    original = Controller.observe
    monkeypatch.setattr(Controller, "observe", observe)
    choice = server.answered(**fields, tersely={"preset": "certaindex"})["choices"][0]
    assert len(failed) == 2, "there was no trial"
    assert choice["message"] == off
    assert errors_of(choice) == ["server"]


def test_control_that_cannot_be_prepared(
    server: Served, plain: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(self: Session, prompts: Any, options: Any) -> Any:
        if options.preset != "off":
            raise ZeroDivisionError
        return original(self, prompts, options)

    original = Session.prepare
    monkeypatch.setattr(Session, "prepare", prepare)
    choice = server.answered(**GREEDY)["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == plain
    assert errors_of(choice) == ["server"] and failures(server, "prepare") == 1


def test_a_policy_that_raises(tmp_path: Path, plain: tuple[str, str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(POLICY)
    rules = configured(defaults={"policies": [f"{file}:Broken"]})
    with served(load_engine(MODEL, dtype="float32"), ServerSettings(rules)) as server:
        choice = server.answered(**GREEDY)["choices"][0]
        assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == plain
        assert errors_of(choice) == ["broken"] and failures(server, "policy") == 1


def test_tokens_that_cannot_be_read_leave_the_answer_to_the_chat_endpoint(
    local: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*args: Any) -> Any:
        raise IndexError("no such token")

    said = [thinking("Three and four."), content("7.")]
    with (
        TextServer(local, ids=True).serve() as upstream,
        ChatServer(said).serve() as chat,
        served(connect(upstream.url, tokenizer=MODEL, api_key="")) as server,
    ):
        monkeypatch.setattr(StreamEmitter, "__call__", unreadable)
        monkeypatch.setattr(Session, "finish", unreadable)
        assert error_of(server.chat(**GREEDY), 500)["code"] == "engine_failed"  # without a chat endpoint
        server.worker.fallback = ChatModel(OpenAIClient(chat.url, ""), ServedModel("talker", ("talker",), None))
        choice = server.answered(**GREEDY)["choices"][0]
        assert choice["message"]["content"] == "7." and errors_of(choice) == ["server"]
        assert failures(server, "fallback") == 1
        with server.http.stream("POST", "/v1/chat/completions", json=body(stream=True, **GREEDY)) as response:
            text = "".join(response.iter_lines())
        assert '"content":"7."' in text and '{"error":' not in text
