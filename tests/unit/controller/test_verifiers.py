"""Verdicts by rules and by a model, and sequences that continue whatever happens to the verifier."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from tersely.controller.api import open_session
from tersely.controller.budgets import Budget
from tersely.controller.engines.transformers import engine as transformers_engine
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.policies.base import AskVerifier, Close, Policy, PolicyView, Wait, Watching
from tersely.controller.reader import clone_sharing_weights
from tersely.controller.replay import replay
from tersely.controller.text.answers import answers_equal
from tersely.controller.types import Capability
from tersely.controller.verification import (
    AnswersEqual,
    AnswerStated,
    NoVerdictError,
    PendingQuestions,
    Question,
    RuleVerifier,
    VerdictFuture,
    get_verdict,
)
from tersely.controller.verifiers import LLMVerifier, encode_chat, format_question, reply_ids
from tersely.errors import CapabilityError

from ...support.models import letters, random_model
from ...support.policy_feeding import MARKERS, Fed
from ...support.word_tokenizer import WordTokenizer

STATED, VAGUE = AnswerStated("2+3?", "So the answer is 5."), AnswerStated("2+3?", "Let us see.")
ALIKE = AnswersEqual("2+3?", "So I get 5.", "That makes 5.")


@dataclass(frozen=True)
class CloseAtYes(Policy):
    """Asks at the third token, looks at the verdict after each further token, and closes at a yes."""

    question: Question = STATED
    name: ClassVar[str] = "close-at-yes"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.VERIFIER})
    seen: list[tuple[int, bool]] = field(default_factory=list)
    futures: list[VerdictFuture] = field(default_factory=list)

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(3, "token")
        future = yield AskVerifier(self.question)
        self.futures.append(future)
        self.seen.append((view.tokens, future.done()))
        while not future.done():
            yield Wait(view.tokens + 1, "token")
            self.seen.append((view.tokens, future.done()))
        if (get_verdict(future) or 0.0) > 0.5:
            yield Close("yes", phrase="")


class LateVerifier:
    """Returns futures that the test completes."""

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        self.futures: list[VerdictFuture] = []
        self.asked: list[Question] = []

    def submit(self, question: Question) -> VerdictFuture:
        self.asked.append(question)
        self.futures.append(VerdictFuture(tokens=7))
        return self.futures[-1]

    def close(self) -> None:
        pass


class BrokenVerifier(LateVerifier):
    def submit(self, question: Question) -> VerdictFuture:
        raise ConnectionError("connection\nrefused")


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


@pytest.fixture
def make_verifier(engine: TransformersEngine) -> Any:
    verifiers: list[LLMVerifier] = []

    def make(**options: Any) -> LLMVerifier:
        verifiers.append(LLMVerifier(engine, **options))
        return verifiers[-1]

    yield make
    for verifier in verifiers:
        verifier.close()


def test_decoding_continues_until_there_is_a_verdict() -> None:
    policy, verifier = CloseAtYes(), LateVerifier()
    row = Fed(policy, verifier=verifier, prompt="2+3?")
    row.feed("a b c ")
    assert policy.seen == [(3, False), (4, False), (5, False), (6, False)] and not row.said
    verifier.futures[0].set_result(0.9)
    assert row.feed("d").text == "a b c d\n\n</think>\n\n"
    assert (verifier.asked, row.controller.questions.tokens) == ([STATED], 7)


def test_without_a_verifier_rules_decide_and_cost_nothing() -> None:
    row = Fed(CloseAtYes()).feed("a b c d")
    assert row.text == "a b\n\n</think>\n\n"
    assert row.controller.questions.tokens == 0
    assert Fed(CloseAtYes(VAGUE)).feed("a b c d").text == "a b c d"


@pytest.mark.parametrize(
    ("verifier", "error"),
    [
        (BrokenVerifier(), "ConnectionError: connection refused"),
        (LateVerifier(timeout=0.0), "no verdict in time"),
    ],
)
def test_a_failing_verifier_changes_nothing_and_is_traced_once(verifier: LateVerifier, error: str) -> None:
    again = type("Again", (CloseAtYes,), {"name": "again"})
    row = Fed(CloseAtYes(), again(), verifier=verifier).feed("a b c d e f")
    assert row.text == "a b c d e f"
    assert [(d.policy, d.action, d.reason) for d in row.controller.decisions] == [
        ("verifier", "error", f"no verdict: {error}")
    ]


def test_a_verdict_after_the_timeout_does_not_count() -> None:
    verifier = LateVerifier(timeout=0.0)
    questions = PendingQuestions(verifier)
    late = questions.ask(STATED)
    assert questions.collect_errors() == ["no verdict in time"]
    assert late.done() and get_verdict(late) is None
    assert questions.collect_errors() == [], "each error is reported once"
    verifier.timeout = 60.0
    intime = questions.ask(STATED)
    intime.set_result(0.25)
    assert (questions.collect_errors(), get_verdict(intime), questions.tokens) == ([], 0.25, 14)


def test_a_replay_waits_for_verdicts() -> None:
    class SlowVerifier(LateVerifier):
        def submit(self, question: Question) -> VerdictFuture:
            future = super().submit(question)
            threading.Timer(0.05, future.set_result, (1.0,)).start()
            return future

    tokenizer, budget = WordTokenizer(), Budget("normal", 500)
    ids = tokenizer("a b c d e f")["input_ids"]
    (decision,) = replay(ids, [CloseAtYes()], tokenizer, MARKERS, budget, verifier=SlowVerifier(timeout=5.0))
    assert (decision.action, decision.position, decision.acted) == ("close", 4, False)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("5", "5.0", True),
        ("1/2", "0.5", True),
        ("\\frac{1}{2}", "0.50", True),
        ("-\\dfrac{3}{4}", "-0.75", True),
        ("1,000", "1000", True),
        ("50%", "1/2", None),
        ("5", "6", False),
        ("\\sqrt{12}", "2\\sqrt{3}", None),
        ("1/0", "1", None),
        ("C", "D", None),
        ("1/2/2", "0.25", None),
    ],
)
def test_answers_equal_compares_values(first: str, second: str, verdict: bool | None) -> None:
    assert answers_equal(first, second) is verdict
    assert answers_equal(second, first) is verdict


def test_a_model_is_asked_only_what_rules_cannot_decide() -> None:
    fallback = LateVerifier()
    both = RuleVerifier(fallback)
    words = AnswersEqual("Which?", "So it must be the cat.", "The cat it is.")
    futures = [both.submit(question) for question in (STATED, ALIKE, VAGUE, words)]
    assert [get_verdict(future) for future in futures] == [1.0, 1.0, None, None]
    assert fallback.asked == [VAGUE, words]
    assert [future.tokens for future in futures] == [0, 0, 7, 7]
    alone = RuleVerifier()
    assert [alone.submit(question).result() for question in (STATED, ALIKE, VAGUE, words)] == [1.0, 1.0, 0.0, 0.0]
    assert alone.submit(AnswersEqual("2+3?", "So I get 5.", "That makes 6.")).result() == 0.0


def test_the_verdict_is_the_probability_of_yes_as_the_next_token(
    engine: TransformersEngine, make_verifier: Callable[..., LLMVerifier]
) -> None:
    """Prompts of unequal length in one forward pass, against one pass each."""
    questions: list[Question] = [STATED, ALIKE, AnswerStated("Compute 3 + 6. " * 20, "Hm."), VAGUE]
    verifier = make_verifier(min_probability=0.0)
    futures = [verifier.submit(question) for question in questions]
    yes, no = reply_ids(engine.tokenizer)
    assert not set(yes) & set(no)
    assert {engine.tokenizer.decode([i]).strip()[:1] for i in yes} == {"Y", "y"}
    for question, future in zip(questions, futures, strict=True):
        ids = encode_chat(engine.tokenizer, format_question(question))
        with torch.no_grad():
            probabilities = engine.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        share = probabilities[yes].sum() / (probabilities[yes].sum() + probabilities[no].sum())
        assert future.result(timeout=20) == pytest.approx(float(share), rel=1e-3)
        assert future.tokens == len(ids)


def test_a_model_that_says_neither_yes_nor_no_gives_no_verdict(make_verifier: Callable[..., LLMVerifier]) -> None:
    """The embedded models have only learned to answer sums."""
    row = Fed(policy := CloseAtYes(), verifier=(verifier := make_verifier()), prompt="2+3?").feed("a b c")
    wait(policy.futures, timeout=20)
    row.feed(" d e f")
    assert "yes and no have 0.000" in row.last.reason
    assert row.text == "a b c d e f" and policy.seen[-1][1]
    assert row.controller.questions.tokens == len(encode_chat(verifier.tokenizer, format_question(STATED)))


def test_errors_of_the_model_end_in_the_futures(make_verifier: Callable[..., LLMVerifier]) -> None:
    verifier = make_verifier(min_probability=0.0, timeout=5.0)
    model, verifier.model = verifier.model, None
    assert isinstance(verifier.submit(STATED).exception(timeout=20), AttributeError)
    verifier.model = model
    assert verifier.submit(STATED).exception(timeout=20) is None, "the next question is answered again"

    class Exits:
        @property
        def device(self) -> str:
            raise SystemExit

    verifier.model = Exits()
    assert isinstance(verifier.submit(STATED).exception(timeout=20), SystemExit)


def test_a_closed_verifier_answers_nothing(make_verifier: Callable[..., LLMVerifier]) -> None:
    verifier = make_verifier(min_probability=0.0, timeout=5.0)
    verifier.close()
    assert isinstance(verifier.submit(STATED).exception(), NoVerdictError)


def test_a_cancelled_question_is_not_read(make_verifier: Callable[..., LLMVerifier]) -> None:
    verifier = make_verifier(min_probability=0.0, timeout=5.0)
    running, released = threading.Event(), threading.Event()
    model = verifier.model

    class Blocks:
        @property
        def device(self) -> Any:
            running.set()
            released.wait(20)
            verifier.model = model
            return model.device

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

    verifier.model = Blocks()
    first = verifier.submit(STATED)
    running.wait(20)
    late = verifier.submit(STATED)
    late.cancel()
    released.set()
    assert first.exception(timeout=20) is None
    assert verifier.submit(VAGUE).exception(timeout=20) is None
    assert late.tokens == 0


def test_a_verifier_at_an_endpoint_imports_no_model_library() -> None:
    code = "import sys, tersely.controller.verifiers; sys.exit('transformers.generation.utils' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_clone_sharing_weights_shares_weights_but_not_hooks(engine: TransformersEngine) -> None:
    seen: list[int] = []
    hook = engine.model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    hook.remove()
    copy = clone_sharing_weights(engine.model)
    hook = engine.model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, copy(ids).logits)
        assert not seen
        engine.model(ids)
    hook.remove()
    assert seen == [1]
    pairs = zip(copy.parameters(), engine.model.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


def test_unfit_engines_are_refused() -> None:
    class KnowsOneToken:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [2]}

        def decode(self, ids: list[int]) -> str:
            return "?"

    same_reply = SimpleNamespace(model=random_model(), tokenizer=KnowsOneToken(), name="e")
    no_model = SimpleNamespace(tokenizer=letters(), name="remote")
    for engine, code in ((same_reply, "same_reply_tokens"), (no_model, "no_local_model")):
        with pytest.raises(CapabilityError) as error:
            LLMVerifier(engine)
        assert error.value.code == code


@pytest.mark.parametrize(("native", "dtype"), [(True, "auto"), (False, "float32")])
def test_a_verifier_is_loaded_in_the_dtype_that_reads_fastest(
    native: bool, dtype: str, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, str]] = []

    def load(name: str, dtype: str) -> TransformersEngine:
        loaded.append((name, dtype))
        return engine

    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(transformers_engine, "load_engine", load)
    model, verifier = f"the {dtype} model", f"the {dtype} verifier"
    open_session(model, verifier=verifier)
    open_session(model, verifier=Path(model))  # whose weights are shared
    open_session(verifier, verifier=model)  # of which only one may have been loaded in the dtype that is needed
    assert loaded == [(model, "auto"), (verifier, dtype), *([] if native else [(verifier, "auto"), (model, dtype)])]
