"""Plain questions as people type them: the embedded model is right, or it is said that it may not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tersely
from tersely.controller.text.answers import extract_answer

QUESTIONS = [
    json.loads(line) for line in Path(__file__).with_name("plain_questions.jsonl").read_text("utf-8").splitlines()
]


@pytest.fixture(scope="module", params=["tersely-tiny-small", "tersely-tiny-large"])
def engine(request: pytest.FixtureRequest) -> Any:
    return tersely.load_engine(request.param)


def is_declined(result: tersely.GenerationResult) -> bool:
    return any(d.policy == "readiness" and d.action == "note" for d in result.trace)


@pytest.mark.slow
@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.attack)])
def test_plain_questions_are_right_or_declined_and_never_sure(engine: Any, every: int) -> None:
    questions = QUESTIONS[::every]
    results = tersely.generate(engine, [row["question"] for row in questions], seed=0, max_new_tokens=512)
    fine = [
        is_declined(result) or (row["answer"] is not None and extract_answer(result.answer) == row["answer"])
        for row, result in zip(questions, results, strict=True)
    ]
    assert sum(fine) >= 0.95 * len(questions)
    reasons = [decision.reason for result in results for decision in result.trace]
    assert not [reason for reason in reasons if reason.startswith(("ready", "hopeless"))], "no learnt certainty"


@pytest.mark.parametrize("engine", ["tersely-tiny-small"], indirect=True)
def test_auto_leaves_easy_sums_to_the_normal_tier(engine: Any) -> None:
    sums = ["Compute 17 + 23.", "5 + 6", "what is 17*23?"]
    auto, normal = (tersely.generate(engine, sums, effort=effort, seed=0) for effort in ("auto", "normal"))
    assert [result.token_ids for result in auto] == [result.token_ids for result in normal]
    assert all("unlike those that the difficulty probe knows" in result.trace[0].reason for result in auto)
    assert tersely.generate(engine, sums[0], effort="auto", seed=0).answer.endswith(r"\boxed{40}.")
