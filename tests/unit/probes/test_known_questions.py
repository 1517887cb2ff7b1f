"""A question of another kind than those that a probe knows is noticed, and one of the same kind is not."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from tersely.evaluation.tasks.toy_problems import stream
from tersely.probes.drift import KnownQuestions, KnownQuestionsError
from tersely.probes.io import load_stop_rule, load_tier_probe

PRETRAINED = Path(__file__).parents[3] / "probes" / "pretrained"
PLAIN = Path(__file__).parents[2] / "e2e" / "plain_questions.jsonl"
NAMES = ("tersely-tiny-small", "tersely-tiny-large")


def load_known(name: str, kind: str) -> KnownQuestions:
    folder = PRETRAINED / name / kind
    fingerprint = json.loads((folder / "probe.json").read_text())["base"]["fingerprint"]
    load = load_tier_probe(folder, fingerprint) if kind == "difficulty" else load_stop_rule(folder, fingerprint, None)
    assert load.known is not None
    return load.known


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["difficulty", "readiness"])
def test_embedded_probes_know_their_own_family_and_nothing_else(name: str, kind: str) -> None:
    known = load_known(name, kind)
    family = [problem.problem for problem in islice(stream("test", 11), 300)]
    assert sum(known.find_difference(text) is not None for text in family) <= 6
    plain = [json.loads(line)["question"] for line in PLAIN.read_text().splitlines()]
    assert len(set(plain)) == 300
    assert [text for text in plain if known.find_difference(text) is None] == []


def test_words_lengths_and_small_collections() -> None:
    texts = [f"Add {i} coins and {j} coins of gold." for i in range(20) for j in range(20)]
    known = KnownQuestions.learn(texts[:200], texts[200:])
    assert known.find_difference("Add 12 coins and 3 coins of gold.") is None
    assert "'silver'" in str(known.find_difference("Add 12 coins and 3 coins of silver."))
    assert known.find_difference("Add 12") == "it is shorter"
    assert known.find_difference("Add 12 coins and 3 coins of gold. Add coins.") == "it is longer"
    assert known.find_difference(" ") is None
    few = KnownQuestions.learn(texts[:5], texts[200:205])
    assert few.find_difference("Who are you?") is not None
    assert few.find_difference(texts[200]) is None


def test_hands_of_users_cannot_make_it_raise() -> None:
    known = KnownQuestions.learn(["Add 1."], ["Add 2."])
    for text in ("", "\udcff", "数を足して", "1" * 100_000, "\x00"):
        known.find_difference(text)
    with pytest.raises(KnownQuestionsError):
        KnownQuestions(known.words, known.lengths[:0], known.shares[:0])
