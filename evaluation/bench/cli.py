"""The command `tersely bench`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...controller.api import resolve_verifier
from ...controller.budgets import canonical_effort, fit_budget
from ...controller.options import GenerationOptions, read_config
from ...controller.policies import make_policies
from ...controller.session import Session
from ...controller.types import Capability
from ...errors import OptionError, unknown
from ...io import CheckpointLog, check_writable, write
from .. import cli_utils as cli
from ..economics.costs import load_prices
from ..economics.latency import fit_runtime, read_timings
from ..runner import ENGINES, SessionRunner, load_runner
from ..tasks.equality import AnswerChecker
from ..tasks.questions import TINY, Question, load_all
from ..tasks.toy_problems import SPLITS
from .arms import BASELINE, Arm, Bench, check_disjoint, check_resolved, check_unseen, load_own_arms, make_arms
from .compare import EXIT_CODES, as_text
from .counterfactual import TOTAL_WORK, TRUNCATION_WORK, WORK
from .economics import CostModel, load_cost_model
from .result import BenchPlan, environment, measure

_LONGEST = 20


def bench(
    model: cli.Model = "tersely-tiny-small",
    arms: Annotated[
        str | None, typer.Option(help="Arms: the baseline, the arm to judge, any others; by default full,balanced.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE:CLASS", help="Add an arm with your own policy, own.py:ClassName; repeatable."),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Tasks: tiny, gym:NAME, or JSONL files of {question, answer[, id, level]}.")
    ] = TINY,
    split: Annotated[str, typer.Option(help="Split of tiny and gym tasks: fit, calibrate or test.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Maximum questions per task.")] = None,
    rollouts: Annotated[int, typer.Option(min=1, help="Generations per question and arm.")] = 1,
    seed: cli.Seed = 0,
    margin: cli.Margin = 0.01,
    effort: Annotated[str, typer.Option(help="Effort of arms that do not set one.")] = "normal",
    probes: cli.Probes = None,
    max_new_tokens: cli.MaxNewTokens = 2048,
    engine: cli.Engine = ENGINES[0],
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows decoded at a time; the default suits the engine.")
    ] = None,
    helper: Annotated[str | None, typer.Option(help="Larger helper model; also runs alone as an arm.")] = None,
    verifier: Annotated[str | None, typer.Option(help="Verifier model, for trimr where rules cannot decide.")] = None,
    verifier_rules: Annotated[bool, typer.Option(help="Ask the verifier only what rules cannot decide.")] = True,
    price: cli.Price = None,
    helper_price: Annotated[str | None, typer.Option(help="The helper's price.")] = None,
    prices: Annotated[Path | None, typer.Option(help="JSON file of your own prices, added to the table.")] = None,
    expert_usd: Annotated[
        float | None, typer.Option(min=0, help="What a human expert asks for an answer, for the frontier of costs.")
    ] = None,
    timings: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of {prompt, output, seconds}: idealized seconds; without it, those of --batch-size 1."
        ),
    ] = None,
    usd_per_hour: Annotated[float | None, typer.Option(min=0, help="Price of the machine of these seconds.")] = None,
    config: Annotated[Path | None, typer.Option(help="Config file of `tersely tune`, for the arm `tuned`.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also truncate the baseline's thinking, for comparison.")] = True,
    markers: cli.MarkerPair = None,
    think_prompt: cli.ThinkPrompt = False,
    as_json: cli.Json = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the result with every row; an interrupted run resumes.")
    ] = None,
) -> None:
    """Compare arms on the same questions and seeds.

    Exit code 0: the second arm loses no accuracy beyond the margin and saves tokens; 1: it does not; 2: too few
    questions to decide.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if out is not None:
        check_writable(out)
    common = GenerationOptions(effort=canonical_effort(effort), max_new_tokens=max_new_tokens, probes=probes)
    fit_budget("normal", max_new_tokens, None)
    own = load_own_arms(policy or (), common)
    compared = make_arms(
        arms or (BASELINE if own else f"{BASELINE},balanced"),
        common,
        helper=helper is not None,
        config=None if config is None else read_config(config),
        own=own,
    )
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    splits = _load_splits(names, split, limit, seed)
    if verifier is None and not verifier_rules:
        raise OptionError("--no-verifier-rules asks a verifier, and none is named; add --verifier MODEL")
    _check_policies(compared, verifier, splits[split])
    costs, notes = load_cost_model(model, helper, load_prices(prices), price, helper_price, verifier)
    runtime = None if timings is None else fit_runtime(read_timings(timings))
    costs = replace(costs, expert_usd=expert_usd, runtime=runtime, usd_per_hour=usd_per_hour)
    plan = BenchPlan(
        tasks=names,
        model=model,
        engine=engine,
        helper=helper,
        verifier=verifier,
        verifier_rules=verifier_rules,
        split=split,
        splits=splits,
        arms=compared,
        common=common,
        think_prompt=think_prompt,
        markers=markers,
        baselines=baselines,
        seed=seed,
        rollouts=rollouts,
        batch_size=batch_size or (512 if engine == "vllm" else 64),
        margin=margin,
        weights=costs.weights(),
    )
    checkpoints = CheckpointLog(None if out is None else out.with_name(f"{out.name}.journal"), plan.identity())
    with cli.announce_resume(checkpoints):
        figures = _run(plan, checkpoints, costs)
        notes += figures["notes"]
        result = {**environment(), **figures, "notes": notes, "command": _command()}
        if baselines and not result["budget_curve"]:
            notes.append("The baseline arm did not think, so nothing could be truncated.")
        if out is not None:
            write(out, json.dumps(result) + "\n")
            checkpoints.remove()
    shown = {key: value for key, value in result.items() if key != "rows"}
    typer.echo(json.dumps(shown, indent=2) if as_json else as_text(shown))
    raise typer.Exit(EXIT_CODES[result["verdict"]])


def _check_policies(arms: Sequence[Arm], verifier: str | None, questions: Sequence[Question]) -> None:
    """Refuse policies that were trained on the questions, and a verifier that none of them would use."""
    policies = [one for arm in arms for one in make_policies(arm.options.preset, arm.options.policies)]
    check_unseen(policies, questions)
    if verifier is not None and not any(Capability.VERIFIER in one.requires for one in policies):
        raise OptionError(
            f"no arm uses the verifier {verifier!r}; add an arm with a policy that does, such as trimr, or leave "
            "--verifier out",
            code="unused_verifier",
        )


def _load_splits(tasks: Sequence[str], split: str, limit: int | None, seed: int) -> dict[str, Sequence[Question]]:
    """The questions to answer and, for the task `tiny`, those of the other splits, checked to be disjoint.

    Other splits of reasoning-gym tasks may overlap, as some have few distinct questions. Raises TaskError, CheckError.
    """
    splits: dict[str, Sequence[Question]] = {split: load_all(tasks, split, limit, seed)}
    if TINY in tasks:
        splits |= {other: load_all([TINY], other, limit, seed) for other in SPLITS if other != split}
    check_disjoint(splits)
    return splits


def _run(plan: BenchPlan, checkpoints: CheckpointLog, costs: CostModel) -> dict[str, Any]:
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
            seed=plan.seed,
            rollouts=plan.rollouts,
            batch_size=plan.batch_size,
            weights=plan.weights,
            helper=helper,
            advance=advance,
        )
        figures, records = measure(plan, bench, costs)
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
    runner = load_runner(plan.model, plan.engine, think_prompt=plan.think_prompt, markers=plan.markers)
    helper = None if plan.helper is None else load_runner(plan.helper, plan.engine, think_prompt=plan.think_prompt)
    if helper is not None:
        from ...controller.helpers import EngineHelper

        # Without a time limit: results must not depend on the speed of the machine.
        session = Session(helper.engine, think_prompt=plan.think_prompt)
        runner.session.helper = EngineHelper(session, timeout=math.inf)
    if plan.verifier is not None:
        runner.session.verifier = resolve_verifier(plan.verifier, plan.verifier_rules)
    return runner, helper


@contextmanager
def _progress(plan: BenchPlan) -> Iterator[Any]:
    cuts = TOTAL_WORK + TRUNCATION_WORK * sum(arm.controlled for arm in plan.arms)
    per_question = len(plan.arms) + cuts * plan.baselines
    work = {**WORK, **{arm.name: 1.0 for arm in plan.arms}}
    curve = min(WORK.values())
    with cli.show_progress(len(plan.questions) * plan.rollouts * per_question) as advance:
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
