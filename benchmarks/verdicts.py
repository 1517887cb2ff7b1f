"""Coverage of the evaluation's intervals, and accuracy of its verdict, on simulated arms with planted effects.

Every simulated benchmark has `n` questions. In `shared` worlds, some questions are hard for both arms; in `rare` worlds
the arms differ on few answers, as with greedy decoding. Each figure is a share of all simulations.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tersely.evaluation.bench.compare import GOOD, INFERIOR, OPEN, WASTEFUL, judge
from tersely.evaluation.stats import (
    Array,
    Interval,
    iso_saving,
    paired_bootstrap,
    rate_interval,
    ratio_bootstrap,
    studentized_bootstrap,
)
from tersely.probes.stats import binomial_upper_bound

RIGHT = 0.7
"""Accuracy of the baseline, unless the world is `rare`."""
TOKENS = 300.0
"""Mean tokens of the baseline."""
CUTS = np.array([0.15, 0.3, 0.45, 0.6, 0.8, 1.0])
"""Budgets of the curve, as shares of the baseline's tokens."""
PRESERVED = np.array([0.35, 0.6, 0.75, 0.85, 0.95, 1.0])
"""Share of right answers that each budget preserves."""
INDEPENDENT = 0.15
"""Share of questions whose difficulty is independent between the arms."""
_BETA = (0.7, 0.3)


@dataclass(frozen=True, slots=True)
class World:
    """A simulated world and its true effects.

    Attributes:
        name: Name in the table.
        n: Questions.
        rollouts: Generations per question and arm.
        shared: Whether the difficulty of questions is shared by the arms.
        discordance: Share of answers on which the arms differ; None draws them independently, given the question.
        skewed: Whether the arm's token ratio is skewed rather than spread around its mean.
        delta: True change of accuracy.
        saving: True saving of tokens.
    """

    name: str
    n: int
    rollouts: int = 1
    shared: bool = True
    discordance: float | None = None
    skewed: bool = False
    delta: float = -0.04
    saving: float = 0.3

    @property
    def base_right(self) -> float:
        """The baseline's true accuracy."""
        rare = self.discordance
        return RIGHT if rare is None else (rare - self.delta) / 2 + (1 - rare) * RIGHT

    @property
    def harm(self) -> float:
        """True share of questions that only the baseline answers correctly."""
        if self.discordance is not None:
            return (self.discordance - self.delta) / 2
        a, b = _BETA
        spread = a * b / (a + b + 1) if self.shared else 0.0  # a + b = 1
        both = (RIGHT**2 + (1 - INDEPENDENT) * spread) * (1 + self.delta / RIGHT)
        return RIGHT - both

    @property
    def iso_saving(self) -> float:
        """True saving against the curve of budgets at the arm's accuracy."""
        share = np.interp((self.base_right + self.delta) / self.base_right, PRESERVED, np.log(CUTS))
        return 1 - (1 - self.saving) / float(np.exp(share))


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated benchmark: right answers and tokens of both arms, [questions, rollouts]."""

    base_right: Array
    our_right: Array
    base_tokens: Array
    our_tokens: Array


def draw(world: World, rng: np.random.Generator) -> Run:
    """Simulate one benchmark."""
    shape = (world.n, world.rollouts)
    luck = rng.random(shape)
    chance = _chances(world, rng)[:, None]
    if world.discordance is None:
        theirs = np.where(rng.random((world.n, 1)) < INDEPENDENT, _chances(world, rng)[:, None], chance)
        base, ours = luck < chance, rng.random(shape) < theirs * (1 + world.delta / RIGHT)
    else:
        turn, lost = rng.random(shape), (world.discordance - world.delta) / 2
        agree = turn >= world.discordance
        base, ours = np.where(agree, luck < chance, turn < lost), np.where(agree, luck < chance, turn >= lost)
    base_tokens = TOKENS * _lognormal(rng, 0.7, (world.n, 1)) * _lognormal(rng, 0.3, shape)
    if world.skewed:  # most questions are cut short, some are not, and some take longer
        ratio = rng.choice([0.25, 0.8, 1.0, 1.8], p=[0.4, 0.3, 0.2, 0.1], size=(world.n, 1)) / 0.72
    else:
        ratio = rng.beta(7, 3, (world.n, 1)) / 0.7
    our_tokens = base_tokens * (1 - world.saving) * ratio * _lognormal(rng, 0.2, shape)
    return Run(base.astype(float), ours.astype(float), base_tokens, our_tokens)


def _chances(world: World, rng: np.random.Generator) -> Array:
    return rng.beta(*_BETA, world.n) if world.shared else np.full(world.n, RIGHT)


def _lognormal(rng: np.random.Generator, sigma: float, shape: tuple[int, ...]) -> Array:
    """Skewed factors of mean 1."""
    return np.exp(sigma * rng.standard_normal(shape) - sigma**2 / 2)


def against_curve(world: World, run: Run, rng: np.random.Generator, resamples: int, seed: int) -> Interval:
    """The iso-accuracy saving against budgets that truncate the baseline."""
    reach = rng.random(run.base_right.shape)
    tokens = [cut * run.base_tokens.mean(axis=1) for cut in CUTS]
    right = [(run.base_right * (reach < kept)).mean(axis=1) for kept in PRESERVED]
    ours = run.our_tokens.mean(axis=1), run.our_right.mean(axis=1)
    found = iso_saving(tokens, right, *ours, resamples=resamples, seed=seed)
    low, high = found["iso_saving_ci"] or (-np.inf, 1.0)
    return Interval(np.nan if found["iso_saving"] is None else found["iso_saving"], low, high)


def intervals(
    world: World, run: Run, rng: np.random.Generator, resamples: int, seed: int
) -> Iterable[tuple[str, Interval, float]]:
    """Name, interval and true value of every figure of one benchmark."""
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    accuracy = paired_bootstrap(run.our_right - run.base_right, **options)
    tokens = studentized_bootstrap(run.our_tokens - run.base_tokens, **options)
    harm = (run.base_right * (1 - run.our_right)).mean(axis=1)
    most_harm = Interval(float(harm.mean()), 0.0, binomial_upper_bound(float(harm.sum()), world.n, 0.05))
    yield "accuracy", rate_interval(run.our_right), world.base_right + world.delta
    yield "delta_accuracy", accuracy, world.delta
    yield "delta_total", tokens, -world.saving * TOKENS
    yield "saving", ratio_bootstrap(run.our_tokens, run.base_tokens, **options), world.saving
    yield "iso_saving", against_curve(world, run, rng, resamples, seed), world.iso_saving
    yield "harm_upper", most_harm, world.harm


def coverage(world: World, sims: int, resamples: int) -> dict[str, float]:
    """How often each interval covers the truth; an undefined one counts as covering it."""
    rng, held = np.random.default_rng(1), Counter[str]()
    for seed in range(sims):
        for name, found, truth in intervals(world, draw(world, rng), rng, resamples, seed):
            held[name] += found.low <= truth <= found.high
    return {name: count / sims for name, count in held.items()}


def verdicts(world: World, margin: float, sims: int, resamples: int) -> dict[str, float]:
    """How often each verdict is reached."""
    rng, words = np.random.default_rng(2), Counter[str](dict.fromkeys((GOOD, INFERIOR, WASTEFUL, OPEN), 0))
    for seed in range(sims):
        run = draw(world, rng)
        right = (run.our_right - run.base_right).mean(axis=1)
        tokens = (run.our_tokens - run.base_tokens).mean(axis=1)
        right_ci = paired_bootstrap(right, resamples=resamples, seed=seed)
        tokens_ci = studentized_bootstrap(tokens, resamples=resamples, seed=seed)
        words[judge(right, right_ci, tokens, tokens_ci, margin).word] += 1
    return {word: count / sims for word, count in words.items()}


WORLDS = (
    World("apart", 400, shared=False),
    World("shared", 100),
    World("shared", 100, rollouts=4, skewed=True),
    World("shared", 400),
    World("shared", 400, rollouts=4, skewed=True),
    World("shared", 1000, rollouts=4),
    World("rare 2 %", 500, discordance=0.02, delta=-0.01, skewed=True),
    World("rare 1 %", 1000, rollouts=4, discordance=0.01, delta=-0.005),
    World("rare 0.5 %", 2000, discordance=0.005, delta=-0.0025),
)
EDGES = (
    (World("apart", 400, shared=False), 0.05),
    (World("shared", 100), 0.1),
    (World("shared", 400), 0.05),
    (World("shared", 400, rollouts=4, skewed=True), 0.03),
    (World("rare 2 %", 600, discordance=0.02), 0.02),
    (World("rare 2 %", 1000, discordance=0.02), 0.01),
    (World("rare 1 %", 800, discordance=0.01), 0.01),
    (World("rare 1 %", 1000, rollouts=4, discordance=0.01), 0.01),
)


def cases(world: World, margin: float) -> dict[str, World]:
    """The true effects for which a world's verdict is simulated."""

    def at(delta: float, saving: float = 0.3) -> World:
        rare = world.discordance
        return replace(world, delta=delta, saving=saving, discordance=rare and max(rare, -delta))

    return {"at the margin": at(-margin), "beyond it": at(-2 * margin), "no loss": at(0.0), "no saving": at(0.0, 0.0)}


def measure(sims: int, resamples: int) -> dict[str, Any]:
    """Coverage in all worlds and verdicts at all margins, on all cores."""
    edges = [(at, margin, truth) for world, margin in EDGES for truth, at in cases(world, margin).items()]
    with ProcessPoolExecutor() as pool:
        covered = [pool.submit(coverage, world, sims, resamples) for world in WORLDS]
        judged = [pool.submit(verdicts, at, margin, sims, resamples) for at, margin, _ in edges]
        return {
            "sims": sims,
            "resamples": resamples,
            "coverage": [
                {**_setting(world), "covered": found.result()} for world, found in zip(WORLDS, covered, strict=True)
            ],
            "verdicts": [
                {**_setting(at), "margin": margin, "truth": truth, "verdicts": found.result()}
                for (at, margin, truth), found in zip(edges, judged, strict=True)
            ],
        }


def _setting(world: World) -> dict[str, Any]:
    ratio = "skewed" if world.skewed else "even"
    return {"world": world.name, "n": world.n, "rollouts": world.rollouts, "ratio": ratio}


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print both tables."""
    for key, cells in (("coverage", "covered"), ("verdicts", "verdicts")):
        rows = found[key]
        table = Table(*[name for name in rows[0] if name != cells], *rows[0][cells], box=None, pad_edge=False)
        for row in rows:
            setting = [
                f"{value:g}" if isinstance(value, float) else str(value) for name, value in row.items() if name != cells
            ]
            table.add_row(*setting, *(f"{100 * share:.1f}" for share in row[cells].values()))
        console.print(f"\n{key}, % of {found['sims']} simulations")
        console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=1000, help="simulations per row (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=500, help="resamples of each bootstrap (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    found = measure(options.sims, options.resamples)
    if options.json:
        print(json.dumps(found))
    else:
        show(found, Console(width=160))


if __name__ == "__main__":
    main()
