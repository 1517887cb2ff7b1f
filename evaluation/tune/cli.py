"""`tersely tune`: search for the cheapest way of answering that loses nothing, and write it down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from ...controller.options import GenerationOptions
from ...controller.tuned_config import TunedConfig
from ...errors import OptionError, unknown
from ...io import check_writable
from ..bench.arms import BASELINE, Arm
from ..bench.checkpoint_log import CheckpointLog
from ..bench.costs import load_cost_model
from ..bench.fairness import check_disjoint, check_unseen
from ..bench.records import ArmRecords
from ..bench.run import Bench, run_arm
from ..economics.prices import load_prices
from ..progress import show_progress
from ..runner import ENGINES, EvalRunner, load_runner
from ..stats import Array, question_means
from ..tasks.equality import AnswerChecker
from ..tasks.questions import GYM, TINY, Question, load
from .search import FIRST, Finding, chosen, prove, search
from .space import Candidate, default_space, read_space

NONE_FOUND = 1
_OFF = GenerationOptions(preset="off", policies=None)


@dataclass(frozen=True, slots=True)
class _Objective:
    """Lets the model answer parts of the questions; each piece is done once, see `CheckpointLog`."""

    answerer: EvalRunner
    parts: dict[str, Sequence[Question]]
    checker: AnswerChecker
    journal: CheckpointLog
    seed: int
    batch: int
    common: GenerationOptions
    advance: Any

    def __call__(self, part: str, candidate: Candidate | None, start: int, stop: int) -> ArmRecords:
        options = _OFF if candidate is None else GenerationOptions(**candidate.config.options())
        options = replace(options, max_new_tokens=self.common.max_new_tokens, probes=self.common.probes)
        name = BASELINE if candidate is None else candidate.name
        bench = Bench(
            answerer=self.answerer,
            questions=self.parts[part][start:stop],
            checker=self.checker,
            journal=self.journal,
            seed=self.seed + start,
            batch=self.batch,
            advance=lambda what, rows: self.advance(what, rows),
        )
        return run_arm(bench, Arm(f"{part} {start} {name}", options))


def tune(
    out: Annotated[Path, typer.Option(help="The configuration to write; a killed run goes on.")],
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = "tersely-tiny-small",
    task: Annotated[str, typer.Option(help="tiny, gym:NAME, or a JSONL file of {id, problem, answer}.")] = "tiny",
    limit: Annotated[int, typer.Option(min=FIRST, help="Questions to search on, of the split fit.")] = 256,
    proof: Annotated[int, typer.Option(min=10, help="Questions to prove it on, of the split calibrate.")] = 512,
    space: Annotated[Path | None, typer.Option(help="JSON {effort, policies, strategy}, each a list.")] = None,
    objective: Annotated[str, typer.Option(help="What is to fall: tokens, or usd by --price.")] = "tokens",
    price: Annotated[str | None, typer.Option(help="Price of the model's tokens: a name in the table.")] = None,
    margin: Annotated[float, typer.Option(help="Loss of accuracy that still counts as none.")] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the questions drawn and of sampling.")] = 0,
    probes: Annotated[str | None, typer.Option(help="Folder of tersely calibrate.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of one generation.")] = 2048,
    engine: Annotated[str, typer.Option(help="transformers, or vllm.")] = "transformers",
    batch: Annotated[int, typer.Option(min=1, help="Rows decoded at a time.")] = 64,
    think_prompt: Annotated[bool, typer.Option(help="Make a model without thinking markers think.")] = False,
) -> None:
    """Search efforts, strategies and policies for the cheapest that loses no accuracy beyond the margin.

    Exit code 0: one was found and written; 1: none could be shown to be better than no control, and nothing is written.
    """
    _check(objective, price, margin, engine, out)
    candidates = None if space is None else read_space(space)
    parts = _parts(task, limit, proof, seed)
    economy, _ = load_cost_model(model, None, load_prices(None), price, None)
    answerer = load_runner(model, engine, think_prompt=think_prompt)
    common = GenerationOptions(max_new_tokens=max_new_tokens, probes=probes)
    if candidates is None:
        candidates = default_space(_has_probes(answerer, common))
    made_from = {"model": model, "task": task, "seed": seed, "objective": objective, "margin": margin, "engine": engine}
    identity = {**made_from, "limit": limit, "proof": proof, "probes": probes, "max_new_tokens": max_new_tokens}
    identity |= {"price": price, "batch": batch, "space": [candidate.name for candidate in candidates]}
    journal = CheckpointLog(out.with_name(f"{out.name}.journal"), identity)

    def cost(records: ArmRecords) -> Array:
        if objective == "tokens":
            return records.means("total")
        assert economy.price is not None  # `_check` refuses it otherwise
        return question_means([economy.price.cost(row.prompt, row.total) for row in records.rows])

    work = len(candidates) * FIRST + 2 * limit * len(candidates) // 8 + 4 * len(parts["prove"])
    with AnswerChecker() as checker, show_progress(work) as advance:
        ask = _Objective(answerer, parts, checker, journal, seed, batch, common, advance)
        for candidate in candidates:  # what cannot be asked fails now, not in the last round
            _refuse_learnt(answerer, GenerationOptions(**candidate.config.options(), probes=probes), parts)
        finalists = search(candidates, ask, cost, len(parts["search"]), margin)
        findings = prove(finalists, ask, cost, len(parts["prove"]), margin, seed)
    _finish(out, candidates, findings, made_from)
    journal.remove()
    if chosen(findings) is None:
        raise typer.Exit(NONE_FOUND)


def _parts(task: str, limit: int, proof: int, seed: int) -> dict[str, Sequence[Question]]:
    """Questions to search on and others to prove it on: of two splits, or a user's file divided by chance."""
    if task == TINY or task.startswith(GYM):
        parts = {"search": load(task, "fit", limit, seed), "prove": load(task, "calibrate", proof, seed)}
    else:
        drawn = load(task, "fit", None, seed)
        Random(seed).shuffle(drawn)
        half = min(limit, len(drawn) // 2)
        parts = {"search": drawn[:half], "prove": drawn[half : half + proof]}
    check_disjoint(parts)
    return {name: tuple(questions) for name, questions in parts.items()}


def _check(objective: str, price: str | None, margin: float, engine: str, out: Path) -> None:
    if objective not in ("tokens", "usd"):
        raise unknown("objective", objective, ("tokens", "usd"))
    if objective == "usd" and price is None:
        raise OptionError("the objective is usd and no --price is given; accepted: a name in the price table")
    if not 0 <= margin < 1:
        raise OptionError(f"margin is {margin}; accepted: a share from 0 up to 1, as 0.01 for one point")
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    check_writable(out)


def _has_probes(answerer: EvalRunner, common: GenerationOptions) -> bool:
    """Whether learnt policies can be used on this model and engine."""
    from ...controller.probe_registry import ProbeError

    session = answerer.session
    if not {"signals", "hidden"} <= session.engine.capabilities:
        return False
    try:
        session.learnt(replace(common, effort="auto", preset="certified"))
    except ProbeError:
        return False
    return True


def _refuse_learnt(answerer: EvalRunner, options: GenerationOptions, parts: dict[str, Sequence[Question]]) -> None:
    policies, probe = answerer.session.learnt(options)
    for questions in parts.values():
        check_unseen([*policies, *([] if probe is None else [probe])], questions)
    answerer.session.prepare([questions[0].problem for questions in parts.values()], options)


def _finish(out: Path, candidates: Sequence[Candidate], findings: Sequence[Finding], made_from: dict[str, Any]) -> None:
    """Say what was found, and write it if it is any good."""
    best = chosen(findings)
    for finding in findings:
        change, low, high = (100 * value for value in finding.accuracy_change)
        saving, least, most = (100 * value for value in finding.saving)
        mark = "*" if finding is best else " "
        typer.echo(
            f"{mark} {finding.name}: saves {saving:.1f} % [{least:.1f}, {most:.1f}], accuracy {change:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}], {finding.verdict}"
        )
    if best is None:
        typer.echo(f"none of {len(candidates)} could be shown to save without loss on {findings[0].n} questions")
        return
    config = next(c.config for c in candidates if c.name == best.name)
    found = {**made_from, "tried": len(candidates), "findings": [asdict(finding) for finding in findings]}
    TunedConfig(config.effort, config.policies, config.strategy, found).save(out)
    typer.echo(f"wrote {out}; use it with `tersely run --config {out}`")
