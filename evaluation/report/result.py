"""The result file of a benchmark, checked: what `tersely bench --out` writes, as frozen records.

Shares are of 1, tokens are means of one generation, intervals are pairs of their ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ...errors import TerselyError, did_you_mean
from ..economics.strict import StrictRecord, parse, read_text

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Mean = Annotated[float, Field(ge=0)]
Pair = tuple[float, float]
Kind = Literal["run", "cut"]
Word = Literal["non-inferior and saving", "inferior", "not saving", "inconclusive"]
PAIRED = ("delta_accuracy", "delta_accuracy_ci", "delta_total", "delta_total_ci", "saving", "saving_ci")
"""What an arm must know of itself against the baseline in order to be judged."""


class ResultError(TerselyError, ValueError):
    """A result file cannot be read, or is none."""


class ResultForm(StrictRecord):
    """A record that also converts nothing: a number in quotes is no number."""

    model_config = ConfigDict(strict=True)


class TokenSplit(ResultForm):
    """Which questions were asked."""

    n: Count
    sha256: str


class TokenSums(ResultForm):
    """Mean tokens of one generation; total is what is paid for beyond the prompt."""

    thinking: Mean
    answer: Mean
    overhead: Mean
    total: Mean


class Overhead(ResultForm):
    """Mean tokens of one generation by what they were spent on, before weights."""

    discarded: Mean = 0.0
    probe: Mean = 0.0
    verifier: Mean = 0.0
    delegated: Mean = 0.0
    consulted: Mean = 0.0
    reprefilled: Mean = 0.0


OVERHEADS = tuple(Overhead.model_fields)


class Cell(ResultForm):
    """One level or tier of one arm."""

    n: Count
    accuracy: Share
    thinking: Mean
    total: Mean


class ReportArm(ResultForm):
    """One way of answering all questions; what compares it with the baseline is None for the baseline itself.

    A cut arm was never run: it is what the baseline's thinking would have come to, had it been cut.
    """

    name: str = Field(min_length=1)
    kind: Kind = "run"
    setting: str = ""
    n: Count
    accuracy: Share
    accuracy_ci: tuple[Share, Share]
    tokens: TokenSums
    overhead: Overhead
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
    per_level: dict[str, Cell] = Field(default_factory=dict)
    per_tier: dict[str, Cell] = Field(default_factory=dict)


class Budget(ResultForm):
    """A fixed budget of thinking tokens and what it comes to."""

    budget: Count
    accuracy: Share
    total: Mean


class Areas(ResultForm):
    """Mean accuracy over the logarithm of tokens, between two token counts."""

    fixed_budget: Share = Field(alias="fixed budget")
    controlled: Share
    start: Mean = Field(alias="from")
    end: Mean = Field(alias="to")


class Bin(ResultForm):
    """Trial answers of about one confidence."""

    confidence: Share
    accuracy: Share
    n: Count


class Calibration(ResultForm):
    """Confidence of trial answers in mid-thinking against their being right."""

    n: Count
    ece: Share
    auroc: Share | None = None
    bins: tuple[Bin, ...]


class Answers(ResultForm):
    """How answers were compared, and what went wrong with it."""

    method: str
    deadline: Mean | None = None
    unparsable: Count = 0
    timeouts: Count = 0
    crashes: Count = 0


class ReportRow(ResultForm):
    """One generation, or one cut of one; tokens of every kind."""

    id: str
    task: str
    level: int | None = None
    tier: str | None = None
    arm: str
    rollout: Count
    answer: str
    right: bool
    outcome: str = ""
    capped: bool
    prompt: Count
    thinking: Count
    answer_tokens: Count
    forced: Count
    discarded: Count
    probe: Count
    verifier: Count
    delegated: Count
    consulted: Count = 0
    reprefilled: Count
    overhead: Mean
    total: Mean


class Result(ResultForm):
    """A whole result file."""

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
    splits: dict[str, TokenSplit] = Field(min_length=1)
    margin: Share
    seed: int
    rollouts: Annotated[int, Field(ge=1)]
    effort: str
    max_new_tokens: Count
    weights: dict[str, float] = Field(default_factory=dict)
    baseline: str
    judged: str
    arms: tuple[ReportArm, ...] = Field(min_length=2)
    budget_curve: tuple[Budget, ...] = ()
    auc: Areas | None = None
    calibration: Calibration | None = None
    verdict: Word
    needed_n: Count | None = None
    answers: Answers
    notes: tuple[str, ...] = ()
    command: tuple[str, ...] = Field(min_length=1)
    rows: tuple[ReportRow, ...] = ()

    @property
    def base(self) -> ReportArm:
        """The arm that the others are compared with."""
        return self.arm(self.baseline)

    @property
    def judge(self) -> ReportArm:
        """The arm that the verdict is about."""
        return self.arm(self.judged)

    def arm(self, name: str) -> ReportArm:
        """An arm by name."""
        return next(arm for arm in self.arms if arm.name == name)


def read(path: Path) -> Result:
    """The result in a file; raises ResultError, one line that names the first fault."""
    text = read_text(path, ResultError)
    try:
        result = parse(Result, text, str(path), ResultError)
    except ResultError as fault:
        # What knows no arms was not meant to be a result, and needs another word than a result with a fault.
        hint = "" if '"arms"' in text else "; a result is what `tersely bench --out` writes"
        raise ResultError(f"{fault}{hint}") from None
    names = [arm.name for arm in result.arms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ResultError(f"{path}: two arms are named {twice!r}; accepted: each name once")
    for role in ("baseline", "judged"):
        if (name := getattr(result, role)) not in names:
            raise ResultError(f"{path}: {role} is {name!r}; {did_you_mean(name, names)}")
    if result.baseline == result.judged:
        raise ResultError(f"{path}: {result.judged!r} is baseline and judged; accepted: two arms")
    for field in PAIRED:
        if getattr(result.judge, field) is None:
            raise ResultError(f"{path}: {field} of the judged arm {result.judged!r} is null; accepted: a value")
    return result


def in_order(names: Iterable[str]) -> list[str]:
    """Names of levels: numbers by their size, then words as they came."""
    return sorted(names, key=lambda name: (0, float(name)) if _is_number(name) else (1, 0.0))


def _is_number(name: str) -> bool:
    return name.removeprefix("-").replace(".", "", 1).isdecimal()


def levels(result: Result) -> list[str]:
    """The levels that the baseline and the judged arm both know, in order."""
    return in_order(name for name in result.base.per_level if name in result.judge.per_level)


def tiers(result: Result) -> Mapping[str, tuple[Cell, Cell]]:
    """Tier -> cells of the baseline and of the judged arm, where both know it."""
    base, judged = result.base.per_tier, result.judge.per_tier
    return {name: (base[name], judged[name]) for name in base if name in judged}
