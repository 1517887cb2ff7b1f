"""Fitting the difficulty and readiness probes: labels, tiers with the exit, baselines."""

from __future__ import annotations

import numpy as np

from tersely.probes.calibrate import readiness
from tersely.probes.calibrate.data import read_boundaries, read_questions
from tersely.probes.calibrate.difficulty import apply_exit, label_diffadapt, predict_by_length, predict_by_words
from tersely.probes.rule import StopRule
from tersely.probes.stats import measure_quality

from ...support.planted_records import planted

N = 460


def test_diffadapt_labels_follow_the_paper() -> None:
    accuracy, entropy = np.array([1.0, 1.0, 0.8, 0.5, 0.2, 0.1]), np.array([0.1, 0.5, 0.3, 0.1, 0.1, 0.1])
    assert list(label_diffadapt(accuracy, entropy)) == ["normal", "easy", "normal", "easy", "easy", "hard"]
    assert list(label_diffadapt(np.array([0.3, 0.1]), np.array([0.1, 0.1]))) == ["easy", "hard"]


def test_boundaries_have_three_labels() -> None:
    now, final = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert list(readiness.label_boundaries(now, final)) == ["ready", "ready", "hopeful", "hopeless"]


def test_baselines_use_length_and_words_alone() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.5
    words = np.where(truth, 20, 10) + rng.integers(0, 8, 300)
    texts = [("hard " if yes else "easy ") + " ".join(rng.choice(list("abcdef"), 5)) for yes in truth]
    fit, test = slice(0, 200), slice(200, 300)
    by_size = predict_by_length(words[fit], truth[fit], words[test])
    by_text = predict_by_words(texts[fit], truth[fit], texts[test])
    assert measure_quality(truth[test], by_size).auroc > 0.95
    assert measure_quality(truth[test], by_text).auroc > 0.95
    alone = np.arange(200) == 7
    assert predict_by_words(texts[fit], alone, texts[test]).tolist() == [1 / 200] * 100, (
        "one positive question is too few"
    )


def test_tiers_with_the_exit_end_where_the_rule_stops() -> None:
    """Each rollout by hand: the first boundary that reaches the threshold decides, else the natural end."""
    records = planted(N, seed=3, tiers=("none", "normal"))
    keep = np.ones(records.size("questions"), bool)
    plain = read_questions(records, -1, keep)
    b = read_boundaries(records, -1, "normal", keep, number=None)
    rng = np.random.default_rng(0)
    scores = {row.tobytes(): rng.random() for row in b.rows}
    rule = StopRule(PlantedEvidence(scores))  # type: ignore[arg-type]
    exited = apply_exit(plain, records, keep, rule, -1, 0.7)
    assert (exited.right[:, 0] == plain.right[:, 0]).all() and (exited.tokens[:, 0] == plain.tokens[:, 0]).all()
    normal = np.flatnonzero(records["rollouts.tier"] == 1)
    stopped = 0
    for number, rollout in enumerate(normal.tolist()):
        question = records["rollouts.question"][rollout]
        right, tokens = records["rollouts.right"][rollout] == 1, b.full[number]
        for place in np.flatnonzero(b.rollout == number).tolist():
            if scores[b.rows[place].tobytes()] >= 0.7:
                right, tokens = b.now[place], b.end[place] + b.closing + b.answer[number]
                stopped += 1
                break
        assert (exited.right[question, 1], exited.tokens[question, 1]) == (right, tokens)
    assert 0 < stopped < len(normal)


class PlantedEvidence:
    """Evidence with a given score for each row."""

    def __init__(self, scores: dict[bytes, float]) -> None:
        self.score_by_row = scores

    def scores(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self.score_by_row[row.tobytes()] for row in rows]), np.zeros(len(rows))
