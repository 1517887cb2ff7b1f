"""The repetition exit: what goes round in circles ends, what only looks alike does not."""

from __future__ import annotations

import pytest

from tersely import load_engine
from tersely.controller.policies import get_presets
from tersely.controller.policies.exits import BudgetForcing, Repetition
from tersely.controller.types import BindContext

from ...support.policy_feeding import Fed

LOOP = "we look at it once more and see that it is so again, "


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count)) + " "


def test_a_loop_is_ended_with_a_phrase_and_the_reason_names_it() -> None:
    row = Fed(Repetition()).feed(words(40) + LOOP * 40)
    assert row.text.endswith("I have thought enough and answer now.\n</think>\n\n")
    assert row.said == [("repetition", "close")]
    start, loop = len(row.codec.encode(words(40))), len(row.codec.encode(LOOP))
    assert row.last.reason.startswith(f"loop: the same {loop} tokens came ")
    assert start + 2 * loop + 200 < row.last.position <= start + 2 * loop + 220


def test_two_copies_are_no_loop_and_neither_are_three_far_apart() -> None:
    text = "".join(f"The part p{i} of the whole is worth more than the part q{i}.\n" for i in range(12))
    assert Fed(Repetition(), thinking=5000).feed(text * 2 + words(300)).said == []
    apart = "".join(text + " ".join(f"w{i}of{part}" for i in range(800)) for part in range(3))
    assert Fed(Repetition(), thinking=50_000).feed(apart).said == []
    assert Fed(Repetition(), thinking=5000).feed(text * 3).said == [("repetition", "close")]


def test_a_loop_in_code_is_ended_and_one_in_a_tool_call_after_it() -> None:
    row = Fed(Repetition(), thinking=5000).feed("```\n" + "x = x + 1\n" * 60)
    assert row.said == [("repetition", "close")]
    call = "<tool_call>\n" + "x = x + 1\n" * 60
    assert Fed(Repetition(), thinking=5000).feed(call).said == []
    row = Fed(Repetition(), thinking=5000).feed(call + "</tool_call>\n\nand so on.\n\n")
    assert row.said == [("repetition", "close")]
    assert row.text.index("I have thought") > row.text.index("</tool_call>")


def test_models_with_few_tokens_are_left_alone() -> None:
    bound = Repetition().bind(BindContext(load_engine("tersely-tiny-small")))
    assert Fed(bound).feed(LOOP * 40).said == []
    bound = Repetition(vocabulary=0).bind(BindContext(load_engine("tersely-tiny-small")))
    assert Fed(bound).feed(LOOP * 40).said == [("repetition", "close")]


@pytest.mark.parametrize("preset", ["budget", "careful", "balanced", "certified", "fast", "concise", "trimr"])
def test_it_is_in_every_ordinary_preset(preset: str) -> None:
    assert next(iter(get_presets()[preset])) == "budget"
    assert "repetition" in get_presets()[preset]


def test_the_budget_goes_first() -> None:
    row = Fed(BudgetForcing(), Repetition(), thinking=60).feed(LOOP * 40)
    assert row.said == [("budget", "close")]


def test_an_enumeration_that_counts_on_may_go_on_for_a_while() -> None:
    text = "".join(f"Now we take the case {n} and see that {5 * n + 1} is so again, " for n in range(300))
    assert Fed(Repetition(counting=0), thinking=50_000).feed(text).last.position < 500
    row = Fed(Repetition(), thinking=50_000).feed(text)
    assert row.said == [("repetition", "close")]
    assert 2_200 < row.last.position < 2_700
    only = "".join(f"Now we take the case {n} and see that it is so again, " for n in range(300))
    assert Fed(Repetition(), thinking=50_000).feed(only).last.position < 500
