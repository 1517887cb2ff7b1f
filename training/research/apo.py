"""Learn by RL on forced and free completions to think only where that pays (APO).

A2FM (arXiv 2510.12838) chooses among answering at once, thinking, and using tools. GRPO runs on groups in which each
mode is forced a few times, with the starts masked from the loss; the choice is learned from the free completions, with
a reward that discounts expensive modes where answering at once would do. Before that, `apo.align` teaches each
question's cheapest sufficient mode by SFT, without which a policy that never answers at once has nothing to choose
from. The paper uses larger models as teachers, and learns whole answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import Field

from ...controller.engines.transformers.engine import load_engine
from ...evaluation.agents.tools import TOOL_SCHEMAS
from ..config import CHANGEABLE, Alarm, Optimizer, Recipe, RecipeError, Section, ThinkingEffort
from ..methods import Method
from ..offline import SampledTrace, train_sft
from ..preflight import CheckedRecipe, ResidentModels, check_recipe
from ..processes import rank0_only, resumable_map
from ..rewards import AGENTIC, NO_THINK, THINK, Correctness, Reward, get_modes, group_by_prompt, require_column
from ..rollouts import Row, load_tasks
from ..sampling import FREE, CompletionRequest
from ..training_run import MODEL, TrainingRun
from .episodes import EpisodeRollouts, TrainingEpisode


class Align(Section):
    """Settings of the alignment."""

    samples: int = Field(default=4, ge=1)  # episodes per question and mode
    min_accuracy: float = Field(default=0.5, gt=0, le=1)  # the share of right episodes from which a mode is sufficient
    optimizer: Optimizer = Optimizer()  # for learning the chosen completions


class Apo(Section):
    """Settings."""

    forced: int = Field(default=3, ge=1)  # completions of a group forced into each mode; the rest is free
    alpha: float = Field(default=2.0, gt=0)  # see `AdaptiveDiscount`
    easy: float = Field(default=0.5, ge=0, le=1)  # see `AdaptiveDiscount`
    kl: float = Field(default=0.0, ge=0)  # weight of the KL divergence from the model before training
    no_think_tokens: int | None = Field(default=None, ge=2)  # token limit of completions forced not to think
    max_steps: int = Field(default=8, ge=2)  # of an episode with tools
    followup_effort: ThinkingEffort = "easy"  # the tier of steps that follow a tool result
    omega: float | None = Field(default=None, gt=0)  # reward several names by their F score, see `Task.score`
    align: Align | None = None  # learn first which mode is sufficient for which question


class ApoRecipe(Recipe):
    """The recipe of this method."""

    apo: Apo = Apo()
    alarm: Alarm = Alarm()

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes, from cheapest to most expensive."""
        return (NO_THINK, THINK) if load_tasks(self.data) is None else (NO_THINK, THINK, AGENTIC)


class AdaptiveDiscount(Reward):
    """Correctness, of which thinking keeps `1 - p ** alpha` on an easy question; 0 without an answer.

    A question is easy if p, the share of completions forced not to think that are right, is above `easy`. (The paper
    gives no value, and sources differ on which completions p counts.) Column `start_mode` shows what was forced.
    """

    name = "adaptive"

    def __init__(self, correct: Correctness, alpha: float = 2.0, easy: float = 0.5, marker: str = "</think>") -> None:
        self.correct, self.alpha, self.easy, self.marker = correct, alpha, easy, marker

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        right = self.correct(prompts, completions, **columns)
        modes = get_modes(completions, columns, self.marker)
        starts = require_column(columns, "start_mode", self.name)
        rewards: list[float | None] = []
        for group in group_by_prompt(prompts):
            instant = [(right[i] or 0.0) * (modes[i] == NO_THINK) for i in group if starts[i] == NO_THINK]
            p = sum(instant) / len(instant) if instant else 0.0
            factor = 1 - p**self.alpha if p > self.easy else 1.0
            rewards += [(right[i] or 0.0) * (1.0 if modes[i] == NO_THINK else factor) for i in group]
        return rewards


def _validate(recipe: ApoRecipe) -> CheckedRecipe:
    settings = recipe.apo
    if settings.kl and load_tasks(recipe.data) is not None:
        raise RecipeError(
            "apo.kl does not take the weights of episodes into account; remove it for tasks with tools",
            code="no_kl_with_tools",
        )
    if len(recipe.modes) * settings.forced >= recipe.rollouts.generations:
        raise RecipeError(
            f"apo.forced is {settings.forced} for each of {len(recipe.modes)} modes and rollouts.generations is "
            f"{recipe.rollouts.generations}, which leaves no free completions to learn the choice from; raise "
            "rollouts.generations",
            code="no_free_completions",
        )
    return check_recipe(
        recipe,
        no_think_tokens=settings.no_think_tokens,
        tools=True,
        stages={} if settings.align is None else {"apo.align.optimizer": settings.align.optimizer},
        resident=ResidentModels(reference=bool(settings.kl)),
    )


def _train(run: TrainingRun[ApoRecipe]) -> None:
    recipe, settings, close = run.recipe, run.recipe.apo, run.checked.markers.close
    tasks = load_tasks(recipe.data)
    forced = [mode for mode in recipe.modes for _ in range(settings.forced)]
    plan = forced + [FREE] * (recipe.rollouts.generations - len(forced))
    with Correctness(close) as correct:
        tools = () if tasks is None else TOOL_SCHEMAS
        sampler = run.make_sampler(no_think_tokens=settings.no_think_tokens, tools=tools)
        by_id = None if tasks is None else {task.id: task for task in tasks}
        rollouts = EpisodeRollouts(
            sampler, by_id, settings.followup_effort, settings.max_steps, plan, recipe.seed, settings.omega
        )
        if settings.align is not None:
            _align(run, settings.align, rollouts, correct)
        run.train_grpo(
            rollouts,
            [correct, AdaptiveDiscount(correct, settings.alpha, settings.easy, close)],
            alarm=recipe.alarm,
            # The discounted reward includes correctness, which is only logged.
            reward_weights=[0.0, 1.0],
            beta=settings.kl,
        )


def _align(run: TrainingRun[ApoRecipe], settings: Align, rollouts: EpisodeRollouts, correct: Correctness) -> None:
    """Learn by SFT, for each question, its cheapest sufficient mode; or load what an earlier run has learned."""
    engine, folder = rollouts.sampler.engine, run.folder / "aligned" / MODEL
    if not rank0_only(folder.is_dir):
        traces = _choose_traces(run, settings, rollouts, correct)
        if not traces:
            raise RecipeError(
                f"no mode is sufficient for any of {len(run.checked.rows)} questions; use easier ones, or lower "
                "apo.align.min_accuracy",
                code="nothing_to_learn",
            )
        train_sft(run.make_stage("aligned", settings.optimizer), engine, traces)
    engine.model = load_engine(folder, run.recipe.optimizer.dtype).model


def _choose_traces(
    run: TrainingRun[ApoRecipe], settings: Align, rollouts: EpisodeRollouts, correct: Correctness
) -> list[SampledTrace]:
    recipe, rows, sampler = run.recipe, run.checked.rows, rollouts.sampler
    modes, samples = recipe.modes, settings.samples

    def is_right(episode: TrainingEpisode) -> bool:
        row, solved = episode.row, rollouts.judge(episode)
        return correct.is_right(row["answer"], episode.answer, row["gym_entry"]) if solved is None else solved

    def make(part: Sequence[Row], start: int) -> list[tuple[str, dict[str, Any]]]:
        starts = [(row, mode) for row in part for mode in modes for _ in range(samples)]
        requests = [CompletionRequest(row["prompt"], row["tier"], mode) for row, mode in starts]
        episodes = rollouts.run(requests, [row for row, _ in starts], recipe.seed + start)
        chosen = [
            choose_cheapest([e for e in episodes if e.row is row], modes, settings.min_accuracy, is_right)
            for row in part
        ]
        return [(e.mode, asdict(to_alignment_trace(e, sampler.close))) for e in chosen if e is not None]

    stored = resumable_map(
        recipe.out / "aligned.jsonl",
        {
            "fingerprint": sampler.engine.fingerprint(),
            "recipe": recipe.model_dump(mode="json", exclude={*CHANGEABLE, "optimizer"}),
        },
        rows,
        max(1, recipe.rollouts.batch // (samples * len(modes))),
        make,
        lambda done: run.log(f"alignment: {done}/{len(rows)} questions"),
    )
    counts = Counter(mode for mode, _ in stored)
    run.log(f"routed {len(stored)} of {len(rows)} questions: {', '.join(f'{counts[mode]} {mode}' for mode in modes)}")
    return [SampledTrace(**values) for _, values in stored]


def choose_cheapest(
    episodes: Sequence[TrainingEpisode],
    modes: Sequence[str],
    min_accuracy: float,
    is_right: Callable[[TrainingEpisode], bool],
) -> TrainingEpisode | None:
    """The shortest right episode in the first sufficient mode; None if no mode is sufficient."""
    for mode in modes:
        started = [e for e in episodes if e.start_mode == mode]
        good = [e for e in started if e.followed_start and e.steps[-1].finish_reason == "stop" and is_right(e)]
        if good and len(good) >= min_accuracy * len(started):
            return min(good, key=lambda e: e.tokens)
    return None


def to_alignment_trace(episode: TrainingEpisode, close: int) -> SampledTrace:
    """The tokens that decide on a mode: the first token, an opened tool call, or all of an answer at once.

    The rest would drown them out. Policies' text before the closing token is masked; a call is opened after it.
    """
    step = episode.steps[0]
    answer = step.ids.index(close) + 1 if close in step.ids else len(step.ids)
    mask = [int(i == 0 or episode.mode == NO_THINK or (forced and i >= answer)) for i, forced in enumerate(step.forced)]
    end = len(mask) - mask[::-1].index(1)
    return SampledTrace(list(step.prompt_ids), list(step.ids[:end]), mask[:end], right=True, finished=end == len(mask))


METHOD = Method(recipe=ApoRecipe, validate=_validate, train=_train)
