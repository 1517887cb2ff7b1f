"""Route, then align: the first stage of A2FM (arXiv 2510.12838), which teaches each mode for the questions it is for.

A policy that never begins a completion without thinking has nothing to choose from, and reinforcement that leaves
forced beginnings out of the loss cannot teach it to. So it first learns, by its own right completions, the cheapest
mode that does. The paper's teachers are larger models; ours is the model itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

from pydantic import Field

from ..controller.engines.transformers import TransformersEngine, load_engine
from ..evaluation.bench.journal import Journal
from .callbacks import last_good
from .config import Optimiser, Recipe, RecipeError, Section
from .data import Row
from .episodes import Episode
from .offline import supervise
from .rewards.base import AGENTIC
from .running import MODEL, Running
from .sampling import Ask, Sampler
from .traces import Trace

Play = Callable[[Sequence[Ask], Sequence[Row], int], list[Episode]]
Judge = Callable[[Episode], bool]


class Align(Section):
    """samples: of each question in each mode. least: the share of right ones from which a mode does.

    optimiser: how the chosen completions are learnt.
    """

    samples: int = Field(default=4, ge=1)
    least: float = Field(default=0.5, gt=0, le=1)
    optimiser: Optimiser = Optimiser()


def align(
    recipe: Recipe,
    own: Align,
    modes: Sequence[str],
    sampler: Sampler,
    rows: Sequence[Row],
    play: Play,
    judge: Judge,
    running: Running,
    say: Callable[[str], None],
) -> TransformersEngine:
    """The model after learning, from the cheapest mode to the dearest, which one does; done once, in `aligned/`.

    play: has episodes played as asked, from a seed. Raises RecipeError where no mode does for any question.
    """
    folder = recipe.out / "aligned"
    if not (folder / MODEL).is_dir():
        traces = _chosen(recipe, own, modes, sampler, rows, play, judge, say)
        if not traces:
            raise RecipeError(
                f"no mode does for any of {len(rows)} questions; ask easier ones, or lower apo.align.least"
            )
        student = running.load(recipe)
        folder.mkdir(exist_ok=True)
        settings = recipe.model_copy(update={"optimiser": own.optimiser})
        supervise(Running(folder, last_good(folder), say), settings, student.model, student.tokenizer, traces)
    return load_engine(folder / MODEL, recipe.optimiser.dtype)


def _chosen(
    recipe: Recipe,
    own: Align,
    modes: Sequence[str],
    sampler: Sampler,
    rows: Sequence[Row],
    play: Play,
    judge: Judge,
    say: Callable[[str], None],
) -> list[Trace]:
    """The steps of the episodes to learn, played some questions at a time and kept."""
    journal = Journal(
        recipe.out / "aligned.jsonl",
        {
            "fingerprint": sampler.engine.fingerprint(),
            "recipe": recipe.model_dump(mode="json", exclude={"out", "saving"}),
        },
    )
    size = max(1, recipe.rollouts.batch // (own.samples * len(modes)))
    learnt: list[Trace] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(rows), size):
        part = rows[start : start + size]

        def make(part: Sequence[Row] = part, start: int = start) -> list[tuple[str, list[dict[str, object]]]]:
            asked = [(row, mode) for row in part for mode in modes for _ in range(own.samples)]
            asks = [Ask(row["prompt"], row["tier"], mode) for row, mode in asked]
            made = play(asks, [row for row, _ in asked], recipe.seed + start)
            best = [cheapest([one for one in made if one.row is row], modes, own.least, judge) for row in part]
            return [(one.mode, [asdict(trace) for trace in traces_of(one)]) for one in best if one is not None]

        for mode, steps in journal.piece(f"align {start}", make):
            counts[mode] += 1
            learnt += [Trace(**step) for step in steps]
        say(
            f"routed {start + len(part)}/{len(rows)} questions: {', '.join(f'{counts[mode]} {mode}' for mode in modes)}"
        )
    return learnt


def cheapest(played: Sequence[Episode], modes: Sequence[str], least: float, judge: Judge) -> Episode | None:
    """The shortest right episode in the first of the modes that does; None where none does."""
    for mode in modes:
        begun = [one for one in played if one.begun == mode]
        good = [one for one in begun if one.stayed and one.steps[-1].finish_reason == "stop" and judge(one)]
        if good and len(good) >= least * len(begun):
            return min(good, key=lambda one: one.tokens)
    return None


def traces_of(episode: Episode) -> list[Trace]:
    """All steps to be learnt, an opened call too: that is its mode."""
    return [
        Trace(
            prompt_ids=list(step.prompt_ids),
            ids=list(step.ids),
            learnt=[int(not forced or episode.begun == AGENTIC) for forced in step.forced],
            right=True,
            whole=step.finish_reason == "stop",
        )
        for step in episode.steps
    ]
