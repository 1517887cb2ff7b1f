"""The search of `tersely tune`: the candidates, the search itself, and the validation of what it finds.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): each round doubles the number of questions and keeps the
better half of the candidates. The best of a search look better than they are, so the last few are judged on fresh
questions, with intervals widened for their number, and only a candidate that passes there is chosen.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..controller.options import TunedConfig
from ..errors import OptionError
from ..validation import FrozenModel, parse_json, read_text
from .bench.compare import GOOD, judge
from .bench.records import ArmRecords
from .stats import LEVEL, Array, paired_bootstrap, ratio_bootstrap, studentized_bootstrap

FINALISTS = 3
FIRST_ROUND = 32
"""Questions of the first round."""

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


class SpaceError(OptionError):
    """A search space cannot be used."""

    code = "invalid_space"


class _Space(FrozenModel):
    effort: tuple[str, ...] = ("normal",)
    policies: tuple[dict[str, Any], ...] = ({},)
    strategy: tuple[str | dict[str, Any], ...] = ("tiers",)


def read_space(path: Path) -> list[Candidate]:
    """Every combination of a JSON file {effort: [...], policies: [{name: settings}, ...], strategy: [...]}.

    Keys are optional. Raises SpaceError if the file is not such an object, or is empty.
    """
    space = parse_json(_Space, read_text(path, SpaceError), str(path), SpaceError)
    combinations = product(space.effort, space.policies, space.strategy)
    candidates = [named_candidate(TunedConfig(*values)) for values in combinations]
    if not candidates:
        raise SpaceError(f"{path} has no candidates; accepted: at least one value per key")
    return list({candidate.name: candidate for candidate in candidates}.values())


Ask = Callable[[str, Candidate | None, int, int], ArmRecords]
"""`ask(part, candidate, start, stop)` answers these questions of a part; None is the uncontrolled model."""
Cost = Callable[[ArmRecords], Array]
"""The cost of each question, [questions]."""


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
    """The best few candidates after `limit` questions, the cheapest first.

    Candidates whose observed loss is within the margin rank first, then cheaper ones.
    """
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
