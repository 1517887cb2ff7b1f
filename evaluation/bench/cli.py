"""The command `tersely bench`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ...controller.api import resolve_verifier
from ...controller.budgets import canonical_effort, fit_budget
from ...controller.helpers.engine_helper import EngineHelper
from ...controller.options import DEFAULT_MAX_NEW_TOKENS, GenerationOptions
from ...controller.policies import make_policies
from ...controller.session import Session
from ...controller.tuned_config import read_config
from ...errors import OptionError, unknown
from ...io import check_writable, write
from ..economics.prices import load_prices
from ..runner import ENGINES, load_runner
from ..tasks.equality import AnswerChecker
from ..tasks.questions import TINY, Question, load_all
from ..tasks.toy_problems import SPLITS
from .arms import Arm, make_arms
from .checkpoint_log import CheckpointLog
from .costs import CostModel, load_cost_model
from .fairness import check_disjoint, check_unseen
from .progress import shown, work
from .records import ArmRecords, row_dicts
from .result import BenchPlan, measure, origin
from .run import Bench
from .verdict import EXIT_CODES

_LONGEST = 20
_BATCH = {"transformers": 64, "vllm": 512}


def bench(
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = "tersely-tiny-small",
    arms: Annotated[str, typer.Option(help="Arms: the baseline, the one to be judged, then others.")] = "full,balanced",
    tasks: Annotated[
        str, typer.Option(help="tiny, gym:NAME, or JSONL files of {id, problem, answer[, level]}.")
    ] = TINY,
    split: Annotated[str, typer.Option(help="Split of tiny and gym tasks: fit, calibrate or test.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Most questions of each task.")] = None,
    rollouts: Annotated[int, typer.Option(help="Generations per question and arm.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the questions drawn and of sampling.")] = 0,
    margin: Annotated[float, typer.Option(help="Loss of accuracy that still counts as none, as a share of 1.")] = 0.01,
    effort: Annotated[str, typer.Option(help="Effort of the arms that do not fix it.")] = "normal",
    probes: Annotated[
        str | None, typer.Option(help="Folder of tersely calibrate, in place of released probes.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of one generation.")] = DEFAULT_MAX_NEW_TOKENS,
    engine: Annotated[str, typer.Option(help="transformers, or vllm, which is faster.")] = ENGINES[0],
    batch: Annotated[int | None, typer.Option(help="Rows decoded at a time; by default as fits the engine.")] = None,
    helper: Annotated[str | None, typer.Option(help="A larger model, run alone as one more arm.")] = None,
    verifier: Annotated[str | None, typer.Option(help="A model that trimr asks what rules cannot tell.")] = None,
    price: Annotated[str | None, typer.Option(help="Price of the model's tokens: a name in the price table.")] = None,
    helper_price: Annotated[str | None, typer.Option(help="Price of the helper's tokens.")] = None,
    prices: Annotated[Path | None, typer.Option(help="JSON file of prices of your own, over the table's.")] = None,
    config: Annotated[Path | None, typer.Option(help="A file of `tersely tune`, for the arm named tuned.")] = None,
    baselines: Annotated[bool, typer.Option(help="Cut the baseline's thinking for the standard comparisons.")] = True,
    think_prompt: Annotated[bool, typer.Option(help="Make a model without thinking markers think.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the result, with every row, to this JSON file; a killed run goes on.")
    ] = None,
) -> None:
    """Compare arms on the same questions and seeds.

    Exit code 0: the second arm loses no accuracy beyond the margin and saves tokens; 1: not; 2: too few questions.
    """
    _check(rollouts, margin, batch, out, engine)
    common = GenerationOptions(effort=canonical_effort(effort), max_new_tokens=max_new_tokens, probes=probes)
    fit_budget("normal", max_new_tokens, None)
    wanted = make_arms(arms, common, helper=helper is not None, config=None if config is None else read_config(config))
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    splits = _splits(names, split, limit, seed)
    _check_verifier(wanted, verifier)
    for arm in wanted:
        check_unseen(make_policies(arm.options.preset, arm.options.policies), splits[split])
    economy, notes = load_cost_model(model, helper, load_prices(prices), price, helper_price, verifier)
    plan = BenchPlan(
        tasks=names,
        model=model,
        engine=engine,
        helper=helper,
        verifier=verifier,
        split=split,
        splits=splits,
        arms=wanted,
        common=common,
        think_prompt=think_prompt,
        baselines=baselines,
        seed=seed,
        rollouts=rollouts,
        batch=batch or _BATCH[engine],
        margin=margin,
        weights=economy.weights(),
    )
    journal = CheckpointLog(None if out is None else out.with_name(f"{out.name}.journal"), plan.identity())
    with _resumable(journal):
        result = {**origin(), **_run(plan, journal, economy), "notes": notes, "command": _command()}
        if baselines and not result["budget_curve"]:
            notes.append("The baseline did not think, so nothing was cut from it.")
        if out is not None:
            write(out, json.dumps(result) + "\n")
            journal.remove()
    _print({key: value for key, value in result.items() if key != "rows"}, as_json)
    raise typer.Exit(EXIT_CODES[result["verdict"]])


def _check(rollouts: int, margin: float, batch: int | None, out: Path | None, engine: str) -> None:
    """Refuse what would only fail after minutes of work."""
    for name, value in (("rollouts", rollouts), ("batch", batch)):
        if value is not None and value < 1:
            raise OptionError(f"{name} is {value}; accepted: 1 or more")
    if not 0 <= margin < 1:
        raise OptionError(f"margin is {margin}; accepted: a share from 0 up to 1, as 0.01 for one point")
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if out is not None:
        check_writable(out)


def _check_verifier(arms: Sequence[Arm], verifier: str | None) -> None:
    """Refuse a verifier that nobody asks."""
    policies = (policy for arm in arms for policy in make_policies(arm.options.preset, arm.options.policies))
    if verifier is not None and not any("verifier" in policy.needs for policy in policies):
        raise OptionError(
            f"verifier {verifier!r} would never be asked: no arm has a policy that asks one; add the arm trimr, or "
            "leave it out"
        )


def _splits(tasks: Sequence[str], split: str, limit: int | None, seed: int) -> dict[str, Sequence[Question]]:
    """The questions that are asked and, of the embedded family, those of the other splits, which must not be the same.

    Raises TaskError, and CheckError if two splits share a question. The splits of reasoning-gym's tasks may: some have
    few questions in all.
    """
    asked = load_all(tasks, split, limit, seed)
    others = {other: load_all([TINY], other, limit, seed) for other in SPLITS if other != split and TINY in tasks}
    splits: dict[str, Sequence[Question]] = {split: asked, **others}
    check_disjoint(splits)
    return splits


def _run(plan: BenchPlan, journal: CheckpointLog, economy: CostModel) -> dict[str, Any]:
    """The result of a plan, all but where it was made."""
    names = [arm.name for arm in plan.arms]
    answerer = load_runner(plan.model, plan.engine, think_prompt=plan.think_prompt)
    helper = None if plan.helper is None else load_runner(plan.helper, plan.engine, think_prompt=plan.think_prompt)
    if helper is not None:
        # Without a time limit: what is measured must not depend on how fast the machine is.
        delegate = Session(helper.engine, think_prompt=plan.think_prompt)
        answerer.session.helper = EngineHelper(delegate, timeout=math.inf)
    if plan.verifier is not None:
        answerer.session.verifier = resolve_verifier(plan.verifier)
    longest = sorted((question.problem for question in plan.questions), key=len)[-_LONGEST:]
    for arm in plan.arms:  # what cannot be asked fails now, not in the last batch
        session = (helper if arm.on_helper and helper else answerer).session
        policies, probe = session.learnt(arm.options)
        check_unseen([*policies, *([] if probe is None else [probe])], plan.splits[plan.split])
        session.prepare(longest, arm.options)
    total = work(len(plan.questions) * plan.rollouts, len(names), plan.baselines)
    with AnswerChecker() as checker, shown(total, names) as advance:
        made = Bench(
            answerer=answerer,
            questions=plan.questions,
            checker=checker,
            journal=journal,
            seed=plan.seed,
            rollouts=plan.rollouts,
            batch=plan.batch,
            weights=plan.weights,
            helper=helper,
            advance=advance,
        )
        figures, records = measure(plan, made, economy)
    return {**plan.frame(), **figures, "answers": _answers(checker, records), "rows": row_dicts(records)}


def _answers(checker: AnswerChecker, records: Sequence[ArmRecords]) -> dict[str, Any]:
    """How answers were compared, and how many comparisons ended otherwise than in yes or no."""
    found = Counter(row.outcome for one in records for row in one.rows)
    counts = {"unparsable": found["unparsable"], "timeouts": found["timeout"], "crashes": found["crash"]}
    return {"method": checker.method, "deadline": checker.deadline, **counts}


@contextmanager
def _resumable(journal: CheckpointLog) -> Iterator[None]:
    """Say how to go on where a run was stopped."""
    try:
        yield
    except BaseException:
        if journal.path is not None and journal.done:
            print(f"stopped; the same command goes on from {journal.path}", file=sys.stderr)
        raise


def _command() -> list[str]:
    """The command line that makes this result again, wherever it is written to."""
    words, kept = iter(sys.argv[1:]), ["tersely"]
    for word in words:
        if word == "--out":
            next(words, None)
        elif word != "--json" and not word.startswith("--out="):
            kept.append(word)
    return kept


def _print(result: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console

    from .table import show

    show(result, Console())
