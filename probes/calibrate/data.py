"""Collected records as what the two probes learn from: questions with outcomes a tier, boundaries with outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, unknown
from ..records import UNKNOWN, RecordsError, RecordTable
from ..risk_control import Outcomes

Floats = NDArray[np.float64]
BASE = "normal"
"""The tier whose thinking is what a model does by itself."""
PARTS = ("fit", "calibrate", "test")
_SHARES = (0, 8, 13, 16)  # sixteenths: half to fit, five to calibrate, three to test


def get_part(question_hash: str) -> str:
    """The part of one collection that a question belongs to, by its hash: disjoint whoever asks."""
    bucket = hashlib.sha256(f"part:{question_hash}".encode()).digest()[0] % 16
    return PARTS[int(np.searchsorted(_SHARES, bucket, side="right")) - 1]


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions that were answered in every tier.

    hashes and texts [n]; kind [n]; words [n]; state [n, width]; right (share of rollouts, by agreement with the base
    tier's answer where nobody knows), tokens and entropy: [n, tiers].
    """

    tiers: tuple[str, ...]
    hashes: list[str]
    texts: list[str]
    words: NDArray[Any]
    level: NDArray[Any]
    state: NDArray[np.float32]
    right: Floats
    tokens: Floats
    entropy: Floats

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Thought boundaries of one tier's rollouts, in order.

    question: its hash, [n]. rollout: numbers that tell rollouts apart, [n]. rows: features and state, [n, d]. now,
    final: whether stopping here and whether thinking on ends right. Others as in `records.TABLES`. full: tokens of the
    whole rollout by its number; answer: those of its answer.
    """

    question: list[str]
    rollout: NDArray[np.int64]
    rows: NDArray[np.float32]
    now: NDArray[np.bool_]
    final: NDArray[np.bool_]
    end: NDArray[Any]
    said: NDArray[Any]
    stated: NDArray[Any]
    confidence: NDArray[Any]
    trial: NDArray[Any]
    full: NDArray[np.int64]
    answer: NDArray[np.int64]
    closing: int

    def __len__(self) -> int:
        return len(self.rollout)

    def outcomes(self, score: Floats, paid: NDArray[np.int64] | None = None) -> Outcomes:
        """What stopping would lead to, by a score [n]; paid: tokens that evidence had cost by each boundary, [n].

        A last boundary at the natural end of each rollout keeps the cost of evidence where nothing stopped it.
        """
        costs = np.zeros(len(self), np.int64) if paid is None else paid
        counts = np.bincount(self.rollout, minlength=len(self.full))
        offsets = np.concatenate([[0], np.cumsum(counts + 1)])
        ends = offsets[1:] - 1
        inner = np.ones(offsets[-1], bool)
        inner[ends] = False
        scores, harm, saved = np.ones(offsets[-1]), np.zeros(offsets[-1], bool), np.zeros(offsets[-1])
        scores[inner], harm[inner] = score, self.final & ~self.now
        spent = self.end + self.closing + self.answer[self.rollout] + costs
        saved[inner] = self.full[self.rollout] - spent
        last = np.zeros(len(self.full))
        np.maximum.at(last, self.rollout, costs)
        saved[ends] = -last
        return Outcomes(offsets, scores, harm, saved, self.full.astype(np.float64))


def check_layer(records: RecordTable, table: str, layer: int) -> None:
    """Raise OptionError for a hidden layer that was not collected, RecordsError for states that are not finite."""
    layers = records.plan["layers"]
    if layer not in layers:
        raise unknown("layer", str(layer), map(str, layers))
    if not np.isfinite(records[f"{table}.state.{layer}"]).all():
        raise RecordsError(
            f"hidden states of layer {layer} hold NaN or infinity; take another layer, or collect in float32"
        )


def read_questions(records: RecordTable, layer: int, keep: NDArray[np.bool_] | None = None) -> Questions:
    """The questions of a collection (those kept) with what came of them in each tier."""
    check_layer(records, "questions", layer)
    tiers, n = tuple(records.plan["tiers"]), records.size("questions")
    question, tier = records["rollouts.question"], records["rollouts.tier"]
    right = records["rollouts.right"].astype(float)
    if (right == UNKNOWN).any():
        raise RecordsError(
            "nobody knows which answers are right here; difficulty is learnt from questions with answers"
        )
    spent = (records["rollouts.thinking"] + records["rollouts.answer"]).astype(float)
    cells = question * len(tiers) + tier
    count = np.bincount(cells, minlength=n * len(tiers)).reshape(n, -1)
    if not count.all():
        raise RecordsError("some questions lack a tier; go on with the collection until it is whole")

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(cells, values, n * len(tiers)).reshape(n, -1) / count)

    rows = (np.arange(n) if keep is None else np.flatnonzero(keep)).tolist()
    return Questions(
        tiers,
        [records.texts["hash"][i] for i in rows],
        [records.texts["problem"][i] for i in rows],
        records["questions.words"][rows],
        records["questions.level"][rows],
        records[f"questions.state.{layer}"][rows],
        mean(right)[rows],
        mean(spent)[rows],
        mean(np.nan_to_num(records["rollouts.entropy"].astype(float)))[rows],
    )


def read_boundaries(
    records: RecordTable, layer: int, tier: str = BASE, keep: NDArray[np.bool_] | None = None, number: int | None = 0
) -> Boundaries:
    """The boundaries of one tier: of its rollout `number` a question, or of all.

    Thinking on from a tier below the base tier leads into the base tier, so that its outcome is what counts there.
    """
    check_layer(records, "boundaries", layer)
    if tier not in records.plan["tiers"]:
        raise unknown("tier", tier, records.plan["tiers"])
    chosen = records["rollouts.tier"] == list(records.plan["tiers"]).index(tier)
    if number is not None:
        chosen &= records["rollouts.number"] == number
    if keep is not None:
        chosen &= keep[records["rollouts.question"]]
    if not chosen.any():
        raise OptionError(f"there is no rollout of tier {tier!r} here; collect some")
    numbers = np.cumsum(chosen) - 1
    mine = chosen[records["boundaries.rollout"]]
    rollout = records["boundaries.rollout"][mine]
    right = records["rollouts.right"][rollout]
    now, same = records["boundaries.right"][mine], records["boundaries.same"][mine].astype(bool)
    if tier == "easy" and BASE in records.plan["tiers"]:
        right = _base_right(records)[records["rollouts.question"][rollout]]
    # Where nobody knows the right answer, that of thinking on stands for it.
    blind = (right == UNKNOWN) | (now == UNKNOWN)
    hashes = records.texts["hash"]
    return Boundaries(
        question=[hashes[q] for q in records["rollouts.question"][rollout]],
        rollout=numbers[rollout].astype(np.int64),
        rows=np.hstack([records["boundaries.features"][mine], records[f"boundaries.state.{layer}"][mine]]),
        now=np.where(blind, same, now == 1),
        final=np.where(blind, True, right == 1),
        end=records["boundaries.end"][mine],
        said=records["boundaries.said"][mine],
        stated=records["boundaries.stated"][mine],
        confidence=records["boundaries.confidence"][mine],
        trial=records["boundaries.trial"][mine],
        full=(records["rollouts.thinking"] + records["rollouts.answer"])[chosen].astype(np.int64),
        answer=records["rollouts.answer"][chosen].astype(np.int64),
        closing=int(records.plan["closing"]),
    )


def _base_right(records: RecordTable) -> NDArray[Any]:
    """Of each question, whether its first rollout in the base tier was right; -1 where there is none."""
    found = np.full(records.size("questions"), UNKNOWN)
    first = (records["rollouts.tier"] == list(records.plan["tiers"]).index(BASE)) & (records["rollouts.number"] == 0)
    found[records["rollouts.question"][first]] = records["rollouts.right"][first]
    return found


def concatenate(parts: Sequence[Boundaries]) -> Boundaries:
    """Boundaries of several tiers as one."""
    shifts = np.cumsum([0, *(len(p.full) for p in parts)])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in Boundaries.__slots__
        if name not in ("question", "rollout", "closing")
    }
    rollout = np.concatenate([p.rollout + shift for p, shift in zip(parts, shifts, strict=False)])
    return Boundaries([q for p in parts for q in p.question], rollout, closing=parts[0].closing, **columns)
