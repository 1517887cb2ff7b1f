"""VSRM (arXiv 2508.10293): reward every thinking step by how much it changed the probability of a right answer.

The probability is estimated by ending the thinking at a cut a few times; it is also the baseline of Reinforce, in place
of a critic. Cues and constants are the paper's. The paper rewards a step at its first token; we do at its last, so that
the returns of the step's own tokens include it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import Field

from ...controller.types import Request, SamplingParams
from ...evaluation.runner import batch_seed, tokens_until
from ...io import write
from ..config import AlwaysThinks, Recipe, Section
from ..preflight import ONE_MODEL, CheckedRecipe, ResidentModels, check_recipe
from ..processes import rank0_only
from ..rewards import NO_THINK, Correctness
from ..rollouts import GroupRollouts
from ..sampling import CompletionRequest, Rollout, RolloutSampler
from ..training_run import TrainingRun
from . import Method

CUES = (
    *("wait", "but", "alternatively", "however", "hmm", "let me double-check", "but wait", "hold on", "looking back"),
    *("seems solid", "similarly", "that's correct but", "that seems right", "wait but", "So"),
)
"""Words that begin a step; those in lower case also match capitalised."""
_FORMS = {form for cue in CUES for form in (cue, cue[:1].upper() + cue[1:])}
_CUE = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(_FORMS, key=len, reverse=True)))})\b")
FLOOR, SPACING = 1000, 400  # characters before the first cut, and between two
LOOK_AHEAD, DECAY = 4, 0.7
_NO_CHANGE = 1e-5
_SENTENCE_END = re.compile(r"[.!?\n]\s*")


class Vsrm(Section):
    """Settings."""

    answers: int = Field(default=5, ge=1)  # sampled at each cut, with at most `answer_tokens` tokens each
    answer_tokens: int = Field(default=64, ge=2)
    temperature: float = Field(default=0.6, gt=0)
    floor: int = Field(default=FLOOR, ge=0)  # characters before the first cut
    spacing: int = Field(default=SPACING, ge=1)  # characters between two cuts
    look_ahead: int = Field(default=LOOK_AHEAD, ge=0)  # steps whose effect one without effect shares in
    unfinished_penalty: float = Field(default=10.0, ge=0)  # without an answer; ten in the authors' code
    ineffective_penalty: float = Field(default=0.0, ge=0)  # without effect if right already; 0 in the paper
    train: bool = True  # if False, only analyse `samples` completions per question and write analysis.json
    samples: int = Field(default=1, ge=1)


class VsrmRecipe(Recipe):
    """The recipe of this method."""

    vsrm: Vsrm = Vsrm()
    alarm: AlwaysThinks = AlwaysThinks()


def find_cuts(thinking: str, floor: int = FLOOR, spacing: int = SPACING) -> list[int]:
    """The characters at which the thinking is cut into steps, each after the last sentence before a cue."""
    ends = [match.end() for match in _SENTENCE_END.finditer(thinking)]
    cuts: list[int] = []
    for cue in _CUE.finditer(thinking, floor):
        cut = max((end for end in ends if end <= cue.start()), default=0)
        if 0 < cut < len(thinking.rstrip()) and cut - (cuts[-1] if cuts else -spacing) >= spacing:
            cuts.append(cut)
    return cuts


def step_rewards(accuracies: Sequence[float], look_ahead: int = LOOK_AHEAD, penalty: float = 0.0) -> list[float]:
    """The reward of each step between two cuts, from the accuracy at each cut, the last being the end of the thinking.

    A step without effect gets a discounted share of the effect within the next `look_ahead` steps. If there is none,
    and the answer was right at least half of the time, it gets minus `penalty`.
    """
    changes = [after - before for before, after in pairwise(accuracies)]
    rewards = [_step_reward(accuracies, changes, step, look_ahead) for step in range(len(changes))]
    return [-penalty if not r and before >= 0.5 else r for before, r in zip(accuracies, rewards, strict=False)]


def _step_reward(accuracies: Sequence[float], changes: Sequence[float], step: int, look_ahead: int) -> float:
    for later in range(step, len(changes)):
        if abs(changes[later]) >= _NO_CHANGE:
            return changes[later] * DECAY ** (later - step)
        if later - step == look_ahead:
            return 0.0
    return float((accuracies[-1] - accuracies[step]) * DECAY ** (len(changes) - step - 1))


class AccuracyCurve(NamedTuple):
    """The accuracy of a completion if its thinking ended before each of these tokens, the last being its own end."""

    positions: tuple[int, ...]
    accuracies: tuple[float, ...]

    @property
    def settled(self) -> int:
        """The first position at which ending is as good as thinking on, within 0.1; thinking after it is wasted."""
        pairs = zip(self.positions, self.accuracies, strict=True)
        return next(position for position, accuracy in pairs if accuracy >= self.accuracies[-1] - 0.1)


class StepRollouts(GroupRollouts):
    """Free completions with the rewards of their steps and the accuracies at their cuts."""

    def __init__(self, sampler: RolloutSampler, settings: Vsrm, correct: Correctness, seed: int) -> None:
        super().__init__(sampler, seed)
        self.settings, self.correct = settings, correct
        self.codec, self.markers = sampler.session.codec, sampler.session.markers

    def extra_columns(
        self, rollouts: Sequence[Rollout], rows: Sequence[Mapping[str, Any]], seed: int
    ) -> dict[str, list[Any]]:
        """See `GroupRollouts.extra_columns` and `AdaptiveTrainer._token_advantages`."""
        settings, curves, rewards = self.settings, self.measure(rollouts, rows, seed), []
        for rollout, curve in zip(rollouts, curves, strict=True):
            worth = step_rewards(curve.accuracies, settings.look_ahead, settings.ineffective_penalty)
            # At the last token of each step.
            steps = [(position - 1, reward) for position, reward in zip(curve.positions[1:], worth, strict=True)]
            if rollout.finish_reason == "length" or not rollout.response:
                steps.append((len(rollout.ids) - 1, -settings.unfinished_penalty))
            rewards.append(steps)
        return {"token_rewards": rewards, "token_values": [list(zip(*curve, strict=True)) for curve in curves]}

    def measure(self, rollouts: Sequence[Rollout], rows: Sequence[Mapping[str, Any]], seed: int) -> list[AccuracyCurve]:
        """The accuracy curve of each completion, by answers sampled at its cuts.

        It is empty for a completion that did not think, or did not finish its thinking.
        """
        repeats = self.settings.answers
        positions = [self._find_positions(rollout) for rollout in rollouts]
        closing = self.codec.encode(f"{self.markers.close}{self.markers.close_suffix}")
        requests, sources = [], []
        for number, (rollout, cuts) in enumerate(zip(rollouts, positions, strict=True)):
            for cut in cuts:
                prompt = (*rollout.prompt_ids, *rollout.ids[:cut], *closing)
                requests += [Request(prompt, self.settings.answer_tokens)] * repeats
                sources += [number] * repeats
        completions = self.sampler.decode_batches(
            requests,
            lambda at: SamplingParams(
                self.settings.temperature, 0.95, 0, batch_seed("answers", seed, at), inverse_cdf=True
            ),
        )
        right = [
            self.correct.is_right(
                rows[number]["answer"], self.codec.decode(completion.token_ids).strip(), rows[number]["gym_entry"]
            )
            for number, completion in zip(sources, completions, strict=True)
        ]
        shares = (fmean(map(float, right[at : at + repeats])) for at in range(0, len(right), repeats))
        return [AccuracyCurve(tuple(cuts), tuple(islice(shares, len(cuts)))) for cuts in positions]

    def _find_positions(self, rollout: Rollout) -> list[int]:
        """Tokens before each cut, and last those before the closing marker."""
        if rollout.mode == NO_THINK or not rollout.response:
            return []
        text = self.codec.decode(rollout.ids[: rollout.thinking_tokens])
        text = text[: text.index(self.markers.close)]
        cuts = [*find_cuts(text, self.settings.floor, self.settings.spacing), len(text.rstrip())]
        return list(dict.fromkeys(tokens_until(rollout.ids, self.codec, cut) for cut in cuts))


def _validate(recipe: VsrmRecipe) -> CheckedRecipe:
    return check_recipe(recipe, resident=ONE_MODEL if recipe.vsrm.train else ResidentModels(trained="nothing"))


def _train(run: TrainingRun[VsrmRecipe]) -> None:
    recipe = run.recipe
    with Correctness(run.checked.markers.close) as correct:
        rollouts = StepRollouts(run.make_sampler(), recipe.vsrm, correct, recipe.seed)
        if not recipe.vsrm.train:
            found = rank0_only(lambda: analyse(rollouts, run.checked.rows, recipe))
            run.log(
                f"{found['wasted']:.1%} of {found['thinking_tokens']:.0f} thinking tokens came after the answer was "
                f"settled ({found['completions']} completions, {found['cuts']:.1f} cuts each)"
            )
            return
        run.train_grpo(rollouts, [correct], credit="tokens", alarm=recipe.alarm, loss_type="dapo")


def analyse(sampled: StepRollouts, rows: Sequence[Mapping[str, Any]], recipe: VsrmRecipe) -> dict[str, Any]:
    """Find where the thinking was settled, over all completions that thought and answered; write analysis.json."""
    repeated = [row for row in rows for _ in range(recipe.vsrm.samples)]
    rollouts = sampled.sampler([CompletionRequest(row["prompt"], row["tier"]) for row in repeated], recipe.seed)
    all_curves = zip(repeated, sampled.measure(rollouts, repeated, recipe.seed), strict=True)
    curves = [(row, curve) for row, curve in all_curves if curve.positions]
    tokens = sum(curve.positions[-1] for _, curve in curves)
    found = {
        "completions": len(curves),
        "without": len(rollouts) - len(curves),
        "cuts": fmean(len(curve.positions) - 1 for _, curve in curves) if curves else 0.0,
        "thinking_tokens": tokens / len(curves) if curves else 0.0,
        "wasted": sum(curve.positions[-1] - curve.settled for _, curve in curves) / tokens if tokens else 0.0,
        "details": [
            {"id": row["id"], "tokens": curve.positions[-1], "settled": curve.settled, "chances": curve.accuracies}
            for row, curve in curves
        ],
    }
    write(recipe.out / "analysis.json", json.dumps(found, indent=1) + "\n")
    return found


METHOD = Method(recipe=VsrmRecipe, validate=_validate, train=_train)
