"""The command `tersely steer`: sample pairs, extract a direction, search layer and strength, validate, and save."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...controller.budgets import canonical_effort
from ...controller.engines.transformers.engine import load_engine
from ...controller.options import GenerationOptions
from ...controller.types import SamplingParams
from ...errors import OptionError, unknown
from ...io import CheckpointLog, make_folder, render_text
from ...probes.artifact import save
from ...probes.research.steering import KIND, MIN_PAIRS, PLACES, Direction, extract
from .. import cli_utils as cli
from ..bench.arms import Bench, check_disjoint
from ..runner import SessionRunner
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question, TaskError, hash_question, load_pools
from .steering_search import (
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

UNUSABLE = 1
RECOMMENDED = (200, 8)  # recommended questions, and samples of each; with fewer, the report has a note


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
    """Find a direction and save it in `out/steering`; returns the report. Raises SteeringError if there is none."""
    parts = _load_parts(plan)
    engine = load_engine(plan.model, grouped=True)
    blocks = engine.model.config.get_text_config(decoder=True).num_hidden_layers
    layers = plan.layers or default_layers(blocks)
    if wrong := [layer for layer in layers if not 0 < layer < blocks]:
        raise OptionError(f"layer {wrong[0]} cannot be steered; accepted: 1 to {blocks - 1}", code="invalid_layer")
    base = {"name": plan.model, "fingerprint": engine.fingerprint()}
    make_folder(out)
    checkpoints = CheckpointLog(out / "steering.journal", {**asdict(plan), **base})
    runner = SessionRunner(engine, plan.think_prompt)
    strengths = plan.strengths or STRENGTHS[plan.place]
    work = plan.questions * plan.samples + plan.dev * (1 + len(layers) * len(strengths)) + 3 * plan.proof
    with AnswerChecker() as checker, cli.show_progress(work) as advance:

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
    # It steers by default only if that is shown to shorten.
    chosen = report["chosen"] if report["usable"] else {"layer": None, "strength": None}
    hashes = sorted({hash_question(question) for questions in parts.values() for question in questions})
    annotated = replace(
        direction,
        layer=chosen["layer"],
        strength=chosen["strength"],
        provenance={**asdict(plan), "learned_from": hashes},
        metrics={**direction.metrics, **{name: report[name] for name in ("sampled", "search", "chosen", "proof")}},
    )
    save(annotated, out / KIND)
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
    few = (
        f"{plan.questions} questions with {plan.samples} samples each are few for a direction; recommended: "
        f"{RECOMMENDED[0]} with {RECOMMENDED[1]}"
    )
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
        "notes": [few] if plan.questions < RECOMMENDED[0] or plan.samples < RECOMMENDED[1] else [],
    }


def _load_parts(plan: SteerPlan) -> dict[str, Sequence[Question]]:
    sizes = {"sample": plan.questions, "dev": plan.dev, "proof": plan.proof}
    pools = load_pools(
        cli.parse_list("--tasks", plan.task, str),
        {"fit": plan.questions, "calibrate": plan.dev + plan.proof},
        plan.seed,
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


# -- the command -------------------------------------------------------------------------------------------------------


def steer(
    out: Annotated[Path, typer.Option("--out", help="Output folder; an interrupted run resumes.")],
    model: cli.Model = "tersely-tiny-small",
    tasks: cli.Tasks = "tiny",
    questions: Annotated[int, typer.Option("--questions", min=MIN_PAIRS, help="Questions to sample answers to.")] = 200,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Answers sampled per question.")] = 8,
    search_questions: Annotated[int, typer.Option(min=10, help="Questions to search layer and strength on.")] = 200,
    validation_questions: Annotated[
        int, typer.Option(min=10, help="Held-out questions to steer in both directions on.")
    ] = 300,
    place: Annotated[
        str, typer.Option(help="Where to read and steer: ends (of thoughts), or tokens (all of them).")
    ] = "ends",
    layers: Annotated[
        str | None, typer.Option(help="Hidden layers to try, comma-separated; default: the middle third.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="Strengths to try, comma-separated, relative to the states' norm.")
    ] = None,
    effort: Annotated[str, typer.Option("--effort", help="Effort of all answers: easy, normal or hard.")] = "normal",
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="Sampling temperature; default: the model's own.")
    ] = None,
    seed: cli.Seed = 0,
    batch_size: cli.BatchSize = 64,
    max_new_tokens: cli.MaxNewTokens = 2048,
    think_prompt: cli.ThinkPrompt = False,
    as_json: cli.Json = False,
) -> None:
    """Find the direction from long to short correct thinking, and steer along it as far as accuracy allows.

    Exit code 0: it shortens, and its opposite lengthens; 1: that was not shown, and it does not steer by default.
    """
    if place not in PLACES:
        raise unknown("place", place, PLACES)
    if canonical_effort(effort) in ("none", "auto"):
        raise OptionError(f"--effort is {effort!r}; accepted: easy, normal or hard, the same thinking for all answers")
    plan = SteerPlan(
        model=model,
        task=tasks,
        questions=questions,
        samples=samples,
        dev=search_questions,
        proof=validation_questions,
        place=place,
        layers=None if layers is None else cli.parse_list("--layers", layers, int),
        strengths=None if strengths is None else cli.parse_list("--strengths", strengths, float),
        effort=effort,
        temperature=temperature,
        seed=seed,
        batch=batch_size,
        max_new_tokens=max_new_tokens,
        think_prompt=think_prompt,
    )
    report = steer_into(out, plan)
    typer.echo(json.dumps(report) if as_json else as_text(report))
    if not report["usable"]:
        raise typer.Exit(UNUSABLE)
    if not as_json:
        typer.echo(f"use it with `tersely run --modifier steer --probes {out}`")


def as_text(report: Mapping[str, Any]) -> str:
    """The report as text, one fact per line."""
    return render_text(Path(__file__).with_name("steering.txt"), interval=cli.format_interval, **report)
