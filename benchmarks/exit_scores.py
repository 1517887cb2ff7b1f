"""Places where recorded thinking could end, learnt scores for them, and what a small model's states add to these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.reader import StateReader
from tersely.controller.text.answers import Finality
from tersely.controller.text.evidence import Claim
from tersely.evaluation.calibrate import read_states
from tersely.probes.stats import binomial_upper_bound

Scores = NDArray[np.float64]
PARTS = 32  # principal components of a state


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place where the thinking could end, with the claim that it stated last."""

    tokens: int
    claim: Claim
    finality: Finality
    right: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A recorded output: its set, its length, whether its answer is right, and its candidates in order.

    `states` are those of a small model at the candidates [candidates, width], empty without one. An `extra` row is no
    part of the sample: it was read since the first answer in it is wrong, and only up to there.
    """

    number: int
    tokens: int
    right: bool
    candidates: list[Candidate]
    states: NDArray[np.float16]
    extra: bool = False


Stops = Sequence[Candidate | None]


def summarize(rows: Sequence[Row], stops: Stops) -> dict[str, Any]:
    """What stopping there saves and loses."""
    used, lost = measure(rows, stops)
    right = sum(row.right for row in rows)
    return {
        "saved": round(1 - used.sum() / sum(row.tokens for row in rows), 4),
        "lost": int(lost.sum()),
        "right": right,
        "lost_upper": round(binomial_upper_bound(int(lost.sum()), right, 0.05), 4) if right else 1.0,
    }


def measure(rows: Sequence[Row], stops: Stops) -> tuple[NDArray[Any], NDArray[Any]]:
    """The tokens that each row uses, and whether it loses its right answer."""
    pairs = list(zip(rows, stops, strict=True))
    used = [row.tokens if stop is None else stop.tokens for row, stop in pairs]
    return np.array(used), np.array([row.right and stop is not None and not stop.right for row, stop in pairs])


def compare(rows: Sequence[Row], stops: Stops, others: Stops, repeats: int = 2000) -> dict[str, Any]:
    """Mean saving of all sets and lost answers of the first stops, and what they gain over others, with 95 % intervals.

    Rows are drawn again within each set.
    """
    rng, owner = np.random.default_rng(0), np.array([row.number for row in rows])
    (used, lost), (used_else, lost_else) = measure(rows, stops), measure(rows, others)
    tokens, saved, more, worse = np.array([row.tokens for row in rows]), [], np.zeros(repeats), np.zeros(repeats)
    sets = np.unique(owner)
    for number in sets:
        mine = np.flatnonzero(owner == number)
        saved.append(1 - used[mine].sum() / tokens[mine].sum())
        drawn = mine[rng.integers(len(mine), size=(repeats, len(mine)))]
        more += (used_else[drawn] - used[drawn]).sum(1) / tokens[drawn].sum(1) / len(sets)
        worse += (lost[drawn].astype(int) - lost_else[drawn]).sum(1)
    return {
        "saved": round(float(np.mean(saved)), 4),
        "lost": int(lost.sum()),
        "right": sum(row.right for row in rows),
        "saved_more": [round(float(end), 4) for end in np.quantile(more, [0.025, 0.975])],
        "lost_more": [int(end) for end in np.quantile(worse, [0.025, 0.975])],
    }


def count_first(rows: Sequence[Row], stops: Stops, columns: Mapping[str, Stops]) -> dict[str, str]:
    """How many of the wrong first answers, where the full thinking is right, do not end it, and how many right ones do.

    Those at which the rule stops itself do not count.
    """
    found: dict[bool, list[bool]] = {True: [], False: []}
    for row, stop, first, rule in zip(rows, stops, columns["first"], columns["row"], strict=True):
        if row.right and first is not None and first is not rule:
            found[first.right].append(stop is first)
    wrong, right = found[False], found[True]
    return {"prevented": f"{len(wrong) - sum(wrong)} of {len(wrong)}", "kept": f"{sum(right)} of {len(right)}"}


class Learner:
    """All candidates as columns, so that models can be fitted and thresholds tried fast."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.owner = np.repeat(np.arange(len(rows)), [len(row.candidates) for row in rows])
        candidates = [one for row in rows for one in row.candidates]
        self.candidates = candidates
        text = np.array([one.claim.features(one.tokens, one.finality) for one in candidates])
        states = np.concatenate([row.states for row in rows if row.candidates]).astype(np.float32)
        self.features = {"text": [text]} | ({"states": [states], "both": [text, states]} if states.shape[1] else {})
        self.right = np.array([one.right for one in candidates])
        self.number = np.array([rows[i].number for i in self.owner.tolist()])
        self.weights = 1 / np.bincount(self.owner)[self.owner]

    def score(self, kind: str, fit: NDArray[np.bool_], test: NDArray[np.bool_]) -> Scores:
        """Scores of some candidates by a model that is fitted on others; -1 for the rest."""
        columns, at = [], 0
        for part in self.features[kind]:
            small = [PCA(PARTS, whiten=True, svd_solver="covariance_eigh")] if part.shape[1] > PARTS else []
            columns.append((str(at), make_pipeline(StandardScaler(), *small), slice(at, at + part.shape[1])))
            at += part.shape[1]
        model = make_pipeline(ColumnTransformer(columns), LogisticRegression(C=0.1, max_iter=500))
        features = np.concatenate(self.features[kind], axis=1)
        model.fit(features[fit], self.right[fit], logisticregression__sample_weight=self.weights[fit])
        scores = np.full(len(features), -1.0)
        scores[test] = model.predict_proba(features[test])[:, 1]
        return scores

    def judge(self, scores: Mapping[str, Scores], number: int) -> dict[str, float]:
        """How well scores tell right candidates of a set from wrong ones, where there are some of each."""
        mine = self.number == number
        if mine.sum() - self.right[mine].sum() < 5 or self.right[mine].sum() < 5:
            return {}
        return {part: round(float(roc_auc_score(self.right[mine], one[mine])), 3) for part, one in scores.items()}

    def judge_first(self, scores: Mapping[str, Scores], stops: Stops) -> dict[str, Any]:
        """How often a right one of some stops outscores a wrong one of its set, and in how many pairs."""
        places = {id(one): at for at, one in enumerate(self.candidates)}
        at = np.array([places[id(stop)] for stop in stops if stop is not None])
        pairs = [
            (good, bad)
            for number in np.unique(self.number[at])
            for good in at[self.right[at] & (self.number[at] == number)]
            for bad in at[~self.right[at] & (self.number[at] == number)]
        ]
        good, bad = np.array(pairs).T
        return {"pairs": len(pairs), **{p: round(float((s[good] > s[bad]).mean()), 3) for p, s in scores.items()}}

    def stops(self, reached: NDArray[np.bool_]) -> list[Candidate | None]:
        """The first candidate of each row of those that are marked."""
        stops: list[Candidate | None] = [None] * len(self.rows)
        for at in np.flatnonzero(reached)[::-1]:
            stops[self.owner[at]] = self.candidates[at]
        return stops

    def choose(
        self,
        scores: Scores,
        rule: NDArray[np.bool_],
        numbers: Sequence[int],
        allowed: Callable[[int], float],
    ) -> float:
        """The lowest threshold up from which these sets, with a rule's stops, lose no more than is allowed."""
        mine = np.array([row.right and not row.extra and row.number in numbers for row in self.rows])
        chosen = 2.0
        for threshold in np.quantile(scores[scores >= 0], np.linspace(0.999, 0.05, 150)):
            reached = np.flatnonzero(rule | (scores >= threshold))
            owners, first = np.unique(self.owner[reached], return_index=True)
            if (mine[owners] & ~self.right[reached[first]]).sum() > allowed(int(mine.sum())):
                break
            chosen = float(threshold)
        return chosen


class Companion:
    """A small model that reads along; keeps the states of what it has read in a folder, if there is one."""

    def __init__(self, model: str, folder: Path | None) -> None:
        self.reader, self.folder = StateReader(load_engine(model, grouped=True)), folder

    def read(self, name: str, question: str, texts: Sequence[str]) -> NDArray[np.float16]:
        """The states [texts, width] behind each text of a growing thinking."""
        file = None if self.folder is None else self.folder / f"{name}.npy"
        if file is not None and file.exists() and len(kept := np.load(file)) == len(texts):
            return kept  # type: ignore[no-any-return]
        states = read_states(self.reader, question, texts).astype(np.float16)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, states)
        return states
