"""The result file that `tersely bench --out` writes, as checked models.

Shares are of 1, tokens are means per generation, and intervals are pairs (low, high).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ...errors import TerselyError, did_you_mean
from ...probes.stats import CalibrationBin
from ...validation import ExactModel, parse_json, read_text
from ..bench.records import BenchRow

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Mean = Annotated[float, Field(ge=0)]
Pair = tuple[float, float]
Verdict = Literal["non-inferior and saving", "inferior", "not saving", "inconclusive"]
Role = Literal["baseline", "judged", "cut", "other"]
_COMPARISON = ("delta_accuracy", "delta_accuracy_ci", "delta_total", "delta_total_ci", "saving", "saving_ci")
"""The fields that a judged arm must have."""


class ResultError(TerselyError, ValueError, code="invalid_result"):
    """A benchmark result cannot be read."""


class QuestionSplit(ExactModel):
    """The questions of a split."""

    n: Count
    sha256: str


class TokenMeans(ExactModel):
    """Mean tokens of a generation; `total` is everything paid for beyond the prompt."""

    thinking: Mean
    answer: Mean
    overhead: Mean
    total: Mean


class GroupMeans(ExactModel):
    """An arm's results on one level or tier."""

    n: Count
    accuracy: Share
    thinking: Mean
    total: Mean


class MajorityVotes(ExactModel):
    """Accuracy of majorities by their number of samples, and the fit `single` + `per_doubling` · log2 of it."""

    accuracy: dict[str, Share]
    single: float
    per_doubling: float
    per_doubling_ci: Pair


class ReportArm(ExactModel):
    """The results of an arm. Comparisons with the baseline are None for the baseline itself.

    A cut arm was not run: it is computed from the baseline's thinking, cut short.
    """

    name: str = Field(min_length=1)
    kind: Literal["run", "cut"] = "run"
    setting: str = ""
    n: Count
    accuracy: Share
    accuracy_ci: tuple[Share, Share]
    tokens: TokenMeans
    overhead: dict[str, Mean]  # mean unweighted tokens of a generation by kind of overhead
    forced: Mean = 0.0
    prompt: Mean = 0.0
    delta_accuracy: float | None = None
    delta_accuracy_ci: Pair | None = None
    delta_total: float | None = None
    delta_total_ci: Pair | None = None
    harm: Share | None = None
    harm_upper: Share | None = None
    help: Share | None = None
    help_lower: Share | None = None
    mcnemar_p: Share | None = None
    saving: float | None = None
    saving_ci: Pair | None = None
    iso_saving: float | None = None
    iso_saving_ci: Pair | None = None
    capped: Share
    unanswered: Share
    seconds: Mean | None = None
    e3: Mean | None = None
    flops: Mean | None = None
    usd: Mean | None = None
    cost_of_pass: Mean | None = None
    gain: Mean | None = None
    gain_ci: Pair | None = None
    essentialness: Share | None = None
    essentialness_ci: Pair | None = None
    ideal_seconds: Mean | None = None
    ideal_usd: Mean | None = None
    markers: dict[str, dict[str, Mean]] | None = None
    """Words of right and wrong thinking, and markers per 1,000 of them, by kind."""
    votes: MajorityVotes | None = None
    per_level: dict[str, GroupMeans] = Field(default_factory=dict)
    per_tier: dict[str, GroupMeans] = Field(default_factory=dict)


class BudgetPoint(ExactModel):
    """The baseline under a fixed budget of thinking tokens."""

    budget: Count
    accuracy: Share
    total: Mean


class CostFrontier(ExactModel):
    """The lowest cost-of-pass of each question, in USD, and the share of questions on which each arm has it."""

    usd: Mean
    usd_ci: Pair
    expert_usd: Mean | None = None
    unsolved: Count  # questions that no arm solves; they are left out
    cheapest: dict[str, Share]


class ResamplingCeiling(ExactModel):
    """The most that sampling until a trial answer is confident can reach, and the attempts that pay by penalty."""

    confidence: Share
    n: Count
    true_positive: Share
    false_positive: Share
    accuracy: Share
    attempts: dict[str, Count | None]


class CurveAreas(ExactModel):
    """Mean accuracy over the logarithm of tokens, between two token counts."""

    fixed_budget: Share = Field(alias="fixed budget")
    controlled: Share
    start: Mean = Field(alias="from")
    end: Mean = Field(alias="to")


class CalibrationSummary(ExactModel):
    """Confidence of trial answers during thinking, compared with their accuracy."""

    n: Count
    ece: Share
    auroc: Share | None = None
    bins: tuple[CalibrationBin, ...]


class AnswerComparison(ExactModel):
    """How answers were compared, and how often that failed."""

    method: str
    deadline: Mean | None = None
    unparsable: Count = 0
    timeouts: Count = 0
    crashes: Count = 0


class BenchmarkResult(ExactModel):
    """A result file."""

    tersely: str
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    machine: str | None = None
    date: str | None = None
    tasks: tuple[str, ...] = Field(min_length=1)
    model: str
    engine: str = "transformers"
    helper: str | None = None
    verifier: str | None = None
    splits: dict[str, QuestionSplit] = Field(min_length=1)
    margin: Share
    seed: int
    rollouts: Annotated[int, Field(ge=1)]
    effort: str
    max_new_tokens: Count | None
    weights: dict[str, float] = Field(default_factory=dict)
    baseline: str
    judged: str
    arms: tuple[ReportArm, ...] = Field(min_length=2)
    budget_curve: tuple[BudgetPoint, ...] = ()
    frontier: CostFrontier | None = None
    ceiling: ResamplingCeiling | None = None
    auc: CurveAreas | None = None
    calibration: CalibrationSummary | None = None
    verdict: Verdict
    needed_n: Count | None = None
    answers: AnswerComparison
    notes: tuple[str, ...] = ()
    command: tuple[str, ...] = Field(min_length=1)
    rows: tuple[BenchRow, ...] = ()

    @model_validator(mode="after")
    def _check_arms(self) -> Self:
        names = [arm.name for arm in self.arms]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two arms are named {repeated!r}; accepted: each name once")
        for role, name in (("baseline", self.baseline), ("judged", self.judged)):
            if name not in names:
                raise ValueError(f"{role} is {name!r}; {did_you_mean(name, names)}")
        if self.baseline == self.judged:
            raise ValueError(f"{self.judged!r} is both baseline and judged; accepted: two arms")
        if missing := next((field for field in _COMPARISON if getattr(self.judged_arm, field) is None), None):
            raise ValueError(f"{missing} of the judged arm {self.judged!r} is null; accepted: a value")
        return self

    @property
    def base(self) -> ReportArm:
        return self.get_arm(self.baseline)

    @property
    def judged_arm(self) -> ReportArm:
        return self.get_arm(self.judged)

    @property
    def title(self) -> str:
        return f"{self.model} on {', '.join(self.tasks)}"

    def get_arm(self, name: str) -> ReportArm:
        return next(arm for arm in self.arms if arm.name == name)

    def get_role(self, arm: ReportArm) -> Role:
        if arm.name == self.baseline:
            return "baseline"
        if arm.name == self.judged:
            return "judged"
        return "cut" if arm.kind == "cut" else "other"

    def shared_levels(self) -> dict[str, tuple[GroupMeans, GroupMeans]]:
        """Return the results of the baseline and the judged arm by level, numbers by size and before words."""
        return _pair(self.base.per_level, self.judged_arm.per_level)

    def shared_tiers(self) -> dict[str, tuple[GroupMeans, GroupMeans]]:
        return _pair(self.base.per_tier, self.judged_arm.per_tier)


def _pair(base: Mapping[str, GroupMeans], judged: Mapping[str, GroupMeans]) -> dict[str, tuple[GroupMeans, GroupMeans]]:
    names = sorted(base.keys() & judged.keys(), key=lambda name: (not name.isdecimal(), len(name), name))
    return {name: (base[name], judged[name]) for name in names}


def load_result(path: Path) -> BenchmarkResult:
    """Load a result file; raises ResultError."""
    text = read_text(path, ResultError)
    try:
        return parse_json(BenchmarkResult, text, str(path), ResultError)
    except ResultError as error:
        if '"arms"' in text:
            raise
        raise ResultError(f"{error}; a result is what `tersely bench --out` writes", code="not_a_result") from None
