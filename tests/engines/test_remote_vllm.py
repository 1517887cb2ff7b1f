"""A real vLLM server: the same tokens and decisions as transformers in this process, and nothing left running."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from tersely.controller.chat_endpoint import ChatOnlyEndpoint
from tersely.controller.engines.openai import ServerLostError
from tersely.controller.engines.openai.client import OpenAIClient
from tersely.controller.engines.openai.completions import CompletionsBackend, connect
from tersely.controller.engines.openai.engine import RemoteEngine
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.helpers import EngineHelper
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import (
    Close,
    Delegate,
    Inject,
    Policy,
    PolicyView,
    Trial,
    TrialAnswer,
    Wait,
    Watching,
)
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Capability, Engine, Request, SamplingParams
from tersely.errors import CapabilityError, ModelError
from tersely.evaluation.replay.reader import ModelReader
from tersely.evaluation.tasks.questions import load

from ..support.refusals import refused
from ..support.vllm_server import KEY, VllmServer

pytestmark = pytest.mark.vllm

MODEL = "tersely-tiny-small"
PROBLEMS = [question.problem for question in load("tiny", "test", 3, 5)]
GREEDY = GenerationOptions(max_new_tokens=160, sampling=SamplingParams(temperature=0.0))


@pytest.fixture(scope="module")
def server(plain_vllm_server: Callable[[], VllmServer]) -> VllmServer:
    return plain_vllm_server()


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
        for kind in ("prompt", "thinking", "answer", "injected"):
            assert getattr(one.usage, kind) == getattr(other.usage, kind)


def test_connect_finds_what_the_server_can_do(remote: RemoteEngine, server: VllmServer) -> None:
    assert remote.name == f"tiny at {server.url}/v1"
    assert remote.context_length == 1024
    logprobs = {Capability.LOGPROBS, Capability.TOP_LOGPROBS}
    assert remote.capabilities == {Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RETRACT, *logprobs}
    assert remote.fingerprint() is None
    engine = connect(server.url, "tiny", api_key=KEY)  # vLLM reports the folder of its tokenizer
    assert engine.tokenizer.eos_token_id == remote.tokenizer.eos_token_id
    engine.close()


@pytest.mark.parametrize(
    ("preset", "acts"),
    [("fast", {"budget", "convergence", "hint"}), ("trimr", {"budget", "trimr"})],
)
def test_greedy_answers_are_the_same_as_on_transformers(
    local: TransformersEngine, remote: RemoteEngine, preset: str, acts: set[str]
) -> None:
    options = replace(GREEDY, preset=preset, max_new_tokens=200, answer_reserve=24)  # long enough for each policy
    expected, found = (Session(engine).run(PROBLEMS, options) for engine in (local, remote))
    assert_same(found, expected)
    assert {decision.policy for done in found for decision in done.trace} == acts
    assert all((done.usage.recomputed > 0) == bool(done.trace) for done in found)


@dataclass(frozen=True)
class ContinueOnce(Policy):
    """Retracts the model's first close and makes it continue to think."""

    name: ClassVar[str] = "continue-once"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.RETRACT})

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(boundary="close")
        yield Inject("Wait, let me check that again.", reason="a second look", after=" ")


class ReadsHiddenStates(ContinueOnce):
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.HIDDEN_STATES})


@dataclass(frozen=True)
class CloseWhenConfident(Policy):
    """Closes once a trial answer is confident enough, as DEER does."""

    name: ClassVar[str] = "close-when-confident"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.KV_ROLLBACK})
    confidence: float = 0.97

    def watch(self, view: PolicyView) -> Watching:
        while True:
            yield Wait(at=view.tokens + 24, boundary="thought")
            trial: TrialAnswer | None = yield Trial()
            if trial is not None and trial.confidence >= self.confidence:
                yield Close(f"{trial.answer} after {view.tokens} tokens")
                return


@dataclass(frozen=True)
class DelegateOnce(Policy):
    """Lets the helper write once."""

    name: ClassVar[str] = "delegate-once"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.KV_ROLLBACK, Capability.HELPER})

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(at=20, boundary="thought")
        yield Delegate(12, "to see how it is done", retract=3)


def test_a_close_can_be_retracted(local: TransformersEngine, remote: RemoteEngine, server: VllmServer) -> None:
    options = replace(GREEDY, max_new_tokens=600, policies=(ContinueOnce(),))
    expected, found = (Session(engine).run(PROBLEMS[:2], options) for engine in (local, remote))
    assert_same(found, expected)
    assert all(done.usage.discarded >= 1 for done in found if done.trace)
    assert any(done.trace for done in found)
    with refused(CapabilityError):
        Session(remote).run(PROBLEMS, replace(GREEDY, policies=(ReadsHiddenStates(),)))


def generate_with_trials(engine: Engine) -> list[GenerationResult]:
    """Results under trials, with the probabilities that they need."""
    session = Session(engine)
    prepared = session.prepare(PROBLEMS, replace(GREEDY, policies=(CloseWhenConfident(),)))
    done = engine.generate([replace(one.request, signals=True) for one in prepared], GREEDY.sampling)
    return [session.finish(request, completion) for request, completion in zip(prepared, done, strict=True)]


def test_trials_are_the_same_as_on_transformers(local: TransformersEngine, remote: RemoteEngine) -> None:
    expected, found = generate_with_trials(local), generate_with_trials(remote)
    assert_same(found, expected)
    assert any(done.trace for done in found)
    assert len({done.usage.trial // 20 for done in expected}) > 1, "some sequences tried once, some again"
    for one, other in zip(found, expected, strict=True):
        assert one.usage.trial >= other.usage.trial > 0
        for ours, theirs in zip(one.signals, other.signals, strict=True):
            if ours is not None and theirs is not None:
                assert (ours.chosen, ours.top, ours.margin) == pytest.approx(
                    (theirs.chosen, theirs.top, theirs.margin), abs=2e-3
                )
                assert ours.entropy != ours.entropy, "the entropy is unknown"
            else:
                assert ours is theirs is None


def test_a_helper_writes_for_suspended_sequences(local: TransformersEngine, remote: RemoteEngine) -> None:
    sessions = [
        Session(engine, helper=EngineHelper(Session(local), sampling=GREEDY.sampling)) for engine in (local, remote)
    ]
    expected, found = (session.run(PROBLEMS, replace(GREEDY, policies=(DelegateOnce(),))) for session in sessions)
    assert_same(found, expected)
    assert all(done.trace and done.usage.helper_completion for done in found)


def test_a_server_reads_answers_off_recorded_thinking(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSELY_API_KEY", KEY)
    reader, local = ModelReader(server.url), ModelReader("tersely-tiny-small")
    question = "Mia has 48 shells. Mia finds 31 shells. How many shells does Mia have now?"
    texts = [(question, f"A=48+31={total}.\nSo I get {total}.") for total in (79, 78)]
    assert reader.read(texts) == local.read(texts) == ["79", "78"]
    answers = [one.answer_trial(*texts[0], Trial()) for one in (reader, local)]
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].confidence == pytest.approx(answers[1].confidence, abs=1e-3)


def test_a_seed_decides_the_tokens(remote: RemoteEngine, server: VllmServer) -> None:
    session = Session(remote)
    drawn = []
    for seed in (1, 2, 1):
        options = GenerationOptions(
            max_new_tokens=80, answer_reserve=20, sampling=SamplingParams(temperature=1.0, seed=seed)
        )
        drawn.append([done.token_ids for done in session.run(PROBLEMS[:1] * 3, options)])
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(set(drawn[0])) == 3, "samples of one prompt differ"
    server.wait_idle()


def test_cancelling_leaves_the_server_idle(remote: RemoteEngine, server: VllmServer) -> None:
    """The first token pauses vLLM's engine, so that no stream can end by itself; its web server sees which are closed.

    Four of sixteen are open at a time; a closed one may be without a token.
    """
    options = replace(GREEDY, preset="off", max_new_tokens=800)
    rows = [row.request for row in Session(remote).prepare(PROBLEMS[2:3] * 16, options)]  # 382 tokens each
    narrow = RemoteEngine(CompletionsBackend(OpenAIClient(server.url, KEY), "tiny", MODEL), streams=4)
    (engine,) = (pid for pid, name in server.processes() if name.startswith("VLLM::Engine"))
    begun: set[int] = set()
    under_way = threading.Event()

    def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
        begun.add(row)
        if not under_way.is_set():
            os.kill(engine, signal.SIGSTOP)
            under_way.set()

    async def cancelled() -> None:
        task = asyncio.create_task(narrow.agenerate(rows, SamplingParams(temperature=0.0), sink))
        assert await asyncio.to_thread(under_way.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    server.wait_idle()
    before = server.ended()
    try:
        asyncio.run(cancelled())
        server.wait_until(lambda: server.ended() >= before + len(begun))
    finally:
        os.kill(engine, signal.SIGCONT)
        narrow.close()
    server.wait_idle()
    assert server.ended() <= before + len(begun) + 4 < before + len(rows), "more were begun after they were cancelled"


def test_wrong_keys_and_models_are_refused(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERSELY_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for model, key, code in (
        ("tiny", None, "invalid_api_key"),
        ("tiny", "mellon", "invalid_api_key"),
        ("tony", KEY, "unknown_model"),
    ):
        with pytest.raises(ModelError) as error:
            connect(server.url, model, MODEL, api_key=key)
        assert error.value.code == code
    monkeypatch.setenv("TERSELY_API_KEY", KEY)
    connect(f"{server.url}/v1/", "tiny", MODEL).close()


def test_a_refused_request_has_the_reason_of_the_server(remote: RemoteEngine) -> None:
    with refused(ModelError, "request_refused"):
        remote.generate([Request((1, 2, 123456), 5)], SamplingParams(temperature=0))


def test_a_chat_endpoint_gives_the_same_answers(local: TransformersEngine, server: VllmServer) -> None:
    endpoint = ChatOnlyEndpoint(server.url, api_key=KEY)
    options = replace(GREEDY, preset="off", max_new_tokens=240)
    expected = Session(local).run(PROBLEMS[:2], options)
    for one, other in zip(endpoint.run(PROBLEMS[:2], options), expected, strict=True):
        assert (one.thinking, one.answer, one.finish_reason) == (other.thinking, other.answer, other.finish_reason)
        assert one.usage.prompt == other.usage.prompt
        assert one.usage.thinking + one.usage.answer == len(other.token_ids) + 1, "the end of sequence counts there"
        assert one.tier == "normal" and "count as answer" in one.trace[0].reason
    with refused(CapabilityError, "chat_endpoint_only"):
        endpoint.run(PROBLEMS[:1], GREEDY)


def test_a_server_that_dies_is_an_error_and_does_not_hang(remote: RemoteEngine, server: VllmServer) -> None:
    """The last test: the server is gone after it."""
    options = replace(GREEDY, preset="off", max_new_tokens=800)
    rows = [row.request for row in Session(remote).prepare(PROBLEMS * 8, options)]  # not all end before it does
    put_out = 0

    def sink(row: int, tokens: Sequence[int], forced: bool) -> None:
        nonlocal put_out
        put_out += len(tokens)
        if put_out >= 60 and server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()

    start = time.monotonic()
    with pytest.raises(ServerLostError) as caught:
        remote.generate(rows, SamplingParams(temperature=1.5), sink)
    assert time.monotonic() - start < 120
    assert sum(len(done.token_ids) for done in caught.value.completions) == put_out >= 60
