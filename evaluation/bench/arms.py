"""The arms of a benchmark, and the checks that keep their comparison fair.

An arm is a way of answering all questions. Most arms are run, in batches; some baselines are made by truncating the
thinking of the uncontrolled arm. Each batch is one piece of the checkpoint log, with a seed that depends only on its
place, so a resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...controller.budgets import DIFFADAPT, STRATEGIES
from ...controller.options import GenerationOptions, TunedConfig, with_seed
from ...controller.policies import get_presets, list_policies, load_add_ons, load_policy
from ...controller.policies.base import Policy
from ...controller.session import Session
from ...controller.types import ForwardModifier
from ...errors import OptionError, TerselyError, unknown
from ...io import CheckpointLog
from ...probes.tier_selector import TierProbe
from ..economics.latency import Timing
from ..runner import SessionRunner, batch_seed, batches
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question, hash_question
from .records import ArmRecords, BenchRow, Weights, to_row

BASELINE = "full"
NO_THINK = "no-think"
HELPER = "helper"
TUNED = "tuned"

ARMS: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {"preset": "off"},
    NO_THINK: {"preset": "off", "effort": "none"},
    "easy": {"preset": "off", "effort": "easy"},
    "hard": {"preset": "off", "effort": "hard"},
    "auto": {"preset": "off", "effort": "auto"},
    "auto-balanced": {"preset": "balanced", "effort": "auto"},
    **{name: {"preset": "off", "strategy": name} for name in STRATEGIES if name != "tiers"},
    DIFFADAPT: {"preset": "budget", "effort": "auto", "strategy": DIFFADAPT},
    **{name: {"policies": ("budget",), "modifiers": (name,)} for name in load_add_ons("tersely.forward_modifiers")},
    **{name: {"policies": ("budget", name)} for name in list_policies()},
    **{name: {"preset": name} for name in get_presets() if name != "off"},
}
"""Options that each arm changes; one for each strategy and preset, and for each other policy and modifier alone."""

FIXED, CONFIDENCE, RANDOM, ORACLE = "fixed-budget", "confidence", "random-stop", "first-correct"
TRUNCATED_ARMS = (FIXED, CONFIDENCE, RANDOM, ORACLE)
"""Baselines made by truncating the baseline arm's thinking; every benchmark has these and `no-think`.

The first three spend as many tokens on average as the judged arm: they end thinking at a budget, at a confident trial
answer, or after a random thought. The last ends at the first correct trial answer, so it is an upper bound.
"""
EQUAL = "equal:"
"""Begins the names of baselines for each policy: the hard cut of a thinking budget that costs as much as the arm."""

_SHOWN_IDS = 3
_ROUNDING = 1e-6


class CheckError(TerselyError, ValueError, code="unfair_comparison"):
    """A comparison would be unfair."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering all questions; `source` is that of a user's own policy, with a hash of its file."""

    name: str
    options: GenerationOptions
    source: str = ""

    @property
    def on_helper(self) -> bool:
        return self.name == HELPER

    @property
    def controlled(self) -> bool:
        """Whether policies follow the thinking."""
        return self.options.preset != "off"


def make_arm(
    name: str, common: GenerationOptions, config: TunedConfig | None = None, own: Mapping[str, Arm] | None = None
) -> Arm:
    """Make an arm by name; `own` are arms with the user's policies. Raises OptionError for an unknown name."""
    if own and name in own:
        return own[name]
    if name == TUNED:
        if config is None:
            raise OptionError(f"arm {TUNED!r} needs a config file; pass it with --config", code="missing_config")
        return Arm(name, replace(common, **config.options()))
    if name in TRUNCATED_ARMS:
        raise OptionError(f"arm {name!r} is a baseline that is always included; leave it out", code="implied_arm")
    if name == HELPER:
        return Arm(name, replace(common, preset="off"))
    if name not in ARMS:
        raise unknown("arm", name, (*ARMS, TUNED, *(own or ())))
    return Arm(name, replace(common, **ARMS[name]))


def make_arms(
    names: str,
    common: GenerationOptions,
    *,
    helper: bool = False,
    config: TunedConfig | None = None,
    own: Mapping[str, Arm] | None = None,
) -> list[Arm]:
    """Make arms from a comma-separated list: the baseline, the arm to judge, any others, and those of `own` not listed.

    `no-think` is added, and the helper if there is one. Raises OptionError for fewer than two arms or another baseline.
    """
    listed = [name.strip() for name in names.split(",") if name.strip()]
    listed += [name for name in own or () if name not in listed]
    if len(listed) < 2:
        raise OptionError(f"arms are {names!r}; accepted: two or more, the baseline first, as in {BASELINE},balanced")
    if listed[0] != BASELINE:
        raise OptionError(f"the first arm is {listed[0]!r}; accepted: {BASELINE!r}, the baseline of the comparison")
    if len(set(listed)) < len(listed):
        raise OptionError(f"arms are {names!r}; accepted: each arm at most once", code="repeated_value")
    if HELPER in listed and not helper:
        raise OptionError(f"arm {HELPER!r} needs a helper model; name one with --helper", code="missing_helper")
    listed += [name for name in (NO_THINK, *[HELPER] * helper) if name not in listed]
    return [make_arm(name, common, config, own) for name in listed]


def load_own_arms(specs: Sequence[str], common: GenerationOptions) -> dict[str, Arm]:
    """Make an arm for each of the user's policies ("own.py:ClassName"), by the policies' names; raises OptionError."""
    arms: dict[str, Arm] = {}
    for spec in specs:
        policy = load_policy(spec)
        name = policy.name
        if name in arms or name in (*ARMS, *TRUNCATED_ARMS, HELPER, TUNED) or "," in name or name.startswith(EQUAL):
            raise OptionError(
                f"policy {spec!r} has the name {name!r}, which is another arm's or holds a comma; rename it",
                code="invalid_policy",
            )
        file = Path(spec.rpartition(":")[0])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
        arms[name] = Arm(name, replace(common, policies=("budget", policy)), f"{spec} {digest}".strip())
    return arms


def check_comparable(records: Sequence[ArmRecords]) -> None:
    """Raise CheckError unless all arms answered the same questions and count every token of their engines."""
    base = records[0]
    expected = [(row.id, row.rollout) for row in base.rows]
    for arm in records:
        if [(row.id, row.rollout) for row in arm.rows] != expected:
            raise CheckError(
                f"arm {arm.arm!r} answered other questions than {base.arm!r}; give both the same",
                code="different_questions",
            )
        for row in arm.rows:
            written = 0 if arm.arm == HELPER else row.thinking + row.answer_tokens  # the helper's tokens are weighted
            if row.total + _ROUNDING < written + row.overhead or row.overhead + _ROUNDING < row.probe + row.discarded:
                raise CheckError(
                    f"arm {arm.arm!r}: the total of question {row.id!r} leaves tokens out; count all of them",
                    code="uncounted_tokens",
                )
        counted = sum(row.thinking + row.answer_tokens + row.discarded + row.probe for row in arm.rows)
        if arm.engine_tokens is not None and counted < arm.engine_tokens:
            raise CheckError(
                f"arm {arm.arm!r} counts {counted} tokens, but its engine generated {arm.engine_tokens}; count probes, "
                "trials and discarded tokens too",
                code="uncounted_tokens",
            )


def check_disjoint(splits: Mapping[str, Sequence[Question]]) -> None:
    """Raise CheckError if a question appears twice, within a split or across splits, whatever its id."""
    owners: dict[str, tuple[str, Question]] = {}
    for name, questions in splits.items():
        for question in questions:
            owner, first = owners.setdefault(hash_question(question), (name, question))
            if owner != name:
                raise CheckError(
                    f"question {question.id!r} of split {name!r} is also in split {owner!r}; splits must be disjoint",
                    code="overlapping_splits",
                )
            if first is not question:
                raise CheckError(
                    f"questions {first.id!r} and {question.id!r} are the same; remove one", code="repeated_question"
                )


def check_resolved(session: Session, options: GenerationOptions, questions: Sequence[Question]) -> None:
    """`check_unseen` for everything that a session uses with these options; raises CheckError, ProbeError."""
    resolved = session.resolve(options)
    probes = [] if resolved.tier_probe is None else [resolved.tier_probe]
    check_unseen([*resolved.policies, *resolved.modifiers, *probes], questions)


def check_unseen(learned: Iterable[Policy | ForwardModifier | TierProbe], questions: Sequence[Question]) -> None:
    """Raise CheckError if something was trained on one of these questions (see `Policy.provenance`)."""
    ids = {hash_question(question): question.id for question in questions}
    for one in learned:
        hashes = one.learned_from if isinstance(one, TierProbe) else one.provenance
        seen = [ids[key] for key in hashes if key in ids]
        if seen:
            shown = ", ".join(sorted(seen)[:_SHOWN_IDS])
            raise CheckError(
                f"{one.name!r} was trained on {len(seen)} of the test questions ({shown}); test on others",
                code="train_test_overlap",
            )


Advance = Callable[[str, int], None]  # called as `advance(description, rows)` after each batch


@dataclass(frozen=True, slots=True)
class Bench:
    """What all arms share: `rollouts` are generations of each question, `helper` is the model of the arm `helper`."""

    runner: SessionRunner
    questions: Sequence[Question]
    checker: AnswerChecker
    checkpoints: CheckpointLog
    seed: int = 0
    rollouts: int = 1
    batch_size: int = 64
    weights: Weights = field(default_factory=Weights)
    helper: SessionRunner | None = None
    advance: Advance = lambda description, rows: None

    def batches(self) -> list[tuple[int, int, list[int]]]:
        """Every batch as (rollout, number, indices of its questions)."""
        numbered = list(enumerate(batches(self.questions, self.batch_size)))
        return [(rollout, number, indices) for rollout in range(self.rollouts) for number, indices in numbered]

    def sort(self, rows: Sequence[BenchRow]) -> list[BenchRow]:
        positions = {question.id: i for i, question in enumerate(self.questions)}
        return sorted(rows, key=lambda row: (row.rollout, positions[row.id]))


def run_arm(bench: Bench, arm: Arm) -> ArmRecords:
    """Answer all questions with one arm."""
    pieces = []
    for rollout, number, indices in bench.batches():
        pieces.append(run_batch(bench, arm, rollout, number, indices))
        bench.advance(arm.name, len(indices))
    rows = [BenchRow(**row) for piece in pieces for row in piece["rows"]]
    seconds, engine_tokens = (sum(piece[key] for piece in pieces) for key in ("seconds", "made"))
    alone = [(BenchRow(**piece["rows"][0]), piece["seconds"]) for piece in pieces if len(piece["rows"]) == 1]
    timings = [Timing(prompt=row.read, output=row.decoded, seconds=taken) for row, taken in alone]
    return ArmRecords(arm.name, bench.sort(rows), bench.rollouts, seconds, engine_tokens, timings=timings)


def run_batch(bench: Bench, arm: Arm, rollout: int, number: int, indices: Sequence[int]) -> dict[str, Any]:
    """Answer one batch: {rows, ids: output token ids, seconds, made: tokens by the engine's own count}."""
    runner = bench.helper if arm.on_helper else bench.runner
    assert runner is not None  # `make_arms` refuses the arm otherwise
    questions = [bench.questions[i] for i in indices]
    # The seed does not depend on the arm: arms that start alike sample alike.
    options = with_seed(arm.options, batch_seed(bench.seed, rollout, number))
    own = bench.weights.helper if arm.on_helper else 1.0

    def compute() -> dict[str, Any]:
        before, started = runner.generated_tokens, time.monotonic()
        results = runner.answer([question.problem for question in questions], options)
        seconds = time.monotonic() - started
        rows = [
            to_row(question, arm.name, rollout, result, bench.checker, bench.weights, own)
            for question, result in zip(questions, results, strict=True)
        ]
        return {
            "rows": [asdict(row) for row in rows],
            "ids": [list(result.token_ids) for result in results],
            "seconds": seconds,
            "made": runner.generated_tokens - before,
        }

    return bench.checkpoints.get_or_compute(f"{arm.name}/{rollout}/{number}", compute)
