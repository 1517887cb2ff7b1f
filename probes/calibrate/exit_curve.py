"""Tiers as they are once the readiness exit ends their thinking: what effort `auto` really chooses among."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..records import RecordTable
from ..risk_control import stop_at
from ..rule import StopRule
from .data import Boundaries, Questions, read_boundaries
from .readiness import walked


def compute_exit_curve(
    questions: Questions, records: RecordTable, keep: NDArray[np.bool_], rule: StopRule, layer: int, threshold: float
) -> Questions:
    """The same questions, answered where the rule first reaches the threshold: accuracy and tokens of each tier."""
    right, tokens = questions.right.copy(), questions.tokens.copy()
    order = np.cumsum(keep) - 1
    for column, tier in enumerate(questions.tiers):
        chosen = (records["rollouts.tier"] == column) & keep[records["rollouts.question"]]
        if not chosen[records["boundaries.rollout"]].any():
            continue  # it does not think
        ends = read_boundaries(records, layer, tier, keep, number=None)
        ended, spent = _ended(ends, records["rollouts.right"][chosen] == 1, rule, threshold)
        question = order[records["rollouts.question"][chosen]]
        count = np.bincount(question, minlength=len(questions))
        right[:, column] = np.bincount(question, ended, len(questions)) / count
        tokens[:, column] = np.bincount(question, spent, len(questions)) / count
    return replace(questions, right=right, tokens=tokens)


def _ended(
    ends: Boundaries, right: NDArray[np.bool_], rule: StopRule, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Whether each rollout ends right, and its tokens, evidence included: two of [rollouts]."""
    walk = walked(rule, ends)
    outcomes = ends.outcomes(walk.score, walk.paid)
    stops = stop_at(outcomes, threshold)  # the natural end reaches every threshold
    natural = stops == outcomes.offsets[1:] - 1
    place = np.where(natural, 0, stops - np.arange(len(stops)))  # each rollout before has a natural end of its own
    now = ends.now[place] if len(ends) else np.zeros(len(stops), bool)
    return np.where(natural, right, now).astype(float), outcomes.full - outcomes.saved[stops]
