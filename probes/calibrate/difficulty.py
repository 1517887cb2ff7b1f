"""Fitting the difficulty probe: labels from outcomes, a network on the prompt's hidden state, the price of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from ...errors import OptionError
from ..estimator import Examples, ProbeClassifier, fit_calibrated
from ..records import RecordTable
from ..risk_control import first_stops
from ..rule import StopRule
from ..stats import measure_quality
from ..tier_selector import EASY, HARD, NORMAL, TierProbe, TierTable, find_price, label_tiers
from .data import BASE, Boundaries, Questions, read_boundaries

Floats = NDArray[np.float64]
LABELS = ("tiers", "diffadapt")
OFTEN, RARELY = 0.8, 0.2
SHUFFLES = 5
LEVEL = 0.95  # of the intervals and tests of the entropy curve
FOLDS = 4
DOUBT = 1.28  # standard errors added to a cost in accuracy, which exceeds that with a probability of one in ten


def label_diffadapt(accuracy: Floats, entropy: Floats) -> NDArray[np.str_]:
    """Label questions [n] as DiffAdapt does (arXiv 2510.19669), by the mean accuracy and token entropy of samples.

    Often right with at most the median entropy of such questions is normal, rarely right is hard, all else easy. The
    paper gives no numbers; `OFTEN` and `RARELY` are ours.
    """
    solved = accuracy >= OFTEN
    certain = solved & (entropy <= np.median(entropy[solved])) if solved.any() else solved
    return np.where(certain, NORMAL, np.where(accuracy < RARELY, HARD, EASY))


def make_examples(questions: Questions, rule: str = "tiers") -> Examples:
    """The hidden states of questions, labelled with the cheapest sufficient tier, or as DiffAdapt does."""
    if rule == "tiers":
        labels = label_tiers(questions.right, questions.tokens.mean(axis=0), tiers=questions.tiers)
    else:
        base = questions.tiers.index(BASE)
        labels = label_diffadapt(questions.right[:, base], questions.entropy[:, base])
    return Examples(questions.state, labels, np.array(questions.hashes))


def compute_base_curve(questions: Questions) -> dict[str, Any]:
    """Compute the entropy of the base tier's responses by level, or by error rate if levels are unknown."""
    base = questions.tiers.index(BASE)
    known = (questions.level >= 0).all() and len(np.unique(questions.level)) > 2
    difficulty = questions.level if known else 1 - questions.right[:, base]
    return compute_entropy_curve(difficulty, questions.entropy[:, base], questions.right[:, base])


def compute_entropy_curve(difficulty: Floats, entropy: Floats, accuracy: Floats) -> dict[str, Any]:
    """DiffAdapt's curve (arXiv 2510.19669): mean entropy of questions [n] in nats by difficulty, with its t interval.

    It is U-shaped if both ends are above one inner level, by Welch's one-sided t tests with Bonferroni's correction.
    """
    parts = [difficulty == value for value in np.unique(difficulty)]
    levels = [_summarize(difficulty[part], entropy[part], accuracy[part]) for part in parts]
    u_shaped = any(
        max(_p_value_below(entropy[part], entropy[parts[end]]) for end in (0, -1)) <= (1 - LEVEL) / (len(parts) - 2)
        for part in parts[1:-1]
    )
    return {"levels": levels, "u-shaped": u_shaped}


def _summarize(difficulty: Floats, entropy: Floats, accuracy: Floats) -> dict[str, float]:
    n, mean = len(entropy), float(entropy.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * entropy.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return {
        "difficulty": float(difficulty.mean()),
        "entropy": mean,
        "low": mean - half,
        "high": mean + half,
        "accuracy": float(accuracy.mean()),
        "n": n,
    }


def _p_value_below(inner: Floats, end: Floats) -> float:
    """p-value of the test that the mean of `inner` is below that of `end`; 1 if there are too few values."""
    if min(len(inner), len(end)) < 2:
        return 1.0
    if not inner.std() and not end.std():
        return float(inner.mean() >= end.mean())
    return float(stats.ttest_ind(inner, end, equal_var=False, alternative="less").pvalue)


def apply_exit(
    questions: Questions, records: RecordTable, keep: NDArray[np.bool_], rule: StopRule, layer: int, threshold: float
) -> Questions:
    """Replace accuracy and tokens of each tier by those with the readiness exit, which is on under effort `auto`."""
    right, tokens = questions.right.copy(), questions.tokens.copy()
    order = np.cumsum(keep) - 1
    for column, tier in enumerate(questions.tiers):
        chosen = (records["rollouts.tier"] == column) & keep[records["rollouts.question"]]
        if not chosen[records["boundaries.rollout"]].any():
            continue  # this tier does not think
        boundaries = read_boundaries(records, layer, tier, keep, number=None)
        solved, spent = _stop_rollouts(boundaries, records["rollouts.right"][chosen] == 1, rule, threshold)
        question = order[records["rollouts.question"][chosen]]
        count = np.bincount(question, minlength=len(questions))
        right[:, column] = np.bincount(question, solved, len(questions)) / count
        tokens[:, column] = np.bincount(question, spent, len(questions)) / count
    return replace(questions, right=right, tokens=tokens)


def _stop_rollouts(
    boundaries: Boundaries, right: NDArray[np.bool_], rule: StopRule, threshold: float
) -> tuple[Floats, Floats]:
    """Compute whether each rollout ends right, and its tokens including evidence: two of [rollouts]."""
    scores = boundaries.score(rule)
    outcomes = boundaries.outcomes(scores.score, scores.trial_tokens)
    stops = first_stops(outcomes, threshold)  # the natural end reaches every threshold
    natural = stops == outcomes.offsets[1:] - 1
    rows = np.where(natural, 0, stops - np.arange(len(stops)))  # each earlier rollout has a natural end of its own
    now = boundaries.now[rows] if len(boundaries) else np.zeros(len(stops), bool)
    return np.where(natural, right, now).astype(float), outcomes.full - outcomes.saved[stops]


def fit_difficulty(
    learn: tuple[Questions, Questions],
    tuning: tuple[Questions, Questions],
    layer: int,
    margin: float,
    seed: int = 0,
    rule: str = "tiers",
) -> TierProbe:
    """Fit on one part, calibrate on another, and choose the largest price that costs at most `margin` accuracy.

    Each part's questions come with tiers by themselves, which give the labels, and in use, which give accuracy and
    cost. The price is found on both parts, the first cross-predicted. Raises OptionError if there is nothing to learn.
    """
    (fit, fit_in_use), (tune, tune_in_use) = learn, tuning
    if len(fit) > 1 and not np.ptp(fit.state, axis=0).any():
        raise OptionError(
            f"the hidden states of all {len(fit)} questions are equal, as if read before the question; collect again"
        )
    examples, tune_examples = make_examples(fit, rule), make_examples(tune, rule)
    if len(set(examples.labels.tolist())) < 2:
        raise OptionError(
            f"tier '{examples.labels[0]}' is the cheapest sufficient one for all {len(fit)} questions, so there is "
            "nothing to learn; collect harder and easier questions",
            code="nothing_to_learn",
        )
    estimator = fit_calibrated(examples, tune_examples, seed)
    classes = tuple(str(c) for c in estimator.classes_)
    codes = np.searchsorted(estimator.classes_, examples.labels)
    table = TierTable.estimate(fit.tiers, len(classes), codes, fit_in_use.right, fit_in_use.tokens)
    network = estimator.to_network()
    cross_predicted = _cross_predict(examples, tune_examples, classes, seed)
    probabilities = np.concatenate([cross_predicted, network.proba(tune.state)])
    right = np.concatenate([fit_in_use.right, tune_in_use.right])
    price = find_price(table, probabilities, right, margin, doubt=DOUBT)
    if price is None and find_price(table, probabilities, right, margin) is not None:
        price = 0.0  # too few questions to prove anything: the most accurate tier, whatever it costs
    if price is None:
        raise OptionError(
            f"choosing tiers with this probe costs more than {margin:g} accuracy at any price of tokens; raise "
            "--margin, or collect more questions"
        )
    return TierProbe(network, classes, layer, table, price)


def _cross_predict(examples: Examples, tune: Examples, classes: Sequence[str], seed: int) -> Floats:
    fold = np.array([int(h[-2], 16) % FOLDS for h in examples.questions])
    probabilities = np.zeros((len(fold), len(classes)))
    for number in range(FOLDS):
        held = fold == number
        others = examples.select(~held)
        if not held.any() or len(np.unique(others.labels)) < 2:
            continue
        estimator = fit_calibrated(others, tune, seed)
        columns = [classes.index(str(name)) for name in estimator.classes_]
        probabilities[np.ix_(held, columns)] = estimator.predict_proba(examples.rows[held])
    return probabilities


def evaluate_probe(
    probe: TierProbe, fit: Questions, test: Questions, in_use: Questions, seed: int = 0
) -> dict[str, Any]:
    """Evaluate the probe on an unseen part, compared with baselines fitted on the same questions; JSON form.

    Targets: whether the question needs thinking at all, and whether it needs more than the cheapest thinking tier.
    `in_use` is the test part with tiers as they are in use.
    """
    report: dict[str, Any] = {}
    order = [t for t in np.asarray(test.tiers)[np.argsort(test.tokens.mean(axis=0))] if t != BASE]
    for tier in order[: 2 if "none" in test.tiers else 1]:
        column = test.tiers.index(str(tier))
        needs, fit_needs = test.right[:, column] < 0.5, fit.right[:, column] < 0.5
        if not 0 < fit_needs.mean() < 1:
            continue
        rng = np.random.default_rng(seed)
        # Labels are shuffled on both sides: an AUROC above 0.5 would be learned from nothing.
        shuffled = [
            measure_quality(rng.permutation(needs), _predict(fit, rng.permutation(fit_needs), test, seed)).auroc
            for _ in range(SHUFFLES)
        ]
        predictions = {
            "probe": _predict(fit, fit_needs, test, seed),
            "length": predict_by_length(fit.words, fit_needs, test.words),
            "words": predict_by_words(fit.texts, fit_needs, test.texts),
        }
        report[f"{tier} fails"] = {
            **{name: asdict(measure_quality(needs, values)) for name, values in predictions.items()},
            "shuffled": {"auroc": float(np.mean(shuffled)), "draws": shuffled},
        }
    chosen = probe.table.choose(probe.network.proba(test.state), probe.price)
    report["choice"] = _compare_with_base(test, in_use, chosen)
    if probe.exits:
        report["choice alone"] = _compare_with_base(test, test, chosen)
    return report


def _compare_with_base(test: Questions, in_use: Questions, chosen: NDArray[np.intp]) -> dict[str, Any]:
    """Compare chosen tiers [n] with always thinking to the end in the base tier."""
    rows, base = np.arange(len(test)), test.tiers.index(BASE)
    change = in_use.right[rows, chosen] - test.right[:, base]
    return {
        "accuracy": float(in_use.right[rows, chosen].mean()),
        "base accuracy": float(test.right[:, base].mean()),
        "accuracy change": float(change.mean()),
        "standard error": float(change.std(ddof=1) / np.sqrt(len(test))) if len(test) > 1 else float("nan"),
        "saved": 1.0 - float(in_use.tokens[rows, chosen].sum() / test.tokens[:, base].sum()),
        "shares": {t: float((chosen == i).mean()) for i, t in enumerate(test.tiers)},
        "n": len(test),
    }


def _predict(fit: Questions, outcome: NDArray[np.bool_], test: Questions, seed: int) -> Floats:
    estimator = ProbeClassifier(random_state=seed).fit(fit.state, outcome, groups=fit.hashes)
    return np.asarray(estimator.predict_proba(test.state)[:, 1], np.float64)


def predict_by_length(fit_words: NDArray[Any], fit_outcome: NDArray[np.bool_], words: NDArray[Any]) -> Floats:
    """Baseline: predict from the number of words, by logistic regression on its first two powers."""
    model = make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler(), LogisticRegression())
    model.fit(fit_words.reshape(-1, 1).astype(float), fit_outcome)
    return np.asarray(model.predict_proba(words.reshape(-1, 1).astype(float))[:, 1])


def predict_by_words(fit_texts: Sequence[str], fit_outcome: NDArray[np.bool_], texts: Sequence[str]) -> Floats:
    """Baseline: predict from words and pairs of words (TF-IDF), by cross-validated logistic regression."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    folds = min(5, int(fit_outcome.sum()), int((~fit_outcome).sum()))
    if folds < 2:  # too few to validate on
        return np.full(len(texts), fit_outcome.mean())
    regression = LogisticRegressionCV(
        Cs=5, cv=folds, scoring="neg_log_loss", max_iter=1000, use_legacy_attributes=False, l1_ratios=(0.0,)
    )
    model = make_pipeline(vectorizer, regression)
    model.fit(list(fit_texts), fit_outcome)
    return np.asarray(model.predict_proba(list(texts))[:, 1])
