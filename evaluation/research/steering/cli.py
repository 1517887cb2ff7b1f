"""`tersely steer`: find a direction that shortens a model's thinking, and prove that it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ....controller.budgets import canonical_effort
from ....errors import OptionError, unknown
from ....probes.research.steering import MIN_PAIRS, PLACES
from ...cli_parsing import parse_numbers

UNUSABLE = 1


def steer(
    out: Annotated[Path, typer.Option("--out", help="Folder for the direction; a killed run in it goes on.")],
    model: Annotated[str, typer.Option("--model", help="Embedded model, folder or hub name.")] = "tersely-tiny-small",
    task: Annotated[str, typer.Option("--task", help="tiny, gym:NAME or a JSONL of {id, problem, answer}.")] = "tiny",
    questions: Annotated[int, typer.Option("--questions", min=MIN_PAIRS, help="Questions to sample answers to.")] = 200,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Answers sampled to each.")] = 8,
    dev: Annotated[int, typer.Option("--dev", min=10, help="Questions to search layer and strength on.")] = 200,
    proof: Annotated[int, typer.Option("--proof", min=10, help="Other questions, to steer both ways on.")] = 300,
    place: Annotated[
        str, typer.Option("--place", help="Where to read and steer: ends (of thoughts), or tokens (all, as published).")
    ] = "ends",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Hidden layers to try, by commas; by default the middle third.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option("--strengths", help="Strengths to try, by commas, in norms of the states.")
    ] = None,
    effort: Annotated[str, typer.Option("--effort", help="Effort of all answers.")] = "normal",
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="Of sampling; by default the model's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the questions and the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows decoded at once.")] = 64,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=2, help="Most tokens of an answer.")] = 2048,
    think_prompt: Annotated[bool, typer.Option("--think-prompt", help="Ask a model without markers to think.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find what tells short right thinking from long, and steer along it as far as accuracy holds.

    Exit code 0: it shortens, and lengthens the other way; 1: that could not be shown, and nothing steers by default.
    """
    from .report import as_text
    from .run import SteerPlan, steer_into

    if place not in PLACES:
        raise unknown("place", place, PLACES)
    if canonical_effort(effort) in ("none", "auto"):
        raise OptionError(f"--effort {effort!r} leaves no thinking, or not the same; accepted: easy, normal, hard")
    plan = SteerPlan(
        model,
        task,
        questions,
        samples,
        dev,
        proof,
        place,
        None if layers is None else parse_numbers("--layers", layers, int),
        None if strengths is None else parse_numbers("--strengths", strengths, float),
        effort,
        temperature,
        seed,
        batch_size,
        max_new_tokens,
        think_prompt,
    )
    report = steer_into(out, plan)
    typer.echo(json.dumps(report) if as_json else as_text(report))
    if not report["usable"]:
        raise typer.Exit(UNUSABLE)
    if not as_json:
        typer.echo(f"use it with `tersely run --policy steer --probes {out}`")
