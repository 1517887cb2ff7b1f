"""NoWait: which tokens are banned, where, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.engines.transformers.research.nowait import WORDS, NoWait, find_variants
from tersely.controller.trace import GenerationResult
from tersely.controller.types import BindContext, Capability
from tersely.errors import CapabilityError

from ..support.refusals import refused

PROBLEMS = ["Set a to 6 + 4. What is a?", "Compute 3 + 6.", "Compute 9 - 4 + 2."]


class Vocabulary:
    """A tokenizer with these tokens."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.tokens[i] for i in ids)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def run(engine: TransformersEngine, *modifiers: Any, **options: Any) -> list[GenerationResult]:
    options = {"temperature": 0, "max_new_tokens": 256, "preset": "budget", **options}
    done: list[GenerationResult] = tersely.generate(engine, prompts=PROBLEMS, modifiers=modifiers, **options)
    return done


def test_the_words_of_the_paper_and_their_variants() -> None:
    assert len(WORDS) == 17 and {"wait", "hmm", "alternatively", "but", "again"} <= set(WORDS)
    banned = (" wait", "Wait", " Wait", ".wait", "WAIT", "_wait", "“But", " double-check", "Hmm")
    kept = ("Ohio", "waits", "butter", "", ".", "7", "nowhere")
    assert find_variants(Vocabulary(*banned, *kept), WORDS) == tuple(range(len(banned)))


def test_banned_words_do_not_occur_in_the_thinking_and_nothing_stays_behind(engine: TransformersEngine) -> None:
    off = run(engine)
    assert all("Wait" in one.thinking for one in off)
    on = run(engine, NoWait(), signals=True)
    for one in on:
        assert "Wait" not in one.thinking and one.answer
        assert ("nowait", "ban") in [(decision.policy, decision.action) for decision in one.trace]
        assert all(math.isfinite(signals.entropy) for signals in one.signals if signals is not None)
    assert [one.token_ids for one in run(engine)] == [one.token_ids for one in off]


def test_the_answer_is_left_alone(engine: TransformersEngine) -> None:
    assert all("answer" in one.answer for one in run(engine, NoWait(words=("the", "answer", "wait"))))


def test_what_cannot_be_banned_is_refused(engine: TransformersEngine) -> None:
    class Server:
        name, tokenizer, capabilities = "server", engine.tokenizer, frozenset({Capability.LOGPROBS})

    for context in (BindContext(None), BindContext(Server())):  # type: ignore[arg-type]
        with refused(CapabilityError, "cannot_ban_tokens"):
            NoWait().bind(context)
    with refused(CapabilityError, "no_such_tokens"):
        NoWait(words=("xylophone",)).bind(BindContext(engine))
