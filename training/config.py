"""Recipes: the YAML files that configure a training run. Every key is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from ..controller.budgets import canonical_effort
from ..controller.options import option_field
from ..errors import TerselyError, shorten
from ..validation import FrozenModel, format_error_details, load_yaml

_YAML_CODES = {"invalid": "not_yaml", "duplicate": "duplicate_key"}
CHANGEABLE = ("out", "saving", "alarm")  # keys of a recipe that may differ when a run is resumed


class RecipeError(TerselyError, ValueError, code="invalid_recipe"):
    """The recipe of a training run is not accepted."""


def _check_thinking(effort: str) -> str:
    if canonical_effort(effort) in ("none", "auto"):
        raise ValueError(f"effort {effort!r} leaves no choice to learn; accepted: easy, normal or hard")
    return effort


ThinkingEffort = Annotated[str, AfterValidator(_check_thinking)]  # a tier with thinking


class Section(FrozenModel):
    """A section of a recipe. Unknown keys are errors."""

    @field_validator("*", mode="before")
    @classmethod
    def _coerce(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept a single string for a list of strings; refuse YAML booleans (yes, on) as numbers."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, str) and get_origin(annotation) is tuple:
            return (value,)
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError(f"got {value}; accepted: a number")
        return value


class Data(Section):
    """The training questions."""

    # as in `tersely bench --tasks`; for methods with tools also `agents` or `agents:KIND,KIND`, with kinds as in
    # `tersely agents --kinds`
    task: str = "tiny"
    split: str = "train"
    questions: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0)
    efforts: tuple[ThinkingEffort, ...] = Field(default=("normal",), min_length=1)  # assigned to the questions in turn


class Rollouts(Section):
    """How completions are sampled."""

    prompts: int = Field(default=8, ge=1)  # questions per optimizer step, with `generations` completions each
    generations: int = Field(default=8, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = option_field("max_new_tokens", default=1024, ge=2)
    answer_reserve: int = option_field("answer_reserve", default=64, ge=1)
    thinking_budget: int | None = Field(default=None, ge=1)  # longer thinking is closed, by masked text
    # name -> settings, as in the configuration of `tersely tune`. The text that they write is masked from the loss
    # (except with `sft.imitate`).
    policies: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    batch: int = Field(default=64, ge=1)  # sequences decoded at a time
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: Mapping[str, Any] = Field(default_factory=dict)  # arguments of `vllm.LLM` for `engine: vllm`


class Lora(Section):
    """Low-rank adapters to train instead of all weights; `merge` also writes the model with the adapter merged in."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"
    merge: bool = True


class Optimizer(Section):
    """Settings of AdamW and of precision."""

    learning_rate: float = Field(default=1e-5, gt=0)
    steps: int = Field(default=100, ge=1)
    warmup: int = Field(default=0, ge=0)
    micro_batch: int = Field(default=8, ge=1)  # completions at a time; has to divide those of a step
    weight_decay: float = Field(default=0.0, ge=0)
    clip_gradients: float = Field(default=1.0, gt=0)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the weights; "auto" keeps the dtype of the checkpoint
    autocast: bool = False  # compute in bfloat16, whatever dtype the weights have
    checkpoint_activations: bool = False
    lora: Lora | None = None


class Saving(Section):
    """How often to write checkpoints, how many to keep, and the trackers (of transformers) to report to."""

    every: int = Field(default=50, ge=1)
    keep: int = Field(default=2, ge=2)
    report_to: tuple[str, ...] = ()


class Alarm(Section):
    """When a policy counts as collapsed: in `window` consecutive logs, after the first `grace` steps."""

    action: Literal["stop", "warn"] = "stop"
    grace: int = Field(default=100, ge=0)
    window: int = Field(default=10, ge=1)
    all_think: float = Field(default=0.005, ge=0, lt=1)  # P(not thinking) that stays at or below this
    no_think: float = Field(default=0.995, gt=0, le=1)  # P(not thinking) that stays at or above this
    empty: float = Field(default=0.5, gt=0, le=1)  # share of thinking with fewer than `empty_tokens` tokens
    empty_tokens: int = Field(default=4, ge=1)


class AlwaysThinks(Alarm):
    """The alarm for methods whose policy may always think: `all_think` is off by default."""

    all_think: float = Field(default=0.0, ge=0, lt=1)


class Recipe(Section):
    """The sections shared by all methods."""

    method: str
    model: str = "tersely-tiny-small"
    out: Path  # the folder of the run; `--resume` continues the run in it
    seed: int = Field(default=0, ge=0)
    markers: str | None = None  # OPEN,CLOSE as in `tersely run --markers`
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    saving: Saving = Saving()
    rollouts: Rollouts = Rollouts()


T = TypeVar("T", bound=Recipe)


def read_recipe(path: Path, kind: type[T], method: str, changes: Sequence[str] = ()) -> T:
    """Read a method's recipe from YAML, with `KEY=VALUE` changes; raises RecipeError, which names all wrong keys."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8"), f"{path}", RecipeError, **_YAML_CODES)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}; give the YAML file of a recipe", code="unreadable") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} is not a recipe; accepted keys: {', '.join(kind.model_fields)}", code="not_a_recipe")
    for change in changes:
        _apply_change(values, change)
    source = " ".join((str(path), *(f"--set {change}" for change in changes)))
    if values.get("method") != method:
        raise RecipeError(
            f"{source} has the method {shorten(values.get('method'))}, not {method!r}; write `method: {method}`, "
            "or run `tersely train` with the other",
            code="other_method",
        )
    return validate_recipe_values(values, kind, source)


def _apply_change(values: dict[str, Any], change: str) -> None:
    """Apply a `--set KEY=VALUE`: KEY is a dotted path, VALUE is YAML."""
    path, equals, given = change.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not all((*sections, key)):
        raise RecipeError(f"--set is {change!r}; accepted: KEY=VALUE, as in optimizer.steps=20", code="invalid_set")
    value = load_yaml(given, f"--set {change}: the value", RecipeError, **_YAML_CODES)
    for depth, name in enumerate(sections, start=1):
        section = {} if values.get(name) is None else values[name]
        if not isinstance(section, dict):
            raise RecipeError(
                f"--set {change}: {'.'.join(sections[:depth])!r} is {shorten(section)}, which has no keys",
                code="invalid_set",
            )
        values[name] = values = dict(section)  # a copy, because a YAML alias may share the section
    values[key] = value


def validate_recipe_values(values: Mapping[str, Any], kind: type[T], source: str) -> T:
    """Make a recipe from plain values; raises RecipeError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [format_error_details(details, kind) for details in error.errors(include_url=False)]
        raise RecipeError(f"{source}: {'; '.join(problems)}", code="invalid_value") from None
