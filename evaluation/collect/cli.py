"""`tersely collect`: sample rollouts in every tier, and keep what the probes learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...controller.budgets import EFFORTS
from ..cli_parsing import parse_names, parse_numbers


def collect(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a collection in it is gone on with.")],
    model: Annotated[str, typer.Option("--model", help="Embedded model, folder or hub name.")] = "tersely-tiny-large",
    task: Annotated[str, typer.Option("--task", help="tiny, gym:NAME or a JSONL of {id, problem, answer}.")] = "tiny",
    split: Annotated[str, typer.Option("--split", help="Split to draw from: fit, calibrate or test.")] = "fit",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Questions.")] = 400,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the questions and the sampling.")] = 0,
    tiers: Annotated[
        str, typer.Option("--tiers", help="Efforts to sample in, separated by commas.")
    ] = "none,easy,normal,hard",
    rollouts: Annotated[int, typer.Option("--rollouts", min=1, help="Rollouts of a question in each tier.")] = 1,
    layers: Annotated[
        str, typer.Option("--layers", help="Hidden layers to keep, separated by commas; -1 is the last.")
    ] = "-1",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows decoded at once.")] = 32,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=2, help="Most tokens of a response.")] = 2048,
    think_prompt: Annotated[bool, typer.Option("--think-prompt", help="Ask a model without markers to think.")] = False,
) -> None:
    """Collect what `tersely calibrate` learns from: signals, hidden states and trial answers after each thought.

    The rollouts are uncontrolled. Trial answers cost tokens here, and none later.
    """
    from .run import CollectPlan, collect_into

    names = parse_names("--tiers", "tier", tiers, EFFORTS[:-1])
    plan = CollectPlan(
        model,
        task,
        split,
        limit,
        seed,
        names,
        rollouts,
        parse_numbers("--layers", layers, int, "whole numbers"),
        batch_size,
        max_new_tokens,
        think_prompt,
    )
    typer.echo(collect_into(out, plan))
