"""The classifier that learns a probe: a scikit-learn estimator whose fitted form is a `Network`."""

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
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from ..errors import OptionError
from .mlp_training import descent, forward, get_layers
from .network import CLIP, Network

Floats = NDArray[np.float64]
Single = NDArray[np.float32]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of logistic regression, the most regularised first
FEW_GROUPS = 40  # fewer say nothing when some are held out: the probe stays linear, with the strength below
FEW_STRENGTH = 0.1
PATIENCE = 15  # epochs


class ProbeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Two layers, a rectified hidden one as in DiffAdapt (arXiv 2510.19669), that are never worse than one.

    Training starts at logistic regression, which some of the hidden units compute exactly, and leaves it only if that
    lowers the log loss of held-out questions by more than a standard error. Strength of regularisation, weight decay
    and number of epochs are chosen on the same questions; then all rows are trained on. With fewer than 40 questions
    nothing is held out and the probe stays linear.

    hidden: units; epochs: at most; held_out: the share of questions; weight_decays: those tried, of AdamW.
    Fitted: `classes_`, `n_features_in_`, `network_`, `n_epochs_` (0: linear), `held_out_` (places of
    rows) and `held_out_loss_` (None if none were).
    """

    def __init__(
        self,
        hidden: int = 256,
        epochs: int = 100,
        held_out: float = 0.2,
        weight_decays: tuple[float, ...] = (1.0, 3.0),
        random_state: Any = 0,
    ) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.held_out = held_out
        self.weight_decays = weight_decays
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,  # noqa: N803 - as scikit-learn calls it
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Learn from [n, d] and n labels of at least two classes; returns self.

        sample_weight: as how many rows each counts. groups: the question of each row; rows of one question are held
        out together. Without groups, equal rows are taken for one question. Raises ValueError for NaN, too few rows,
        or a single class.
        """
        self._check_options()
        rows, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(labels)
        weights = _weights(sample_weight, len(rows))
        check_consistent_length(rows, groups)
        kept = weights > 0
        rows, labels, weights = rows[kept], np.asarray(labels)[kept], weights[kept]
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            (only,) = self.classes_.tolist()
            raise OptionError(
                f"all {len(labels)} samples are of one class, {only!r}; accepted: two classes or more. "
                "Collect more questions, or harder and easier ones"
            )
        questions = _questions(rows, None if groups is None else np.asarray(groups)[kept])
        data = _Data(rows, codes, weights, questions, len(self.classes_))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        apart = _held_out(questions, codes, self.held_out, seed)
        plan = _planned(data.part(~apart), data.part(apart), self, seed) if apart.any() else _Plan(FEW_STRENGTH)
        self.held_out_ = np.flatnonzero(kept)[apart]
        self.held_out_loss_ = plan.loss
        self.n_epochs_ = plan.epochs
        self.network_ = _trained(data, plan, self.hidden, seed)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """Probabilities [n, classes] in the order of `classes_`, calibrated if `calibrate` was called."""
        check_is_fitted(self)
        return self.network_.proba(validate_data(self, X, dtype=np.float64, reset=False))

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """The likeliest class of each row."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def calibrate(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:  # noqa: N803
        """A copy whose temperature and bias make its probabilities fit rows that it did not learn from.

        Vector scaling with one temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks"), by maximum
        likelihood under a standard normal prior on the bias and on the temperature's logarithm, so that a few rows
        that are all predicted right do not make it sure of everything. An earlier calibration is replaced.
        """
        check_is_fitted(self)
        rows, labels = check_array(X, dtype=np.float64), np.asarray(y)
        check_consistent_length(rows, labels)
        if unknown := sorted(set(labels.tolist()) - set(self.classes_.tolist()), key=str):
            raise OptionError(f"labels hold the class {unknown[0]!r}; accepted: {', '.join(map(str, self.classes_))}")
        logits = self.network_.logits(rows).astype(np.float64)
        codes, weights = np.searchsorted(self.classes_, labels), _weights(sample_weight, len(rows))

        def cost(parameters: Floats) -> float:
            stated = logits * np.exp(-parameters[0]) + parameters[1:]
            return float(weights @ _losses(stated, codes) + parameters @ parameters / 2)

        found = minimize(cost, np.zeros(1 + len(self.classes_)), method="L-BFGS-B").x
        calibrated = copy.copy(self)
        calibrated.network_ = replace(self.network_, temperature=np.exp(found[0]), bias=found[1:])
        return calibrated

    def to_network(self) -> Network:
        """What was learnt, free of scikit-learn; raises NotFittedError."""
        check_is_fitted(self)
        return self.network_

    @classmethod
    def from_network(cls, network: Network, classes: ArrayLike) -> Self:
        """A fitted estimator that predicts what `network` says; classes: sorted, as `classes_` is."""
        names = np.asarray(classes)
        if len(names) != network.classes or not np.array_equal(names, np.unique(names)):
            raise OptionError(f"classes are {names.tolist()}; accepted: {network.classes} different ones, sorted")
        made = cls()
        made.classes_, made.n_features_in_, made.network_ = names, network.inputs, network
        return made

    def _check_options(self) -> None:
        for name in ("hidden", "epochs"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; accepted: 1 or more")
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out is {self.held_out}; accepted: a share between 0 and 1")
        if not self.weight_decays or min(self.weight_decays) < 0:
            raise OptionError(f"weight_decays are {self.weight_decays}; accepted: one or more, none below 0")


@dataclass(frozen=True, slots=True)
class _Data:
    """Rows to learn from, with the code of the class, the weight and the question of each."""

    rows: Floats
    codes: NDArray[np.intp]
    weights: Floats
    questions: NDArray[np.intp]
    classes: int

    def part(self, mask: NDArray[np.bool_]) -> _Data:
        return _Data(self.rows[mask], self.codes[mask], self.weights[mask], self.questions[mask], self.classes)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to train; `loss` is what the held-out rows said of it."""

    strength: float
    decay: float = 0.0
    epochs: int = 0
    loss: float | None = None


def _weights(sample_weight: ArrayLike | None, n: int) -> Floats:
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise OptionError(f"sample_weight has shape {weights.shape}; accepted: {n} finite numbers, none below 0")
    if not weights.any():
        raise OptionError("every sample_weight is zero; accepted: at least one weight above 0")
    return weights


def _questions(rows: Floats, groups: NDArray[Any] | None) -> NDArray[np.intp]:
    if groups is None:
        return np.unique(rows, axis=0, return_inverse=True)[1].ravel()
    return np.unique(groups, return_inverse=True)[1]


def _held_out(questions: NDArray[np.intp], codes: NDArray[np.intp], share: float, seed: int) -> NDArray[np.bool_]:
    """Rows of a share of the questions, every class being left on the other side; none where questions are few."""
    n = int(questions.max()) + 1
    table = np.zeros((n, int(codes.max()) + 1))
    np.add.at(table, (questions, codes), 1)
    left, drawn = table.sum(axis=0), np.zeros(n, bool)
    for question in np.random.default_rng(seed).permutation(n):
        if drawn.sum() < max(2, share * n) and (left > table[question]).all():
            left -= table[question]
            drawn[question] = True
    enough = n >= FEW_GROUPS and drawn.sum() > 1
    return drawn[questions] & enough


def _standard(data: _Data) -> tuple[Floats, Floats]:
    """Mean, and gain: 1 / deviation, or 0 where a column varies by no more than float32 can tell."""
    mean = np.average(data.rows, axis=0, weights=data.weights)
    deviation = np.sqrt(np.average((data.rows - mean) ** 2, axis=0, weights=data.weights))
    varies = deviation > np.maximum(1e-6 * np.abs(mean), 1e-30)
    return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def _scaled(rows: Floats, mean: Floats, gain: Floats) -> Floats:
    return np.clip((rows - mean) * gain, -CLIP, CLIP)


def _start(scaled: Floats, data: _Data, strength: float, hidden: int, seed: int) -> list[Single]:
    """Logistic regression as two layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # no harm: its loss is judged on held-out questions
        found = LogisticRegression(C=strength, max_iter=300).fit(scaled, data.codes, data.weights)
    weights, bias = found.coef_.T, found.intercept_
    if data.classes == 2:
        weights, bias = np.hstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return get_layers(weights, bias, hidden, seed)


def _descent(scaled: Floats, data: _Data, start: list[Single], plan: _Plan, seed: int) -> Iterator[list[Single]]:
    targets, weights = np.eye(data.classes, dtype=np.float32)[data.codes], data.weights.astype(np.float32)
    return descent(scaled.astype(np.float32), targets, weights, start, plan.decay, plan.epochs, seed)


def _losses(logits: NDArray[Any], codes: NDArray[np.intp]) -> Floats:
    return np.asarray(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(codes)), codes])


def _planned(learnt: _Data, held: _Data, settings: ProbeClassifier, seed: int) -> _Plan:
    """What the held-out rows like best, logistic regression unless another is better by more than a standard error."""
    mean, gain = _standard(learnt)
    scaled, held_scaled = _scaled(learnt.rows, mean, gain), _scaled(held.rows, mean, gain).astype(np.float32)

    def losses(layers: list[Single]) -> Floats:
        return _losses(forward(held_scaled, layers), held.codes) * held.weights

    starts = {strength: _start(scaled, learnt, strength, settings.hidden, seed) for strength in STRENGTHS}
    strength = min(STRENGTHS, key=lambda strength: losses(starts[strength]).mean())
    start, start_losses = starts[strength], losses(starts[strength])
    plan = best = _Plan(strength, loss=float(start_losses.mean()))
    best_losses = start_losses
    for decay in settings.weight_decays:
        lowest, waited = np.inf, 0
        tried = _Plan(strength, decay, settings.epochs)
        for epoch, layers in enumerate(_descent(scaled, learnt, start, tried, seed), 1):
            now = losses(layers)
            lowest, waited = (now.mean(), 0) if now.mean() < lowest else (lowest, waited + 1)
            if now.mean() < best_losses.mean():
                best, best_losses = _Plan(strength, decay, epoch, float(now.mean())), now
            if waited == PATIENCE:
                break
    gained = np.bincount(held.questions, start_losses - best_losses)[np.unique(held.questions)]
    return best if gained.sum() > np.sqrt(len(gained)) * gained.std(ddof=1) else plan


def _trained(data: _Data, plan: _Plan, hidden: int, seed: int) -> Network:
    mean, gain = _standard(data)
    scaled = _scaled(data.rows, mean, gain)
    layers = _start(scaled, data, plan.strength, hidden if plan.epochs else 0, seed)
    for trained in _descent(scaled, data, layers, plan, seed):
        layers = trained
    numbers = (mean, gain, *layers, 1.0, np.zeros(data.classes))
    return Network(*(np.asarray(number, np.float32) for number in numbers))
