"""Tiers as they are once an exit ends their thinking."""

from __future__ import annotations

import numpy as np

from tersely.probes.calibrate.data import read_boundaries, read_questions
from tersely.probes.calibrate.difficulty import compute_exit_curve
from tersely.probes.rule import StopRule

from ...support.planted_records import planted

N = 460


def test_tiers_under_the_exit_end_where_the_rule_says() -> None:
    """Each rollout by hand: the first boundary that reaches the threshold decides, else the natural end."""
    records = planted(N, seed=3, tiers=("none", "normal"))
    keep = np.ones(records.size("questions"), bool)
    plain = read_questions(records, -1, keep)
    b = read_boundaries(records, -1, "normal", keep, number=None)
    rng = np.random.default_rng(0)
    scores = {row.tobytes(): rng.random() for row in b.rows}
    rule = StopRule(Planted(scores))  # type: ignore[arg-type]
    made = compute_exit_curve(plain, records, keep, rule, -1, 0.7)
    assert (made.right[:, 0] == plain.right[:, 0]).all() and (made.tokens[:, 0] == plain.tokens[:, 0]).all()
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
        assert (made.right[question, 1], made.tokens[question, 1]) == (right, tokens)
    assert 0 < stopped < len(normal)


class Planted:
    """Evidence with a score known for each row."""

    def __init__(self, scores: dict[bytes, float]) -> None:
        self.known = scores

    def scores(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self.known[row.tobytes()] for row in rows]), np.zeros(len(rows))
