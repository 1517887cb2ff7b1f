"""Trial answers of requests inside vLLM: what is asked of the server, and when a policy decides by the reply."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from unittest.mock import Mock, patch

import pytest

from tersely.controller.policies.exits import CERTAINDEX_PROMPT, DEER_PROMPT
from tersely.controller.types import Capability
from tersely.controller.verifiers import EndpointVerifier
from tersely.controller.vllm.request_control import KEY, RequestControl
from tersely.controller.vllm.request_controller import RequestController
from tersely.controller.vllm.trial_endpoint import SELF_KEY, TrialEndpoint
from tersely.controller.vllm.worker_context import WorkerContext
from tersely.errors import CapabilityError

from ...support.refusals import refused
from ...support.remote_servers import JsonHandler, serve_http
from ...support.serving import until
from ...support.word_tokenizer import WordTokenizer

QUESTION = "two and three"


@dataclass
class Completions:
    """A completions server of vLLM's that writes `reply` token by token, all with one log-probability."""

    words: WordTokenizer
    reply: str = "5}$"
    logprob: float = -0.01
    answers: threading.Event = field(default_factory=threading.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def serve(self) -> Iterator[str]:
        server = self

        class Handler(JsonHandler, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "same"}]})

            def do_POST(self) -> None:
                server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                server.answers.wait(30)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for token in server.words(server.reply)["input_ids"]:
                    choice = {"token_ids": [token], "logprobs": {"token_logprobs": [server.logprob]}}
                    self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

        with serve_http(Handler) as url:
            yield url


def make_context(words: WordTokenizer, parallel: int = 1, outputs: Any = None, **settings: Any) -> WorkerContext:
    settings |= {"markers": ["<think>", "</think>"]}
    model = Mock(hf_text_config=Mock(num_hidden_layers=2))
    config = Mock(additional_config={KEY: settings}, model_config=model, structured_outputs_config=outputs)
    config.parallel_config.tensor_parallel_size = parallel
    context = WorkerContext(config)
    context.tokenizer, context.end = words, (words("EOS")["input_ids"][0],)
    return context


@dataclass
class Row:
    """A row whose model writes what it is given, and what is forced."""

    words: WordTokenizer
    controller: RequestController
    output: list[int] = field(default_factory=list)

    def write(self, text: str) -> None:
        for token in self.words(text)["input_ids"]:
            self.output.append(token)
            while (forced := self.controller.read(self.output)) is not None:
                self.output.append(forced)

    @property
    def said(self) -> list[tuple[str, str, int]]:
        return [(d.policy, d.action, d.position) for d in self.controller.decisions]


@contextmanager
def running(policy: str, server: Completions | None = None) -> Iterator[tuple[Row, WorkerContext]]:
    words = WordTokenizer() if server is None else server.words
    with Completions(words).serve() if server is None else server.serve() as url:
        context = make_context(words, trials="http://127.0.0.1:9" if server is None else url)
        prompt = words(QUESTION + "<think>")["input_ids"]
        made = context.make_controller({KEY: {"policies": {policy: {}}}}, prompt, 500)
        assert made is not None and context.trials is not None
        try:
            yield Row(words, made), context
        finally:
            context.trials.close()


def replied(row: Row) -> bool:
    assert row.controller.controller is not None
    tasks = row.controller.controller._scheduler.tasks
    return all(task.trial is None or task.trial.reply.done() for task in tasks)


def test_a_policy_decides_at_the_first_end_of_a_sentence_after_the_reply() -> None:
    server = Completions(WordTokenizer())
    with running("deer", server) as (row, _):
        row.write("I get five. Wait")
        asked = len(row.output) - 1  # before the cue
        row.write(", that is so. And")
        assert row.said == [] and not row.controller.done, "nothing waits"
        server.answers.set()
        until(lambda: replied(row))
        row.write(" then more words")
        assert row.said == [], "not within a sentence"
        row.write(".\n")
        decided = row.said[0][2]
        assert row.said == [("deer", "trial", decided), ("deer", "close", decided)] and decided > asked
        trial, _ = row.controller.decisions
        assert f"after {asked} tokens: '5'" in trial.reason
        assert "</think>" in row.words.decode(row.output)
    (body,) = server.bodies
    words = server.words
    opening = words(QUESTION + "<think>")["input_ids"] + row.output[:asked] + words(DEER_PROMPT.opening)["input_ids"]
    assert body["prompt"] == opening and body["vllm_xargs"] == {KEY: "off"} and body["temperature"] == 0
    assert trial.tokens == len(words(DEER_PROMPT.opening)["input_ids"]) + 2, "what opens it, and up to the brace"


def test_tokens_that_came_before_what_was_forced_are_part_of_a_trial() -> None:
    server = Completions(WordTokenizer())
    with server.serve() as url:
        context = make_context(server.words, trials=url)
        context._drafts = 1
        policies = {"hint": {"earliest": 1, "alpha": 99, "beta": 9.0}, "deer": {}}
        made = context.make_controller(
            {KEY: {"policies": policies}}, server.words(QUESTION + "<think>")["input_ids"], 500
        )
        assert made is not None and context.trials is not None
        row = Row(server.words, made)
        for token in server.words("I get one.")["input_ids"]:
            row.output.append(token)
            forced = made.read(row.output)
        assert forced is not None, "a hint"
        row.write(" late")
        assert made.unseen == 1
        row.write(" I get five. Wait")
        asked = row.output[:-1]
        server.answers.set()
        until(lambda: replied(row))
        context.trials.close()
    (body,) = server.bodies
    opening = server.words(DEER_PROMPT.opening)["input_ids"]
    assert body["prompt"] == server.words(QUESTION + "<think>")["input_ids"] + asked + opening


def test_a_doubtful_reply_lets_the_thinking_go_on() -> None:
    server = Completions(WordTokenizer(), logprob=-2.0)
    server.answers.set()
    with running("deer", server) as (row, _):
        for _ in range(2):
            row.write("I get five. Wait")
            until(lambda: replied(row))
            row.write(", not so. ")
        assert [action for _, action, _ in row.said] == ["trial", "trial"]
        row.write("</think>5")
    assert len(server.bodies) == 2


def test_answers_that_agree_end_the_thinking() -> None:
    server = Completions(WordTokenizer(), reply="5} \\]")
    server.answers.set()
    with running("certaindex", server) as (row, _):
        while "</think>" not in row.words.decode(row.output):
            row.write("so it goes. ")
            until(lambda: replied(row))
            assert len(row.output) < 400
    assert [action for _, action, _ in row.said] == ["trial"] * 3 + ["close"]
    sizes = [len(body["prompt"]) for body in server.bodies]
    opening = len(server.words(QUESTION + "<think>" + CERTAINDEX_PROMPT.opening)["input_ids"])
    assert sizes == [opening + 64, opening + 128, opening + 192]


def test_a_dead_server_leaves_the_request_without_trials() -> None:
    with running("deer") as (row, context):
        assert context.trials is not None
        with patch.object(context.trials, "submit", wraps=context.trials.submit) as submit:
            for _ in range(3):
                row.write("I get five. Wait, more. ")
                until(lambda: replied(row))
        assert submit.call_count == 1, "nothing more is asked for this request"
        assert [(policy, action) for policy, action, _ in row.said] == [("trials", "error")]
        assert not row.controller.done and "</think>" not in row.words.decode(row.output)
        fresh = context.make_controller({KEY: {"policies": {"deer": {}}}}, row.words("a<think>")["input_ids"], 500)
        assert fresh is not None, "others ask again"


def test_a_reply_that_comes_after_the_thinking_is_not_used() -> None:
    server = Completions(WordTokenizer())
    with running("deer", server) as (row, _):
        row.write("I get five. Wait")
        until(lambda: bool(server.bodies))
        row.write("</think>")
        server.answers.set()
        assert replied(row), "it was given up"
        row.write("5. Yes. ")
        assert row.said == []


def test_a_prompt_without_tokens_has_no_trials() -> None:
    with running("deer") as (row, context):
        control: Any = {KEY: {"policies": {"deer": {}}}}
        made = context.make_controller(control, None, 500)
        assert made is not None
        row.controller = made
        row.write("<think>I get five. Wait, more. And. ")
        assert [(policy, action) for policy, action, _ in row.said] == [("trials", "error")]


def test_what_cannot_work_is_refused() -> None:
    words = WordTokenizer()
    prompt = words("a<think>")["input_ids"]
    with refused(CapabilityError, code="missing_trials"):
        make_context(words).make_controller({KEY: "deer"}, prompt, 500)
    with refused(CapabilityError, code="missing_trials"):
        make_context(words, default={"preset": "certaindex"}).check()
    for name in ("trials", "verifier"):
        with refused(CapabilityError, code="tensor_parallel"):
            make_context(words, parallel=2, **{name: "http://127.0.0.1:9"})
    with refused(CapabilityError):
        RequestControl(policies={"eat": {}})  # which reads the doubt of a reply
    assert Capability.TRIALS not in make_context(words).capabilities


def test_a_servers_own_key_goes_to_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERSELY_API_KEY", "TERSELY_UPSTREAM_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "of-others")
    monkeypatch.setenv(SELF_KEY, "http://127.0.0.1:8 of-another")
    for kind in (TrialEndpoint, EndpointVerifier):
        for named in (None, "of-the-endpoint"):
            if named:
                monkeypatch.setenv(kind.key_variable, named)
            endpoint = kind("http://127.0.0.1:9", "same")
            assert endpoint._client._key == named
            endpoint.close()
