"""ConciseHint: the authors' loop over text, worked out here, against the policy on the same blocks."""

from __future__ import annotations

from typing import Any

import pytest

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.policies import get_presets
from tersely.controller.policies.hint import ConciseHint, find_turn
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.types import BindContext, Capability

from ..support.policy_feeding import Fed
from ..support.word_tokenizer import WordTokenizer

HINT = "-make answer concise!-"  # this tokenizer has no chat template, and so no turn


def test_the_published_constants() -> None:
    hint = ConciseHint()
    assert (hint.alpha, hint.beta, hint.longest) == (128, 0.2, 1024)
    assert (hint.text, hint.turns) == ("make answer concise!", True)
    assert [hint.interval(n) for n in (0, 4, 5, 1000, 4475, 4480, 9999)] == [128, 128, 129, 328, 1023, 1024, 1024]
    assert get_presets()["concisehint"] == {"budget": {}, "concisehint": {}}


def splice(blocks: str, codec: Any, prompt: int, most: int) -> str:
    """The authors' loop: generate a block, splice the hint into it, go on behind the rest of it."""
    ids, text, tau = codec.encode(blocks), "", 128
    while ids and len(codec.encode(text)) < most:
        block, ids = codec.decode(ids[:tau]), ids[tau:]
        ratio = min(max(tau - 128, 0) / 1024, 0.8)
        for i in range(int(ratio * (len(block) - 1)), len(block) - 1):
            if block[i] in ".," and block[i + 1] == " ":
                block = f"{block[: i + 1]}{HINT}{block[i + 1 :]}"
                break
        text += block
        tau = min(1024, int(128 + 0.2 * (prompt + len(codec.encode(text)))))
    return text


@pytest.mark.parametrize("prompt", [0, 1000])
@pytest.mark.parametrize(
    "sentence", ["one two, three four five six. ", "one two three four five six seven eight 1,000 "]
)
def test_hints_are_spliced_into_blocks_that_stand(sentence: str, prompt: int) -> None:
    codec = TokenizerAdapter(WordTokenizer())
    text = (sentence + "and so on. ") * 120
    row = Fed(ConciseHint(), thinking=100_000, prompt_tokens=prompt).feed(text)
    assert row.text.count(HINT) >= 4
    wanted = splice(text, codec, prompt, 10**9)
    assert row.text[: row.text.rindex(HINT)] == wanted[: row.text.rindex(HINT)]


def test_the_first_hint_comes_after_128_tokens_with_the_block_behind_it() -> None:
    codec = TokenizerAdapter(WordTokenizer())
    ids = codec.encode("one two, three. " * 60)
    before = Fed(ConciseHint(), thinking=2000).feed(codec.decode(ids[:127]))
    assert before.said == []
    after = Fed(ConciseHint(), thinking=2000).feed(codec.decode(ids[:128]))
    assert after.text == f"one two,{HINT}{codec.decode(ids[:128])[8:]}"
    assert after.controller.position == len(after.ids)


def test_what_keeps_every_token_gets_hints_at_the_end_of_blocks() -> None:
    class Keeps:
        capabilities: frozenset[Capability] = frozenset()

    bound = ConciseHint().bind(BindContext(Keeps()))  # type: ignore[arg-type]
    row = Fed(bound, thinking=2000).feed("one two, three. " * 60)
    assert row.said[:2] == [("concisehint", "note"), ("concisehint", "inject")]
    assert all(row.controller.codec.encode(text)[: len(row.controller.codec.encode(HINT))] for text in row.forced)
    assert row.forced[0] == HINT


def test_the_hint_is_a_turn_of_the_models_own_template(small: TransformersEngine) -> None:
    turn = find_turn(small.tokenizer)
    assert turn is not None
    opening, closing = turn
    assert (opening, closing) == ("<|im_start|>user\n", "<|im_end|>"), "the authors' own, for Qwen"
    done = tersely.generate(
        small, prompts="Compute (5 + 4) - 6.", policies=[ConciseHint(alpha=40)], max_new_tokens=300, temperature=0
    )
    texts = [d.text for d in done.trace if d.action == "inject"]
    assert texts and set(texts) == {f"-{opening}make answer concise!{closing}-"}
    assert done.answer and (done.usage.discarded, done.usage.recomputed > 0) == (0, True), "the tail is read again"
    assert done.usage.injected == sum(
        len(small.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    )
    assert find_turn(WordTokenizer()) is None
