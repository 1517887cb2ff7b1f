"""A configuration: how to answer, as plain JSON that `tersely tune` writes and people may."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import TerselyError, unknown
from ..io import write
from .budgets import STRATEGIES, Budget, Strategy, canonical_effort
from .policies import make_policy

FORMAT = 1
_KEYS = ("format", "effort", "policies", "strategy", "found")


class ConfigError(TerselyError, ValueError):
    """A file is no configuration, or one that this version cannot use."""


@dataclass(frozen=True, slots=True)
class TunedConfig:
    """How to answer.

    policies: name -> settings, in the order of their precedence. strategy: a name, or tier -> changed fields of that
    tier's `Budget`. found: where it comes from and what it was worth there, for people to read. Raises OptionError for
    what is unknown.
    """

    effort: str = "normal"
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    strategy: str | Mapping[str, Mapping[str, Any]] = "tiers"
    found: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        canonical_effort(self.effort)
        self.options()

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `tersely.generate`, or `Options`."""
        made = tuple(make_policy(name, settings) for name, settings in self.policies.items())
        return {"effort": self.effort, "policies": made, "strategy": resolve_strategy(self.strategy)}

    def as_json(self) -> str:
        """The text of its file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; raises WriteError."""
        write(path, self.as_json())


def resolve_strategy(described: str | Mapping[str, Mapping[str, Any]]) -> Strategy:
    """What tiers mean: a name as it is, changes of tiers as budgets; raises OptionError for an unknown one."""
    if isinstance(described, str):
        if described not in STRATEGIES:
            raise unknown("strategy", described, STRATEGIES)
        return described
    made = dict(STRATEGIES["tiers"])
    known = [f.name for f in fields(Budget) if f.name != "tier"]
    for tier, changes in described.items():
        if tier not in made:
            raise unknown("tier", tier, made)
        for key in changes:
            if key not in known:
                raise unknown(f"field of tier {tier!r}:", key, known)
        made[tier] = Budget(**{**asdict(made[tier]), **changes})
    return made


def read_config(path: Path) -> TunedConfig:
    """The configuration of a file; raises ConfigError for none, OptionError for unknown names in it."""
    try:
        about = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}; `tersely tune` writes one") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ConfigError(f"{path} is no configuration of format {FORMAT}; `tersely tune` writes one")
    for key in about:
        if key not in _KEYS:
            raise unknown(f"key in {path}:", key, _KEYS)
    try:
        return TunedConfig(**{key: value for key, value in about.items() if key != "format"})
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no configuration: {error}") from None


def load_config(path: str | Path) -> dict[str, Any]:
    """Keyword arguments for `tersely.generate` from a configuration file, as in `generate(m, **load_config("t.json"))`.

    Raises ConfigError, OptionError.
    """
    return read_config(Path(path)).options()
