"""Hints: where they stand, and what is no hint."""

from __future__ import annotations

from typing import Any

import pytest

import tersely
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies import make_policies, make_policy
from tersely.controller.policies.hint import BrevityHint
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.errors import OptionError

from ...support.policy_feeding import Fed
from ...support.refusals import refused
from ...support.word_tokenizer import WordTokenizer

HINT = "[Be concise.]"


def test_interval_and_position_are_the_papers() -> None:
    """ALGORITHMS: tau = min(1024, int(128 + 0.2 l)); p = tau * min((tau - 128) / 1024, 0.8)."""
    hint = BrevityHint()
    assert [hint.interval(length) for length in (0, 4, 5, 1000, 4475, 4480, 9999)] == [
        128,
        128,
        129,
        328,
        1023,
        1024,
        1024,
    ]
    assert [hint.offset(tau) for tau in (128, 384, 640, 946, 947, 948, 1024)] == [0, 96, 320, 755, 757, 758, 819]


def positions(policy: BrevityHint, words: int, text: str = "one two. ", **options: Any) -> list[int]:
    """Thinking tokens before each hint."""
    row = Fed(policy, thinking=100_000, **options).feed(text * words)
    assert {action for _, action in row.said} == {"inject"}
    return [d.position for d in row.controller.decisions]


def test_the_first_block_is_the_shortest_and_blocks_grow() -> None:
    size = len(Fed().codec.encode(f"\n\n{HINT}\n\n"))
    places = positions(BrevityHint(earliest=0), 400)
    starts, tau, start = [], 128, 0
    for _ in places:
        starts.append(start + int(tau * min((tau - 128) / 1024, 0.8)))
        start += tau + size
        tau = min(1024, int(128 + 0.2 * start))
    assert len(places) >= 6
    assert all(0 <= place - start < 6 for place, start in zip(places, starts, strict=True))


def test_a_block_without_a_place_gets_no_hint() -> None:
    row = Fed(BrevityHint(), thinking=2000).feed("word " * 66 + "end. ")
    assert [d.reason for d in row.controller.decisions] == ["hint 2, block of 153 tokens"]


def test_hints_stop_at_the_limit_and_within_the_thinking() -> None:
    assert len(positions(BrevityHint(limit=2), 900)) == 2
    row = Fed(BrevityHint(), thinking=2000).feed("one two. </think>" + "one two. " * 200)
    assert row.said == []


def test_no_hint_in_code_and_the_next_one_after_it() -> None:
    text = "```\n" + "x = 1.\n" * 60 + "```\n\n" + "one two. " * 60
    row = Fed(BrevityHint(), thinking=2000).feed(text)
    assert row.text.index(HINT) > row.text.rindex("```")


@pytest.mark.parametrize("text", ["Be brief.</think>", "[THINK] less", "<thought>", "  ", ""])
def test_what_is_no_plain_text_is_refused_before_there_is_a_model(text: str) -> None:
    with refused(OptionError):
        make_policy("hint", {"text": text})


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "</tool_call>"])
def test_a_hint_with_a_special_token_of_the_model_is_refused(token: str) -> None:
    engine = load_engine("tersely-tiny-small")
    hint = BrevityHint(text=f"Short, {token} please.")
    with refused(OptionError):
        tersely.generate(engine, prompts="Compute 3 + 6.", policies=[hint], max_new_tokens=100)
    assert Fed(hint, tokenizer=WordTokenizer()).feed("one. ").said == [], "another model reads it as words"


def test_hints_are_counted_as_forced() -> None:
    engine = load_engine("tersely-tiny-small")
    made = tersely.generate(
        engine, prompts="Compute (5 + 4) - 6.", policies=make_policies("fast"), max_new_tokens=300, seed=1
    )
    texts = [d.text for d in made.trace if d.action == "inject"]
    assert texts and all(HINT in text for text in texts)
    closing = [d.text for d in made.trace if d.action == "close"]
    codec = get_adapter(engine.tokenizer)
    assert made.usage.injected == sum(len(codec.encode(text)) for text in texts + closing)
