"""The command `tersely replay`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ...controller.budgets import UNLIMITED, Budget
from ...controller.text.tokenizer_adapter import get_adapter
from ...io import write
from .. import cli_utils as cli
from ..tasks.equality import AnswerChecker
from .logs import LogOptions, RecordedSet
from .reader import ModelReader, load_tokenizer
from .result import as_text, check_page, replay_page, summarize
from .run import (
    EQUAL_BUDGET,
    FIRST_CORRECT,
    ReplayArm,
    ReplayedRow,
    check_reader,
    cut_at_equal_tokens,
    leave_out_learned,
    make_replay_arms,
    replay_rows,
    stop_at_first_correct,
)

ABOVE_MARGIN = 1
POLICY = "policy"


@dataclass(frozen=True, slots=True)
class ReplayOptions(LogOptions):
    """The options of `tersely replay`."""

    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Preset to replay; repeatable; by default balanced.")
    ] = None
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Policy to replay alone, by name or as file.py:Class; repeatable."),
    ] = None
    thinking_budget: Annotated[
        int | None, typer.Option(min=1, help="Most thinking tokens; by default recordings may be as long as they are.")
    ] = None
    margin: Annotated[
        float | None,
        typer.Option(
            callback=cli.check_margin, help="Exit with 1 if more than this share of right answers may be lost."
        ),
    ] = None
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|URL", help="A small model, or a server of one, that answers at stops and in trials."
        ),
    ] = None
    probes: cli.Probes = None
    baselines: Annotated[
        bool, typer.Option(help="Compare with a budget at equal tokens, and with the first right answer.")
    ] = True
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML page to write, with examples.")] = None
    as_json: cli.Json = False


@cli.takes(ReplayOptions)
def replay(options: ReplayOptions) -> None:
    """Show what policies would have done on recorded outputs of any model; needs no model.

    Exit code 0, or 1 if on some set more right answers may be lost than --margin allows (95 % confidence).
    """
    page, margin, reader = options.page, options.margin, options.reader
    if page is not None:
        check_page(page)
    presets = options.preset or ([] if options.policy else ["balanced"])
    arms = make_replay_arms(presets, options.policy or (), reader is not None, options.probes)
    budget = Budget("normal", options.thinking_budget or UNLIMITED)
    codec, sets = load_tokenizer(options.tokenizer), [leave_out_learned(one, arms) for one in options.load()]
    loaded: ModelReader | None = None if reader is None else ModelReader(reader)
    if loaded is not None:
        check_reader(arms, loaded)
    with AnswerChecker() as checker, cli.show_progress(sum(len(one.rows) for one in sets) * len(arms)) as advance:
        found = []
        for one in sets:
            rows = replay_rows(one.rows, arms, codec, budget, checker, lambda: advance("replaying", 1), loaded)
            found.append(_compare(rows, codec, loaded, checker) if options.baselines else [{POLICY: o} for o in rows])
    results = [_summarize_arm(arm, sets, [rows[i] for rows in found], reader) for i, arm in enumerate(arms)]
    if page is not None:
        parts = [(one.name, part) for one, part in zip(sets, found, strict=True)]
        examples = [(f"{name}, {arm.name}", part[i][POLICY]) for name, part in parts for i, arm in enumerate(arms)]
        write(page, replay_page(examples))
    if options.as_json:
        typer.echo(json.dumps(results[0] if len(results) == 1 else {"presets": results}, indent=2))
    else:
        skipped = [sum(one.skipped for part in found for one in part[i][POLICY]) for i in range(len(arms))]
        without_gold = sum(row.gold is None for one in sets for row in one.rows)
        typer.echo(as_text(results, margin, skipped, without_gold, options.tokenizer is None))
    if margin is not None and any(one["lost_upper"] > margin for result in results for one in result["sets"]):
        raise typer.Exit(ABOVE_MARGIN)


def _compare(
    outcomes: Sequence[Sequence[ReplayedRow]], tokenizer: Any, reader: ModelReader | None, checker: AnswerChecker
) -> list[dict[str, Sequence[ReplayedRow]]]:
    """The rows of each arm on one set with those of its baselines, by name."""
    codec = get_adapter(tokenizer)
    first = stop_at_first_correct(outcomes[0], codec, checker)
    return [
        {POLICY: rows, EQUAL_BUDGET: cut_at_equal_tokens(rows, codec, reader, checker), FIRST_CORRECT: first}
        for rows in outcomes
    ]


def _summarize_arm(
    arm: ReplayArm,
    sets: Sequence[RecordedSet],
    found: Sequence[Mapping[str, Sequence[ReplayedRow]]],
    reader: str | None,
) -> dict[str, Any]:
    parts = {name: _summarize(sets, [rows[name] for rows in found]) for name in found[0]}
    result = {**parts.pop(POLICY), "preset": arm.name, "reader": reader}
    if parts:
        result["baselines"] = parts
        for one, rows in zip(parts[EQUAL_BUDGET]["sets"], found, strict=True):
            one["budget"] = next((row.stop.tokens for row in rows[EQUAL_BUDGET] if row.stop is not None), None)
    return result


def _summarize(sets: Sequence[RecordedSet], found: Sequence[Sequence[ReplayedRow]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "sets": [summarize(one.name, rows, one.left_out) for one, rows in zip(sets, found, strict=True)]
    }
    if len(sets) > 1:
        left_out = sum((one.left_out for one in sets), Counter[str]())
        result["all"] = summarize("all", [row for rows in found for row in rows], left_out)
    return result
