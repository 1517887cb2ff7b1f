"""Servers that tell text and no token ids, over real HTTP: the same decisions. And what may be wrong with a server."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tersely.controller.connect import connect
from tersely.controller.engines.openai.backend import ServerLostError
from tersely.controller.engines.openai.streaming_tokenizer import StreamingTokenizer
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.types import SamplingParams
from tersely.errors import CapabilityError, ModelError, OptionError
from tersely.evaluation.tasks.questions import load
from tersely.models import get_model_path

from ..support.models import letters
from ..support.remote_servers import TextServer
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
def test_decisions_on_text_are_those_on_ids(engine: TransformersEngine, strict: bool, ids: bool) -> None:
    ours = Session(engine)
    with TextServer(engine, strict=strict, ids=ids).up() as server:
        remote = connect(server.url, tokenizer=MODEL)
        assert remote.capabilities == {"crop", "retract"}
        assert remote.context_length is None
        theirs = Session(remote)
        for preset in ("off", "fast"):
            options = replace(GREEDY, preset=preset)
            for one, other in zip(ours.run(PROBLEMS, options), theirs.run(PROBLEMS, options), strict=True):
                assert other.token_ids == one.token_ids
                assert other.text == one.text
                assert [(d.policy, d.action, d.position) for d in other.trace] == [
                    (d.policy, d.action, d.position) for d in one.trace
                ]
                assert preset == "off" or one.trace
        remote.close()
        assert {isinstance(body["prompt"], list) for body in server.asked[-4:]} == {ids}
        assert ("skip_special_tokens" in server.asked[-1]) is not strict
        wait_idle(server)


def wait_idle(server: TextServer) -> None:
    end = time.monotonic() + 10
    while server.running:
        assert time.monotonic() < end, "a request goes on that nobody listens to"
        time.sleep(0.02)


TEXTS = [
    "Wait, 17 + 25 = 42.\n\n</think>\n\nThe answer is \\boxed{42}.",
    "naïve — “quotes” 思考 🙂🙃 and\ttabs  two  blanks\n\n\nthree lines",
    "x" * 50 + " 1234567890 " * 30,
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_text_in_pieces_spell_the_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(MODEL))
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    for seed in range(4):
        rng, words = random.Random(seed), StreamingTokenizer(tokenizer)
        ids: list[int] = []
        start = early = 0
        while start < len(text):
            end = start + rng.randint(1, 6)
            early = len(ids)
            ids += words.add(text[start:end], last=end >= len(text))
            start = end
        assert ids == whole
        assert early > len(whole) // 2, "most is given out before the end"


def test_ids_of_tokens_in_pieces_are_those_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(MODEL))
    for text in TEXTS[:1] * 2 + ["So 3 times 4 is 12. " * 200]:
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        words = StreamingTokenizer(tokenizer)
        ids: list[int] = []
        for token in whole:
            ids += words.add(tokenizer.decode([token]))
        assert [*ids, *words.add("", last=True)] == whole


def test_a_tokenizer_without_offsets_is_refused(engine: TransformersEngine) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(CapabilityError, match="tells no token ids, and Slow"):
        StreamingTokenizer(Slow())


def test_a_broken_connection_is_taken_up_again(engine: TransformersEngine) -> None:
    """The server hangs up in mid-text, and is busy now and then."""
    options = replace(GREEDY, policies=("budget", "convergence"))
    expected = Session(engine).run(PROBLEMS[:2], options)
    breaks = {4: 30, 5: 12, 6: 0, 7: 40, 8: 20}
    with TextServer(engine, strict=True, breaks=lambda number: breaks.get(number - 5)).up() as server:
        remote = connect(server.url, tokenizer=MODEL)
        found = Session(remote).run(PROBLEMS[:2], options)
        remote.close()
        assert [one.text for one in found] == [one.text for one in expected]
        assert [len(d.trace) for d in found] == [len(d.trace) for d in expected]
        assert len(server.asked) > 12


def test_a_server_that_never_comes_back_is_an_error_with_what_was_written(engine: TransformersEngine) -> None:
    whole = Session(engine).run(PROBLEMS[:1], replace(GREEDY, preset="off"))[0]
    with TextServer(engine).up() as server:
        remote = connect(server.url, tokenizer=MODEL)
        server.breaks = lambda number: 25 if number <= begun else 0
        begun = len(server.asked)
        with pytest.raises(ServerLostError, match=r"failed 3 times .*busy") as caught:
            Session(remote).run(PROBLEMS[:1], replace(GREEDY, preset="off"))
        assert caught.value.completions[0].token_ids == whole.token_ids[: len(caught.value.completions[0].token_ids)]
        assert len(caught.value.completions[0].token_ids) > 3
        remote.close()


def test_what_may_be_wrong_with_a_server(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ModelError, match=r"no server answers at http.*/v1 \(Connect"):
        connect(nowhere, "tiny", MODEL)
    for url in ("localhost:8000", "ftp://host/v1", ""):
        with pytest.raises(OptionError, match="no URL of a server"):
            connect(url, "tiny", MODEL)
    with TextServer(engine, key="sesame", listed=("tiny", "large")).up() as server:
        with pytest.raises(
            ModelError, match=r"refuses a request without an API key \(401: Unauthorized\); give api_key"
        ):
            connect(server.url, "tiny", MODEL)
        with pytest.raises(ModelError, match="refuses the API key"):
            connect(server.url, "tiny", MODEL, api_key="mellon")
        with pytest.raises(ModelError, match="no model 'tyni'; did you mean 'tiny'"):
            connect(server.url, "tyni", MODEL, api_key="sesame")
        with pytest.raises(OptionError, match="serves tiny, large; name a model"):
            connect(server.url, tokenizer=MODEL, api_key="sesame")
        with pytest.raises(
            ModelError, match=r"'The answer is 42\.' is 7 tokens to tiny .* name the served model's own"
        ):
            connect(server.url, "tiny", letters(), api_key="sesame")
        with pytest.raises(ModelError, match=r"no tokenizer is at hand for 'tiny'; name one \(tokenizer\)"):
            connect(server.url, "tiny", api_key="sesame")
        for name in ("OPENAI_API_KEY", "TERSELY_API_KEY"):
            monkeypatch.setenv("OPENAI_API_KEY", "mellon")
            monkeypatch.setenv(name, "sesame")
            connect(server.url, "tiny", MODEL).close()
        with pytest.raises(ModelError, match=r"no JSON|another kind of endpoint|404"):
            connect(f"{server.url}/v2", "tiny", MODEL, api_key="sesame")


def test_a_silent_server_is_not_waited_for_for_ever(engine: TransformersEngine) -> None:
    with TextServer(engine).up() as server:
        remote = connect(server.url, tokenizer=MODEL, timeout=0.5)
        server.silent = 2.0
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"was silent for 0.5 s; give it longer \(timeout\)"):
            Session(remote).run(PROBLEMS[:1], GREEDY)
        assert time.monotonic() - start < 1.5
        remote.close()
        server.silent = 0.0
        wait_idle(server)


def test_an_end_of_thinking_that_would_stay_unseen_is_refused(engine: TransformersEngine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(MODEL))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[/THINK]"]})
    with TextServer(engine, strict=True).up() as server:
        with pytest.raises(
            CapabilityError, match=r"tells text without special tokens, and this model's \[/THINK\] is one"
        ):
            connect(server.url, "tiny", tokenizer)
        server.strict = False
        connect(server.url, "tiny", tokenizer).close()


def test_a_model_that_goes_is_named(engine: TransformersEngine) -> None:
    with TextServer(engine).up() as server:
        remote: Any = connect(server.url, tokenizer=MODEL)
        server.listed = ("other",)
        with pytest.raises(ModelError, match=r"404: no model tiny"):
            Session(remote).run(PROBLEMS[:1], GREEDY)
        remote.close()
