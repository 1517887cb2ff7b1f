"""What a probe is held against: the length of the prompt, its words, and labels that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quality:
    """How well chances foretell a yes or no: AUROC with its 95 % interval, Brier score, expected calibration error."""

    auroc: float
    low: float
    high: float
    brier: float
    ece: float
    n: int
    share: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def quality(truth: NDArray[np.bool_], chance: Floats) -> Quality:
    """Measure chances [n] against what happened; NaN where only one of both ever did.

    The interval is Hanley and McNeil's (Radiology 1982). ECE over ten bins of equal size.
    """
    from sklearn.metrics import brier_score_loss, roc_auc_score

    n, share = len(truth), float(truth.mean()) if len(truth) else float("nan")
    if not 0 < share < 1:
        nan = float("nan")
        return Quality(nan, nan, nan, nan, nan, n, share)
    auroc = float(roc_auc_score(truth, chance))
    yes, no = int(truth.sum()), int((~truth).sum())
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (yes - 1) * (q1 - auroc**2) + (no - 1) * (q2 - auroc**2)
    half = 1.96 * float(np.sqrt(max(spread, 0.0) / (yes * no)))
    brier = float(brier_score_loss(truth, np.clip(chance, 0, 1)))
    return Quality(auroc, max(0.0, auroc - half), min(1.0, auroc + half), brier, _ece(truth, chance), n, share)


def _ece(truth: NDArray[np.bool_], chance: Floats, bins: int = 10) -> float:
    order = np.argsort(chance, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(p) * abs(truth[p].mean() - chance[p].mean()) for p in parts) / len(truth))


def by_length(fit_words: NDArray[Any], fit_truth: NDArray[np.bool_], words: NDArray[Any]) -> Floats:
    """Chances from the number of words alone, by logistic regression on its first two powers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    model = make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler(), LogisticRegression())
    model.fit(fit_words.reshape(-1, 1).astype(float), fit_truth)
    return np.asarray(model.predict_proba(words.reshape(-1, 1).astype(float))[:, 1])


def by_words(fit_texts: Sequence[str], fit_truth: NDArray[np.bool_], texts: Sequence[str]) -> Floats:
    """Chances from the prompt's words and pairs of words (TF-IDF), by logistic regression; strength by validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    folds = min(5, int(fit_truth.sum()), int((~fit_truth).sum()))
    if folds < 2:  # nothing to validate on
        return np.full(len(texts), fit_truth.mean())
    regression = LogisticRegressionCV(
        Cs=5, cv=folds, scoring="neg_log_loss", max_iter=1000, use_legacy_attributes=False, l1_ratios=(0.0,)
    )
    model = make_pipeline(vectorizer, regression)
    model.fit(list(fit_texts), fit_truth)
    return np.asarray(model.predict_proba(list(texts))[:, 1])


def unseen_loss(
    rows: NDArray[Any],
    labels: NDArray[Any],
    groups: Sequence[str],
    held_rows: NDArray[Any],
    held: NDArray[Any],
    seed: int,
) -> float:
    """Log loss on held-out rows of a probe learnt from others; labels that those never have are left out."""
    from sklearn.metrics import log_loss

    from ..estimator import ProbeClassifier

    if len(set(labels.tolist())) < 2:
        return 0.0
    estimator = ProbeClassifier(random_state=seed).fit(rows, labels, groups=groups)
    known = np.isin(held, estimator.classes_)
    chances = estimator.predict_proba(held_rows[known])
    return float(log_loss(held[known], chances, labels=estimator.classes_)) if known.any() else 0.0
