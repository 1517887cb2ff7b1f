"""The configuration of a server, as a file has it: defaults, ceilings, keys, prices, upstream servers.

All three servers read it here. What a request asks for wins over defaults and never passes ceilings; what holds for a
key wins over what holds for a model, and that over what holds for all. Options of the command line replace what the
file says for all.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from ...errors import TerselyError, check_known
from ...validation import FrozenModel, format_validation_error, load_yaml, read_text
from ..options import make_policy_from_file
from ..policies import make_policies
from ..policies.base import Policy
from ..text.markers import parse_markers
from .schemas import Effort, Preset
from .settings import MIN_THINKING, OPENAI_NAMES, openai_effort

_SUFFIXES = (".toml", ".yaml", ".yml")
_EXCLUSIVE = ("preset", "policies", "tuned")
"""Fields that say which policies run: of these only one is given, and it takes the place of any from below."""


class ConfigFileError(TerselyError, ValueError, code="invalid_config"):
    """A file is no configuration of a server; the message names the file, the key, and what is accepted."""


class ConfigSection(FrozenModel):
    """A part of the configuration; None and what is left out is left to the next lower layer."""

    model_config = ConfigDict(strict=True)


def _check_policies(given: list[str] | dict[str, dict[str, Any]]) -> list[str] | dict[str, dict[str, Any]]:
    build_policies(given)
    return given


def _check_efforts(budgets: dict[str, int]) -> dict[str, int]:
    named = {openai_effort(effort): tokens for effort, tokens in budgets.items()}
    check_known("effort", named, OPENAI_NAMES[1:])
    return named


def _check_markers(pair: str) -> str:
    parse_markers(pair)
    return pair


Tokens = Annotated[int, Field(ge=1, le=1 << 31)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
PolicyNames = Annotated[list[str] | dict[str, dict[str, Any]], AfterValidator(_check_policies)]
BudgetTable = Annotated[dict[str, Tokens], AfterValidator(_check_efforts)]


class Defaults(ConfigSection):
    """What requests get that leave it open."""

    effort: Effort | None = None
    preset: Preset | None = None
    policies: PolicyNames | None = None  # names, or settings by name; they take the preset's place
    tuned: str | None = None  # a file of `tersely tune`: effort, policies and budgets of requests that name no effort
    max_tokens: Tokens | None = None  # of a reply
    thinking_tokens: Tokens | None = None  # of requests that name neither an effort nor a budget
    answer_reserve: Tokens | None = None
    budgets: BudgetTable | None = None  # thinking tokens by effort

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        given = [name for name in _EXCLUSIVE if getattr(self, name) is not None]
        if self.tuned is not None and self.effort is not None:
            given.append("effort")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; accepted: one of them")
        return self


class Ceilings(ConfigSection):
    """What no request passes."""

    effort: Effort | None = None
    max_tokens: Tokens | None = None  # of a reply, thinking and answer; a request that asks for more is refused
    thinking_tokens: Annotated[int, Field(ge=MIN_THINKING, le=1 << 31)] | None = None


class Rules(ConfigSection):
    """What holds for all requests, those of a model, or those of a key."""

    enabled: bool | None = None  # False is the off switch: everything runs without control
    own_policies: bool | None = None  # whether requests may choose preset, policies and shadow mode
    control_share: Share | None = None  # of conversations; the others get preset off
    shadow_share: Share | None = None  # of requests, answered in shadow mode for the metrics
    defaults: Defaults = Defaults()
    ceilings: Ceilings = Ceilings()


class _Secret(ConfigSection):
    """A key that stands in a variable of the environment or in a file, never in the configuration."""

    key_env: Name | None = None
    key_file: Name | None = None

    def read_key(self, folder: Path, where: str) -> str | None:
        """The key, None for none; raises ConfigFileError for a variable or a file that holds no key."""
        if self.key_env is not None and self.key_file is not None:
            raise ConfigFileError(f"{where} has key_env and key_file; accepted: one of them")
        if self.key_env is not None:
            key, source = os.environ.get(self.key_env, ""), f"the variable {self.key_env}"
        elif self.key_file is not None:
            key, source = read_text(folder / self.key_file, ConfigFileError), f"the file {self.key_file}"
        else:
            return None
        if not key.strip():
            raise ConfigFileError(f"{where}: {source} holds no key; set it", code="missing_key")
        return key.strip()


class KeyRules(Rules, _Secret):
    """What holds for the requests with a key."""


class TokenPrice(ConfigSection):
    """What a million tokens cost."""

    input: Amount
    output: Amount


class Upstream(_Secret):
    """A server behind this one."""

    url: Name
    allow_http: bool = False  # send the key unencrypted to another machine
    kind: Literal["auto", "completions", "chat"] = "auto"
    models: list[Name] | dict[Name, str] | None = None  # its names, or its names by ours; None is all that it lists
    tokenizer: str | None = None
    markers: Annotated[str, AfterValidator(_check_markers)] | None = None

    @property
    def names(self) -> Mapping[str, str] | None:
        """The server's name for a model by ours; "" is its only one."""
        return {name: name for name in self.models} if isinstance(self.models, list) else self.models


class ServerConfig(Rules):
    """A whole configuration."""

    models: dict[Name, Rules] = Field(default_factory=dict)
    keys: dict[Name, KeyRules] = Field(default_factory=dict)
    prices: dict[Name, TokenPrice] = Field(default_factory=dict)
    upstreams: list[Upstream] = Field(default_factory=list)

    def layers(self) -> Iterator[tuple[str, Rules]]:
        """All rules with the path of their place."""
        yield "", self
        yield from ((f"models.{name}", rules) for name, rules in self.models.items())
        yield from ((f"keys.{name}", rules) for name, rules in self.keys.items())


S = TypeVar("S", bound=ConfigSection)


def overlay(lower: S, upper: ConfigSection) -> S:
    """The fields of `lower`, replaced by what `upper` says of them."""
    changes: dict[str, Any] = {}
    for name in type(lower).model_fields:
        value = getattr(upper, name, None)
        if isinstance(value, ConfigSection):
            changes[name] = overlay(getattr(lower, name), value)
        elif value is not None:
            changes[name] = value
    if chosen := [name for name in _EXCLUSIVE if name in changes and isinstance(lower, Defaults)]:
        changes |= {name: None for name in _EXCLUSIVE if name not in chosen}
        if "tuned" in chosen:
            changes["effort"] = None
    return lower.model_copy(update=changes)


def build_policies(given: list[str] | dict[str, dict[str, Any]]) -> tuple[Policy, ...]:
    """The policies of a configuration; raises OptionError for unknown names or settings."""
    if isinstance(given, dict):
        return tuple(make_policy_from_file(name, settings) for name, settings in given.items())
    return make_policies(None, given)


def read_config_file(path: Path) -> ServerConfig:
    """Read a file; raises ConfigFileError, which names the key at fault and what is accepted."""
    if path.suffix not in _SUFFIXES:
        hint = "; a result of `tersely tune` belongs to --tuned" if path.suffix == ".json" else ""
        raise ConfigFileError(f"{path} has the suffix {path.suffix!r}; accepted: {', '.join(_SUFFIXES)}{hint}")
    text = read_text(path, ConfigFileError)
    try:
        values = tomllib.loads(text) if path.suffix == ".toml" else load_yaml(text, str(path), ConfigFileError) or {}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigFileError(f"{path} is not valid TOML: {error}; see docs/GATEWAY.md") from None
    return make_config(values, str(path))


def make_config(values: Any, source: str) -> ServerConfig:
    """A configuration from plain values; raises ConfigFileError, whose message begins with the source."""
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigFileError(f"{source}: {format_validation_error(error, ServerConfig)}") from None
