"""The command `tersely bench`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import typer

from ...controller.api import resolve_verifier
from ...controller.session import Session
from ...io import CheckpointLog, announce_resume, begins_with_keys, check_replaceable, write
from .. import cli_utils as cli
from ..runner import SessionRunner, load_runner
from ..stats import area, common_range, iso_saving, reliability
from ..tasks.equality import AnswerChecker
from .arms import Arm, Bench, check_comparable, check_resolved, run_arm
from .compare import EXIT_CODES, as_text, compare
from .counterfactual import TOTAL_WORK, TRUNCATION_WORK, WORK, Counterfactual
from .economics import measure_economics
from .plan import BenchOptions, BenchPlan, environment, make_plan
from .records import ArmRecords
from .truncation import Recording

_LONGEST = 20


@cli.takes(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Compare arms on the same questions and seeds.

    Exit code 0: the second arm loses no accuracy beyond the margin and saves tokens; 1: it does not; 2: too few
    questions to decide.
    """
    out = options.out
    if out is not None:
        check_replaceable(out, lambda path: begins_with_keys(path, "arms", "verdict", "rows"))
    plan, notes = make_plan(options)
    checkpoints = CheckpointLog(None if out is None else out.with_name(f"{out.name}.journal"), plan.identity())
    with announce_resume(checkpoints.path, lambda: checkpoints.completed):
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
    cli.log_step(f"loading {plan.options.model} for {len(plan.questions)} questions")
    runner, helper = _load_runners(plan)
    # The longest questions are prepared with every arm, so that errors appear now and not in the last batch.
    longest = sorted((question.problem for question in plan.questions), key=len)[-_LONGEST:]
    for arm in plan.arms:
        session = (helper if arm.on_helper and helper else runner).session
        check_resolved(session, arm.options, plan.questions)
        session.prepare(longest, arm.options)
    with AnswerChecker() as checker, _progress(plan) as advance:
        bench = Bench(
            runner=runner,
            questions=plan.questions,
            checker=checker,
            checkpoints=checkpoints,
            seed=plan.options.seed,
            rollouts=plan.options.rollouts,
            batch_size=plan.batch_size,
            weights=plan.costs.weights(),
            helper=helper,
            advance=advance,
        )
        figures, records = measure(plan, bench)
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


def measure(plan: BenchPlan, bench: Bench) -> tuple[dict[str, Any], list[ArmRecords]]:
    """Run all arms; returns the result's figures and all rows. Raises CheckError if the comparison is not fair."""
    records = [run_arm(bench, arm) for arm in plan.arms]
    check_comparable(records)
    if not plan.options.baselines or not any(row.thinking for row in records[0].rows):
        return assemble(plan, records, [], []), records
    counterfactual = Counterfactual(bench, plan.arms[0])
    controlled = [one for one, arm in zip(records, plan.arms, strict=True) if arm.controlled]
    records += [*counterfactual.equal_budgets(controlled), *counterfactual.baselines(records[1].mean("total"))]
    return assemble(plan, records, counterfactual.curve(), counterfactual.recordings), records


def assemble(
    plan: BenchPlan,
    records: Sequence[ArmRecords],
    curve: Sequence[tuple[int, ArmRecords]],
    recordings: Sequence[Recording],
) -> dict[str, Any]:
    """The result's figures: all arms, the verdict, the fixed-budget curve and what is derived from it."""
    costs, seed = plan.costs, plan.options.seed
    result = compare(records, plan.options.margin, seed)
    points = [*(one for _, one in curve), records[0]]  # the curve ends with the uncontrolled arm
    tokens, right = ([one.means(kind) for one in points] for kind in ("total", "right"))
    for entry, arm in zip(result["arms"], records, strict=True):
        entry |= {"iso_saving": None, "iso_saving_ci": None, **costs.measure(arm)}
        if curve and arm is not records[0]:
            entry |= iso_saving(tokens, right, arm.means("total"), arm.means("right"), seed=seed)
    arms, economics, notes = measure_economics(records, recordings, costs, seed)
    for entry in result["arms"]:
        entry |= arms[entry["name"]]
    trials = [trial for recording in recordings for trial in recording.trials]
    return {
        **result,
        **economics,
        "notes": notes,
        "budget_curve": [
            {"budget": budget, "accuracy": float(one.means("right").mean()), "total": one.mean("total")}
            for budget, one in curve
        ],
        "auc": _areas(curve, [arm for arm in records if not arm.truncated], plan.arms),
        "calibration": reliability([t.confidence for t in trials], [t.right for t in trials]) if trials else None,
    }


def _areas(
    curve: Sequence[tuple[int, ArmRecords]], records: Sequence[ArmRecords], arms: Sequence[Arm]
) -> dict[str, float] | None:
    """Accuracy over log tokens, for fixed budgets and for the controlled arms, over their common range."""
    controlled = {arm.name for arm in arms if arm.controlled} | {records[0].arm}
    fixed = [(one.mean("total"), float(one.means("right").mean())) for _, one in curve]
    ours = [(arm.mean("total"), float(arm.means("right").mean())) for arm in records if arm.arm in controlled]
    if len(fixed) < 2 or len(ours) < 2:
        return None
    ends = common_range(fixed, ours)
    if ends is None:
        return None
    return {"fixed budget": area(fixed, *ends), "controlled": area(ours, *ends), "from": ends[0], "to": ends[1]}


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
