"""Efforts, the tiers they stand for, and the budget of each tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import OptionError, check_known, unknown
from ..validation import format_validation_error

EFFORTS = ("none", "easy", "normal", "hard", "auto")
OPENAI_EFFORTS = {"easy": "low", "normal": "medium", "hard": "high"}
"""Tier -> the name that OpenAI and chat templates use."""
ALIASES = {"minimal": "easy", "low": "easy", "medium": "normal", "high": "hard", "xhigh": "hard", "max": "hard"}
"""Other names of tiers -> tier."""
ANSWER_RESERVE = 64
MAX_ANSWER_RESERVE = 1024
DIFFADAPT = "diffadapt"  # the strategy whose tier is the likeliest class of the difficulty probe
LCPO = "Think for maximum {budget} tokens."
"""What models of `tersely train lcpo` keep to: the sentence of LCPO-Max (L1, arXiv 2503.04697)."""
UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class Budget:
    """What a tier allows."""

    tier: str
    thinking: Annotated[int, Field(ge=0)] = UNLIMITED  # most thinking tokens, forced ones included
    reserve: Annotated[int, Field(ge=1)] = ANSWER_RESERVE  # output tokens kept for the answer, at least
    instruction: str = ""  # appended to the last user message; ours only where the chat template does not know efforts
    temperature: Annotated[float, Field(gt=0)] | None = None  # of sampling; None leaves the caller's or the model's
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # most thinking tokens as a share of the available output tokens
    floor: Annotated[int, Field(ge=1)] = 1  # thinking tokens that `share` leaves at least


_BUDGET = TypeAdapter(Budget)

TIERS = {
    "none": Budget("none", 0),
    "easy": Budget("easy", instruction="This is easy: think briefly and answer.", share=0.25, floor=1024),
    "normal": Budget("normal"),
    "hard": Budget("hard", instruction="This is hard: think step by step and check your result."),
}
"""The tiers. Evidence ends the thinking; the cap is a guard that grows with the output tokens that a caller allows."""


def _with_instruction(instruction: str) -> Mapping[str, Budget]:
    """Our tiers with one instruction for all that think."""
    thinking = {tier: replace(TIERS[tier], instruction=instruction) for tier in ("easy", "normal", "hard")}
    return {"none": TIERS["none"], **thinking}


STRATEGIES: Mapping[str, Mapping[str, Budget]] = {
    "tiers": TIERS,
    "adap": _with_instruction(
        "Please adaptively control the answer length based on the query's complexity. The lower the complexity, the "
        "more concise your answer should be."
    ),
    "chain-of-draft": _with_instruction(
        "Think step by step, but only keep minimum draft for each thinking step, with 5 words at most.\n"
        "Return the answer at the end of the response after a separator ####."
    ),
    "tale": _with_instruction("Let's think step by step and use less than {budget} tokens:"),
    "lcpo": _with_instruction(LCPO),
    DIFFADAPT: {
        "none": TIERS["none"],
        "easy": Budget(
            "easy", instruction="Solve it directly, then verify once. Do not explore.", temperature=0.5, share=0.4
        ),
        "normal": Budget("normal", instruction="Reason step by step, systematically.", temperature=0.8),
        "hard": Budget(
            "hard",
            instruction="This may be out of reach: spend few steps, on the way that promises most, and stop early.",
            temperature=0.4,
            share=0.5,
        ),
    },
}
"""Strategies by name: ours, and those of papers.

`adap` is the instruction that goes with ConciseHint (arXiv 2506.18810), `chain-of-draft` that of Chain of Draft (arXiv
2502.18600), which is a system prompt there, and `tale` that of TALE (arXiv 2412.18547), which has a model estimate the
budget first; here it is the tier's or the caller's. `lcpo` is for models that were trained to keep to it. In
`diffadapt` (arXiv 2510.19669) hard questions get less than normal ones, and effort `auto` takes the probe's likeliest
class; its instructions are in our words.
"""


def canonical_effort(effort: str) -> str:
    """The tier of an effort by any of its names; raises OptionError for an unknown one."""
    name = ALIASES.get(effort, effort)
    if name not in EFFORTS:
        raise unknown("effort", effort, (*EFFORTS, *ALIASES))
    return name


def tier_by_length(prompt: str) -> str:
    """The tier of effort `auto` without a probe: short prompts are easy, long ones hard. A weak rule by design."""
    words = len(prompt.split())
    return "easy" if words < 12 else "normal" if words < 200 else "hard"


Strategy: TypeAlias = str | Mapping[str, Budget]  # one of `STRATEGIES` by name, or a budget for each tier


def resolve_strategy(described: str | Mapping[str, Budget | Mapping[str, Any]]) -> Strategy:
    """What tiers mean: a name as it is, tiers with their changes as budgets; raises OptionError for anything else."""
    if not isinstance(described, Mapping):
        check_known("strategy", str(described), STRATEGIES)
        return described
    made = dict(TIERS)
    check_known("tier", described, made)
    for tier, given in described.items():
        if isinstance(given, Mapping):
            check_known(f"field of tier {tier!r}:", given, [f.name for f in fields(Budget) if f.name != "tier"])
            given = {**asdict(made[tier]), **given}
        try:
            made[tier] = _BUDGET.validate_python(given)
        except ValidationError as error:
            raise OptionError(f"tier {tier!r}: {format_validation_error(error, Budget)}") from None
    return made


def fit_budget(
    tier: str,
    max_new_tokens: int,
    reserve: int | None = None,
    strategy: Strategy = "tiers",
    thinking: int | None = None,
) -> Budget:
    """The budget of a tier within `max_new_tokens`, with the answer's reserve kept.

    `reserve` and `thinking` are what a caller asks for in tokens; `thinking` takes the place of the tier's own cap. The
    usual reserve grows with `max_new_tokens`. Raises OptionError where no room is left beyond the reserve, or the
    strategy is unknown.
    """
    if isinstance(strategy, str):
        check_known("strategy", strategy, STRATEGIES)
        strategy = STRATEGIES[strategy]
    if tier not in strategy:
        raise OptionError(f"the strategy has no tier {tier!r}; it has {', '.join(strategy)}")
    budget = strategy[tier]
    keep = reserve
    if keep is None:
        keep = max(budget.reserve, min(max_new_tokens // 16, MAX_ANSWER_RESERVE))
    if keep < 1:
        raise OptionError(f"answer reserve is {keep}; accepted: 1 or more tokens")
    if max_new_tokens <= keep:
        raise OptionError(
            f"max_new_tokens is {max_new_tokens} but {keep} tokens are reserved for the answer; "
            f"accepted: more than {keep}; raise max_new_tokens or lower answer_reserve"
        )
    room = max_new_tokens - keep
    if thinking is None:
        thinking = min(budget.thinking, max(budget.floor, int(room * budget.share)))
    thinking = min(thinking, room) if budget.thinking else 0
    instruction = budget.instruction.replace("{budget}", str(thinking))
    return replace(budget, thinking=thinking, reserve=keep, instruction=instruction)
