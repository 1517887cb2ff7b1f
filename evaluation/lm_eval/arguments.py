"""The arguments of lm-eval: `--model_args` of the model and `generation_kwargs` of a task, checked before any work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ...controller.budgets import canonical_effort, fit_budget
from ...controller.options import DEFAULT_MAX_NEW_TOKENS, GenerationOptions
from ...controller.policies import make_policies
from ...controller.text.markers import Markers, parse_markers
from ...controller.types import SamplingParams
from ...errors import OptionError
from ...validation import FrozenModel, parse_json


class ModelArguments(FrozenModel):
    """The keys of `--model_args`; lm-eval adds its options for batch size and device."""

    pretrained: str = Field(min_length=1)
    preset: str = "balanced"
    policies: tuple[str, ...] | None = None
    effort: str = "normal"
    answer_reserve: int | None = Field(default=None, ge=1)
    markers: str | None = None
    think_prompt: bool = False
    keep_thinking: bool = False
    dtype: str = "auto"
    device: str | None = None
    batch_size: int = Field(default=1, ge=1)

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> ModelArguments:
        """Check arguments from lm-eval; raises OptionError."""
        parsed = parse_json(cls, json.dumps(arguments, default=str), "model_args", OptionError)
        canonical_effort(parsed.effort)
        make_policies(parsed.preset, parsed.policies)
        return parsed

    def as_markers(self) -> Markers | None:
        """The thinking markers, if given; raises OptionError."""
        return None if self.markers is None else parse_markers(self.markers)


class TaskArguments(FrozenModel):
    """The `generation_kwargs` of a task, after `--gen_kwargs`; the token limit has four names."""

    until: str | list[str] | None = None
    max_gen_toks: int | None = None
    max_new_tokens: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    num_beams: Literal[1] = 1

    @classmethod
    def parse(cls, task: str, arguments: Mapping[str, Any]) -> TaskArguments:
        """Check the arguments of a request; raises OptionError for those that are not supported."""
        return parse_json(cls, json.dumps(arguments, default=str), f"generation_kwargs of task {task!r}", OptionError)

    @property
    def limit(self) -> int:
        """Maximum new tokens, thinking included."""
        given = (self.max_gen_toks, self.max_new_tokens, self.max_tokens, self.max_completion_tokens)
        return next((limit for limit in given if limit is not None), DEFAULT_MAX_NEW_TOKENS)

    @property
    def sampling(self) -> SamplingParams:
        """Greedy unless `do_sample` or a temperature is given, as everywhere in lm-eval."""
        if self.do_sample is False or (self.do_sample is None and not self.temperature):
            return SamplingParams(temperature=0.0)
        return SamplingParams(self.temperature, self.top_p, self.top_k)

    def truncate(self, answer: str) -> str:
        """The answer up to the first stop string; empty ones are ignored."""
        stops = [self.until] if isinstance(self.until, str) else self.until or []
        return answer[: min((answer.find(stop) for stop in stops if stop and stop in answer), default=len(answer))]


def build_options(task: str, model: ModelArguments, arguments: TaskArguments) -> GenerationOptions:
    """The options for the requests of a task; raises OptionError."""
    if arguments.do_sample and not arguments.temperature:
        raise OptionError(
            f"task {task!r} samples without a temperature; pass --gen_kwargs do_sample=true,temperature=0.6",
            code="missing_temperature",
        )
    try:
        fit_budget("normal", arguments.limit, model.answer_reserve)
    except OptionError as error:
        raise OptionError(f"task {task!r}: {error}; to change it, pass --gen_kwargs max_gen_toks=2048") from None
    return GenerationOptions(
        effort=model.effort,
        preset=model.preset,
        policies=model.policies,
        max_new_tokens=arguments.limit,
        answer_reserve=model.answer_reserve,
        sampling=arguments.sampling,
    )
