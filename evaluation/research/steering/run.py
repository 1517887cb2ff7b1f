"""The run of `tersely steer`: sample pairs, extract a direction, search layer and strength, validate, and save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ....checkpoint_log import CheckpointLog
from ....controller.engines.transformers.engine import load_engine
from ....controller.options import GenerationOptions
from ....controller.types import SamplingParams
from ....errors import OptionError
from ....io import WriteError
from ....probes.research.steering import KIND, Direction, extract, save_direction
from ...bench.arms import Bench, check_disjoint
from ...cli_utils import show_progress, split_list
from ...runner import SessionRunner
from ...tasks.equality import AnswerChecker
from ...tasks.questions import Question, TaskError, hash_question, load_pools
from .search import (
    MARGIN,
    SHORTENS,
    STRENGTHS,
    SampledThinking,
    TriedDirection,
    choose,
    default_layers,
    sample_pairs,
    search,
    validate,
)

RECOMMENDED = (200, 8)
"""Recommended questions, and samples of each; with fewer, the report has a note."""


@dataclass(frozen=True, slots=True)
class SteerPlan:
    """Everything that decides the direction; `layers` and `strengths` default to those of the model and the place."""

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
        """The options of all answers, without steering."""
        sampling = SamplingParams(temperature=self.temperature)
        return GenerationOptions(self.effort, "off", max_new_tokens=self.max_new_tokens, sampling=sampling)


def steer_into(out: Path, plan: SteerPlan) -> dict[str, Any]:
    """Find a direction and save it in `out/steering`, ready for a session; returns the report.

    An interrupted run resumes. Raises SteeringError if no direction can be extracted.
    """
    parts = _load_parts(plan)
    engine = load_engine(plan.model, grouped=True)
    blocks = engine.model.config.get_text_config(decoder=True).num_hidden_layers
    layers = _resolve_layers(plan.layers, blocks)
    base = {"name": plan.model, "fingerprint": engine.fingerprint()}
    checkpoints = CheckpointLog(_make_folder(out) / "steering.journal", {**asdict(plan), **base})
    runner = SessionRunner(engine, plan.think_prompt)
    strengths = plan.strengths or STRENGTHS[plan.place]
    work = plan.questions * plan.samples + plan.dev * (1 + len(layers) * len(strengths)) + 3 * plan.proof
    with AnswerChecker() as checker, show_progress(work) as advance:

        def make_bench(part: str, seed: int, rollouts: int = 1) -> Bench:
            return Bench(runner, parts[part], checker, checkpoints, seed, rollouts, plan.batch, advance=advance)

        options = plan.options()
        sampled = sample_pairs(make_bench("sample", plan.seed, plan.samples), options, plan.place)
        direction = extract(engine.model, sampled.pairs, base, plan.place)
        tried = search(make_bench("dev", plan.seed + 1), direction, layers, strengths, options)
        best, proof = choose(tried), None
        if best is not None:
            proof = validate(make_bench("proof", plan.seed + 2), direction, best.layer, best.strength, options)
    report = _make_report(plan, sampled, direction, tried, best, proof)
    hashes = sorted({hash_question(question) for questions in parts.values() for question in questions})
    save_direction(_annotate(direction, report, {**asdict(plan), "learned_from": hashes}), out / KIND)
    checkpoints.remove()
    return report


def _make_report(
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
        "notes": _make_notes(plan),
    }


def _annotate(direction: Direction, report: dict[str, Any], provenance: dict[str, Any]) -> Direction:
    """The direction with its metrics and provenance; it steers by default only if it is usable."""
    best = report["chosen"] if report["usable"] else {"layer": None, "strength": None}
    metrics = {name: report[name] for name in ("sampled", "search", "chosen", "proof")}
    return replace(
        direction,
        layer=best["layer"],
        strength=best["strength"],
        provenance=provenance,
        metrics={**direction.metrics, **metrics},
    )


def _load_parts(plan: SteerPlan) -> dict[str, Sequence[Question]]:
    """Disjoint questions to sample, to search and to validate on."""
    sizes = {"sample": plan.questions, "dev": plan.dev, "proof": plan.proof}
    pools = load_pools(
        split_list("--tasks", plan.task), {"fit": plan.questions, "calibrate": plan.dev + plan.proof}, plan.seed
    )
    questions = [question for pool in pools for question in pool]
    if len(questions) < sum(sizes.values()):
        raise TaskError(
            f"{plan.task} has {len(questions)} questions, but {sum(sizes.values())} are needed; lower --questions, "
            "--search-questions or --validation-questions",
            code="too_few_questions",
        )
    parts: dict[str, Sequence[Question]] = {}
    for name, size in sizes.items():
        parts[name], questions = questions[:size], questions[size:]
    check_disjoint(parts)
    return parts


def _resolve_layers(layers: tuple[int, ...] | None, blocks: int) -> tuple[int, ...]:
    if layers is None:
        return default_layers(blocks)
    if wrong := [layer for layer in layers if not 0 < layer < blocks]:
        raise OptionError(f"layer {wrong[0]} cannot be steered; accepted: 1 to {blocks - 1}", code="invalid_layer")
    return layers


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot create {folder}: {error.strerror}; choose another place") from None
    return folder


def _make_notes(plan: SteerPlan) -> list[str]:
    if plan.questions >= RECOMMENDED[0] and plan.samples >= RECOMMENDED[1]:
        return []
    return [
        f"{plan.questions} questions with {plan.samples} samples each are few for a direction; recommended: "
        f"{RECOMMENDED[0]} with {RECOMMENDED[1]}"
    ]
