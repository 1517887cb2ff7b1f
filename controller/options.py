"""Everything a caller can choose about a generation, and the JSON files that hold such choices.

Every surface embeds `GenerationOptions`; `tersely tune` writes a `TunedConfig`, and people may.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, SkipValidation, TypeAdapter, ValidationError
from pydantic import dataclasses as pydantic_dataclasses
from pydantic.errors import PydanticSchemaGenerationError

from ..errors import OptionError, TerselyError, check_known, shorten
from ..io import write
from ..validation import format_validation_error
from .budgets import STRATEGIES, Strategy, canonical_effort, fit_budget, resolve_strategy
from .policies import get_policy_class, make_policy
from .policies.base import Policy
from .types import ForwardModifier, SamplingParams

Options = TypeVar("Options")
MAX_OUTPUT_TOKENS = 32768  # output tokens where a caller sets no limit and the model's context leaves as many
SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "seed")


def _check_effort(effort: object) -> object:
    if isinstance(effort, str):
        canonical_effort(effort)
    return effort


def _as_tuple(values: object) -> object:
    """Lists and tuples as tuples; a single text is one value, not a sequence of letters."""
    if values is None or isinstance(values, tuple):
        return values
    if isinstance(values, str):
        return (values,)
    if not isinstance(values, Sequence):
        raise ValueError("should be a list")
    return tuple(values)


def _as_path_text(path: object) -> object:
    """A path object as text."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


@pydantic_dataclasses.dataclass(
    frozen=True, slots=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid")
)
class GenerationOptions:
    """How to generate. Raises pydantic's ValidationError; `make_options` raises OptionError instead."""

    effort: Annotated[
        str,
        BeforeValidator(_check_effort),
        Field(description="Thinking budget: none, easy, normal, hard, auto, or OpenAI's low, medium, high."),
    ] = "normal"
    preset: Annotated[str | None, Field(description='A set of policies; "off" is the plain engine.')] = "balanced"
    policies: Annotated[
        SkipValidation[tuple[Policy | str, ...] | None],
        BeforeValidator(_as_tuple),
        Field(description="Policies by name, as file.py:Class or as objects; they replace the preset."),
    ] = None
    modifiers: Annotated[
        SkipValidation[tuple[ForwardModifier | str, ...]],
        BeforeValidator(_as_tuple),
        Field(description="Changes of the forward pass, by name or as objects."),
    ] = ()
    max_new_tokens: Annotated[
        int | None,
        Field(
            ge=1, description="Most output tokens, thinking and answer; None is the rest of the context, up to 32768."
        ),
    ] = None
    thinking_budget: Annotated[
        int | None, Field(ge=1, description="Most thinking tokens; None leaves the guard of the effort.")
    ] = None
    answer_reserve: Annotated[
        int | None, Field(ge=1, description="Output tokens kept for the answer; None is 64 to 1024, by max_new_tokens.")
    ] = None
    strategy: Annotated[
        SkipValidation[Strategy],
        BeforeValidator(resolve_strategy),
        Field(description=f"What tiers mean: {', '.join(STRATEGIES)}, or by tier a Budget or what differs in it."),
    ] = "tiers"
    shadow: Annotated[bool, Field(description="Only record what would be done.")] = False
    signals: Annotated[bool, Field(description="Report entropy and probabilities of each token.")] = False
    probes: Annotated[
        str | None,
        BeforeValidator(_as_path_text),
        Field(description="Folder of `tersely calibrate`; None uses the model's pretrained probes."),
    ] = None
    record: Annotated[
        str | None,
        BeforeValidator(_as_path_text),
        Field(description="Folder for what probes can learn from; needs preset off, or shadow."),
    ] = None
    tools: Annotated[
        SkipValidation[tuple[Mapping[str, Any], ...]],
        BeforeValidator(_as_tuple),
        Field(description="Tools in OpenAI's format, for chat templates that know tools."),
    ] = ()
    sampling: Annotated[SamplingParams, Field(description="Temperature, top_p, top_k and seed.")] = SamplingParams()

    @property
    def output_limit(self) -> int:
        """Most output tokens, before the model's context is known."""
        return self.max_new_tokens or MAX_OUTPUT_TOKENS


OPTION_NAMES = tuple(defined.name for defined in fields(GenerationOptions))


def option_field(name: str, **changes: Any) -> Any:
    """A pydantic field with the default and the description that an option has in `GenerationOptions`.

    The surfaces (command line, server, frameworks, training) take theirs from here; `changes` are what differs there.
    """
    defined = GenerationOptions.__pydantic_fields__[name]  # type: ignore[attr-defined]  # added by pydantic
    return Field(**{"default": defined.default, "description": defined.description, **changes})


def flag(text: str, *names: str, **settings: Any) -> Any:
    """An option of a command with its help text, for `Annotated`."""
    from typer import Option

    return Option(*names, help=text, **settings)


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a command of a function of one dataclass, whose fields are options with Typer's annotations."""

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        @wraps(function)
        def command(*given: Any, **values: Any) -> None:
            function(options(*given, **values))

        hints = get_type_hints(options, include_extras=True)
        parameters = [one.replace(annotation=hints[name]) for name, one in signature(options).parameters.items()]
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = hints
        return command

    return decorate


class OptionsDict(TypedDict, total=False):
    """`GenerationOptions` as keyword arguments, with the sampling options spelled out."""

    effort: str
    preset: str | None
    policies: Sequence[Policy | str] | None
    modifiers: Sequence[ForwardModifier | str]
    max_new_tokens: int | None
    thinking_budget: int | None
    answer_reserve: int | None
    strategy: Strategy
    shadow: bool
    signals: bool
    probes: str | os.PathLike[str] | None
    record: str | os.PathLike[str] | None
    tools: Sequence[Mapping[str, Any]]
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None


def make_options(options: GenerationOptions | None = None, **overrides: Any) -> GenerationOptions:
    """Build options, or replace some, by the keywords of `OptionsDict`; raises OptionError for what is not accepted."""
    sampling = {name: overrides.pop(name) for name in SAMPLING_OPTIONS if name in overrides}
    if "stop" in overrides:
        raise OptionError(
            "stop is not an option here; ChatTersely takes stop, custom_generate stop_strings", code="no_stop_strings"
        )
    check_known("option", overrides, [*OPTION_NAMES, *SAMPLING_OPTIONS])
    options = GenerationOptions() if options is None else options
    if not isinstance(options, GenerationOptions):
        raise OptionError(f"options is {shorten(options)}; accepted: GenerationOptions, or its fields as keywords")
    try:
        options = replace(options, **overrides)
        merged: Any = {**asdict(options.sampling), **sampling}
        return replace(options, sampling=merged) if sampling else options
    except ValidationError as error:
        raise as_option_error(error) from None


def as_option_error(error: ValidationError) -> TerselyError:
    """Our own error for what pydantic found: the one that a validator raised, else an OptionError."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    return cause if isinstance(cause, TerselyError) else OptionError(format_validation_error(error))


def check_budget(options: GenerationOptions) -> None:
    """Raise OptionError for an effort, a budget and limits that contradict each other."""
    tier = canonical_effort(options.effort)
    if tier == "none" and options.thinking_budget is not None:
        raise OptionError(
            f"effort is none and thinking_budget is {options.thinking_budget}; accepted: one of them",
            code="contradicting_options",
        )
    fit_budget("normal" if tier == "auto" else tier, options.output_limit, options.answer_reserve, options.strategy)


def with_seed(options: GenerationOptions, seed: int | None) -> GenerationOptions:
    """The same options with another seed."""
    return replace(options, sampling=replace(options.sampling, seed=seed))


FORMAT = 1
_KEYS = ("format", "effort", "policies", "strategy", "found")


class ConfigError(TerselyError, ValueError):
    """A file does not hold a configuration, or one that this version cannot use."""


@dataclass(frozen=True, slots=True)
class TunedConfig:
    """How to answer; `found` tells where it comes from. Raises OptionError for what is unknown."""

    effort: str = "normal"
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings by name, in order of precedence
    strategy: str | Mapping[str, Mapping[str, Any]] = "tiers"  # a name, or changed fields of a `Budget` by tier
    found: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        canonical_effort(self.effort)
        self.options()

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `tersely.generate`, or `Options`."""
        made = tuple(make_policy_from_file(name, settings) for name, settings in self.policies.items())
        return {"effort": self.effort, "policies": made, "strategy": resolve_strategy(self.strategy)}

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; raises WriteError."""
        write(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def make_policy_from_file(name: str, settings: Mapping[str, Any]) -> Policy:
    """A policy with settings from a file, compared with the types that it declares; raises OptionError."""
    hints = get_type_hints(get_policy_class(name))
    for key, value in settings.items():
        if key not in hints:
            continue  # `make_policy` says what is accepted
        try:
            kind: TypeAdapter[Any] = TypeAdapter(hints[key])
            kind.validate_json(json.dumps(value), strict=True)
        except PydanticSchemaGenerationError:
            continue  # an object, which no file holds
        except ValidationError as error:
            raise OptionError(f"setting {key!r} of policy {name!r}: {format_validation_error(error)}") from None
    return make_policy(name, settings)


def read_config(path: Path) -> TunedConfig:
    """The configuration of a file; raises ConfigError for none, OptionError for unknown names in it."""
    try:
        about = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}; `tersely tune` writes one") from None
    if not isinstance(about, dict) or about.get("format", FORMAT) != FORMAT:
        raise ConfigError(
            f"{path} is not a configuration of format {FORMAT}; accepted: an object with {', '.join(_KEYS[1:])}, by "
            "hand or of `tersely tune`"
        )
    check_known(f"key in {path}:", about, _KEYS)
    try:
        return TunedConfig(**{key: value for key, value in about.items() if key != "format"})
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a valid configuration: {error}") from None


def load_config(path: str | Path) -> dict[str, Any]:
    """Keyword arguments for `tersely.generate` from a configuration file; raises ConfigError, OptionError."""
    return read_config(Path(path)).options()
