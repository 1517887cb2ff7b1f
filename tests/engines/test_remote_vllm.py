"""A real vLLM server: the same tokens and decisions as transformers in this process, and nothing left running."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from tersely.controller.chat_endpoint import ChatOnlyEndpoint
from tersely.controller.connect import connect
from tersely.controller.engines.openai.backend import ServerLostError
from tersely.controller.engines.openai.engine import RemoteEngine
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.helpers.engine_helper import EngineHelper
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Close, Delegate, Inject, Policy, PolicyView, Trial, Wait, Watching
from tersely.controller.policies.reconsider import Reconsider
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Engine, Request, SamplingParams
from tersely.errors import CapabilityError, ModelError
from tersely.evaluation.tasks.questions import load

from ..support.vllm_server import KEY, VllmServer, plain_vllm_server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

MODEL = "tersely-tiny-small"
PROBLEMS = [question.problem for question in load("tiny", "test", 6, 5)]
GREEDY = GenerationOptions(max_new_tokens=400, sampling=SamplingParams(temperature=0.0))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with plain_vllm_server(MODEL, tmp_path_factory.mktemp("vllm")) as served:
        yield served


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return load_engine(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def remote(server: VllmServer) -> Iterator[RemoteEngine]:
    engine = connect(server.url, tokenizer=MODEL, api_key=KEY)
    yield engine
    engine.close()


def decisions(done: GenerationResult) -> list[tuple[str, str, int, str]]:
    return [(d.policy, d.action, d.position, d.text) for d in done.trace]


def assert_same(found: Sequence[GenerationResult], expected: Sequence[GenerationResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert decisions(one) == decisions(other)
        assert one.finish_reason == other.finish_reason
        for kind in ("prompt", "thinking", "answer", "forced"):
            assert getattr(one.usage, kind) == getattr(other.usage, kind)


def test_what_the_server_can_do_is_found_out(remote: RemoteEngine, server: VllmServer) -> None:
    assert remote.name == f"tiny at {server.url}/v1"
    assert remote.context_length == 1024
    assert remote.capabilities == {"crop", "retract", "chances"}
    assert remote.fingerprint() is None
    engine = connect(server.url, "tiny", api_key=KEY)  # whose folder vLLM tells
    assert engine.tokenizer.eos_token_id == remote.tokenizer.eos_token_id
    engine.close()


@pytest.mark.parametrize("preset", ["off", "budget", "careful", "fast", "trimr"])
def test_greedy_answers_are_those_of_transformers(local: TransformersEngine, remote: RemoteEngine, preset: str) -> None:
    options = replace(GREEDY, preset=preset)
    expected, found = (Session(engine).run(PROBLEMS, options) for engine in (local, remote))
    assert_same(found, expected)
    acted = [done for done in found if done.trace]
    assert bool(acted) == (preset != "off")
    assert all((done.usage.reprefilled > 0) == bool(done.trace) for done in found)


@dataclass(frozen=True)
class Reconsidering:
    """Takes back the model's first close and makes it think on."""

    name: ClassVar[str] = "reconsidering"
    needs: ClassVar[frozenset[str]] = frozenset({"retract"})

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(boundary="close")
        yield Inject("Wait, let me check that again.", reason="a second look", after=" ")


@dataclass(frozen=True)
class Deer:
    """Closes where a trial answer is sure enough."""

    name: ClassVar[str] = "deer"
    needs: ClassVar[frozenset[str]] = frozenset({"crop"})
    sure: float = 0.97

    def watch(self, view: PolicyView) -> Watching:
        while True:
            view = yield Wait(at=view.tokens + 24, boundary="thought")
            view = yield Trial()
            if view.reply is not None and view.reply.confidence >= self.sure:
                yield Close(f"{view.reply.answer} after {view.tokens} tokens")
                return


@dataclass(frozen=True)
class Delegating:
    """Hands one stretch to the helper."""

    name: ClassVar[str] = "delegating"
    needs: ClassVar[frozenset[str]] = frozenset({"crop", "helper"})

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=20, boundary="thought")
        yield Delegate(12, "to see how it is done", take_back=3)


def test_a_close_that_is_taken_back(local: TransformersEngine, remote: RemoteEngine, server: VllmServer) -> None:
    options = replace(GREEDY, max_new_tokens=600, policies=(Reconsidering(),))
    expected, found = (Session(engine).run(PROBLEMS, options) for engine in (local, remote))
    assert_same(found, expected)
    assert all(done.usage.discarded >= 1 for done in found if done.trace)
    assert any(done.trace for done in found)
    with pytest.raises(CapabilityError, match="lacks hidden, signals"):
        Session(remote).run(PROBLEMS, replace(GREEDY, policies=(_bound(local),)))


def _bound(local: TransformersEngine) -> Policy:
    return Reconsider().bind(local)


def tried(engine: Engine, sure: float) -> list[GenerationResult]:
    """Answers under trials, with the probabilities that they need."""
    session = Session(engine)
    rows = session.prepare(PROBLEMS, replace(GREEDY, policies=(Deer(sure),)))
    done = engine.generate([replace(row.request, signals=True) for row in rows], GREEDY.sampling)
    return [session.finish(row, one) for row, one in zip(rows, done, strict=True)]


def test_trials_answer_as_they_do_in_transformers(local: TransformersEngine, remote: RemoteEngine) -> None:
    expected, found = tried(local, 0.97), tried(remote, 0.97)
    assert_same(found, expected)
    assert any(done.trace for done in found)
    assert len({done.usage.probe // 20 for done in expected}) > 1, "some tried once, some again"
    for one, other in zip(found, expected, strict=True):
        assert one.usage.probe >= other.usage.probe > 0
        for ours, theirs in zip(one.signals, other.signals, strict=True):
            if ours is not None and theirs is not None:
                assert (ours.chosen, ours.top, ours.margin) == pytest.approx(
                    (theirs.chosen, theirs.top, theirs.margin), abs=2e-3
                )
                assert ours.entropy != ours.entropy, "what is not known is not made up"
            else:
                assert ours is theirs is None


def test_a_helper_writes_for_rows_that_rest(local: TransformersEngine, remote: RemoteEngine) -> None:
    sessions = [
        Session(engine, helper=EngineHelper(Session(local), sampling=GREEDY.sampling)) for engine in (local, remote)
    ]
    expected, found = (session.run(PROBLEMS, replace(GREEDY, policies=(Delegating(),))) for session in sessions)
    assert_same(found, expected)
    assert all(done.trace and done.usage.delegated for done in found)


def test_a_seed_decides_what_is_drawn(remote: RemoteEngine, server: VllmServer) -> None:
    session = Session(remote)
    drawn = []
    for seed in (1, 2, 1):
        options = GenerationOptions(max_new_tokens=300, sampling=SamplingParams(temperature=1.0, seed=seed))
        drawn.append([done.token_ids for done in session.run(PROBLEMS[:1] * 3, options)])
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(set(drawn[0])) == 3, "samples of one prompt differ"
    server.wait_idle()


def test_cancelling_leaves_the_server_idle(local: TransformersEngine, remote: RemoteEngine, server: VllmServer) -> None:
    """The server rests from the first tokens until they are cancelled: how fast either side is decides nothing."""
    rows = [row.request for row in Session(remote).prepare(PROBLEMS, replace(GREEDY, preset="off", max_new_tokens=800))]
    under_way = threading.Event()

    def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
        if not under_way.is_set():
            os.killpg(server.process.pid, signal.SIGSTOP)
            under_way.set()

    async def cancelled() -> None:
        task = asyncio.create_task(remote.agenerate(rows, SamplingParams(temperature=0.0), sink))
        assert await asyncio.to_thread(under_way.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = server.written()
    try:
        asyncio.run(cancelled())
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    server.wait_idle()
    whole = sum(len(done.token_ids) for done in local.generate(rows, SamplingParams(temperature=0.0)))
    assert 0 < server.written() - before < whole / 2


def test_keys_and_models(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERSELY_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelError, match=r"refuses a request without an API key .*; give api_key"):
        connect(server.url, "tiny", MODEL)
    with pytest.raises(ModelError, match="refuses the API key"):
        connect(server.url, "tiny", MODEL, api_key="mellon")
    with pytest.raises(ModelError, match="no model 'tony'; did you mean 'tiny'"):
        connect(server.url, "tony", MODEL, api_key=KEY)
    monkeypatch.setenv("TERSELY_API_KEY", KEY)
    connect(f"{server.url}/v1/", "tiny", MODEL).close()


def test_a_request_that_the_server_refuses_says_why(remote: RemoteEngine) -> None:
    with pytest.raises(ModelError, match=r"refuses the request \(400: Token id 123456"):
        remote.generate([Request((1, 2, 123456), 5)], SamplingParams(temperature=0))


def test_a_chat_endpoint_takes_an_effort_and_a_cap(local: TransformersEngine, server: VllmServer) -> None:
    endpoint = ChatOnlyEndpoint(server.url, api_key=KEY)
    options = replace(GREEDY, preset="off")
    expected = Session(local).run(PROBLEMS[:2], options)
    for one, other in zip(endpoint.run(PROBLEMS[:2], options), expected, strict=True):
        assert (one.thinking, one.answer, one.finish_reason) == (other.thinking, other.answer, other.finish_reason)
        assert one.usage.prompt == other.usage.prompt
        assert one.usage.thinking + one.usage.answer == len(other.token_ids) + 1, "the end of sequence counts there"
        assert one.tier == "normal" and "does not say" in one.trace[0].reason
    with pytest.raises(CapabilityError, match="which the policies budget, exit would need; accepted: preset 'off'"):
        endpoint.run(PROBLEMS[:1], GREEDY)


def test_a_server_that_dies_is_an_error_and_no_hang(remote: RemoteEngine, server: VllmServer) -> None:
    """The last one: the server is gone after it."""
    rows = [row.request for row in Session(remote).prepare(PROBLEMS, replace(GREEDY, preset="off", max_new_tokens=800))]
    put_out = 0

    def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
        nonlocal put_out
        put_out += len(tokens)
        if put_out >= 60 and server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()

    start = time.monotonic()
    with pytest.raises(
        ServerLostError, match=r"tiny at .* was lost after \d+ tokens of 6 row\(s\), and going on failed"
    ) as caught:
        remote.generate(rows, SamplingParams(temperature=1.5), sink)
    assert time.monotonic() - start < 30
    assert sum(len(done.token_ids) for done in caught.value.completions) == put_out >= 60
