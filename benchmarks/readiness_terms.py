"""Whether two more terms would help the readiness probe, by cross-validation on a collection of `tersely collect`.

A prior, after CASENT (arXiv 2311.00835): how probable the trial answer was at the first trial, or without trials how
uncertain the first thought was. A belief over easy, normal and hard, the idea of Distribution Transformers (arXiv
2502.02463): learnt likelihoods of each thought and of the length so far update what the prompt's hidden state says.
The tiers are thirds of the rollouts by length. Gains are above 0 where a term helps, with 95 % intervals.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import make_parser, print_figures
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from tersely.evaluation.stats import studentized_bootstrap
from tersely.probes.calibrate.data import Boundaries, read_boundaries
from tersely.probes.calibrate.readiness import make_examples
from tersely.probes.estimator import fit_calibrated
from tersely.probes.records import read_records
from tersely.probes.risk_control import Outcomes, oracle_threshold
from tersely.probes.rule import FEATURES, HOPEFUL, trial_features

Array = NDArray[Any]
THOUGHT = [FEATURES.index(name) for name in FEATURES[2:11] if name != "mean entropy so far"]
UNCERTAINTY = [FEATURES.index("mean entropy of the thought"), FEATURES.index(FEATURES[-1])]
TIERS, RESAMPLES = 3, 400


def main(argv: list[str] | None = None) -> None:
    """Score every boundary out of its fold with and without each term, and print what the terms change."""
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder of `tersely collect`, with tier normal")
    parser.add_argument("--folds", type=int, default=5, help="parts of the questions (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.02, help="share of questions harmed (default: %(default)s)")
    options = parser.parse_args(argv)
    records = read_records(options.data)
    data, states = read_boundaries(records, -1), records["questions.state.-1"]
    owners = {text: i for i, text in enumerate(records.texts["hash"])}
    prompts = states[[owners[text] for text in data.question]]  # by boundary
    first = np.searchsorted(data.rollout, data.rollout)
    fold = (np.random.default_rng(0).permutation(len(data.full)) % options.folds)[data.rollout]
    doubt = data.rows[:, UNCERTAINTY]
    terms = {"free": np.zeros((len(data), 0)), "free+prior": np.hstack([doubt[first], doubt - doubt[first]])}
    terms["trial"], terms["trial+prior"] = add_trials(data, first)
    scores = {name: np.zeros(len(data)) for name in (*terms, "free+belief")}
    for held in range(options.folds):
        out, tune = fold == held, fold == (held + 1) % options.folds
        terms["free+belief"] = follow_belief(data, prompts, first, ~out & ~tune)
        for name, columns in terms.items():
            examples = make_examples(replace(data, rows=np.hstack([data.rows, columns]).astype(np.float32)))
            probe = fit_calibrated(examples.select(~out & ~tune), examples.select(tune), seed=0)
            scores[name][out] = 1 - probe.predict_proba(examples.rows[out])[:, list(probe.classes_).index(HOPEFUL)]
    figures: dict[str, Any] = {"questions": len(data.full), "boundaries": len(data)}
    losses = {name: measure_losses(data, score) for name, score in scores.items()}
    for name, score in scores.items():
        base, saved = name.split("+")[0], oracle_threshold(data.outcomes(score), options.alpha)[2]
        figures[name] = {"log_loss": round(float(losses[name].mean()), 4), "saved": round(saved, 4)}
        if base != name:
            gain = studentized_bootstrap(losses[base] - losses[name])
            figures[name]["log_loss_gain"] = [round(end, 4) for end in (gain.estimate, gain.low, gain.high)]
            figures[name]["saved_gain"] = compare_savings(data, scores[base], score, options.alpha)
    print_figures(figures, options.json)


def add_trials(data: Boundaries, first: Array) -> tuple[Array, Array]:
    """The features of a trial at every boundary, and with them what the first trial says of its answer."""
    answers = [data.trial_answer[start : i + 1].tolist() for i, start in enumerate(first)]
    rows = [trial_features(a, float(data.confidence[i]), data.latest_stated(i)) for i, a in enumerate(answers)]
    p = np.clip(data.confidence, 1e-6, 1 - 1e-6)
    prior = np.log(np.where(data.trial_answer == data.trial_answer[first], p[first], 1 - p[first]))
    return np.array(rows), np.column_stack([rows, prior, np.log(p) - prior])


def follow_belief(data: Boundaries, prompts: Array, first: Array, learn: NDArray[np.bool_]) -> Array:
    """The log belief in each tier at each boundary [n, 3], learnt from some of them; thoughts are Gaussian."""
    thoughts, full = data.rows[:, THOUGHT].astype(float), data.full[data.rollout]
    tier = np.searchsorted(np.quantile(data.full, [1 / 3, 2 / 3]), full)
    start = learn & (first == np.arange(len(first)))
    log = LogisticRegression(C=0.01, max_iter=300).fit(prompts[start], tier[start]).predict_log_proba(prompts)
    for t in range(TIERS):
        rows = learn & (tier == t)
        mean, scale = thoughts[rows].mean(axis=0), thoughts[rows].std(axis=0) + 0.05
        each = -(((thoughts - mean) / scale) ** 2 / 2 + np.log(scale)).mean(axis=1)  # they are far from independent
        totals = np.append(0, np.cumsum(each))
        lengths = np.sort(full[start & rows])
        survival = (len(lengths) - np.searchsorted(lengths, data.end) + 1) / (len(lengths) + 1)
        log[:, t] += totals[1:] - totals[first] + np.log(survival)
    return np.asarray(log - np.logaddexp.reduce(log, axis=1, keepdims=True))


def measure_losses(data: Boundaries, score: Array) -> Array:
    """The log loss of a score at the boundaries of each rollout that has some."""
    loss = -np.log(np.clip(np.where(data.final & ~data.now, 1 - score, score), 1e-6, 1))
    counts = np.bincount(data.rollout)
    return np.asarray((np.bincount(data.rollout, loss) / np.maximum(counts, 1))[counts > 0])


def compare_savings(data: Boundaries, base: Array, score: Array, alpha: float) -> list[float]:
    """How much more of the tokens a score saves at the same harm, with its bootstrap interval over questions."""
    pair, rng, n = [data.outcomes(one) for one in (base, score)], np.random.default_rng(0), len(data.full)

    def gain(chosen: Array) -> float:
        rows = np.concatenate([np.arange(*pair[0].offsets[q : q + 2]) for q in chosen])
        offsets = np.append(0, np.cumsum(np.diff(pair[0].offsets)[chosen]))
        drawn = (Outcomes(offsets, o.score[rows], o.harm[rows], o.saved[rows], o.full[chosen]) for o in pair)
        return float(np.diff([oracle_threshold(one, alpha)[2] for one in drawn])[0])

    gains = [gain(rng.integers(n, size=n)) for _ in range(RESAMPLES)]
    return [round(float(end), 4) for end in (gain(np.arange(n)), *np.quantile(gains, [0.025, 0.975]))]


if __name__ == "__main__":
    main()
