"""Strategies of papers: constants and instructions of the authors' code, and DiffAdapt's decision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tersely.cli.app import main
from tersely.controller.budgets import STRATEGIES, fit_budget
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.options import GenerationOptions
from tersely.controller.prompts import render
from tersely.controller.session import Session
from tersely.evaluation.bench.arms import make_arm
from tersely.probes.calibrate.difficulty import label_diffadapt
from tersely.probes.io import save_tier_probe
from tersely.probes.records import read_records
from tersely.probes.tier_selector import TierProbe, TierTable

from ..support.planted_records import constant

QUESTION = "Tom has 3 shells. Tom finds 4 shells. How many shells does Tom have now?"
THINKING = ("easy", "normal", "hard")


def test_diffadapt_constants() -> None:
    strategy = STRATEGIES["diffadapt"]
    assert [strategy[tier].temperature for tier in THINKING] == [0.5, 0.8, 0.4]
    assert [fit_budget(tier, 1064, 64, "diffadapt").thinking for tier in THINKING] == [400, 1000, 500]


def test_diffadapt_labels_in_the_order_of_its_rules() -> None:
    """Often right and certain is normal, then rarely right is hard, and all else is easy."""
    accuracy = np.array([1.0, 1.0, 0.9, 0.5, 0.1])
    entropy = np.array([0.2, 0.8, 0.4, 0.1, 0.1])  # the median of those often right is 0.4
    assert label_diffadapt(accuracy, entropy).tolist() == ["normal", "easy", "normal", "easy", "hard"]


def test_diffadapt_takes_the_likeliest_class_and_not_the_cheapest_tier(
    small: TransformersEngine, tmp_path: Path
) -> None:
    """A probe that says hard: its table would take easy, which is as accurate and costs less."""
    network = constant([0.1, 0.2, 0.7], 128)
    table = TierTable(THINKING, np.ones((3, 3)), np.tile([1.0, 5.0, 9.0], (3, 1)))
    probe = TierProbe(network, THINKING, -1, table, 0.1, exits=True)
    known = {"name": small.name, "fingerprint": small.fingerprint()}
    save_tier_probe(probe, tmp_path / "difficulty", known, {}, {})
    arm = make_arm("diffadapt", GenerationOptions(probes=str(tmp_path), max_new_tokens=260))
    (chosen,) = Session(small).prepare([QUESTION], arm.options)
    assert (chosen.budget.tier, chosen.budget.temperature) == ("hard", 0.4)
    assert chosen.budget.thinking == (260 - 64) // 2
    assert probe.choose(np.zeros(128, np.float32))[0] == "easy"
    assert all(policy.name != "readiness" for policy in chosen.policies), "DiffAdapt has no exit"


def test_diffadapt_is_labelled_by_ten_samples_under_each_of_its_strategies(tmp_path: Path) -> None:
    """Within the caps: of 90 tokens 64 are the answer's, and easy has 0.4 and hard half of the rest."""
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"id": "1", "problem": QUESTION, "answer": "7"}), encoding="utf-8")
    words = [
        "collect",
        "tersely-tiny-small",
        "--strategy",
        "diffadapt",
        "--tasks",
        str(task),
        "--max-new-tokens",
        "90",
    ]
    assert main([*words, "--out", str(tmp_path / "data")]) == 0
    records = read_records(tmp_path / "data")
    assert records.plan["tiers"] == list(THINKING)
    tiers, thinking = records["rollouts.tier"], records["rollouts.thinking"]
    assert np.bincount(tiers).tolist() == [10, 10, 10]
    caps = [int(thinking[tiers == tier].max()) for tier in range(3)]
    assert (caps[0] <= 10, caps[2] <= 13) == (True, True) and caps[1] > 13


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "adap",
            "Please adaptively control the answer length based on the query's complexity. The lower the complexity, "
            "the more concise your answer should be.",
        ),
        (
            "chain-of-draft",
            "Think step by step, but only keep minimum draft for each thinking step, with 5 words at most.\n"
            "Return the answer at the end of the response after a separator ####.",
        ),
        ("tale", "Let's think step by step and use less than 50 tokens:"),
        ("lcpo", "Think for maximum 50 tokens."),
    ],
)
def test_instructions_are_those_of_the_authors(small: TransformersEngine, name: str, says: str) -> None:
    """Also where the chat template knows efforts, as this one does."""
    budget = fit_budget("normal", 260, strategy=name, thinking=50)
    assert "reasoning_effort" in small.tokenizer.chat_template
    rendered = render(small.tokenizer, QUESTION, budget, Session(small).markers)
    assert f"{QUESTION}\n\n{says}" in rendered.text
    assert make_arm(name, GenerationOptions()).options.strategy == name


def test_our_own_tiers_leave_the_words_to_such_a_template(small: TransformersEngine) -> None:
    budget = fit_budget("easy", 2048)
    assert budget.instruction not in render(small.tokenizer, QUESTION, budget, Session(small).markers).text
