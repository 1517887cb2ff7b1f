"""Verdicts of a model behind an endpoint, asked over HTTP: real servers, what they refuse, and that nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest

from tersely.controller.api import resolve_verifier
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies.trimr import TrimR
from tersely.controller.verification import AnswersEqual, AnswerStated, NoVerdictError, RuleVerifier, get_verdict
from tersely.controller.verifiers import EndpointVerifier, read_verdict
from tersely.controller.vllm.request_control import KEY
from tersely.controller.vllm.worker_context import WorkerContext
from tersely.errors import ModelError

from ...support.chat_servers import Judge
from ...support.policy_feeding import Fed
from ...support.serving import served
from ...support.word_tokenizer import WordTokenizer

VAGUE = AnswerStated("2+3?", "Let us see.")


@contextmanager
def verifier_of(judge: Judge, **options: Any) -> Iterator[EndpointVerifier]:
    with judge.serve() as url:
        verifier = EndpointVerifier(url, **options)
        try:
            yield verifier
        finally:
            judge.answers.set()
            verifier.close()


@pytest.mark.parametrize(
    ("refuses", "asked", "verdict"),
    [
        ((), 1, 0.75),
        (("chat_template_kwargs",), 2, 0.75),
        (("logprobs",), 3, 1.0),
        (("reasoning_effort", "logprobs"), 4, 1.0),
    ],
)
def test_a_server_is_asked_in_the_best_form_that_it_takes(refuses: Any, asked: int, verdict: float) -> None:
    judge = Judge(frozenset(refuses))
    judge.answers.set()
    with verifier_of(judge) as verifier:
        for question in (VAGUE, AnswersEqual("2+3?", "So I get 5.", "That makes 5.")):
            future = verifier.submit(question)
            assert future.result(30) == pytest.approx(verdict)
            assert future.tokens == 40
    assert len(judge.bodies) == asked + 1, "what is refused is not asked again"
    assert [body["model"] for body in judge.bodies] == ["judge"] * (asked + 1)
    assert "Let us see." in judge.bodies[0]["messages"][0]["content"]


def test_a_url_is_a_verifier_behind_the_rules() -> None:
    judge = Judge()
    judge.answers.set()
    with judge.serve() as url:
        verifier = resolve_verifier(url)
        assert isinstance(verifier, RuleVerifier)
        assert verifier.submit(AnswerStated("2+3?", "So the answer is 5.")).result(30) == 1.0
        assert judge.bodies == [], "rules decide first"
        assert verifier.submit(VAGUE).result(30) == pytest.approx(0.75)
        verifier.close()
        alone = resolve_verifier(url, rules=False)
        assert alone is not None
        assert alone.submit(AnswerStated("2+3?", "So the answer is 5.")).result(30) == pytest.approx(0.75)
        alone.close()


def test_trimr_goes_on_until_the_verdict_is_there() -> None:
    """Four segments whose answers only the server sees; decoding passes the first of them before it answers."""
    judge = Judge()
    part = "\n\nWait, let me look at it in another way. It is as before, I see it.\n\n"
    with verifier_of(judge) as verifier:
        row = Fed(TrimR(), thinking=5000, verifier=verifier)
        row.feed(part * 4)
        assert row.said == [] and "</think>" not in row.text, "nothing waits"
        judge.answers.set()
        while ("trimr", "close") not in row.said:
            wait(row.controller.questions._asked, 30)
            row.feed(part)
            assert len(row.ids) < 1000
        assert row.controller.questions.tokens == 40 * len(judge.bodies) > 0


def test_rows_of_vllm_ask_the_server_of_the_engines_settings() -> None:
    judge, model = Judge(), Mock(hf_text_config=Mock(num_hidden_layers=2))
    judge.answers.set()
    with judge.serve() as url:
        settings = {"markers": ["<think>", "</think>"], "verifier": url}
        parallel = Mock(tensor_parallel_size=1)
        context = WorkerContext(Mock(additional_config={KEY: settings}, model_config=model, parallel_config=parallel))
        context.tokenizer, context.end = WordTokenizer(), (0,)
        row = context.make_controller({KEY: "trimr"}, context.tokenizer("one two")["input_ids"], 500)
        assert row is not None and row.controller is not None
        assert row.controller.questions.ask(VAGUE).result(30) == pytest.approx(0.75)
        assert row.controller.questions.tokens == 40
        assert context.verifier is not None
        context.verifier.close()


def test_trouble_ends_a_question_without_a_verdict() -> None:
    verifier = EndpointVerifier("http://127.0.0.1:9", "judge", timeout=5.0)
    future = verifier.submit(VAGUE)
    assert future.exception(30) is not None and get_verdict(future) is None
    verifier.close()
    with pytest.raises(NoVerdictError):
        verifier.submit(VAGUE).result(1)
    verifier.close()


def test_closing_ends_open_questions() -> None:
    judge = Judge()
    with judge.serve() as url:
        verifier = EndpointVerifier(url, "judge")
        future = verifier.submit(VAGUE)
        while not judge.bodies:
            assert not future.done()
        verifier.close()
        assert isinstance(future.exception(30), NoVerdictError)


@pytest.mark.parametrize(
    ("choice", "verdict"),
    [
        ({"message": {"content": "no."}}, 0.0),
        ({"message": {"content": "**Yes**"}}, 1.0),
        ({"message": {"content": "Nobody knows"}}, None),
        ({"message": {"content": None}}, None),
        ({"logprobs": {"content": [{"top_logprobs": [{"token": "Yes", "logprob": -9.0}]}]}}, None),
    ],
)
def test_verdicts_are_read_from_replies(choice: dict[str, Any], verdict: float | None) -> None:
    found = read_verdict({"choices": [choice]}, 0.1)
    assert isinstance(found, NoVerdictError) if verdict is None else found == verdict


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"message": 3}]}, {"choices": ["yes"]}])
def test_malformed_replies_are_refused(reply: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        read_verdict(reply, 0.1)


def test_our_own_server_is_asked_in_words() -> None:
    engine = load_engine("tersely-tiny-small")
    with served(engine) as server:
        verifier = EndpointVerifier(server.url, timeout=60.0)
        future = verifier.submit(VAGUE)
        assert isinstance(future.exception(120), NoVerdictError), "it answers, and knows neither yes nor no"
        assert future.tokens > 10
        verifier.close()
