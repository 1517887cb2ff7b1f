"""The classifier behind every probe: a scikit-learn estimator whose fitted form is a `Network`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from ..errors import OptionError
from .network import CLIP, Network, forward, init_layers, train_adamw

Floats = NDArray[np.float64]
Single = NDArray[np.float32]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of logistic regression, the most regularised first
FEW_GROUPS = 40  # below this, nothing is held out and the probe stays linear, with the strength below
FEW_STRENGTH = 0.1
PATIENCE = 15  # epochs
HIDDEN = 256  # units
HELD_OUT = 0.2  # share of the questions
WEIGHT_DECAYS = (1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows [n, d] with the label and the question of each, by name or by number."""

    rows: NDArray[Any]
    labels: NDArray[Any]
    questions: NDArray[Any]

    def select(self, mask: NDArray[np.bool_]) -> Self:
        return type(self)(self.rows[mask], self.labels[mask], self.questions[mask])


class ProbeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A network with one rectified hidden layer, as in DiffAdapt (arXiv 2510.19669), at least as good as a linear one.

    Training starts at logistic regression, which some of the hidden units compute exactly, and leaves it only if that
    lowers the log loss of held-out questions by more than a standard error. Regularisation, weight decay and number of
    epochs, at most `epochs`, are chosen on the same questions; then all rows are trained on. With fewer than 40
    questions nothing is held out and the probe stays linear. `fit` sets `classes_`, `network_`, `n_epochs_`,
    `held_out_` (rows) and `held_out_loss_` (None without any).
    """

    def __init__(self, epochs: int = 100, random_state: Any = 0) -> None:
        self.epochs = epochs
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,  # noqa: N803 - as scikit-learn calls it
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Learn from [n, d] and n labels of at least two classes; raises ValueError for NaN and what else is unusable.

        Rows of one question, `groups`, by default equal ones, are held out together.
        """
        rows, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(labels)
        check_consistent_length(rows, groups)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            (only,) = self.classes_.tolist()
            raise OptionError(
                f"all {len(labels)} samples are of one class, {only!r}; accepted: two classes or more. "
                "Collect more questions, or harder and easier ones",
                code="single_class",
            )
        names = rows if groups is None else np.asarray(groups)
        questions = np.unique(names, axis=0, return_inverse=True)[1].ravel()
        data = Examples(rows, codes, questions)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        held = _hold_out(questions, codes, seed)
        plan = _Plan(FEW_STRENGTH)
        if held.any():
            plan = _choose_plan(data.select(~held), data.select(held), self.epochs, seed)
        self.held_out_ = np.flatnonzero(held)
        self.held_out_loss_ = plan.loss
        self.n_epochs_ = plan.epochs
        self.network_ = _train(data, plan, seed)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """Probabilities [n, classes] in the order of `classes_`, calibrated after `calibrate`."""
        check_is_fitted(self)
        return self.network_.proba(validate_data(self, X, dtype=np.float64, reset=False))

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def calibrate(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Return a copy whose temperature and bias are fitted to rows that it did not learn from.

        Vector scaling with one temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks"), under a
        standard normal prior, so that a few rows that are all predicted correctly do not make it overconfident.
        """
        check_is_fitted(self)
        rows, labels = check_array(X, dtype=np.float64), np.asarray(y)
        check_consistent_length(rows, labels)
        if unknown := sorted(set(labels.tolist()) - set(self.classes_.tolist()), key=str):
            raise OptionError(f"labels hold the class {unknown[0]!r}; accepted: {', '.join(map(str, self.classes_))}")
        logits = self.network_.logits(rows).astype(np.float64)
        codes = np.searchsorted(self.classes_, labels)

        def cost(parameters: Floats) -> float:
            scaled = logits * np.exp(-parameters[0]) + parameters[1:]
            return float(_log_losses(scaled, codes).sum() + parameters @ parameters / 2)

        best = minimize(cost, np.zeros(1 + len(self.classes_)), method="L-BFGS-B").x
        calibrated = copy.copy(self)
        calibrated.network_ = replace(self.network_, temperature=np.exp(best[0]), bias=best[1:])
        return calibrated

    def to_network(self) -> Network:
        """Return the trained network, which does not need scikit-learn; raises NotFittedError."""
        check_is_fitted(self)
        return self.network_


@dataclass(frozen=True, slots=True)
class _Plan:
    """Hyperparameters, and the loss of the held-out rows under them."""

    strength: float
    decay: float = 0.0
    epochs: int = 0
    loss: float | None = None


def _hold_out(questions: NDArray[np.intp], codes: NDArray[np.intp], seed: int) -> NDArray[np.bool_]:
    """Choose the rows of a share of the questions, leaving every class to learn from; none if questions are few."""
    n = int(questions.max()) + 1
    table = np.zeros((n, int(codes.max()) + 1))
    np.add.at(table, (questions, codes), 1)
    left, chosen = table.sum(axis=0), np.zeros(n, bool)
    for question in np.random.default_rng(seed).permutation(n):
        if chosen.sum() < max(2, HELD_OUT * n) and (left > table[question]).all():
            left -= table[question]
            chosen[question] = True
    enough = n >= FEW_GROUPS and chosen.sum() > 1
    return chosen[questions] & enough


def _fit_scaling(rows: Floats) -> tuple[Floats, Floats]:
    """Mean and gain, which is 1 / deviation, or 0 for a column that does not vary beyond float32 precision."""
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    varies = deviation > np.maximum(1e-6 * np.abs(mean), 1e-30)
    return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def _scale(rows: Floats, mean: Floats, gain: Floats) -> Floats:
    return np.clip((rows - mean) * gain, -CLIP, CLIP)


def _fit_linear(scaled: Floats, data: Examples, strength: float, hidden: int, seed: int) -> list[Single]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # harmless: the held-out questions decide
        linear = LogisticRegression(C=strength, max_iter=300).fit(scaled, data.labels)
    weights, bias = linear.coef_.T, linear.intercept_
    if len(linear.classes_) == 2:
        weights, bias = np.hstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return init_layers(weights, bias, hidden, seed)


def _run_epochs(scaled: Floats, data: Examples, start: list[Single], plan: _Plan, seed: int) -> Iterator[list[Single]]:
    targets = np.eye(data.labels.max() + 1, dtype=np.float32)[data.labels]
    return train_adamw(scaled.astype(np.float32), targets, start, plan.decay, plan.epochs, seed)


def _log_losses(logits: NDArray[Any], codes: NDArray[np.intp]) -> Floats:
    return np.asarray(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(codes)), codes])


def _choose_plan(learnt: Examples, held: Examples, epochs: int, seed: int) -> _Plan:
    """Choose what is best on the held-out rows: logistic regression unless another is better by a standard error."""
    mean, gain = _fit_scaling(learnt.rows)
    scaled, held_scaled = _scale(learnt.rows, mean, gain), _scale(held.rows, mean, gain).astype(np.float32)

    def losses(layers: list[Single]) -> Floats:
        return _log_losses(forward(held_scaled, layers), held.labels)

    starts = {strength: _fit_linear(scaled, learnt, strength, HIDDEN, seed) for strength in STRENGTHS}
    strength = min(STRENGTHS, key=lambda strength: losses(starts[strength]).mean())
    start, start_losses = starts[strength], losses(starts[strength])
    plan = best = _Plan(strength, loss=float(start_losses.mean()))
    best_losses = start_losses
    for decay in WEIGHT_DECAYS:
        lowest, waited = np.inf, 0
        tried = _Plan(strength, decay, epochs)
        for epoch, layers in enumerate(_run_epochs(scaled, learnt, start, tried, seed), 1):
            now = losses(layers)
            lowest, waited = (now.mean(), 0) if now.mean() < lowest else (lowest, waited + 1)
            if now.mean() < best_losses.mean():
                best, best_losses = _Plan(strength, decay, epoch, float(now.mean())), now
            if waited == PATIENCE:
                break
    gained = np.bincount(held.questions, start_losses - best_losses)[np.unique(held.questions)]
    return best if gained.sum() > np.sqrt(len(gained)) * gained.std(ddof=1) else plan


def _train(data: Examples, plan: _Plan, seed: int) -> Network:
    mean, gain = _fit_scaling(data.rows)
    scaled = _scale(data.rows, mean, gain)
    layers = _fit_linear(scaled, data, plan.strength, HIDDEN if plan.epochs else 0, seed)
    for epoch_layers in _run_epochs(scaled, data, layers, plan, seed):
        layers = epoch_layers
    arrays = (mean, gain, *layers, 1.0, np.zeros(data.labels.max() + 1))
    return Network(*(np.asarray(array, np.float32) for array in arrays))


def fit_calibrated(fit: Examples, held: Examples, seed: int) -> ProbeClassifier:
    """Fit a probe, and calibrate it on those held-out examples whose labels were in training."""
    estimator = ProbeClassifier(random_state=seed).fit(fit.rows, fit.labels, groups=fit.questions)
    known = held.select(np.isin(held.labels, estimator.classes_))
    return estimator.calibrate(known.rows, known.labels) if len(known.labels) else estimator


def held_out_log_loss(fit: Examples, held: Examples, seed: int) -> float:
    """Log loss of a probe on those held-out examples whose labels were in training."""
    classes, known = np.unique(fit.labels), held.select(np.isin(held.labels, fit.labels))
    if len(classes) < 2 or not len(known.labels):
        return 0.0
    estimator = ProbeClassifier(random_state=seed).fit(fit.rows, fit.labels, groups=fit.questions)
    return float(log_loss(known.labels, estimator.predict_proba(known.rows), labels=classes))
