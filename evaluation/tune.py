"""The command `tersely tune`: find the cheapest configuration that loses no accuracy, and write it to a file.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): each round doubles the number of questions and keeps the
better half of the candidates. The best of a search look better than they are, so the last few are judged on fresh
questions, with intervals widened for their number, and only a candidate that passes there is chosen.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..controller.options import GenerationOptions, TunedConfig, flag
from ..controller.probe_registry import ProbeError
from ..controller.types import Capability
from ..errors import OptionError, check_known
from ..io import CheckpointLog, announce_resume, begins_with_keys, check_replaceable
from ..validation import FrozenModel, parse_json, read_text
from . import cli_utils as cli
from .bench.arms import BASELINE, Arm, Bench, check_disjoint, check_resolved, run_arm
from .bench.compare import GOOD, judge
from .bench.records import ArmRecords
from .economics.costs import load_prices
from .runner import SessionRunner, load_runner
from .stats import LEVEL, Array, paired_bootstrap, question_means, ratio_bootstrap, studentized_bootstrap
from .tasks.equality import AnswerChecker
from .tasks.questions import Question, load_pools

FINALISTS = 3
FIRST_ROUND = 32  # questions of the first round

_AGREE_TWICE = {"convergence": {"agree": 2}}
_AGREE_THRICE = {"convergence": {"agree": 3}}
_WITHOUT_PROBES: tuple[Mapping[str, Mapping[str, Any]], ...] = (
    {},
    _AGREE_TWICE,
    _AGREE_THRICE,
    {"hint": {}},
    {"hint": {}, **_AGREE_TWICE},
    {"hint": {}, **_AGREE_THRICE},
    {"trimr": {}, "repetition": {}},
)
_WITH_PROBES: tuple[Mapping[str, Mapping[str, Any]], ...] = (
    {"readiness": {}},
    {"readiness": {}, **_AGREE_TWICE},
    {"readiness": {}, "reconsider": {}},
    {"readiness": {}, "hint": {}},
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration with a descriptive name."""

    name: str
    config: TunedConfig


def named_candidate(config: TunedConfig) -> Candidate:
    """Name a configuration after its settings."""
    parts = [config.effort] if isinstance(config.strategy, str) else [config.effort, json.dumps(config.strategy)]
    if isinstance(config.strategy, str) and config.strategy != "tiers":
        parts.append(config.strategy)
    for policy, settings in config.policies.items():
        if policy != "budget":
            text = ", ".join(f"{key}={value}" for key, value in settings.items())
            parts.append(f"{policy}({text})" if text else policy)
    return Candidate(" + ".join(parts), config)


def default_space(has_probes: bool) -> list[Candidate]:
    """Efforts and sets of policies worth trying on any model, or on a model with probes."""
    sets = [*_WITHOUT_PROBES, *(_WITH_PROBES if has_probes else ())]
    configs = [TunedConfig("normal", {"budget": {}, **policies}) for policies in sets]
    configs.append(TunedConfig("easy", {"budget": {}}))
    if has_probes:
        configs += [TunedConfig("auto", {"budget": {}, **policies}) for policies in ({}, _AGREE_TWICE)]
        configs.append(TunedConfig("auto", {"budget": {}}, "diffadapt"))
    return [named_candidate(config) for config in configs]


class SpaceError(OptionError, code="invalid_space"):
    """A search space cannot be used."""


class _Space(FrozenModel):
    effort: tuple[str, ...] = ("normal",)
    policies: tuple[dict[str, Any], ...] = ({},)
    strategy: tuple[str | dict[str, Any], ...] = ("tiers",)


def read_space(path: Path) -> list[Candidate]:
    """Every combination of a JSON file {effort, policies: [{name: settings}, ...], strategy}; raises SpaceError."""
    space = parse_json(_Space, read_text(path, SpaceError), str(path), SpaceError)
    combinations = product(space.effort, space.policies, space.strategy)
    candidates = [named_candidate(TunedConfig(*values)) for values in combinations]
    if not candidates:
        raise SpaceError(f"{path} has no candidates; accepted: at least one value per key")
    return list({candidate.name: candidate for candidate in candidates}.values())


Ask = Callable[[str, Candidate | None, int, int], ArmRecords]
"""`ask(part, candidate, start, stop)` answers these questions of a part; None is the uncontrolled model."""
Cost = Callable[[ArmRecords], Array]  # the cost of each question, [questions]


@dataclass(frozen=True, slots=True)
class Finding:
    """One candidate compared with the uncontrolled model on fresh questions.

    `accuracy_change` and `saving` are (estimate, low, high), with intervals at `level`, which is above 95 % if several
    candidates are judged.
    """

    name: str
    verdict: str
    n: int
    accuracy: float
    accuracy_change: tuple[float, float, float]
    saving: tuple[float, float, float]
    level: float


def search(candidates: Sequence[Candidate], ask: Ask, cost: Cost, limit: int, margin: float) -> list[Candidate]:
    """The best few candidates after `limit` questions: first those that lose at most the margin, then the cheapest."""
    if limit < FIRST_ROUND:
        raise OptionError(
            f"got {limit} questions to search on; accepted: {FIRST_ROUND} or more", code="too_few_questions"
        )
    right: dict[str | None, Array] = defaultdict(lambda: np.zeros(0))
    spent: dict[str | None, Array] = defaultdict(lambda: np.zeros(0))
    left, start, stop = list(candidates), 0, FIRST_ROUND
    while True:
        for candidate in (None, *left):
            name = None if candidate is None else candidate.name
            records = ask("search", candidate, start, stop)
            right[name] = np.append(right[name], records.means("right"))
            spent[name] = np.append(spent[name], cost(records))
        left.sort(key=lambda c: ((right[c.name] - right[None]).mean() < -margin, spent[c.name].mean()))
        if stop == limit:
            return left[:FINALISTS]
        left = left[: max(FINALISTS, -(-len(left) // 2))]
        start, stop = stop, min(2 * stop, limit)


def validate(finalists: Sequence[Candidate], ask: Ask, cost: Cost, n: int, margin: float, seed: int) -> list[Finding]:
    """Judge finalists on n fresh questions, with a joint error rate of one candidate judged at 95 %."""
    base = ask("prove", None, 0, n)
    level = 1 - (1 - LEVEL) / len(finalists)
    findings = []
    for candidate in finalists:
        ours = ask("prove", candidate, 0, n)
        change, spent = ours.means("right") - base.means("right"), cost(ours) - cost(base)
        accuracy = paired_bootstrap(change, level=level, seed=seed)
        tokens = studentized_bootstrap(spent, level=level, seed=seed)
        saving = ratio_bootstrap(cost(ours), cost(base), level=level, seed=seed)
        findings.append(
            Finding(
                name=candidate.name,
                verdict=judge(change, accuracy, spent, tokens, margin).word,
                n=n,
                accuracy=ours.mean("right"),
                accuracy_change=(accuracy.estimate, accuracy.low, accuracy.high),
                saving=(saving.estimate, saving.low, saving.high),
                level=level,
            )
        )
    return findings


def choose(findings: Sequence[Finding]) -> Finding | None:
    """The finding that passed with the largest saving; None if none passed."""
    passed = [finding for finding in findings if finding.verdict == GOOD]
    return max(passed, key=lambda finding: finding.saving[0], default=None)


NOTHING_FOUND = 1


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """The options of `tersely tune`."""

    out: Annotated[Path, flag("Config file to write; an interrupted run resumes.")]
    model: cli.Model = "tersely-tiny-small"
    tasks: cli.Tasks = "tiny"
    limit: Annotated[int, flag("Questions to search on (split fit).", min=FIRST_ROUND)] = 256
    validation_questions: Annotated[
        int, flag("Held-out questions for the final comparison (split calibrate).", min=10)
    ] = 512
    space: Annotated[Path | None, flag("JSON file {effort, policies, strategy}, each a list.")] = None
    objective: Annotated[str, flag("What to minimize: tokens, or usd (with --price).")] = "tokens"
    price: cli.Price = None
    margin: cli.Margin = 0.01
    seed: cli.Seed = 0
    probes: cli.Probes = None
    max_new_tokens: cli.MaxNewTokens = 2048
    engine: cli.Engine = "transformers"
    batch_size: cli.BatchSize = 64
    markers: cli.MarkerPair = None
    think_prompt: cli.ThinkPrompt = False


@cli.takes(TuneOptions)
def tune(options: TuneOptions) -> None:
    """Search efforts, strategies and policies for the cheapest that loses no accuracy beyond the margin.

    Exit code 0: the config file was written; 1: no candidate was shown to save tokens without loss.
    """
    out, seed, margin = options.out, options.seed, options.margin
    check_known("objective", options.objective, ("tokens", "usd"))
    if options.objective == "usd" and options.price is None:
        raise OptionError("--objective usd needs --price; accepted: a name in the price table", code="missing_price")
    check_replaceable(out, lambda path: begins_with_keys(path, "format", "policies", "found"))
    candidates = None if options.space is None else read_space(options.space)
    parts = _load_parts(options)
    price = None if options.price is None else load_prices().get(options.price)
    runner = load_runner(options.model, options.engine, think_prompt=options.think_prompt, markers=options.markers)
    common = GenerationOptions(max_new_tokens=options.max_new_tokens, probes=options.probes)
    if candidates is None:
        candidates = default_space(_has_probes(runner, common))
    identity = {**cli.identify(options, "out"), "space": [candidate.name for candidate in candidates]}
    checkpoints = CheckpointLog(out.with_name(f"{out.name}.journal"), identity)

    def cost(records: ArmRecords) -> Array:
        if options.objective == "tokens" or price is None:
            return records.means("total")
        return question_means([price.cost(row.prompt, row.total) for row in records.rows])

    work = len(candidates) * FIRST_ROUND + 2 * options.limit * len(candidates) // 8 + 4 * len(parts["prove"])
    resumable = announce_resume(checkpoints.path, lambda: checkpoints.completed)
    with resumable, AnswerChecker() as checker, cli.show_progress(work) as advance:

        def ask(part: str, candidate: Candidate | None, start: int, stop: int) -> ArmRecords:
            chosen: dict[str, Any] = {"preset": "off"} if candidate is None else candidate.config.options()
            name = BASELINE if candidate is None else candidate.name
            common_parts = (runner, parts[part][start:stop], checker, checkpoints, seed + start)
            bench = Bench(*common_parts, batch_size=options.batch_size, advance=advance)
            return run_arm(bench, Arm(f"{part} {start} {name}", replace(common, **chosen)))

        _check_candidates(runner, candidates, options.probes, parts)
        finalists = search(candidates, ask, cost, len(parts["search"]), margin)
        findings = validate(finalists, ask, cost, len(parts["prove"]), margin, seed)
    _finish(options, candidates, findings)
    checkpoints.remove()
    if choose(findings) is None:
        raise typer.Exit(NOTHING_FOUND)


def _check_candidates(
    runner: SessionRunner, candidates: Sequence[Candidate], probes: str | None, parts: Mapping[str, Sequence[Question]]
) -> None:
    """Have errors appear now, not in the last round."""
    for candidate in candidates:
        options = GenerationOptions(**candidate.config.options(), probes=probes)
        for questions in parts.values():
            check_resolved(runner.session, options, questions)
        runner.session.prepare([questions[0].problem for questions in parts.values()], options)


def _load_parts(options: TuneOptions) -> dict[str, Sequence[Question]]:
    limit, validation = options.limit, options.validation_questions
    tasks = cli.parse_list("--tasks", options.tasks, str)
    pools = load_pools(tasks, {"fit": limit, "calibrate": validation}, options.seed)
    if len(pools) == 1:
        (pool,) = pools
        size = min(limit, len(pool) // 2)
        pools = [pool[:size], pool[size : size + validation]]
    parts: dict[str, Sequence[Question]] = dict(zip(("search", "prove"), pools, strict=True))
    check_disjoint(parts)
    return parts


def _has_probes(runner: SessionRunner, common: GenerationOptions) -> bool:
    """Whether policies with probes work on this model and engine."""
    session = runner.session
    if not {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES} <= session.engine.capabilities:
        return False
    try:
        session.resolve(replace(common, effort="auto", preset="certified"))
    except ProbeError:
        return False
    return True


def _finish(options: TuneOptions, candidates: Sequence[Candidate], findings: Sequence[Finding]) -> None:
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
    made_from = {name: getattr(options, name) for name in ("model", "seed", "objective", "margin", "engine")}
    provenance = {**made_from, "task": options.tasks, "tried": len(candidates), "findings": list(map(asdict, findings))}
    TunedConfig(config.effort, config.policies, config.strategy, provenance).save(options.out)
    typer.echo(f"wrote {options.out}; use it with `tersely run --config {options.out}`")
