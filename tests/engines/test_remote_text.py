"""Servers that return text without token ids, over real HTTP: same decisions, and clear errors."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tersely.controller.engines.openai import ServerLostError, StreamingTokenizer
from tersely.controller.engines.openai.completions import CompletionsBackend, connect
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.types import Capability, SamplingParams
from tersely.errors import CapabilityError, ModelError, OptionError, TerselyError
from tersely.evaluation.tasks.questions import load
from tersely.models import get_model_path

from ..support.models import letters
from ..support.refusals import refused
from ..support.remote_servers import TextServer
from ..support.serving import setting
from ..support.vllm_server import free_port

MODEL = "tersely-tiny-small"
PROBLEMS = [question.problem for question in load("tiny", "test", 3, 5)]
GREEDY = GenerationOptions(max_new_tokens=250, sampling=SamplingParams(temperature=0.0))


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine(MODEL)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERSELY_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("strict", "ids"), [(True, False), (False, True)])
def test_decisions_on_text_are_the_same_as_on_ids(engine: TransformersEngine, strict: bool, ids: bool) -> None:
    ours = Session(engine)
    with TextServer(engine, strict=strict, ids=ids).serve() as server:
        remote = connect(server.url, tokenizer=MODEL)
        assert remote.capabilities == {Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RETRACT}
        assert remote.context_length is None
        theirs = Session(remote)
        options = replace(GREEDY, preset="fast")
        for one, other in zip(ours.run(PROBLEMS[:2], options), theirs.run(PROBLEMS[:2], options), strict=True):
            assert other.token_ids == one.token_ids
            assert other.text == one.text
            assert [(d.policy, d.action, d.position) for d in other.trace] == [
                (d.policy, d.action, d.position) for d in one.trace
            ]
            assert one.trace
        remote.close()
        assert {isinstance(body["prompt"], list) for body in server.requests[-4:]} == {ids}
        assert ("skip_special_tokens" in server.requests[-1]) is not strict
        wait_idle(server)


def wait_idle(server: TextServer) -> None:
    end = time.monotonic() + 60
    while server.running:
        assert time.monotonic() < end, "a cancelled request is still running"
        time.sleep(0.02)


TEXTS = [
    "Wait, 17 + 25 = 42.\n\n</think>\n\nThe answer is \\boxed{42}.",
    "naïve — “quotes” 思考 🙂🙃 and\ttabs  two  blanks\n\n\nthree lines",
    "x" * 50 + " 1234567890 " * 30,
]


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_tokenizer_gives_the_ids_of_the_whole_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(MODEL))
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    for seed in range(4):
        rng, streaming = random.Random(seed), StreamingTokenizer(tokenizer)
        ids: list[int] = []
        start = early = 0
        while start < len(text):
            end = start + rng.randint(1, 6)
            early = len(ids)
            ids += streaming.add(text[start:end], last=end >= len(text))
            start = end
        assert ids == whole
        assert early > len(whole) // 2, "most ids are returned before the end"


def test_streaming_tokenizer_gives_back_streamed_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(MODEL))
    for text in TEXTS[:1] * 2 + ["So 3 times 4 is 12. " * 200]:
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        streaming = StreamingTokenizer(tokenizer)
        ids: list[int] = []
        for token in whole:
            ids += streaming.add(tokenizer.decode([token]))
        assert [*ids, *streaming.add("", last=True)] == whole


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with refused(CapabilityError, "slow_tokenizer"):
        StreamingTokenizer(Slow())


def test_broken_connections_are_resumed(engine: TransformersEngine) -> None:
    """The server breaks connections within the text, and is busy now and then."""
    options = replace(GREEDY, policies=("budget", "convergence"))
    expected = Session(engine).run(PROBLEMS[:2], options)
    breaks = {4: 30, 5: 12, 6: 0, 7: 40, 8: 20}
    with TextServer(engine, strict=True, breaks=lambda number: breaks.get(number - 5)).serve() as server:
        remote = connect(server.url, tokenizer=MODEL)
        found = Session(remote).run(PROBLEMS[:2], options)
        remote.close()
        assert [one.text for one in found] == [one.text for one in expected]
        assert [len(d.trace) for d in found] == [len(d.trace) for d in expected]
        assert len(server.requests) > 12


def test_a_lost_server_is_an_error_with_the_partial_output(engine: TransformersEngine) -> None:
    whole = Session(engine).run(PROBLEMS[:1], replace(GREEDY, preset="off"))[0]
    with TextServer(engine).serve() as server:
        remote = connect(server.url, tokenizer=MODEL)
        server.breaks = lambda number: 25 if number <= begun else 0
        begun = len(server.requests)
        with pytest.raises(ServerLostError) as caught:
            Session(remote).run(PROBLEMS[:1], replace(GREEDY, preset="off"))
        (partial,) = caught.value.completions
        assert partial.token_ids == whole.token_ids[: len(partial.token_ids)]
        assert len(partial.token_ids) > 3
        remote.close()


def test_wrong_servers_keys_models_and_tokenizers_are_refused(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: type[TerselyError], *args: Any, **options: Any) -> str:
        with pytest.raises(kind) as error:
            connect(*args, **options)
        return error.value.code

    assert refused(ModelError, f"http://127.0.0.1:{free_port()}", "tiny", MODEL) == "server_unreachable"
    for url in ("localhost:8000", "ftp://host/v1", ""):
        assert refused(OptionError, url, "tiny", MODEL) == "invalid_url"
    with TextServer(engine, key="sesame", models=("tiny", "large")).serve() as server:
        assert refused(ModelError, server.url, "tiny", MODEL) == "invalid_api_key"
        assert refused(ModelError, server.url, "tiny", MODEL, api_key="mellon") == "invalid_api_key"
        assert refused(ModelError, server.url, "tyni", MODEL, api_key="sesame") == "unknown_model"
        assert refused(OptionError, server.url, tokenizer=MODEL, api_key="sesame") == "ambiguous_model"
        assert refused(ModelError, server.url, "tiny", letters(), api_key="sesame") == "wrong_tokenizer"
        assert refused(ModelError, server.url, "tiny", api_key="sesame") == "missing_tokenizer"
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for name in ("OPENAI_API_KEY", "TERSELY_API_KEY"):
            monkeypatch.setenv("OPENAI_API_KEY", "mellon")
            monkeypatch.setenv(name, "sesame")
            connect(server.url, "tiny", MODEL).close()
        assert refused(ModelError, f"{server.url}/v2", "tiny", MODEL, api_key="sesame") == "no_endpoint"


def test_a_silent_server_times_out(engine: TransformersEngine) -> None:
    with TextServer(engine).serve() as server, setting(server.may_write):
        remote = connect(server.url, tokenizer=MODEL)
        assert isinstance(remote.backend, CompletionsBackend)
        remote.backend.client.timeout = 0.5  # not while it connects, as a busy machine may be slower
        server.may_write.clear()
        with pytest.raises(ModelError) as error:
            Session(remote).run(PROBLEMS[:1], GREEDY)
        assert error.value.code == "server_timeout"
        assert server.running, "it has waited for the server"
        remote.close()
        server.may_write.set()
        wait_idle(server)


def test_an_invisible_closing_marker_is_refused(engine: TransformersEngine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(MODEL))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[/THINK]"]})
    with TextServer(engine, strict=True).serve() as server:
        with refused(CapabilityError, "hidden_markers"):
            connect(server.url, "tiny", tokenizer)
        server.strict = False
        connect(server.url, "tiny", tokenizer).close()


def test_a_model_that_disappears_is_named(engine: TransformersEngine) -> None:
    with TextServer(engine).serve() as server:
        remote: Any = connect(server.url, tokenizer=MODEL)
        server.models = ("other",)
        with refused(ModelError, "request_refused"):
            Session(remote).run(PROBLEMS[:1], GREEDY)
        remote.close()
