"""The command `tersely tune`: find the cheapest configuration that loses no accuracy, and write it to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..controller.options import GenerationOptions, TunedConfig
from ..controller.types import Capability
from ..errors import OptionError, unknown
from ..io import CheckpointLog, check_writable
from . import cli_utils as cli
from .bench.arms import BASELINE, Arm, Bench, check_disjoint, check_resolved, run_arm
from .bench.costs import load_cost_model
from .bench.records import ArmRecords
from .economics.costs import load_prices
from .runner import SessionRunner, load_runner
from .stats import Array, question_means
from .tasks.equality import AnswerChecker
from .tasks.questions import Question, load_pools
from .tune_search import FIRST_ROUND, Candidate, Finding, choose, default_space, read_space, search, validate

NOTHING_FOUND = 1


def tune(
    out: Annotated[Path, typer.Option(help="Config file to write; an interrupted run resumes.")],
    model: cli.Model = "tersely-tiny-small",
    tasks: cli.Tasks = "tiny",
    limit: Annotated[int, typer.Option(min=FIRST_ROUND, help="Questions to search on (split fit).")] = 256,
    validation_questions: Annotated[
        int, typer.Option(min=10, help="Held-out questions for the final comparison (split calibrate).")
    ] = 512,
    space: Annotated[Path | None, typer.Option(help="JSON file {effort, policies, strategy}, each a list.")] = None,
    objective: Annotated[str, typer.Option(help="What to minimize: tokens, or usd (with --price).")] = "tokens",
    price: cli.Price = None,
    margin: cli.Margin = 0.01,
    seed: cli.Seed = 0,
    probes: cli.Probes = None,
    max_new_tokens: cli.MaxNewTokens = 2048,
    engine: cli.Engine = "transformers",
    batch_size: cli.BatchSize = 64,
    markers: cli.MarkerPair = None,
    think_prompt: cli.ThinkPrompt = False,
) -> None:
    """Search efforts, strategies and policies for the cheapest that loses no accuracy beyond the margin.

    Exit code 0: the config file was written; 1: no candidate was shown to save tokens without loss.
    """
    if objective not in ("tokens", "usd"):
        raise unknown("objective", objective, ("tokens", "usd"))
    if objective == "usd" and price is None:
        raise OptionError("--objective usd needs --price; accepted: a name in the price table", code="missing_price")
    check_writable(out)
    candidates = None if space is None else read_space(space)
    parts = _load_parts(cli.parse_list("--tasks", tasks, str), limit, validation_questions, seed)
    costs, _ = load_cost_model(model, None, load_prices(None), price, None)
    runner = load_runner(model, engine, think_prompt=think_prompt, markers=markers)
    common = GenerationOptions(max_new_tokens=max_new_tokens, probes=probes)
    if candidates is None:
        candidates = default_space(_has_probes(runner, common))
    made_from: dict[str, Any] = {"model": model, "task": tasks, "seed": seed}
    made_from |= {"objective": objective, "margin": margin, "engine": engine}
    identity = {**made_from, "limit": limit, "proof": validation_questions, "probes": probes}
    identity |= {"max_new_tokens": max_new_tokens, "price": price, "batch": batch_size}
    if markers is not None:
        identity["markers"] = markers
    identity["space"] = [candidate.name for candidate in candidates]
    checkpoints = CheckpointLog(out.with_name(f"{out.name}.journal"), identity)
    usd = costs.price if objective == "usd" else None

    def cost(records: ArmRecords) -> Array:
        if usd is None:
            return records.means("total")
        return question_means([usd.cost(row.prompt, row.total) for row in records.rows])

    work = len(candidates) * FIRST_ROUND + 2 * limit * len(candidates) // 8 + 4 * len(parts["prove"])
    with AnswerChecker() as checker, cli.show_progress(work) as advance:

        def ask(part: str, candidate: Candidate | None, start: int, stop: int) -> ArmRecords:
            chosen: dict[str, Any] = {"preset": "off"} if candidate is None else candidate.config.options()
            name = BASELINE if candidate is None else candidate.name
            questions, at = parts[part][start:stop], seed + start
            bench = Bench(runner, questions, checker, checkpoints, at, batch_size=batch_size, advance=advance)
            return run_arm(bench, Arm(f"{part} {start} {name}", replace(common, **chosen)))

        for candidate in candidates:  # so that errors appear now, not in the last round
            options = GenerationOptions(**candidate.config.options(), probes=probes)
            for questions in parts.values():
                check_resolved(runner.session, options, questions)
            runner.session.prepare([questions[0].problem for questions in parts.values()], options)
        finalists = search(candidates, ask, cost, len(parts["search"]), margin)
        findings = validate(finalists, ask, cost, len(parts["prove"]), margin, seed)
    _finish(out, candidates, findings, made_from)
    checkpoints.remove()
    if choose(findings) is None:
        raise typer.Exit(NOTHING_FOUND)


def _load_parts(tasks: Sequence[str], limit: int, validation: int, seed: int) -> dict[str, Sequence[Question]]:
    """Disjoint questions to search on and to validate on; a pool from files is divided."""
    pools = load_pools(tasks, {"fit": limit, "calibrate": validation}, seed)
    if len(pools) == 1:
        (pool,) = pools
        size = min(limit, len(pool) // 2)
        pools = [pool[:size], pool[size : size + validation]]
    parts: dict[str, Sequence[Question]] = dict(zip(("search", "prove"), pools, strict=True))
    check_disjoint(parts)
    return parts


def _has_probes(runner: SessionRunner, common: GenerationOptions) -> bool:
    """Whether policies with probes work on this model and engine."""
    from ..controller.probe_registry import ProbeError

    session = runner.session
    if not {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES} <= session.engine.capabilities:
        return False
    try:
        session.resolve(replace(common, effort="auto", preset="certified"))
    except ProbeError:
        return False
    return True


def _finish(out: Path, candidates: Sequence[Candidate], findings: Sequence[Finding], made_from: dict[str, Any]) -> None:
    """Print the findings, and write the chosen configuration if there is one."""
    best = choose(findings)
    for finding in findings:
        saving, change = (
            cli.format_interval(found[0], found[1:], form, 100)
            for found, form in ((finding.saving, ".1f"), (finding.accuracy_change, "+.1f"))
        )
        mark = "*" if finding is best else " "
        typer.echo(f"{mark} {finding.name}: saves {saving} %, accuracy {change} points, {finding.verdict}")
    if best is None:
        typer.echo(f"none of {len(candidates)} candidates was shown to save without loss on {findings[0].n} questions")
        return
    config = next(c.config for c in candidates if c.name == best.name)
    provenance = {**made_from, "tried": len(candidates), "findings": [asdict(finding) for finding in findings]}
    TunedConfig(config.effort, config.policies, config.strategy, provenance).save(out)
    typer.echo(f"wrote {out}; use it with `tersely run --config {out}`")
