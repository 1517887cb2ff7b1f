"""VSRM (arXiv 2508.10293): every step of the thinking is paid what it changed in the chance of being right.

The chance at a cut is found by ending the thinking there a few times. Training is Reinforce, token by token, by what is
still to come, and the same chances are its baseline, in the place of a critic. With `train: false` nothing is trained,
and they say where thinking was wasted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pydantic import Field

from ...controller.types import Request, SamplingParams
from ...evaluation.runner import batch_seed
from ...evaluation.trace_analysis import tokens_until
from ...io import write
from ..config import AlwaysThinks, Recipe, Section
from ..data import schedule
from ..memory import ALONE, ResidentModels
from ..preflight import CheckedRecipe, check
from ..processes import rank0_only
from ..rewards import Correctness
from ..rewards.base import NO_THINK
from ..rewards.stepwise import FLOOR, LOOK_AHEAD, SPACING, cuts, settled_at, step_rewards
from ..rollouts import GroupRollouts
from ..sampling import FREE, CompletionRequest, Rollout, Sampler, plain_sampling
from ..training_run import TrainingRun


class Vsrm(Section):
    """answers: drawn at each cut, of at most answer_tokens tokens. floor, spacing: characters before the first cut and
    between two. look_ahead: steps within which a change pays those before it that changed nothing, 0 for none of them.
    unfinished: what a completion loses that runs into its limit or has no answer; ten in the authors' code, where a
    right one earns one. ineffective: what a step loses that changes nothing while the answer is right already. It is
    ours; with 0, as in the paper, such a step earns nothing, and neither does leaving it out. train: False only
    analyses `samples` completions of each question and writes analysis.json."""

    answers: int = Field(default=5, ge=1)
    answer_tokens: int = Field(default=64, ge=2)
    temperature: float = Field(default=0.6, gt=0)
    floor: int = Field(default=FLOOR, ge=0)
    spacing: int = Field(default=SPACING, ge=1)
    look_ahead: int = Field(default=LOOK_AHEAD, ge=0)
    unfinished: float = Field(default=10.0, ge=0)
    ineffective: float = Field(default=0.0, ge=0)
    train: bool = True
    samples: int = Field(default=1, ge=1)


class VsrmRecipe(Recipe):
    """The recipe of this method."""

    vsrm: Vsrm = Vsrm()
    alarm: AlwaysThinks = AlwaysThinks()


@dataclass(frozen=True, slots=True)
class StepCurve:
    """The chance of being right if a completion's thinking ended at each of these tokens, the last its own end."""

    places: tuple[int, ...]
    chances: tuple[float, ...]

    def rewards(self, own: Vsrm) -> list[tuple[int, float]]:
        """The last token of each step, and its reward; see `step_rewards`."""
        steps = zip(self.places[1:], step_rewards(self.chances, own.look_ahead, own.ineffective), strict=True)
        return [(place - 1, reward) for place, reward in steps]

    @property
    def values(self) -> list[tuple[int, float]]:
        """The first token after each cut, and the chance there."""
        return list(zip(self.places, self.chances, strict=True))

    @property
    def settled(self) -> int:
        """The token from which going on changed nothing more."""
        return self.places[settled_at(self.chances)]


class Prober:
    """Finds the curves of completions by drawing answers at their cuts."""

    def __init__(self, sampler: Sampler, own: Vsrm, correct: Correctness) -> None:
        self.sampler, self.own, self.correct = sampler, own, correct
        self.codec, self.markers = sampler.session.codec, sampler.session.markers

    def __call__(self, made: Sequence[Rollout], rows: Sequence[Mapping[str, Any]], seed: int) -> list[StepCurve]:
        """One curve for each completion; one that did not think, or did not end its thinking, has none to speak of."""
        places = [self._places(rollout) for rollout in made]
        requests, sources = [], []
        closing = self.codec.encode(f"{self.markers.close}{self.markers.close_suffix}")
        for number, (rollout, cut) in enumerate(zip(made, places, strict=True)):
            for place in cut:
                prompt = (*rollout.prompt_ids, *rollout.ids[:place], *closing)
                requests += [Request(prompt, self.own.answer_tokens)] * self.own.answers
                sources += [number] * self.own.answers
        said = self._answers(requests, seed)
        right = [
            self.correct.is_right(rows[number]["answer"], text, rows[number]["drawn"])
            for number, text in zip(sources, said, strict=True)
        ]
        curves, at = [], 0
        for cut in places:
            size = len(cut) * self.own.answers
            shares = [right[i : i + self.own.answers] for i in range(at, at + size, self.own.answers)]
            curves.append(StepCurve(tuple(cut), tuple(fmean(map(float, share)) for share in shares)))
            at += size
        return curves

    def _places(self, rollout: Rollout) -> list[int]:
        """Tokens before each cut, and last those before the closing marker."""
        if rollout.mode == NO_THINK or not rollout.response:
            return []
        text = self.codec.decode(rollout.ids[: rollout.thinking_tokens])
        text = text[: text.index(self.markers.close)]
        found = [*cuts(text, self.own.floor, self.own.spacing), len(text.rstrip())]
        return list(dict.fromkeys(tokens_until(rollout.ids, self.codec, place) for place in found))

    def _answers(self, requests: Sequence[Request], seed: int) -> list[str]:
        said: list[str] = []
        size = self.sampler.settings.batch
        with plain_sampling(self.sampler.engine.model):
            for at in range(0, len(requests), size):
                sampling = SamplingParams(self.own.temperature, 0.95, 0, batch_seed("answers", seed, at), inverse=True)
                done = self.sampler.decode(requests[at : at + size], sampling)
                said += [self.codec.decode(one.token_ids).strip() for one in done]
        return said


class StepRollouts(GroupRollouts):
    """Free completions, the rewards of their steps and the chances at their cuts: see `AdaptiveTrainer._returns`."""

    def __init__(self, sampler: Sampler, prober: Prober, size: int, seed: int) -> None:
        super().__init__(sampler, [FREE] * size, seed)
        self.prober = prober

    def more(self, made: Sequence[Rollout], rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, list[Any]]:
        """See `GroupRollouts.more`."""
        own, curves = self.prober.own, self.prober(made, rows, seed)
        rewards = [curve.rewards(own) for curve in curves]
        for rollout, steps in zip(made, rewards, strict=True):
            if rollout.finish_reason == "length" or not rollout.response:
                steps.append((len(rollout.ids) - 1, -own.unfinished))
        return {"token_rewards": rewards, "token_values": [curve.values for curve in curves]}


def validate_recipe(recipe: VsrmRecipe) -> CheckedRecipe:
    """See `checks.check`."""
    return check(recipe, held=ALONE if recipe.vsrm.train else ResidentModels(trained="nothing"))


def run(recipe: VsrmRecipe, ground: CheckedRecipe, running: TrainingRun, say: Callable[[str], None]) -> None:
    """Train, go on training, or only analyse."""
    sampler = Sampler(running.load(recipe), recipe.rollouts, ground.markers)
    with Correctness(ground.markers.close) as correct:
        prober = Prober(sampler, recipe.vsrm, correct)
        if not recipe.vsrm.train:
            rank0_only(lambda: _analysed(sampler, prober, ground.rows, recipe, say))
            return
        running.reinforce(
            recipe,
            sampler,
            StepRollouts(sampler, prober, recipe.rollouts.generations, recipe.seed),
            [correct],
            schedule(ground.rows, recipe.optimiser.steps, recipe.rollouts.prompts, recipe.seed),
            credit="tokens",
            alarm=recipe.alarm,
            options={"loss_type": "dapo"},
        )


def _analysed(
    sampler: Sampler, prober: Prober, rows: Sequence[Mapping[str, Any]], recipe: VsrmRecipe, say: Callable[[str], None]
) -> None:
    """Analyse, write it down, and say what it comes to."""
    found = analyse(sampler, prober, rows, recipe)
    write(recipe.out / "analysis.json", json.dumps(found, indent=1) + "\n")
    say(
        f"{found['wasted']:.1%} of {found['thinking_tokens']:.0f} thinking tokens came after the answer was "
        f"settled ({found['completions']} completions, {found['cuts']:.1f} cuts each)"
    )


def analyse(sampler: Sampler, prober: Prober, rows: Sequence[Mapping[str, Any]], recipe: VsrmRecipe) -> dict[str, Any]:
    """Where the thinking of these questions was settled: shares over completions that thought and answered."""
    asked = [row for row in rows for _ in range(recipe.vsrm.samples)]
    made = sampler([CompletionRequest(row["prompt"], row["tier"]) for row in asked], recipe.seed)
    curves = prober(made, asked, recipe.seed)
    whole = [(row, rollout, curve) for row, rollout, curve in zip(asked, made, curves, strict=True) if curve.places]
    details = [
        {"id": row["id"], "tokens": curve.places[-1], "settled": curve.settled, "chances": curve.chances}
        for row, _, curve in whole
    ]
    tokens = sum(curve.places[-1] for _, _, curve in whole)
    return {
        "completions": len(whole),
        "without": len(made) - len(whole),
        "cuts": fmean(len(curve.places) - 1 for _, _, curve in whole) if whole else 0.0,
        "thinking_tokens": tokens / len(whole) if whole else 0.0,
        "wasted": sum(curve.places[-1] - curve.settled for _, _, curve in whole) / tokens if tokens else 0.0,
        "details": details,
    }


RECIPE = VsrmRecipe
