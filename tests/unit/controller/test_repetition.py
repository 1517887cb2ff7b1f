"""The repetition exit: what goes round in circles ends, what only looks alike does not."""

from __future__ import annotations

from random import Random

import pytest

from tersely.controller.policies.exits import BudgetForcing, RepeatCounter, Repetition

from ...support.policy_feeding import Fed


def by_hand(ids: list[int], size: int, window: int) -> list[int]:
    """For each token, how many copies of the run it ends lie in the window: found from the left, none overlapping."""
    counts = []
    for end in range(1, len(ids) + 1):
        run = ids[end - size : end] if end >= size else None
        starts: list[int] = []
        for place in range(size, end + 1) if run else ():
            if ids[place - size : place] == run and (not starts or place - starts[-1] >= size):
                starts.append(place)
        counts.append(len([place for place in starts if place > end - window + size - 1]))
    return counts


@pytest.mark.parametrize("letters", [1, 2, 3])
def test_the_rolling_hash_counts_what_counting_by_hand_finds(letters: int) -> None:
    rng = Random(letters)
    ids = [rng.randrange(letters) for _ in range(120)]
    repeats = RepeatCounter(4, 1000)
    assert [repeats.add(token) for token in ids] == by_hand(ids, 4, 1000)


def test_copies_that_have_left_the_window_are_forgotten() -> None:
    repeats = RepeatCounter(3, 12)
    counts = [repeats.add(token) for token in [1, 2, 3, *range(10, 19), 1, 2, 3, 1, 2, 3]]
    assert counts[-1] == 2, "the first one begins 18 tokens back"
    assert [counts[2], counts[14]] == [1, 1]
    repeats = RepeatCounter(3, 18)
    assert [repeats.add(token) for token in [1, 2, 3, *range(10, 19), 1, 2, 3, 1, 2, 3]][-1] == 3


def test_memory_is_bounded_by_the_window() -> None:
    repeats = RepeatCounter(8, 64)
    for token in range(5000):
        repeats.add(token)
    assert len(repeats._starts) <= 64


LOOP = "we look at it once more and see that it is so again, "


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count)) + " "


def test_a_loop_is_ended_with_a_phrase_and_the_reason_is_given() -> None:
    row = Fed(Repetition()).feed(words(40) + LOOP * 40)
    assert row.text.endswith("I have thought enough and answer now.\n</think>\n\n")
    assert row.said == [("repetition", "close")]
    assert row.last.reason == "the same 32 tokens came 3 times"
    start, loop = len(row.codec.encode(words(40))), len(row.codec.encode(LOOP))
    assert start + 64 < row.last.position <= start + 4 * max(loop, 32) + 64


def test_two_copies_are_no_loop_and_neither_are_three_far_apart() -> None:
    twice = words(100) + LOOP * 3 + words(100)
    assert Fed(Repetition(), thinking=5000).feed(twice).said == []
    long = " ".join(LOOP * 2 + words(600) for _ in range(4))
    assert Fed(Repetition(), thinking=50_000).feed(long).said == []
    assert Fed(Repetition(window=10_000), thinking=50_000).feed(long).said == [("repetition", "close")]


def test_what_repeats_itself_in_code_is_left_alone() -> None:
    code = "```\n" + "x = x + 1\n" * 60 + "```\n\nand on we go.\n\n"
    row = Fed(Repetition(), thinking=5000).feed(code)
    assert row.said == [("repetition", "close")]
    assert row.text.index("I have thought") > row.text.rindex("```")


def test_the_budget_goes_first() -> None:
    row = Fed(BudgetForcing(), Repetition(), thinking=60).feed(LOOP * 40)
    assert row.said == [("budget", "close")]
