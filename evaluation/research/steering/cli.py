"""The command `tersely steer`, and its report as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ....controller.budgets import canonical_effort
from ....errors import OptionError, unknown
from ....probes.research.steering import MIN_PAIRS, PLACES
from ...cli_utils import parse_numbers

UNUSABLE = 1
_PLACES = {"tokens": "all tokens of the thinking", "ends": "the ends of thoughts"}


def steer(
    out: Annotated[Path, typer.Option("--out", help="Output folder; an interrupted run resumes.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model name or folder.")] = "tersely-tiny-small",
    tasks: Annotated[
        str, typer.Option("--tasks", help="Tasks: tiny, gym:NAME, or JSONL files of {id, problem, answer}.")
    ] = "tiny",
    questions: Annotated[int, typer.Option("--questions", min=MIN_PAIRS, help="Questions to sample answers to.")] = 200,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Answers sampled per question.")] = 8,
    search_questions: Annotated[
        int, typer.Option("--search-questions", min=10, help="Questions to search layer and strength on.")
    ] = 200,
    validation_questions: Annotated[
        int, typer.Option("--validation-questions", min=10, help="Held-out questions to steer in both directions on.")
    ] = 300,
    place: Annotated[
        str, typer.Option("--place", help="Where to read and steer: ends (of thoughts), or tokens (all, as published).")
    ] = "ends",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Hidden layers to try, comma-separated; default: the middle third.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option("--strengths", help="Strengths to try, comma-separated, relative to the states' norm.")
    ] = None,
    effort: Annotated[str, typer.Option("--effort", help="Effort of all answers: easy, normal or hard.")] = "normal",
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="Sampling temperature; default: the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed for drawing questions and for sampling.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows decoded at a time.")] = 64,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=2, help="Maximum new tokens per generation.")
    ] = 2048,
    think_prompt: Annotated[
        bool, typer.Option("--think-prompt", help="Prompt a model without thinking markers to think.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Find the direction from long to short correct thinking, and steer along it as far as accuracy allows.

    Exit code 0: it shortens, and its opposite lengthens; 1: that was not shown, and it does not steer by default.
    """
    from .run import SteerPlan, steer_into

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
        layers=None if layers is None else parse_numbers("--layers", layers, int),
        strengths=None if strengths is None else parse_numbers("--strengths", strengths, float),
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
    return "\n".join([*_format_direction(report), *_format_search(report), *_format_validation(report)])


def _format_direction(report: Mapping[str, Any]) -> Iterator[str]:
    sampled, direction = report["sampled"], report["direction"]
    yield (
        f"{report['model']}: {sampled['questions']} questions, {sampled['samples']} answers each, "
        f"{sampled['accuracy']:.1%} right"
    )
    yield (
        f"{sampled['pairs']} pairs of right answers, with {sampled['short']:.0f} and {sampled['long']:.0f} tokens of "
        "thinking on average"
    )
    yield from (f"note: {note}" for note in report["notes"])
    yield (
        f"directions from {_PLACES[report['place']]}; cosine between the directions of two halves of the pairs, and "
        "size:"
    )
    for layer, agreement, size in zip(direction["layers"], direction["agreement"], direction["size"], strict=True):
        yield f"  layer {layer}: {agreement:.3f}, {size:.3f} of the states' norm"


def _format_search(report: Mapping[str, Any]) -> Iterator[str]:
    search, chosen = report["search"], report["chosen"]
    base, *tried = search["tried"]
    yield f"search, {search['n']} questions; unsteered {base['tokens']:.1f} tokens, {base['accuracy']:.1%} right"
    for one in tried:
        mark = "*" if one == chosen else " "
        yield (
            f"{mark} layer {one['layer']}, strength {one['strength']:+g}: {one['tokens']:.1f} tokens, "
            f"{one['accuracy']:.1%} right"
        )
    if chosen is None:
        yield f"nothing is shorter without losing more than {search['margin']:.0%} of accuracy: not usable"


def _format_validation(report: Mapping[str, Any]) -> Iterator[str]:
    proof = report["proof"]
    if proof is None:
        return
    base, strength = proof["base"], report["chosen"]["strength"]
    tokens, accuracy = base["tokens"]["total"], base["accuracy"]
    yield f"validation, {base['n']} other questions; unsteered {tokens:.1f} tokens, {accuracy:.1%} right"
    for name, signed in (("plus", strength), ("minus", -strength)):
        arm = proof[name]
        low, high = arm["delta_total_ci"]
        worst, best = arm["delta_accuracy_ci"]
        yield (
            f"  strength {signed:+g}: {arm['delta_total']:+.1f} tokens [{low:+.1f}, {high:+.1f}], accuracy "
            f"{100 * arm['delta_accuracy']:+.1f} points [{100 * worst:+.1f}, {100 * best:+.1f}]"
        )
    yield f"verdict: {proof['verdict']}"
