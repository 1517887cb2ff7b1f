"""Route, then align: the first stage of A2FM (arXiv 2510.12838), which teaches each mode for the questions it is for.

A policy that never begins a completion without thinking has nothing to choose from, and reinforcement that leaves
forced beginnings out of the loss cannot teach it to. So it first learns, by its own right completions, the cheapest
mode that does. The paper has larger models for teachers, and has it learn whole answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from ...controller.engines.transformers.engine import load_engine
from ...io import write
from ..config import Optimiser, Recipe, RecipeError, Section
from ..data import Row
from ..episodes import TrainingEpisode
from ..offline import train_sft
from ..processes import rank0_only, resumable_map
from ..rewards.base import NO_THINK
from ..run_dir import CHANGEABLE
from ..sampling import CompletionRequest, Sampler
from ..saving import MODEL
from ..traces import SampledTrace
from ..training_run import TrainingRun

DONE = "aligned.json"
Play = Callable[[Sequence[CompletionRequest], Sequence[Row], int], list[TrainingEpisode]]
Judge = Callable[[TrainingEpisode], bool]


class Align(Section):
    """samples: of each question in each mode. least: the share of right ones from which a mode does.

    optimiser: how the chosen completions are learnt.
    """

    samples: int = Field(default=4, ge=1)
    least: float = Field(default=0.5, gt=0, le=1)
    optimiser: Optimiser = Optimiser()


@dataclass(frozen=True, slots=True)
class Alignment:
    """One alignment; play: has episodes played as asked, from a seed."""

    recipe: Recipe
    own: Align
    modes: Sequence[str]
    sampler: Sampler
    rows: Sequence[Row]
    play: Play
    judge: Judge
    say: Callable[[str], None]

    def run(self) -> None:
        """Have the sampler's model learn, from the cheapest mode to the dearest, which one does; done once.

        What comes of it is in `aligned/`. Raises RecipeError where no mode does for any question.
        """
        folder, engine = self.recipe.out / "aligned", self.sampler.engine
        done = folder / DONE
        if not rank0_only(done.exists):
            traces = self._chosen()
            if not traces:
                raise RecipeError(
                    f"no mode does for any of {len(self.rows)} questions; ask easier ones, or lower apo.align.least"
                )
            settings = self.recipe.model_copy(update={"optimiser": self.own.optimiser})
            train_sft(TrainingRun.stage(folder, self.say), settings, engine.model, engine.tokenizer, traces)
            rank0_only(lambda: write(done, "{}\n"))  # last, for a model half written when the run was killed is none
        engine.model = load_engine(folder / MODEL, self.recipe.optimiser.dtype).model

    def _chosen(self) -> list[SampledTrace]:
        """What is to be learnt, from episodes that are played some questions at a time."""

        def make(part: Sequence[Row], start: int) -> list[tuple[str, dict[str, Any]]]:
            asked = [(row, mode) for row in part for mode in self.modes for _ in range(self.own.samples)]
            asks = [CompletionRequest(row["prompt"], row["tier"], mode) for row, mode in asked]
            made = self.play(asks, [row for row, _ in asked], self.recipe.seed + start)
            best = [
                cheapest([one for one in made if one.row is row], self.modes, self.own.least, self.judge)
                for row in part
            ]
            return [(one.mode, asdict(to_trace(one, self.sampler.close))) for one in best if one is not None]

        found = resumable_map(
            self.recipe.out / "aligned.jsonl",
            {
                "fingerprint": self.sampler.engine.fingerprint(),
                "recipe": self.recipe.model_dump(mode="json", exclude={*CHANGEABLE, "optimiser"}),
            },
            self.rows,
            max(1, self.recipe.rollouts.batch // (self.own.samples * len(self.modes))),
            make,
            lambda done: self.say(f"played {done}/{len(self.rows)} questions"),
            key="align ",
        )
        counts = Counter(mode for mode, _ in found)
        routed = ", ".join(f"{counts[mode]} {mode}" for mode in self.modes)
        self.say(f"routed {len(found)} of {len(self.rows)} questions: {routed}")
        return [SampledTrace(**trace) for _, trace in found]


def cheapest(
    played: Sequence[TrainingEpisode], modes: Sequence[str], least: float, judge: Judge
) -> TrainingEpisode | None:
    """The shortest right episode in the first of the modes that does; None where none does."""
    for mode in modes:
        begun = [one for one in played if one.begun == mode]
        good = [one for one in begun if one.stayed and one.steps[-1].finish_reason == "stop" and judge(one)]
        if good and len(good) >= least * len(begun):
            return min(good, key=lambda one: one.tokens)
    return None


def to_trace(episode: TrainingEpisode, close: int) -> SampledTrace:
    """What decides on a mode: how the first step begins, a call that was opened for it, or all of an answer at once.

    How to go on the model knows, and the hundreds of tokens of that would drown the one that decides. close: what ends
    thinking; a call is opened after it, and what policies wrote, which is not learnt, stands before.
    """
    step = episode.steps[0]
    answer = step.ids.index(close) + 1 if close in step.ids else len(step.ids)
    learnt = [
        int(place == 0 or episode.mode == NO_THINK or (forced and place >= answer))
        for place, forced in enumerate(step.forced)
    ]
    end = len(learnt) - learnt[::-1].index(1)
    return SampledTrace(list(step.prompt_ids), list(step.ids[:end]), learnt[:end], right=True, whole=end == len(learnt))
