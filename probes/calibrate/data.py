"""Collected records as training data, by purpose: questions and thought boundaries with their outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, check_known
from ..drift import KnownQuestions
from ..records import UNKNOWN, RecordsError, RecordTable, read_records
from ..risk_control import Outcomes
from ..rule import FEATURES, RuleState, StopRule

Floats = NDArray[np.float64]
ENOUGH = 480
"""Questions of one collection that leave enough in each part when it is divided; the smallest part gets an eighth."""
MIN_QUESTIONS = 40  # questions that each part of the data must have
BASE = "normal"  # the tier in which a model thinks as it does by itself


def get_part(question_hash: str) -> str:
    """Assign a question to a part of a collection by its hash, the same in every run."""
    bucket = hashlib.sha256(f"part:{question_hash}".encode()).digest()[0] % 16
    return "fit" if bucket < 8 else "calibrate" if bucket < 13 else "test"


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions that were answered in every tier."""

    tiers: tuple[str, ...]
    hashes: list[str]  # [n], as `texts`, `words` (number of words) and `level`
    texts: list[str]
    words: NDArray[Any]
    level: NDArray[Any]
    state: NDArray[np.float32]  # [n, width], hidden state of the prompt
    right: Floats  # [n, tiers], share of correct rollouts
    tokens: Floats  # [n, tiers], mean tokens; `entropy` likewise
    entropy: Floats

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True, slots=True)
class RuleScores:
    """Scores of recorded boundaries, each [boundaries]."""

    score: Floats  # with all evidence
    hopeless: Floats
    trial_tokens: NDArray[np.int64]  # tokens that trials had cost by then
    tried: NDArray[np.bool_]  # whether there was a trial


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Thought boundaries of one tier's rollouts, in order; columns not listed are those of `records.TABLES`."""

    question: list[str]  # hash of the question, [n]
    rollout: NDArray[np.int64]  # number of the rollout, [n]
    rows: NDArray[np.float32]  # features and hidden state, [n, d]
    now: NDArray[np.bool_]  # whether stopping here gives the right answer, [n]
    final: NDArray[np.bool_]  # whether further thinking ends with the right answer, [n]
    end: NDArray[Any]
    trial_answer: NDArray[Any]  # of the greedy trial, [n]; `confidence` and `trial` are its confidence and cost
    stated: NDArray[Any]
    confidence: NDArray[Any]
    trial: NDArray[Any]
    full: NDArray[np.int64]  # tokens of the whole rollout, by rollout
    answer: NDArray[np.int64]  # tokens of its answer, by rollout
    closing: int  # tokens that closing the thinking takes

    def __len__(self) -> int:
        return len(self.rollout)

    def score(self, rule: StopRule) -> RuleScores:
        """Apply a stop rule: free scores are computed for all at once, trials one by one, as each needs the last."""
        score, hopeless = rule.free.scores(self.rows) if len(self) else (np.zeros(0), np.zeros(0))
        trial_tokens, tried = np.zeros(len(self), np.int64), np.zeros(len(self), bool)
        state = RuleState(rule)
        for i in range(len(self)):
            if i and self.rollout[i] != self.rollout[i - 1]:
                state = RuleState(rule)
            if self.trial[i] and state.wants_trial(float(score[i]), int(self.end[i])):
                state.row = self.rows[i]
                tried[i] = True
                answer, cost = int(self.trial_answer[i]), int(self.trial[i])
                score[i] = state.score_with_trial(answer, float(self.confidence[i]), cost, self.latest_stated(i))
                hopeless[i] = state.hopeless
            trial_tokens[i] = state.trial_tokens
        return RuleScores(score, hopeless, trial_tokens, tried)

    def latest_stated(self, i: int) -> int | None:
        """The answer that the thinking states latest by a boundary."""
        return int(self.stated[i]) if self.stated[i] >= 0 else None

    def outcomes(self, score: Floats, trial_tokens: NDArray[np.int64] | None = None) -> Outcomes:
        """Compute the outcomes of stopping by a score [n], with the cost of evidence by each boundary, [n].

        A further boundary at the natural end of each rollout accounts for evidence that did not lead to a stop.
        """
        costs = np.zeros(len(self), np.int64) if trial_tokens is None else trial_tokens
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
    check_known("layer", layer, layers)
    if not np.isfinite(records[f"{table}.state.{layer}"]).all():
        raise RecordsError(
            f"hidden states of layer {layer} hold NaN or infinity; choose another layer, or collect in float32",
            code="not_finite",
        )


def read_questions(records: RecordTable, layer: int, keep: NDArray[np.bool_] | None = None) -> Questions:
    """Read the questions of a collection with their outcomes in each tier; keep: which ones, default all."""
    check_layer(records, "questions", layer)
    tiers, n = tuple(records.plan["tiers"]), records.size("questions")
    right = records["rollouts.right"].astype(float)
    if (right == UNKNOWN).any():
        raise RecordsError("the correct answers are unknown; difficulty needs questions with answers", code="no_labels")
    spent = (records["rollouts.thinking"] + records["rollouts.answer"]).astype(float)
    cells = records["rollouts.question"] * len(tiers) + records["rollouts.tier"]
    count = np.bincount(cells, minlength=n * len(tiers)).reshape(n, -1)
    if not count.all():
        raise RecordsError("some questions lack a tier; resume the collection until it is complete", code="incomplete")

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
    """Read the boundaries of one tier, of the questions in `keep` and of rollout `number`, None for all.

    Below the base tier, further thinking leads into it, so its outcome counts; without a known answer, the final one
    does.
    """
    check_layer(records, "boundaries", layer)
    check_known("tier", tier, records.plan["tiers"])
    chosen = records["rollouts.tier"] == list(records.plan["tiers"]).index(tier)
    if number is not None:
        chosen &= records["rollouts.number"] == number
    if keep is not None:
        chosen &= keep[records["rollouts.question"]]
    if not chosen.any():
        raise OptionError(f"the collection has no rollout of tier {tier!r}; collect some", code="no_rollouts")
    numbers = np.cumsum(chosen) - 1
    rows = chosen[records["boundaries.rollout"]]
    rollout = records["boundaries.rollout"][rows]
    right = records["rollouts.right"][rollout]
    now, same = records["boundaries.right"][rows], records["boundaries.same"][rows].astype(bool)
    if tier == "easy" and BASE in records.plan["tiers"]:
        right = _get_base_outcomes(records)[records["rollouts.question"][rollout]]
    unlabelled = (right == UNKNOWN) | (now == UNKNOWN)
    hashes = records.texts["hash"]
    return Boundaries(
        question=[hashes[q] for q in records["rollouts.question"][rollout]],
        rollout=numbers[rollout].astype(np.int64),
        rows=np.hstack([records["boundaries.features"][rows], records[f"boundaries.state.{layer}"][rows]]),
        now=np.where(unlabelled, same, now == 1),
        final=np.where(unlabelled, True, right == 1),
        end=records["boundaries.end"][rows],
        trial_answer=records["boundaries.said"][rows],
        stated=records["boundaries.stated"][rows],
        confidence=records["boundaries.confidence"][rows],
        trial=records["boundaries.trial"][rows],
        full=(records["rollouts.thinking"] + records["rollouts.answer"])[chosen].astype(np.int64),
        answer=records["rollouts.answer"][chosen].astype(np.int64),
        closing=int(records.plan["closing"]),
    )


def _get_base_outcomes(records: RecordTable) -> NDArray[Any]:
    """For each question, whether its first rollout in the base tier was right; -1 if there is none."""
    outcomes = np.full(records.size("questions"), UNKNOWN)
    first = (records["rollouts.tier"] == list(records.plan["tiers"]).index(BASE)) & (records["rollouts.number"] == 0)
    outcomes[records["rollouts.question"][first]] = records["rollouts.right"][first]
    return outcomes


def concatenate(parts: Sequence[Boundaries]) -> Boundaries:
    """Concatenate the boundaries of several tiers."""
    shifts = np.cumsum([0, *(len(p.full) for p in parts)])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in Boundaries.__slots__
        if name not in ("question", "rollout", "closing")
    }
    rollout = np.concatenate([p.rollout + shift for p, shift in zip(parts, shifts, strict=False)])
    return Boundaries([q for p in parts for q in p.question], rollout, closing=parts[0].closing, **columns)


@dataclass(frozen=True, slots=True)
class QuestionParts:
    """The data by purpose; if `divided`, all three are one collection whose questions are split by their hashes."""

    fit: RecordTable
    calibrate: RecordTable
    test: RecordTable
    divided: bool

    def select(self, name: str) -> tuple[RecordTable, NDArray[np.bool_]]:
        """Return the records of a part (learn, tune, calibrate or test) and which of their questions belong to it."""
        records = {"calibrate": self.calibrate, "test": self.test}.get(name, self.fit)
        hashes = records.texts["hash"]
        keep = np.ones(len(hashes), bool)
        if self.divided:
            part = name if name in ("calibrate", "test") else "fit"
            keep = np.array([get_part(h) == part for h in hashes])
        if name in ("learn", "tune"):
            tuning = np.array([int(h[-1], 16) % 4 == 0 for h in hashes])
            keep &= tuning if name == "tune" else ~tuning
        return records, keep

    def describe_questions(self) -> KnownQuestions | None:
        """Learn what the questions look like that were learned from and certified on; None without texts."""
        texts = []
        for name in ("learn", "calibrate"):
            records, keep = self.select(name)
            texts.append([text for i in np.flatnonzero(keep).tolist() if (text := records.texts["problem"][i])])
        return KnownQuestions.learn(*texts) if all(texts) else None

    def questions(self, name: str, layer: int) -> Questions:
        """Read the questions of a part; raises RecordsError if there are too few."""
        return read_questions(*self._select_enough(name, layer))

    def boundaries(self, name: str, layer: int, tier: str = BASE, number: int | None = 0) -> Boundaries:
        """Read the boundaries of a part, see `read_boundaries`; raises RecordsError if there are too few questions."""
        records, layer, keep = self._select_enough(name, layer)
        return read_boundaries(records, layer, tier, keep, number)

    def _select_enough(self, name: str, layer: int) -> tuple[RecordTable, int, NDArray[np.bool_]]:
        records, keep = self.select(name)
        if keep.sum() < MIN_QUESTIONS:
            total = f"about {ENOUGH} questions in all" if self.divided else "more questions for it"
            raise RecordsError(
                f"part {name!r} has {keep.sum()} questions; accepted: {MIN_QUESTIONS} or more; collect {total}",
                code="too_few_questions",
            )
        return records, layer, keep


def split_questions(fit: Path, calibrate: Path | None, test: Path | None) -> QuestionParts:
    """Read the collections; raises RecordsError if they are of different models, or share questions."""
    if (calibrate is None) != (test is None):
        raise OptionError(
            "only one of --calibrate and --test was given; accepted: both, or neither to divide one collection"
        )
    first = read_records(fit)
    if tuple(first.plan["features"]) != FEATURES:
        raise RecordsError(
            f"{fit} has other features than this version of tersely computes; collect again", code="other_features"
        )
    if calibrate is None or test is None:
        return QuestionParts(first, first, first, True)
    others = read_records(calibrate), read_records(test)
    for path, records, keys in (
        (calibrate, others[0], ("fingerprint", "features")),
        (test, others[1], ("fingerprint", "features", "tiers")),
    ):
        for key in keys:
            if records.plan[key] != first.plan[key]:
                raise RecordsError(
                    f"{path} was collected with other {key} than {fit}; collect both alike", code="other_plan"
                )
    hashes = [set(r.texts["hash"]) for r in (first, *others)]
    shared = (hashes[0] & hashes[1]) | (hashes[0] & hashes[2]) | (hashes[1] & hashes[2])
    if shared:
        raise RecordsError(
            f"{len(shared)} questions are in two collections; a certificate needs questions of its own",
            code="shared_questions",
        )
    return QuestionParts(first, *others, False)
