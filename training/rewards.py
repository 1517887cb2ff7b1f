"""Rewards that several methods share, and helpers to read completions and columns.

TRL calls `reward(prompts=, completions=, completion_ids=, **columns)`, with columns of the dataset and the rollouts,
and gets one number per completion, or None. verl: set `reward.custom_reward_function.path=pkg://tersely.training.rewards`
and its `name` to `compute_score`. OpenRLHF: `--reward.remote_url` takes a file; import `reward_func` in it from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache
from itertools import groupby
from numbers import Real
from typing import Any, ClassVar

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from ..controller.text.answers import extract_answer
from ..controller.text.markers import Markers
from ..controller.text.reasoning_parser import split_text
from ..errors import OptionError, did_you_mean, shorten, unknown
from ..evaluation.tasks.equality import DEADLINE, AnswerChecker
from ..evaluation.tasks.questions import Drawn, Question, TaskError
from ..evaluation.tasks.sandbox import Closing

CLOSE = "</think>"
_NUMBERS = TypeAdapter(list[FiniteFloat])
THINK, NO_THINK, AGENTIC = "think", "no_think", "agentic"
"""Modes of a completion: it thinks, it answers at once, or it calls tools (with or without thinking)."""


class Reward:
    """A reward function. Its settings are plain values, so it can be pickled; TRL logs it under its `__name__`."""

    name: ClassVar[str]

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward per completion."""
        raise NotImplementedError


class Correctness(Reward, Closing):
    """1 for a right answer, 0 for a wrong or missing one, by the equality that the benchmarks use.

    Columns: `answer`, the gold answer; optional `response`, the text after the thinking, `gym_entry`, name, seed and
    index of a problem of reasoning-gym, and `solved`, the environment's verdict, 0 to 1; with these two, `answer` may
    be None. A helper process is started when a comparison needs it; `close()` ends it.
    """

    name = "correctness"

    def __init__(self, marker: str | None = CLOSE, deadline: float = DEADLINE) -> None:
        """`marker` ends the thinking, None if completions contain none; `deadline` is in seconds for a comparison."""
        self.marker, self.deadline = marker, deadline
        self._checker = AnswerChecker(deadline)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.marker, self.deadline)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        gold = require_column(columns, "answer", self.name)
        responses = columns.get("response") or [answer_part(get_text(c), self.marker) for c in completions]
        entries, verdicts = (columns.get(name) or [None] * len(completions) for name in ("gym_entry", "solved"))
        rewards: list[float | None] = []
        for i, (answer, response, entry, solved) in enumerate(zip(gold, responses, entries, verdicts, strict=True)):
            if solved is None:
                text = "" if entry else gold_text(answer, f"row {i} of this batch's column 'answer'")
                solved = self.is_right(text, response, entry)
            rewards.append(float(solved))
        return rewards

    def is_right(self, gold: str, response: str, gym_entry: Mapping[str, Any] | None = None) -> bool:
        """Whether a response gives the gold answer, or solves a problem of reasoning-gym; raises TaskError."""
        if not response:
            return False
        try:
            question = Question("", "", gold, drawn=Drawn(**gym_entry) if gym_entry else None)
        except TypeError:
            accepted = "{'name': ..., 'seed': ..., 'index': ...}"
            raise TaskError(f"column 'gym_entry' is {shorten(gym_entry)}; accepted: {accepted}") from None
        return self._checker.grade(question, response if gym_entry else extract_answer(response)).equal

    def close(self) -> None:
        self._checker.close()


def get_text(completion: Any) -> str:
    """The text of a completion: a string, or the last of several messages."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def answer_part(text: str, close: str | None) -> str:
    """What follows the thinking; empty where that was never closed. close: None if the prompt has closed it."""
    return text.strip() if close is None else split_text(text, Markers("", close), "thinking")[1]


def require_column(columns: Mapping[str, Any], name: str, reward: str) -> Sequence[Any]:
    """A column that a reward needs; raises OptionError."""
    if columns.get(name) is None:
        raise OptionError(
            f"the reward {reward!r} needs the column {name!r}, from the dataset or from tersely's rollouts; "
            f"{did_you_mean(name, sorted(columns))}",
            code="missing_column",
        )
    column: Sequence[Any] = columns[name]
    return column


def number_column(columns: Mapping[str, Any], name: str, reward: str) -> list[float]:
    """A column of finite numbers that a reward needs; raises OptionError."""
    values = list(require_column(columns, name, reward))
    try:
        return _NUMBERS.validate_python(values)
    except ValidationError as error:
        row = int(error.errors()[0]["loc"][0])
        raise OptionError(
            f"row {row} of this batch's column {name!r} is {values[row]!r}; accepted: a finite number; add it, or "
            "remove the row",
            code="invalid_number",
        ) from None


def gold_text(gold: Any, source: str) -> str:
    """A gold answer as text, with numbers in plain digits; raises OptionError, naming its source."""
    if isinstance(gold, str):
        return gold
    text = str(gold).lower()
    if not isinstance(gold, Real | Decimal) or isinstance(gold, bool) or "nan" in text or "inf" in text:
        raise OptionError(
            f"{source} is {gold!r}; accepted: text or a finite number; add it, or remove the row",
            code="invalid_gold_answer",
        )
    return format(Decimal(text), "f") if "e" in text else text  # answers are not compared in 1e-05 notation


def get_modes(completions: Sequence[Any], columns: Mapping[str, Any], close: str) -> list[str]:
    """The mode of each completion: from the column `mode`, else by whether it starts with the closing marker."""
    if columns.get("mode") is not None:
        return list(columns["mode"])
    return [NO_THINK if get_text(c).lstrip().startswith(close) else THINK for c in completions]


def group_by_prompt(prompts: Sequence[Any]) -> list[range]:
    """The index ranges of equal prompts; the completions of a question are consecutive."""
    groups, start = [], 0
    for _, equal in groupby(prompts):
        size = sum(1 for _ in equal)
        groups.append(range(start, start + size))
        start += size
    return groups


class GroupBrevity(Reward):
    """From +weight/2 for the shortest right completion of a group down to -weight/2 for the longest (SER-RL).

    0 for wrong ones, and if too few of the group are right: a question that is not learned yet must not be learned
    short. We found no formula in the paper's sources (arXiv 2506.15647); this one is ours.
    """

    name = "group_brevity"

    def __init__(
        self, correct: Correctness, weight: float = 0.2, min_accuracy: float = 0.5, *, thinking_only: bool = False
    ) -> None:
        """`min_accuracy` is the share of a group that has to be right.

        With `thinking_only`, only completions that think are compared, by the column `mode`; the others get 0.
        """
        if not 0 < weight < 1:
            raise OptionError(
                f"brevity weight is {weight}; accepted: above 0 and below 1, the reward for a right answer"
            )
        self.correct, self.weight, self.min_accuracy, self.thinking_only = correct, weight, min_accuracy, thinking_only

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        right = self.correct(prompts, completions, **columns)
        lengths = [len(ids) for ids in require_column(columns, "completion_ids", self.name)]
        rewards: list[float | None] = [0.0] * len(lengths)
        modes = require_column(columns, "mode", self.name) if self.thinking_only else [THINK] * len(lengths)
        for indices in group_by_prompt(prompts):
            group = [i for i in indices if modes[i] == THINK]
            good = [i for i in group if right[i]]
            if not good or len(good) < self.min_accuracy * len(group):
                continue
            shortest, longest = min(lengths[i] for i in good), max(lengths[i] for i in good)
            for i in good if shortest < longest else []:
                rewards[i] = self.weight * (0.5 - (lengths[i] - shortest) / (longest - shortest))
        return rewards


TIER_TOKENS = {"none": 0, "easy": 1024, "normal": 2048, "hard": 4096}
"""Thinking tokens of each tier in LiteLLM's table, to which `TierAdherence` trains by default."""


def excess_penalty(tokens: int, allowed: int) -> float:
    """0 within the allowed tokens, falling linearly to -1 at twice as many."""
    return -min(1.0, max(0, tokens - allowed) / max(allowed, 1))


class TierAdherence(Reward):
    """0 for thinking within the tier's budget, down to -1 at twice that; columns `tier` and `thinking_tokens`."""

    name = "tier_adherence"

    def __init__(self, budgets: Mapping[str, int] | None = None, marker_id: int | None = None) -> None:
        """`budgets` are the thinking tokens of each tier, by default `TIER_TOKENS`.

        Without a column `thinking_tokens`, they are counted in `completion_ids`, up to the token `marker_id`.
        """
        self.budgets = dict(budgets or TIER_TOKENS)
        self.marker_id = marker_id

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        tiers = require_column(columns, "tier", self.name)
        for tier in tiers:
            if not isinstance(tier, str) or tier not in self.budgets:
                raise unknown("tier", str(tier), self.budgets)
        counts = self._thinking_tokens(columns)
        return [excess_penalty(count, self.budgets[tier]) for tier, count in zip(tiers, counts, strict=True)]

    def _thinking_tokens(self, columns: Mapping[str, Any]) -> list[int]:
        if columns.get("thinking_tokens") is not None:
            return [int(count) for count in number_column(columns, "thinking_tokens", self.name)]
        if self.marker_id is None:
            raise OptionError(
                f"the reward {self.name!r} needs the column 'thinking_tokens', as tersely's rollouts provide, or the "
                "id of the token that closes the thinking: "
                "TierAdherence(marker_id=tokenizer.convert_tokens_to_ids('</think>'))",
                code="missing_column",
            )
        return [
            count_thinking_tokens(ids, self.marker_id) for ids in require_column(columns, "completion_ids", self.name)
        ]


def count_thinking_tokens(ids: Sequence[int], marker: int) -> int:
    """Thinking tokens with the closing marker, or all without one; a marker at the very start ends nothing."""
    later = next((i for i, token in enumerate(ids) if i and token == marker), None)
    if later is not None:
        return later + 1
    return 0 if len(ids) and ids[0] == marker else len(ids)


@cache
def _correctness() -> Correctness:
    return Correctness()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | float,
    extra_info: Mapping[str, Any] | None = None,
    *,
    delta: float = 0.0,
    adherence: float = 0.0,
    **_: Any,
) -> dict[str, float]:
    """Verl's reward function: the sum as `score`, and its parts; raises OptionError for missing or invalid data.

    `delta` rewards not thinking. `adherence` weighs keeping to the tier's budget, by `tier` and `thinking_tokens` in
    `extra_info`; a `reference` there is subtracted.
    """
    given = extra_info or {}
    columns = {name: [given[name]] for name in ("tier", "thinking_tokens", "reference") if given.get(name) is not None}
    right = float(_correctness().is_right(gold_text(ground_truth, "ground_truth"), answer_part(solution_str, CLOSE)))
    bonus = delta * solution_str.lstrip().startswith(CLOSE)
    kept = adherence * (TierAdherence()([""], [""], **columns)[0] or 0.0) if adherence else 0.0
    baseline = number_column(columns, "reference", "compute_score")[0] if "reference" in columns else 0.0
    return {
        "score": right + bonus + kept - baseline,
        "correctness": right,
        "no_think_bonus": bonus,
        "tier_adherence": kept,
    }


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str | float], **_: Any
) -> dict[str, Any]:
    """OpenRLHF's reward function: `queries` are prompts with their completions; raises OptionError for bad labels."""
    import torch

    completions = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
    right = torch.tensor(_correctness()(prompts, completions, answer=labels), dtype=torch.float32)
    return {"rewards": right, "scores": right, "extra_logs": {}}
