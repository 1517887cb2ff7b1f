"""The command `tersely steer`: sample pairs, extract a direction, search layer and strength, validate, and save."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from ...controller.budgets import canonical_effort
from ...controller.engines.transformers.engine import load_engine
from ...controller.options import GenerationOptions, flag
from ...controller.types import SamplingParams
from ...errors import OptionError, check_known
from ...io import CheckpointLog, announce_resume, make_folder, render_text
from ...probes.artifact import save
from ...probes.research.learned import MIN_PAIRS, PLACES, Direction, extract
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
class SteerOptions:
    """The options of `tersely steer`."""

    out: Annotated[Path, flag("Output folder; an interrupted run resumes.")]
    model: cli.Model = "tersely-tiny-small"
    tasks: cli.Tasks = "tiny"
    questions: Annotated[int, flag("Questions to sample answers to.", min=MIN_PAIRS)] = 200
    samples: Annotated[int, flag("Answers sampled per question.", min=2)] = 8
    search_questions: Annotated[int, flag("Questions to search layer and strength on.", min=10)] = 200
    validation_questions: Annotated[int, flag("Held-out questions to steer in both directions on.", min=10)] = 300
    place: Annotated[str, flag("Where to read and steer: ends (of thoughts), or tokens (all of them).")] = "ends"
    layers: Annotated[str | None, flag("Hidden layers to try, comma-separated; default: the middle third.")] = None
    strengths: Annotated[str | None, flag("Strengths to try, comma-separated, relative to the states' norm.")] = None
    effort: Annotated[str, flag("Effort of all answers: easy, normal or hard.")] = "normal"
    temperature: Annotated[float | None, flag("Sampling temperature; default: the model's own.", min=0.0)] = None
    seed: cli.Seed = 0
    batch_size: cli.BatchSize = 64
    max_new_tokens: cli.MaxNewTokens = 2048
    think_prompt: cli.ThinkPrompt = False
    as_json: cli.Json = False


@cli.takes(SteerOptions)
def steer(options: SteerOptions) -> None:
    """Find the direction from long to short correct thinking, and steer along it as far as accuracy allows.

    Exit code 0: it shortens, and its opposite lengthens; 1: that was not shown, and it does not steer by default.
    """
    check_known("place", options.place, PLACES)
    if canonical_effort(options.effort) in ("none", "auto"):
        raise OptionError(f"--effort is {options.effort!r}; accepted: easy, normal or hard, the same for all answers")
    report = find_direction(options)
    typer.echo(json.dumps(report) if options.as_json else as_text(report))
    if not report["usable"]:
        raise typer.Exit(UNUSABLE)
    if not options.as_json:
        typer.echo(f"use it with `tersely run --modifier steer --probes {options.out}`")


def find_direction(options: SteerOptions) -> dict[str, Any]:
    """Find a direction and save it in `out/steering`; returns the report. Raises SteeringError if there is none."""
    layers = None if options.layers is None else cli.parse_list("--layers", options.layers, int)
    strengths = STRENGTHS[options.place]
    if options.strengths is not None:
        strengths = cli.parse_list("--strengths", options.strengths, float)
    parts, seed = _load_parts(options), options.seed
    engine = load_engine(options.model, grouped=True)
    blocks = engine.model.config.get_text_config(decoder=True).num_hidden_layers
    layers = layers or default_layers(blocks)
    if wrong := [layer for layer in layers if not 0 < layer < blocks]:
        raise OptionError(f"layer {wrong[0]} cannot be steered; accepted: 1 to {blocks - 1}", code="invalid_layer")
    base = {"name": options.model, "fingerprint": engine.fingerprint()}
    make_folder(options.out)
    identity = cli.identify(options, "out as_json")
    checkpoints = CheckpointLog(options.out / "steering.journal", {**identity, **base})
    runner, work = SessionRunner(engine, options.think_prompt), options.questions * options.samples
    work += options.search_questions * (1 + len(layers) * len(strengths)) + 3 * options.validation_questions
    sampling = SamplingParams(temperature=options.temperature)
    plain = GenerationOptions(options.effort, "off", max_new_tokens=options.max_new_tokens, sampling=sampling)
    resumable = announce_resume(checkpoints.path, lambda: checkpoints.completed)
    with resumable, AnswerChecker() as checker, cli.show_progress(work) as advance:

        def make_bench(part: str, seed: int, rollouts: int = 1) -> Bench:
            return Bench(runner, parts[part], checker, checkpoints, seed, rollouts, options.batch_size, advance=advance)

        sampled = sample_pairs(make_bench("sample", seed, options.samples), plain, options.place)
        direction = extract(engine.model, sampled.pairs, base, options.place)
        tried = search(make_bench("dev", seed + 1), direction, layers, strengths, plain)
        best, proof = choose(tried), None
        if best is not None:
            proof = validate(make_bench("proof", seed + 2), direction, best.layer, best.strength, plain)
    report = _make_report(options, sampled, direction, tried, best, proof)
    # It steers by default only if that is shown to shorten.
    chosen = report["chosen"] if report["usable"] else {"layer": None, "strength": None}
    hashes = sorted({hash_question(question) for questions in parts.values() for question in questions})
    annotated = replace(
        direction,
        layer=chosen["layer"],
        strength=chosen["strength"],
        provenance={**identity, "learned_from": hashes},
        metrics={**direction.metrics, **{name: report[name] for name in ("sampled", "search", "chosen", "proof")}},
    )
    save(annotated, options.out / Direction.kind)
    checkpoints.remove()
    return report


def _make_report(
    options: SteerOptions,
    sampled: SampledThinking,
    direction: Direction,
    tried: Sequence[TriedDirection],
    best: TriedDirection | None,
    proof: dict[str, Any] | None,
) -> dict[str, Any]:
    questions, samples = options.questions, options.samples
    recommended = " with ".join(map(str, RECOMMENDED))
    few = f"{questions} questions with {samples} samples each are few for a direction; recommended: {recommended}"
    return {
        "model": options.model,
        "place": options.place,
        "sampled": {
            "questions": questions,
            "samples": samples,
            "accuracy": sampled.accuracy,
            "pairs": len(sampled.pairs),
            "short": sampled.short,
            "long": sampled.long,
        },
        "direction": {"layers": direction.layers, **direction.metrics},
        "search": {"n": options.search_questions, "margin": MARGIN, "tried": [asdict(one) for one in tried]},
        "chosen": None if best is None else asdict(best),
        "proof": proof,
        "usable": proof is not None and proof["verdict"] == SHORTENS,
        "notes": [few] if questions < RECOMMENDED[0] or samples < RECOMMENDED[1] else [],
    }


def _load_parts(options: SteerOptions) -> dict[str, Sequence[Question]]:
    dev, proof, tasks = options.search_questions, options.validation_questions, options.tasks
    sizes = {"fit": options.questions, "calibrate": dev + proof}
    pools = load_pools(cli.parse_list("--tasks", tasks, str), sizes, options.seed)
    questions = [question for pool in pools for question in pool]
    if len(questions) < sum(sizes.values()):
        message = f"{tasks} has {len(questions)} questions, but {sum(sizes.values())} are needed"
        remedy = "lower --questions, --search-questions or --validation-questions"
        raise TaskError(f"{message}; {remedy}", code="too_few_questions")
    ends = list(accumulate((0, options.questions, dev, proof)))
    parts = {name: questions[i:j] for name, (i, j) in zip(("sample", "dev", "proof"), pairwise(ends), strict=True)}
    check_disjoint(parts)
    return dict(parts)


def as_text(report: Mapping[str, Any]) -> str:
    """The report as text, one fact per line."""
    return render_text(Path(__file__).with_name("steering.txt"), interval=cli.format_interval, **report)
