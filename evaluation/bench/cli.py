"""The command `tersely bench`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import typer

from ...controller.api import resolve_verifier
from ...controller.session import Session
from ...io import CheckpointLog, check_writable, write
from .. import cli_utils as cli
from ..runner import SessionRunner, load_runner
from ..tasks.equality import AnswerChecker
from .arms import Bench, check_resolved
from .compare import EXIT_CODES, as_text
from .counterfactual import TOTAL_WORK, TRUNCATION_WORK, WORK
from .plan import BenchOptions, BenchPlan, environment, make_plan
from .result import measure

_LONGEST = 20


@cli.takes(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Compare arms on the same questions and seeds.

    Exit code 0: the second arm loses no accuracy beyond the margin and saves tokens; 1: it does not; 2: too few
    questions to decide.
    """
    out = options.out
    if out is not None:
        check_writable(out)
    plan, notes = make_plan(options)
    checkpoints = CheckpointLog(None if out is None else out.with_name(f"{out.name}.journal"), plan.identity())
    with cli.announce_resume(checkpoints):
        figures = _run(plan, checkpoints)
        notes += figures["notes"]
        result = {**environment(), **figures, "notes": notes, "command": _command()}
        if options.baselines and not result["budget_curve"]:
            notes.append("The baseline arm did not think, so nothing could be truncated.")
        if out is not None:
            write(out, json.dumps(result) + "\n")
            checkpoints.remove()
    shown = {key: value for key, value in result.items() if key != "rows"}
    typer.echo(json.dumps(shown, indent=2) if options.as_json else as_text(shown))
    raise typer.Exit(EXIT_CODES[result["verdict"]])


def _run(plan: BenchPlan, checkpoints: CheckpointLog) -> dict[str, Any]:
    runner, helper = _load_runners(plan)
    # The longest questions are prepared with every arm, so that errors appear now and not in the last batch.
    longest = sorted((question.problem for question in plan.questions), key=len)[-_LONGEST:]
    for arm in plan.arms:
        session = (helper if arm.on_helper and helper else runner).session
        check_resolved(session, arm.options, plan.questions)
        session.prepare(longest, arm.options)
    with AnswerChecker() as checker, _progress(plan) as advance:
        seed, rollouts, weights = plan.options.seed, plan.options.rollouts, plan.costs.weights()
        common = (runner, plan.questions, checker, checkpoints, seed, rollouts, plan.batch_size, weights)
        figures, records = measure(plan, Bench(*common, helper, advance))
    outcomes = Counter(row.outcome for one in records for row in one.rows)
    answers = {
        "method": checker.method,
        "deadline": checker.deadline,
        "unparsable": outcomes["unparsable"],
        "timeouts": outcomes["timeout"],
        "crashes": outcomes["crash"],
    }
    rows = [asdict(row) for one in records for row in one.rows]
    return {**plan.settings(), **figures, "answers": answers, "rows": rows}


def _load_runners(plan: BenchPlan) -> tuple[SessionRunner, SessionRunner | None]:
    """The model, which may ask the helper and the verifier, and the helper alone."""
    options, think = plan.options, plan.options.think_prompt
    runner = load_runner(options.model, options.engine, think_prompt=think, markers=options.markers)
    helper = None if options.helper is None else load_runner(options.helper, options.engine, think_prompt=think)
    if helper is not None:
        from ...controller.helpers import EngineHelper

        # Without a time limit: results must not depend on the speed of the machine.
        session = Session(helper.engine, think_prompt=think)
        runner.session.helper = EngineHelper(session, timeout=math.inf)
    if options.verifier is not None:
        runner.session.verifier = resolve_verifier(options.verifier, options.verifier_rules)
    return runner, helper


@contextmanager
def _progress(plan: BenchPlan) -> Iterator[Any]:
    cuts = TOTAL_WORK + TRUNCATION_WORK * sum(arm.controlled for arm in plan.arms)
    per_question = len(plan.arms) + cuts * plan.options.baselines
    work = {**WORK, **{arm.name: 1.0 for arm in plan.arms}}
    curve = min(WORK.values())
    with cli.show_progress(len(plan.questions) * plan.options.rollouts * per_question) as advance:
        yield lambda description, rows: advance(description, rows * work.get(description, curve))


def _command() -> list[str]:
    """The command line that reproduces this result, without the options that only direct the output."""
    arguments, kept = iter(sys.argv[1:]), ["tersely"]
    for argument in arguments:
        if argument == "--out":
            next(arguments, None)
        elif argument != "--json" and not argument.startswith("--out="):
            kept.append(argument)
    return kept
