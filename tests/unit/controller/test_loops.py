"""The loop detector on texts written in the manner of reasoning models that loop, and of those that do not.

`loops.jsonl` has one loop a line: what comes before it, and the `cycle` that comes again, or the `sentences` that come
again in any order. In a cycle `{i}` counts on, `{t}` does in steps of twenty, `{n}` is any number, and `{one}` and
`{word}` are one of a list; `edits` are what copies after the first change in turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tersely.controller.text.loops import LoopDetector, describe_loop
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.evaluation.replay.reader import load_tokenizer

LOOPS = [json.loads(line) for line in Path(__file__).with_name("loops.jsonl").read_text("utf-8").splitlines()]
CODEC = TokenizerAdapter(load_tokenizer(None))
LIMIT = LoopDetector.score_after(210)


def write_copies(loop: dict[str, Any]) -> Iterator[str]:
    rng, number = Random(0), 0
    while True:
        if sentences := loop.get("sentences"):
            yield "".join(rng.sample(sentences, len(sentences)))
            continue
        text = loop["cycle"]
        if number and (edits := loop.get("edits")):
            text = text.replace(*edits[(number - 1) % len(edits)])
        values = {"i": number + loop.get("first", 1), "t": 20 * (number + 1), "n": rng.randrange(10, 100)}
        values |= {name: rng.choice(loop[name]) for name in ("one", "word") if name in loop}
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        yield text
        number += 1


def find_loop(ids: list[int]) -> int | None:
    detector = LoopDetector(CODEC.kinds)
    return next((at for at, token in enumerate(ids, 1) if detector.read([token]) >= LIMIT), None)


def delay_after_second_copy(loop: dict[str, Any]) -> float:
    ids, copies = list(CODEC.encode(loop["lead"])), write_copies(loop)
    for _ in range(2):
        ids += CODEC.encode(next(copies))
    second = len(ids)
    while len(ids) < second + 600:
        ids += CODEC.encode(next(copies))
    found = find_loop(ids)
    assert found is None or found > second, loop["what"]
    return float("inf") if found is None else found - second


def test_nearly_all_loops_are_found_within_300_tokens_of_the_second_copy() -> None:
    late = [loop["what"] for loop in LOOPS if delay_after_second_copy(loop) > 300]
    assert len(LOOPS) >= 60
    assert len(late) <= 0.05 * len(LOOPS), late


def test_what_does_not_change_at_all_is_always_found() -> None:
    exact = [loop for loop in LOOPS if "cycle" in loop and "{" not in loop["cycle"] and "edits" not in loop]
    assert len(exact) >= 40
    assert max(map(delay_after_second_copy, exact)) <= 300


GOOD: dict[str, Callable[[int], str]] = {
    "casework": lambda n: f"Case {n}: if x = {n}, then y = {97 - 3 * n}, and x y = {n * (97 - 3 * n)}. No.\n\n",
    "squares": lambda n: f"{n}^2 = {n * n}, which leaves {n * n % 17} when it is divided by 17.\n",
    "table": lambda n: f"| {n} | {n * 37 % 101} | {n * n % 89} | {'yes' if n % 3 else 'no'} |\n",
    "verifying items": lambda n: f"Item {n}: {n * 13} grams at {n + 4} cents make {n * 13 * (n + 4)} cents, correct.\n",
    "numbers": lambda n: f"{n * n * 31 % 9973}, ",
    "long division": lambda n: f"Bring down the {n % 10}: {n * 29 % 83} divided by 7 is {n * 29 % 83 // 7}.\n",
    "code": lambda n: f"    values[{n * 7 % 64}] = table[{n * 11 % 128}] + {n * n % 251}\n",
    "primes": lambda n: (
        f"{2 * n + 51}: {2 * n + 51} = {(2 * n + 51) // 7} * 7 + {(2 * n + 51) % 7}, so 7 is no factor.\n"
    ),
    "names": lambda n: (
        f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[n * 5 % 26]}x{n} is the parent of {'abcdefgh'[n % 8]}y{n * 3}.\n"
    ),
    "equations": lambda n: (
        f"\\[ {n}x + {n * n % 23} = {n * 41 % 97} \\]\nSo x = {(n * 41 % 97 - n * n % 23) / n:.4f}.\n\n"
    ),
}


@pytest.mark.parametrize("what", GOOD)
def test_what_says_something_new_is_no_loop(what: str) -> None:
    text = "Let me go through them one by one.\n" + "".join(map(GOOD[what], range(1, 25)))
    assert find_loop(list(CODEC.encode(text))) is None


def test_twenty_checks_in_equal_words_are_no_loop() -> None:
    text = "".join(f"Item {n} is fine.\n" for n in range(1, 21))
    assert find_loop(list(CODEC.encode(text))) is None


def test_writing_a_text_twice_is_no_loop() -> None:
    text = next(write_copies(next(loop for loop in LOOPS if loop["what"] == "very long period")))
    assert find_loop(list(CODEC.encode(text * 2 + "So the answer is six."))) is None


def test_reading_in_parts_gives_the_same_score() -> None:
    ids = list(CODEC.encode("So 12 and 345 are it. " * 9 + "x = 1.5\n" * 30))
    whole, parts = LoopDetector(CODEC.kinds), LoopDetector(CODEC.kinds)
    for token in ids:
        parts.read([token])
    assert whole.read(ids) == parts.score > 0


def test_memory_is_bounded() -> None:
    detector = LoopDetector(CODEC.kinds)
    for n in range(400):
        detector.read(CODEC.encode(f"a{n} and b{n * n} make {n * 7919} of c{n}, which is new.\n"))
    tables = (len(detector._last), len(detector._before), len(detector._counts))
    assert max(tables) <= 5 * detector.window


def test_the_next_look_never_comes_too_late() -> None:
    detector, ids = LoopDetector(CODEC.kinds), list(CODEC.encode("Wait, that is not right. " * 60))
    at = 0
    while detector.score < LIMIT:
        step = detector.tokens_to(LIMIT)
        assert all(detector.read([token]) < LIMIT for token in ids[at : at + step - 1])
        detector.read(ids[at + step - 1 : at + step])
        at += step
    assert at == find_loop(ids)


def test_the_reason_names_the_kind_of_loop() -> None:
    assert describe_loop([1, 2, 3, *[4, 5, 6] * 5]) == "the same 3 tokens came 5 times"
    assert describe_loop([7] * 9) == "the same 1 token came 9 times"
    near = [token for n in range(4) for token in (1, 2, 3, 4, 5, 6, 7, 100 + n)]
    assert describe_loop(near) == "the same 8 tokens came 4 times with small changes"
    assert describe_loop([*range(50)]) == "the same statements came three times or more"


def test_what_comes_again_after_a_long_passage_counts_less() -> None:
    near, far = (LoopDetector(dict.fromkeys(range(400), "")) for _ in range(2))
    assert 0.9 * near.read([*range(100)] * 4) > far.read([*range(200)] * 3) > 0
