"""From a model to its direction: sampled, found, searched, proved and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from ....controller.engines.transformers.engine import load_engine
from ....controller.options import GenerationOptions
from ....controller.types import SamplingParams
from ....errors import OptionError
from ....io import WriteError
from ....probes.research.steering import KIND, Direction, extract, save_direction
from ...bench.checkpoint_log import CheckpointLog
from ...bench.fairness import check_disjoint
from ...bench.run import Bench
from ...progress import show_progress
from ...runner import SessionRunner
from ...tasks.equality import AnswerChecker
from ...tasks.questions import GYM, TINY, Question, TaskError, hash_question, load
from .pairs import SampledThinking, sample
from .search import MARGIN, SHORTENS, STRENGTHS, TriedDirection, cheapest, default_layers, prove, search

ENOUGH = (200, 8)
"""Questions, and answers to each, from which a direction should be found; fewer are noted."""


@dataclass(frozen=True, slots=True)
class SteerPlan:
    """All that decides what is found; layers and strengths: None takes the defaults of the model and of the place."""

    model: str
    task: str
    questions: int
    samples: int
    dev: int
    proof: int
    place: str
    layers: tuple[int, ...] | None
    strengths: tuple[float, ...] | None
    effort: str
    temperature: float | None
    seed: int
    batch: int
    max_new_tokens: int
    think_prompt: bool = False

    def options(self) -> GenerationOptions:
        """How everything is answered, steering apart."""
        sampling = SamplingParams(temperature=self.temperature)
        return GenerationOptions(self.effort, "off", max_new_tokens=self.max_new_tokens, sampling=sampling)


def steer_into(out: Path, plan: SteerPlan) -> dict[str, Any]:
    """Find a direction, and keep it in `out/steering` with what a session needs to use it; returns the report.

    A run that was killed goes on where it was. Raises SteeringError where no direction can be found.
    """
    parts = _parts(plan)
    engine = load_engine(plan.model, grouped=True)
    blocks = engine.model.config.get_text_config(decoder=True).num_hidden_layers
    layers = _layers(plan.layers, blocks)
    base = {"name": plan.model, "fingerprint": engine.fingerprint()}
    journal = CheckpointLog(_made(out) / "steering.journal", {**asdict(plan), **base})
    answerer = SessionRunner(engine, plan.think_prompt)
    strengths = plan.strengths or STRENGTHS[plan.place]
    work = plan.questions * plan.samples + plan.dev * (1 + len(layers) * len(strengths)) + 3 * plan.proof
    with AnswerChecker() as checker, show_progress(work) as advance:

        def bench(part: str, seed: int, rollouts: int = 1) -> Bench:
            return Bench(answerer, parts[part], checker, journal, seed, rollouts, plan.batch, advance=advance)

        common = plan.options()
        sampled = sample(bench("sample", plan.seed, plan.samples), common, plan.place)
        direction = extract(engine.model, sampled.pairs, base, plan.place)
        tried = search(bench("dev", plan.seed + 1), direction, layers, strengths, common)
        best, proof = cheapest(tried), None
        if best is not None:
            proof = prove(bench("proof", plan.seed + 2), direction, best.layer, best.strength, common)
    report = _report(plan, sampled, direction, tried, best, proof)
    asked = sorted({hash_question(question) for questions in parts.values() for question in questions})
    save_direction(_kept(direction, report, {**asdict(plan), "learned_from": asked}), out / KIND)
    journal.remove()
    return report


def _report(
    plan: SteerPlan,
    sampled: SampledThinking,
    direction: Direction,
    tried: Sequence[TriedDirection],
    best: TriedDirection | None,
    proof: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "model": plan.model,
        "place": plan.place,
        "sampled": {
            "questions": plan.questions,
            "samples": plan.samples,
            "accuracy": sampled.accuracy,
            "pairs": len(sampled.pairs),
            "short": sampled.short,
            "long": sampled.long,
        },
        "direction": {"layers": direction.layers, **direction.metrics},
        "search": {"n": plan.dev, "margin": MARGIN, "tried": [asdict(one) for one in tried]},
        "chosen": None if best is None else asdict(best),
        "proof": proof,
        "usable": proof is not None and proof["verdict"] == SHORTENS,
        "notes": _notes(plan),
    }


def _kept(direction: Direction, report: dict[str, Any], provenance: dict[str, Any]) -> Direction:
    """The direction with what was found out about it; it steers by default only if it is usable."""
    best = report["chosen"] if report["usable"] else {"layer": None, "strength": None}
    metrics = {name: report[name] for name in ("sampled", "search", "chosen", "proof")}
    return replace(
        direction,
        layer=best["layer"],
        strength=best["strength"],
        provenance=provenance,
        metrics={**direction.metrics, **metrics},
    )


def _parts(plan: SteerPlan) -> dict[str, Sequence[Question]]:
    """Questions to sample, to search and to prove on: of two splits, or a user's file divided by chance."""
    sizes = {"sample": plan.questions, "dev": plan.dev, "proof": plan.proof}
    if plan.task == TINY or plan.task.startswith(GYM):
        drawn = load(plan.task, "fit", plan.questions, plan.seed)
        drawn += load(plan.task, "calibrate", plan.dev + plan.proof, plan.seed)
    else:
        drawn = load(plan.task, "fit", None, plan.seed)
        Random(plan.seed).shuffle(drawn)
    if len(drawn) < sum(sizes.values()):
        raise TaskError(
            f"{plan.task} has {len(drawn)} questions and {sum(sizes.values())} are wanted; lower --questions, --dev or "
            "--proof"
        )
    parts: dict[str, Sequence[Question]] = {}
    for name, size in sizes.items():
        parts[name], drawn = drawn[:size], drawn[size:]
    check_disjoint(parts)
    return parts


def _layers(asked: tuple[int, ...] | None, blocks: int) -> tuple[int, ...]:
    if asked is None:
        return default_layers(blocks)
    if wrong := [layer for layer in asked if not 0 < layer < blocks]:
        raise OptionError(f"layer {wrong[0]} cannot be steered; accepted: 1 to {blocks - 1}")
    return asked


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder} cannot be made: {error.strerror}; choose another place") from None
    return folder


def _notes(plan: SteerPlan) -> list[str]:
    if plan.questions >= ENOUGH[0] and plan.samples >= ENOUGH[1]:
        return []
    wanted = f"{ENOUGH[0]} with {ENOUGH[1]}"
    return [f"{plan.questions} questions with {plan.samples} answers each are few for a direction; {wanted} are better"]
