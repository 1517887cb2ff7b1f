"""Learnt scores for exits of recorded thinking, and the states of a small model that reads along."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tersely.controller.text.answers import Finality
from tersely.controller.text.evidence import Claim
from tersely.controller.text.tokenizer_adapter import get_adapter

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def scores() -> Any:
    """The module of the benchmark, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("exit_scores", BENCHMARKS / "exit_scores.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exit_scores"] = module
    spec.loader.exec_module(module)
    return module


def test_states_are_those_of_each_text_by_itself_and_are_kept(scores: Any, tmp_path: Path) -> None:
    companion = scores.Companion("tersely-tiny-small", tmp_path)
    question, texts = "What is 17 * 23?", ["17 * 20 = 340.", "17 * 20 = 340. So it is 391."]
    states = companion.read("set-0", question, texts)
    engine, layer = companion.reader.engine, companion.reader.layer
    start = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    encode, norm = get_adapter(engine.tokenizer).encode, engine.model.get_decoder().norm
    for got, text in zip(states, texts, strict=True):
        (want,) = engine.hidden_states([[*start, *encode("<think>\n"), *encode(text)]], layer)
        np.testing.assert_allclose(got, norm(torch.as_tensor(want)).detach(), rtol=0.01, atol=0.01)
    engine.close()
    np.testing.assert_array_equal(companion.read("set-0", question, texts), states)


def test_extra_rows_are_learnt_from_and_not_counted(scores: Any) -> None:
    def make(number: int, right: bool, state: float, extra: bool = False) -> Any:
        one = scores.Candidate(10, Claim("5", 1), Finality.ANSWERS, right)
        return scores.Row(number, 100, True, [one], np.full((1, 4), state, np.float16), extra)

    rows = [make(0, True, 1), make(0, False, -1, extra=True), make(1, True, 1), make(1, False, -1)]
    learner = scores.Learner(rows)
    fitted = learner.score("states", learner.number == 0, learner.number == 1)
    assert fitted[2] > 0.5 > fitted[3] and list(fitted[:2]) == [-1, -1]
    never = np.zeros(4, bool)
    assert learner.choose(np.array([0.9, 0.95, -1, -1]), never, [0], lambda right: 0) < 0.95
    assert learner.choose(np.array([-1, -1, 0.9, 0.95]), never, [1], lambda right: 0) == 2.0
