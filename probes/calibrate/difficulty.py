"""Fitting the difficulty probe: labels from outcomes, a network on the prompt's hidden state, the price of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError
from ..difficulty import EntropyCurve, entropy_curve, price_for, self_labels, tier_labels
from ..estimator import ProbeClassifier
from ..tier_selector import TierProbe, TierTable
from .baselines import by_length, by_words, quality, unseen_loss
from .data import BASE, Questions

Floats = NDArray[np.float64]
SHUFFLES = 5
FOLDS = 4
DOUBT = 1.28
"""Standard errors that a cost in accuracy is taken to be larger: it is so with a chance of one in ten."""


LABELS = ("tiers", "diffadapt")


def make_labels(questions: Questions, rule: str = "tiers") -> NDArray[np.str_]:
    """Labels [n]: the tiers that will do, by the mean cost of each, or DiffAdapt's from accuracy and entropy."""
    if rule == "tiers":
        return tier_labels(questions.right, questions.tokens.mean(axis=0), tiers=questions.tiers)
    base = questions.tiers.index(BASE)
    return self_labels(questions.right[:, base], questions.entropy[:, base])


def u_curve(questions: Questions) -> EntropyCurve:
    """Entropy of the base tier's responses by level, or by how often they are wrong where no level is known."""
    base = questions.tiers.index(BASE)
    known = (questions.level >= 0).all() and len(np.unique(questions.level)) > 2
    difficulty = questions.level if known else 1 - questions.right[:, base]
    return entropy_curve(difficulty, questions.entropy[:, base], questions.right[:, base])


def fit_difficulty(
    learn: tuple[Questions, Questions],
    tuning: tuple[Questions, Questions],
    layer: int,
    margin: float,
    seed: int = 0,
    rule: str = "tiers",
) -> TierProbe:
    """Fit on one part, calibrate chances on another, and take the largest price that costs at most `margin` accuracy.

    Of both parts: as the tiers are by themselves, which gives the labels, and as they are when they are used, which
    gives what they bring and cost. The price is found on all questions, of those learnt from by probes that did not
    learn from them. Raises OptionError where one tier is best for all questions, or there are too few.
    """
    (fit, acting), (tune, tune_acting) = learn, tuning
    if len(fit) > 1 and not np.ptp(fit.state, axis=0).any():
        raise OptionError(
            f"the hidden states of all {len(fit)} questions are the same, as if read before the question; collect anew"
        )
    labels = make_labels(fit, rule)
    if len(set(labels.tolist())) < 2:
        raise OptionError(
            f"tier '{labels[0]}' is the cheapest that will do for all {len(fit)} questions, so there is nothing to "
            "learn; collect harder and easier questions"
        )
    tune_labels = make_labels(tune, rule)
    estimator = _fitted(fit.state, labels, fit.hashes, tune.state, tune_labels, seed)
    classes = tuple(str(c) for c in estimator.classes_)
    codes = np.searchsorted(estimator.classes_, labels)
    table = TierTable.of(fit.tiers, len(classes), codes, acting.right, acting.tokens)
    network = estimator.to_network()
    unseen = _unseen(fit, labels, tune.state, tune_labels, classes, seed)
    chances = np.concatenate([unseen, network.proba(tune.state)])
    right = np.concatenate([acting.right, tune_acting.right])
    price = price_for(table, chances, right, margin, doubt=DOUBT)
    if price is None and price_for(table, chances, right, margin) is not None:
        price = 0.0  # too few questions to prove anything: the tier that is right most often, whatever it costs
    if price is None:
        raise OptionError(
            f"choosing tiers by this probe costs more than {margin:g} accuracy whatever tokens cost; raise --margin, "
            "or collect more questions"
        )
    return TierProbe(network, classes, layer, table, price)


def _fitted(
    state: NDArray[np.float32],
    labels: NDArray[np.str_],
    hashes: Sequence[str],
    tune_state: NDArray[np.float32],
    tune_labels: NDArray[np.str_],
    seed: int,
) -> ProbeClassifier:
    estimator = ProbeClassifier(random_state=seed).fit(state, labels, groups=hashes)
    known = np.isin(tune_labels, estimator.classes_)
    return estimator.calibrate(tune_state[known], tune_labels[known]) if known.any() else estimator


def _unseen(
    fit: Questions,
    labels: NDArray[np.str_],
    tune_state: NDArray[np.float32],
    tune_labels: NDArray[np.str_],
    classes: Sequence[str],
    seed: int,
) -> Floats:
    """Chances of the questions of a part, [n, classes], each by a probe that learnt from the others."""
    fold = np.array([int(h[-2], 16) % FOLDS for h in fit.hashes])
    chances = np.zeros((len(fit), len(classes)))
    for number in range(FOLDS):
        held = fold == number
        if not held.any() or len(set(labels[~held].tolist())) < 2:
            continue
        others = [h for h, out in zip(fit.hashes, held, strict=True) if not out]
        estimator = _fitted(fit.state[~held], labels[~held], others, tune_state, tune_labels, seed)
        columns = [classes.index(str(name)) for name in estimator.classes_]
        chances[np.ix_(held, columns)] = estimator.predict_proba(fit.state[held])
    return chances


def evaluate_loss(fit: Questions, tune: Questions, seed: int) -> float:
    """How badly this layer's states foretell the labels of another part."""
    return unseen_loss(fit.state, make_labels(fit), fit.hashes, tune.state, make_labels(tune), seed)


def examine(probe: TierProbe, fit: Questions, test: Questions, acting: Questions, seed: int = 0) -> dict[str, Any]:
    """What the probe is worth on a part it has not seen, beside its controls; JSON form.

    acting: the same part with tiers as they are when they are used.

    Two questions are asked of it: does the question need thinking at all (the tier without it fails), and does it need
    more than the cheapest thinking tier. Controls are fitted on the same questions as the probe.
    """
    found: dict[str, Any] = {}
    order = [t for t in np.asarray(test.tiers)[np.argsort(test.tokens.mean(axis=0))] if t != BASE]
    for tier in order[: 2 if "none" in test.tiers else 1]:
        column = test.tiers.index(str(tier))
        needs, fit_needs = test.right[:, column] < 0.5, fit.right[:, column] < 0.5
        if not 0 < fit_needs.mean() < 1:
            continue
        rng = np.random.default_rng(seed)
        # Labels shuffled on both sides: what is left above 0.5 would be learnt from nothing.
        shuffled = [
            quality(rng.permutation(needs), _chance(fit, rng.permutation(fit_needs), test, seed)).auroc
            for _ in range(SHUFFLES)
        ]
        found[f"{tier} fails"] = {
            "probe": quality(needs, _chance(fit, fit_needs, test, seed)).as_dict(),
            "length": quality(needs, by_length(fit.words, fit_needs, test.words)).as_dict(),
            "words": quality(needs, by_words(fit.texts, fit_needs, test.texts)).as_dict(),
            "shuffled": {"auroc": float(np.mean(shuffled)), "draws": shuffled},
        }
    chosen = probe.table.choose(probe.network.proba(test.state), probe.price)
    found["choice"] = _worth(test, acting, chosen)
    if probe.exits:
        found["choice alone"] = _worth(test, test, chosen)
    return found


def _worth(test: Questions, acting: Questions, chosen: NDArray[np.intp]) -> dict[str, Any]:
    """What chosen tiers [n] bring, against always thinking to the end in the base tier."""
    rows, base = np.arange(len(test)), test.tiers.index(BASE)
    change = acting.right[rows, chosen] - test.right[:, base]
    return {
        "accuracy": float(acting.right[rows, chosen].mean()),
        "base accuracy": float(test.right[:, base].mean()),
        "accuracy change": float(change.mean()),
        "standard error": float(change.std(ddof=1) / np.sqrt(len(test))) if len(test) > 1 else float("nan"),
        "saved": 1.0 - float(acting.tokens[rows, chosen].sum() / test.tokens[:, base].sum()),
        "shares": {t: float((chosen == i).mean()) for i, t in enumerate(test.tiers)},
        "n": len(test),
    }


def _chance(fit: Questions, truth: NDArray[np.bool_], test: Questions, seed: int) -> Floats:
    """The chance of a yes for each question of another part, from its hidden state."""
    estimator = ProbeClassifier(random_state=seed).fit(fit.state, truth, groups=fit.hashes)
    return np.asarray(estimator.predict_proba(test.state)[:, 1], np.float64)
