"""Planted results of a benchmark: made-up rows, with all figures computed by the benchmark itself."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tersely.controller.budgets import Budget
from tersely.controller.options import GenerationOptions
from tersely.evaluation.bench.arms import make_arms
from tersely.evaluation.bench.cli import assemble
from tersely.evaluation.bench.economics import CostModel
from tersely.evaluation.bench.plan import BenchOptions, BenchPlan
from tersely.evaluation.bench.records import OVERHEADS, ArmRecords, BenchRow, Weights
from tersely.evaluation.bench.truncation import Recording, TrialPoint
from tersely.evaluation.economics.costs import Price
from tersely.evaluation.stats import Array
from tersely.evaluation.tasks.questions import Question

HOSTILE = '</script><img src=x onerror=alert(1)> & "quoted" \u202e{{ 7 * 7 }}\u0000'
"""Text that would be markup if it were not escaped."""
ANSWER = 11  # tokens of every answer


@dataclass(frozen=True, slots=True)
class Planted:
    """An arm: share of thinking kept, largest need of thinking that it meets, probe tokens per question."""

    kept: float
    meets: float
    probe: int = 0
    setting: str = ""


RUN = {
    "full": Planted(1.0, 1.0),
    "balanced": Planted(0.66, 0.985, probe=4),
    "careful": Planted(0.83, 0.995, probe=3),
    "fast": Planted(0.48, 0.9, probe=5),
    "no-think": Planted(0.0, 0.0),
}
CUT = {
    "confidence": Planted(0.58, 0.8, probe=30, setting="from a confidence of 0.912 on"),
    "random-stop": Planted(0.68, 0.55, setting="with a probability of 0.182 after each thought"),
    "first-correct": Planted(0.42, 1.0),
}
ORIGIN = {
    "tersely": "0.1.0",
    "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.17.0"},
    "commit": "abc1234",
    "machine": "x86_64, 2 CPUs",
    "date": "2026-11-25",
}


def planted(n: int = 200, **changes: Any) -> dict[str, Any]:
    """A result as a JSON object; `changes` replace its fields."""
    result: dict[str, Any] = json.loads(_made(n))
    return result | changes


@cache
def _made(n: int) -> str:
    """The JSON of a result, cached because its intervals are slow to compute."""
    rng = np.random.default_rng(0)
    questions = Questions(n, rng)
    records = [questions.run(name, arm, cut=name in CUT) for name, arm in (RUN | CUT).items()]
    fixed = replace(questions.budget(220), arm="fixed-budget", setting="at 220 thinking tokens", truncated=True)
    records.insert(len(RUN), fixed)
    curve = [(b, questions.budget(b)) for b in (16, 32, 64, 96, 128, 192, 256, 384, 512)]
    options = BenchOptions(model="tersely-tiny-large", margin=0.03)
    costs = CostModel(price=Price(prompt=0.1, output=0.4, as_of=dt.date(2026, 11, 1)))
    splits = {"test": questions.asked, "fit": questions.asked[:50]}
    plan = BenchPlan(options, splits, make_arms(",".join(RUN), GenerationOptions()), costs)
    weights = asdict(Weights())  # prices change no count that is made up here
    figures = assemble(plan, records, curve, [_source(rng)])
    for arm in figures["arms"]:
        arm["flops"] = 6.3e6 * arm["tokens"]["total"]
    answers = {"method": "math-verify", "deadline": 5.0, "unparsable": 3, "timeouts": 1, "crashes": 0}
    command = ["tersely", "bench", "tersely-tiny-large", "--arms", ",".join(RUN), "--limit", str(n)]
    notes = ["The machine was busy, so seconds are approximate."]
    whole = {
        "answers": answers,
        "notes": notes,
        "command": command,
        "rows": [asdict(row) for one in records for row in one.rows],
    }
    return json.dumps(ORIGIN | plan.settings() | {"weights": weights} | figures | whole)


def bare() -> dict[str, Any]:
    """A result without its optional parts."""
    small = planted(rows=[], budget_curve=[], auc=None, calibration=None, notes=[])
    for arm in small["arms"]:
        arm |= {"per_level": {}, "per_tier": {}, "seconds": None, "flops": None, "usd": None, "cost_of_pass": None}
        arm |= {"iso_saving": None, "iso_saving_ci": None}
    return small


def write_planted(path: Path, **changes: Any) -> Path:
    """A planted result in a file."""
    path.write_text(json.dumps(planted(**changes)), encoding="utf-8")
    return path


class Questions:
    """Questions of six levels; each has a length of thinking, and a share of it that is needed for a right answer."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.level = np.arange(n) % 6 + 1
        self.asked = [Question(f"test-{i}", f"{i} + 1?", str(i + 1), int(level)) for i, level in enumerate(self.level)]
        self.length = 20 + 70 * self.level * rng.gamma(9, 1 / 9, n)
        self.solvable = rng.random(n) < 1 - 0.04 * self.level
        self.lucky = rng.random(n) < 0.04
        self.need = np.where(rng.random(n) < 0.75 - 0.1 * self.level, 0.0, rng.uniform(0.2, 1.0, n))

    def run(self, name: str, arm: Planted, *, cut: bool) -> ArmRecords:
        """All rows of an arm."""
        right = (self.need <= arm.meets) & self.solvable | (self.lucky & (arm.probe > 0))
        records = self._records(name, arm.kept * self.length, right, arm.probe)
        seconds = None if cut else records.mean("total") * len(self.asked) / 900
        return replace(records, truncated=cut, setting=arm.setting, seconds=seconds)

    def budget(self, budget: int) -> ArmRecords:
        """The baseline under a fixed budget of thinking."""
        kept = np.minimum(self.length, budget)
        return self._records(f"budget {budget}", kept, (self.need <= kept / self.length) & self.solvable, 0)

    def _records(self, name: str, thinking: Array, rights: Any, probe: int) -> ArmRecords:
        rows = [
            BenchRow(
                id=question.id,
                task="tiny",
                level=question.level,
                tier="normal",
                arm=name,
                rollout=0,
                answer=question.answer if right else "7",
                right=bool(right),
                outcome="equal" if right else "different",
                capped=bool(tokens > 700),
                prompt=80 + i % 7,
                thinking=int(tokens),
                answer_tokens=ANSWER,
                forced=3 * (probe > 0),
                **dict.fromkeys(OVERHEADS, 0) | {"probe": probe},
                overhead=float(probe),
                total=float(int(tokens) + ANSWER + probe),
            )
            for i, (question, tokens, right) in enumerate(zip(self.asked, thinking, rights, strict=True))
        ]
        return ArmRecords(name, rows, rollouts=1)


def _source(rng: np.random.Generator) -> Recording:
    """Trial answers that are slightly overconfident."""
    confidence = rng.beta(3, 1.6, 900)
    trials = tuple(TrialPoint(float(c), 12, bool(rng.random() < c**1.4)) for c in confidence)
    return Recording("test-0", (), 0, 0, True, Budget("normal", 1024, 128), trials=trials)
