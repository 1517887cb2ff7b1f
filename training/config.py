"""Configurations of trainings: YAML files with the sections below, every key known and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ..errors import TerselyError, did_you_mean


class RecipeError(TerselyError, ValueError):
    """A training's configuration is not accepted."""


class Section(BaseModel):
    """Part of a configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """One text does for a list of texts; true, which is also YAML's yes and on, is no number."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, str) and annotation == tuple[str, ...]:
            return (value,)
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError("input should be a number")
        return value


class Data(Section):
    """Which questions: see `tersely bench --task`; efforts go round, so that each tier gets its share.

    A method with tools also takes `agents`, or `agents:KIND,KIND`: see `tersely agents --kinds`.
    """

    task: str = "tiny"
    split: str = "train"
    questions: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0)
    efforts: tuple[str, ...] = Field(default=("normal",), min_length=1)


class Rollouts(Section):
    """How completions are sampled.

    prompts: of one step, each with `generations` completions. max_new_tokens: most tokens of a completion.
    thinking_budget: thinking that is longer is closed, and what closes it gets no loss; None leaves it alone.
    policies: name -> settings, as in a configuration of `tersely tune`; what they write gets no loss, but in `sft` (see
    its `imitate`). batch: rows decoded at a time. engine: on what they are decoded; vllm: arguments of `vllm.LLM`, such
    as gpu_memory_utilization.
    """

    prompts: int = Field(default=8, ge=1)
    generations: int = Field(default=8, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=1024, ge=2)
    answer_reserve: int = Field(default=64, ge=1)
    thinking_budget: int | None = Field(default=None, ge=1)
    policies: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    batch: int = Field(default=64, ge=1)
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: Mapping[str, Any] = Field(default_factory=dict)


class Lora(Section):
    """Train low-rank adapters in place of all weights; merge: also write the model with the adapter merged in."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"
    merge: bool = True


class Optimiser(Section):
    """AdamW; micro_batch: completions in memory at a time, of which a step has a whole number.

    dtype: of the weights, "auto" as saved. autocast: compute in bfloat16, whatever the weights are kept in.
    """

    learning_rate: float = Field(default=1e-5, gt=0)
    steps: int = Field(default=100, ge=1)
    warmup: int = Field(default=0, ge=0)
    micro_batch: int = Field(default=8, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_gradients: float = Field(default=1.0, gt=0)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    autocast: bool = False
    checkpoint_activations: bool = False
    lora: Lora | None = None


class Saving(Section):
    """When to write checkpoints and how many to keep, and which trackers transformers is to report to."""

    every: int = Field(default=50, ge=1)
    keep: int = Field(default=2, ge=2)
    report_to: tuple[str, ...] = ()


class Alarm(Section):
    """When a policy counts as collapsed: for `window` logs in a row, after the first `grace` steps.

    all_think, no_think: chances of not thinking at or below and at or above which the choice is gone. empty: the share
    of thinking completions with fewer than `empty_tokens` thinking tokens. action: what an alarm does.
    """

    action: Literal["stop", "warn"] = "stop"
    grace: int = Field(default=100, ge=0)
    window: int = Field(default=10, ge=1)
    all_think: float = Field(default=0.005, ge=0, lt=1)
    no_think: float = Field(default=0.995, gt=0, le=1)
    empty: float = Field(default=0.5, gt=0, le=1)
    empty_tokens: int = Field(default=4, ge=1)


class AlwaysThinks(Alarm):
    """The alarm of methods under which a policy may always think: that one is off."""

    all_think: float = Field(default=0.0, ge=0, lt=1)


class Recipe(Section):
    """What every training has; `out` is the folder it writes and goes on from, `markers` as in `tersely run`."""

    method: str
    model: str = "tersely-tiny-small"
    out: Path
    seed: int = Field(default=0, ge=0)
    markers: str | None = None
    data: Data = Data()
    optimiser: Optimiser = Optimiser()
    saving: Saving = Saving()
    rollouts: Rollouts = Rollouts()


T = TypeVar("T", bound=Recipe)


def read_recipe(path: Path, kind: type[T], method: str, changes: Sequence[str] = ()) -> T:
    """The configuration of a method in a YAML file; raises RecipeError, which names every key that is wrong.

    changes: `KEY=VALUE` each, in place of what the file says, such as `optimiser.steps=20`.
    """
    try:
        found = _plain(path.read_text(encoding="utf-8"), f"{path}")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}; give the YAML file of a training") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{path} holds no configuration; accepted: {', '.join(kind.model_fields)}")
    for change in changes:
        _set(found, change)
    where = " ".join((str(path), *(f"--set {change}" for change in changes)))
    if "method" not in found:
        raise RecipeError(f"{where} names no method; write `method: {method}`")
    if found["method"] != method:
        raise RecipeError(
            f"{where} is for the method {found['method']!r}, and {method!r} was asked for; "
            f"run `tersely train {found['method']}`, or write `method: {method}`"
        )
    return checked(found, kind, where)


def _plain(text: str, what: str) -> Any:
    """What YAML says; raises RecipeError, also for a key that stands twice in one place, where the last would win."""
    import yaml

    try:
        if (root := yaml.compose(text, yaml.SafeLoader)) is not None:
            _check_once(root, what, set())
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is not YAML: {' '.join(str(error).split())}") from None


def _check_once(node: Any, what: str, known: set[int]) -> None:
    """Refuse mappings in which a key stands twice; known: nodes that were looked at, for aliases lead to them again."""
    import yaml

    if id(node) in known or isinstance(node, yaml.ScalarNode):
        return
    known.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_once(part, what, known)
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen:
            raise RecipeError(f"{what} has {name!r} twice in one place, lines {seen[name]} and {line}; leave one out")
        seen[name] = line
        _check_once(value, what, known)


def _set(values: dict[str, Any], change: str) -> None:
    """Do what `KEY=VALUE` says: VALUE is YAML, KEY names a section and what is in it, by dots."""
    key, equals, given = change.partition("=")
    *place, last = key.strip().split(".")
    if not equals or not all((*place, last)):
        raise RecipeError(f"--set is {change!r}; accepted: KEY=VALUE, as in optimiser.steps=20")
    value = _plain(given, f"--set {change}: the value")
    for depth, part in enumerate(place, start=1):
        inner = {} if values.get(part) is None else values[part]
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {change}: {'.'.join(place[:depth])!r} is {inner!r}, which has no keys")
        values[part] = values = dict(inner)  # a copy, for a YAML alias may name the same section elsewhere
    values[last] = value


def checked(found: Mapping[str, Any], kind: type[T], where: str) -> T:
    """A configuration from plain values; raises RecipeError."""
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise RecipeError(f"{where}: {'; '.join(_complaints(error, kind))}") from None


_ACCEPTED = {
    "tuple_type": "accepted: a list, as in [a, b]",
    "model_type": "accepted: a section of keys, as in {key: value}",
    "mapping_type": "accepted: a section of keys, as in {key: value}",
    "path_type": "accepted: the path of a folder",
}
"""Pydantic speaks of Python where people have written YAML."""


def _complaints(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    for trouble in error.errors(include_url=False, include_context=False):
        if not trouble["loc"]:  # what keys come to together
            yield trouble["msg"].removeprefix("Value error, ")
            continue
        *place, last = trouble["loc"]
        name = ".".join(map(str, (*place, last)))
        if trouble["type"] == "extra_forbidden":
            section = _section(kind, place)
            yield f"unknown key {name!r}; {did_you_mean(str(last), section.model_fields)}"
        elif trouble["type"] == "missing":
            yield f"{name!r} is missing"
        else:
            said = _ACCEPTED.get(trouble["type"]) or trouble["msg"].lower().removeprefix("value error, ")
            yield f"{name!r} is {trouble['input']!r}: {said}"


def _section(kind: type[BaseModel], place: list[int | str]) -> type[BaseModel]:
    """The section at a place, through optional ones."""
    for part in place:
        annotation = kind.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        kind = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return kind
