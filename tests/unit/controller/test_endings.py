"""The ends of texts whose question is known: single cases, and the names of the marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.controller.text import endings
from tersely.controller.text.answers import extract_stated_answer, find_last_statement
from tersely.controller.text.endings import find_candidates
from tersely.controller.text.questions import read_question

NEUTRAL = "The wording is odd. It hides nothing. People misread such tasks. It is about a shop. The shop is nice. "
SENTENCES = [Path(__file__).with_name(name) for name in ("stated_answers.jsonl", "learned_answers.jsonl")]


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ("How many apples are left?", "So there are 7 apples left. " + NEUTRAL * 2, "7"),
        ("How many apples are left?", "There are 7 apples left. " + NEUTRAL + "Next I add the pears.", None),
        ("Who wrote War and Peace?", "Yes, it was Tolstoy.", "Tolstoy"),
        ("Which city is the capital of France?", "No doubt, it is Paris.", "Paris"),
        ("What color is it?", "Right, it's blue.", "blue"),
        ("What is the 5th planet from the sun?", "So it's Jupiter.", "Jupiter"),
        ("What is element 79?", "So it is Gold.", "Gold"),
        ("What is the 3rd month?", "It's March.", "March"),
        ("How many hours does it take?", "2 hours and 30 minutes is 2.5 hours.", "2.5"),
        ("How long does it take?", "2 hours and 30 minutes is 150 minutes.", "150"),
        ("How long does it take?", "So it takes 2 hours and 30 minutes.", "2 hours and 30 minutes"),
        ("How long does it take?", "The trips take 1 hour, 2 hours.", "2"),
        ("他几点到？", "所以他3点5分到。", "3:05"),
        ("他几点到？", "所以他3点到。", "3:00"),
        ("他几点到？", "所以他3点半到。", "3:30"),
        ("Who is taller?", "Since Bob is taller than Al. Right.", "Bob"),
    ],
)
def test_the_end_of_a_text_answers_its_question(question: str, text: str, answer: str | None) -> None:
    assert extract_stated_answer(text, question) == answer


@pytest.mark.parametrize("text", ["It starts with 1,000.", "It starts with 1000."])
def test_numbers_of_the_question_are_known_with_and_without_commas(text: str) -> None:
    ((_, marks),) = find_candidates(text, read_question("Which number is 1,000 and two?"))
    assert "given" in marks


def test_every_weight_has_a_mark() -> None:
    marks = {name + place for _, name, _ in endings._CUES for place in ("", " done", " first")}
    rows = [json.loads(line) for file in SENTENCES for line in file.read_text("utf-8").splitlines()]
    for question, text in (*((row["question"], row["text"]) for row in rows), ("How many?", "There are 7. These:")):
        asked = read_question(question)
        stated, _ = find_last_statement(text, asked)
        marks.update(*(found for _, found in find_candidates(text, asked, stated)))
    assert set(endings._WEIGHTS) <= marks
