"""What requests of lm-eval may say, checked before any work, and what they cost, one line per request in a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from ...controller.budgets import canonical_effort, fit_budget
from ...controller.options import GenerationOptions
from ...controller.policies import make_policies
from ...controller.trace import GenerationResult
from ...controller.types import SamplingParams
from ...errors import OptionError
from ...io import append_line, check_writable, make_folder
from ...validation import FrozenModel, parse_json
from ..cli_utils import format_table

_MAX_NEW_TOKENS = 2048  # the limit of tasks that set none


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
    def parse(cls, arguments: Mapping[str, Any]) -> Self:
        """Check arguments from lm-eval; raises OptionError."""
        parsed = parse_json(cls, json.dumps(arguments, default=str), "model_args", OptionError)
        canonical_effort(parsed.effort)
        make_policies(parsed.preset, parsed.policies)
        return parsed


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
    def parse(cls, task: str, arguments: Mapping[str, Any]) -> Self:
        """Check the arguments of a request; raises OptionError for those that are not supported."""
        return parse_json(cls, json.dumps(arguments, default=str), f"generation_kwargs of task {task!r}", OptionError)

    @property
    def limit(self) -> int:
        """Maximum new tokens, thinking included."""
        given = (self.max_gen_toks, self.max_new_tokens, self.max_tokens, self.max_completion_tokens)
        return next((limit for limit in given if limit is not None), _MAX_NEW_TOKENS)

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


KINDS: Mapping[str, str] = {
    "prompt": "prompt",
    "thinking": "thinking",
    "answer": "answer",
    "forced": "injected",
    "overhead": "overhead",
    "total": "total",
}
"""Kinds of tokens by their name in the usage file, with their name in `Usage`."""


class UsageLog:
    """The usage of each request of one run, appended to the file `path` if lm-eval has an `--output_path`."""

    def __init__(self, output_path: Path | None = None) -> None:
        self.output_path = output_path
        self.path: Path | None = None
        self.lines: list[Mapping[str, Any]] = []
        self._repeats: Counter[tuple[str, int]] = Counter()

    def open(self, model: str) -> None:
        """Choose a file where lm-eval puts this model's results; raises WriteError."""
        if self.output_path is None:
            return
        folder = self.output_path.parent if self.output_path.suffix == ".json" else self.output_path / model
        make_folder(folder)
        self.path = folder / f"usage_{datetime.now().isoformat().replace(':', '-')}.jsonl"
        check_writable(self.path, "--output_path")

    def add(self, task: str, doc_id: int, result: GenerationResult) -> None:
        usage = result.usage.as_dict()
        line = {
            "task": task,
            "doc_id": doc_id,
            "repeat": self._repeats[task, doc_id],
            **{kind: usage[field] for kind, field in KINDS.items()},
            "tier": result.tier,
            "finish_reason": result.finish_reason,
        }
        self._repeats[task, doc_id] += 1
        self.lines.append(line)
        if self.path is not None:
            append_line(self.path, json.dumps(line).encode())

    def means(self) -> dict[str, dict[str, float]]:
        """By task: the number of requests, those cut off by their limit, and mean tokens per request by kind."""
        tasks: dict[str, dict[str, float]] = {}
        for task in dict.fromkeys(line["task"] for line in self.lines):
            lines = [line for line in self.lines if line["task"] == task]
            cut_off = sum(line["finish_reason"] == "length" for line in lines)
            means = {kind: sum(line[kind] for line in lines) / len(lines) for kind in KINDS}
            tasks[task] = {"requests": len(lines), "cut_off": cut_off, **means}
        return tasks

    def summary(self) -> str:
        means = self.means()
        table = format_table(
            ("task", "requests", "cut off", *KINDS),
            [
                [task, f"{row['requests']}", f"{row['cut_off']}", *(f"{row[kind]:.1f}" for kind in KINDS)]
                for task, row in means.items()
            ],
        )
        where = f"each request: {self.path}" if self.path else "pass --output_path DIR to keep the tokens of each"
        return f"mean tokens per request\n{table}\n{where}"
