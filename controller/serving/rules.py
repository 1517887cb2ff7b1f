"""What holds for a request: the configuration in force, resolved for a model and a key."""

from __future__ import annotations

import logging
import sys
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import OptionError, TerselyError, check_known
from ..options import MAX_OUTPUT_TOKENS, GenerationOptions, load_config, make_options
from .auth_middleware import hash_key
from .config import ConfigFileError, Rules, ServerConfig, build_policies, overlay, read_config_file
from .replies import ReplyRecorder
from .settings import EFFORT_CAPS, OPENAI_NAMES, UNBILLED, Billing, ServerLimits, openai_effort

_log = logging.getLogger(__name__)
_BUCKETS = 1 << 16


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What holds for the requests of one key to one model; `rules` is where it comes from."""

    rules: Rules = field(default_factory=Rules)
    options: GenerationOptions = field(default_factory=GenerationOptions)  # for what a request leaves open
    caps: Mapping[str, int] = field(default_factory=lambda: dict(EFFORT_CAPS))  # thinking tokens by OpenAI effort

    @property
    def enabled(self) -> bool:
        """Whether there is control at all."""
        return self.rules.enabled is not False

    @property
    def own_policies(self) -> bool:
        """Whether a request may choose preset, policies and shadow mode."""
        return self.rules.own_policies is not False

    @property
    def tuned(self) -> bool:
        """Whether the budgets of `options` hold for requests that name no effort."""
        return self.rules.defaults.tuned is not None

    @property
    def max_tokens(self) -> int:
        """Most output tokens of a reply."""
        return self.rules.ceilings.max_tokens or MAX_OUTPUT_TOKENS

    @property
    def default_tokens(self) -> int:
        """Output tokens of a reply to a request that names no number."""
        return min(self.rules.defaults.max_tokens or self.max_tokens, self.max_tokens)

    @property
    def max_thinking(self) -> int | None:
        """Most thinking tokens of a reply; None without a ceiling, and where nothing is controlled."""
        return self.rules.ceilings.thinking_tokens if self.enabled else None

    def fit_effort(self, effort: str) -> str:
        """An effort, or the ceiling where it is above that; `auto` may be."""
        most = self.rules.ceilings.effort
        if most is None:
            return effort
        return most if _rank(effort) > _rank(most) else effort

    def controls(self, conversation: str) -> bool:
        """Whether a conversation is in the share under control; its later turns get the same answer."""
        share = self.rules.control_share
        return share is None or zlib.crc32(conversation.encode("utf-8", "replace")) % _BUCKETS < share * _BUCKETS


def _rank(effort: str) -> float:
    """The place of an effort in the order of costs; that of `auto` is not known, so it counts as the highest."""
    return (*OPENAI_NAMES, "auto").index(openai_effort(effort))


def check_names(config: ServerConfig, served: Collection[str]) -> None:
    """Raise OptionError for a model with rules or prices that is not served."""
    for section, names in (("models", config.models), ("prices", config.prices)):
        check_known(f"model in {section}:", names, served)


class LiveConfig:
    """The configuration in force, which `reload` replaces by what its file says by then.

    Args:
        changes: What options of the command line say, over the file.
        path: The file; None has only `changes`.
        probes: Folder of probes for all requests.
        api_key: Digest (`hash_key`) of a key without a name, in addition to those of the file.
    """

    def __init__(
        self,
        changes: Rules | None = None,
        path: Path | None = None,
        probes: str | None = None,
        api_key: str | None = None,
    ) -> None:
        self.changes, self.path, self.probes, self.api_key = changes or Rules(), path, probes, api_key
        self.check: Callable[[LiveConfig], None] = lambda config: None
        """Raises TerselyError for what the server cannot do."""
        self.config = ServerConfig() if path is None else read_config_file(path)
        self.config = overlay(self.config, self.changes)
        self.folder = Path() if path is None else path.parent
        self.keys = self._read_keys()
        self._resolved: dict[tuple[str, str | None], RequestRules] = {}
        for model in ("", *self.config.models):
            for key in (None, *self.config.keys):
                self.rules(model, key)

    def rules(self, model: str, key: str | None = None) -> RequestRules:
        """What holds for the requests of a key to a model."""
        where = (model if model in self.config.models else "", key)
        if where not in self._resolved:
            self._resolved[where] = self._resolve(*where)
        return self._resolved[where]

    def _resolve(self, model: str, key: str | None) -> RequestRules:
        """Raises OptionError, or ConfigError for a tuned file that cannot be used."""
        rules = overlay(Rules(), self.config)
        for layer in (self.config.models.get(model), self.config.keys.get(key or "")):
            if layer is not None:
                rules = overlay(rules, layer)
        defaults = rules.defaults
        chosen: dict[str, Any] = {}
        if defaults.tuned is not None:
            chosen = load_config(self.folder / defaults.tuned)
        elif defaults.policies is not None:
            chosen = {"policies": build_policies(defaults.policies)}
        elif defaults.preset is not None:
            chosen = {"preset": defaults.preset}
        if defaults.effort is not None:
            chosen["effort"] = defaults.effort
        if rules.ceilings.thinking_tokens is not None and rules.shadow_share:
            places = [*([f"models.{model}"] if model else []), *([f"keys.{key}"] if key else [])]
            source = "" if self.path is None else f"{self.path}: "
            raise OptionError(
                f"{source}{' with '.join(places) or 'for all requests'}: ceilings.thinking_tokens holds for every "
                "request, and shadow_share lifts it for some; leave out one of them, or set shadow_share = 0"
            )
        options = make_options(answer_reserve=defaults.answer_reserve, probes=self.probes, **chosen)
        return RequestRules(rules, options, {**EFFORT_CAPS, **(defaults.budgets or {})})

    def billing(self, model: str, key: str = "", counted: Billing = UNBILLED) -> Billing:
        """Whom a request is charged to, at which price, and what it is `counted` under."""
        price = self.config.prices.get(model)
        billing = replace(counted, model=model, key=key)
        return billing if price is None else replace(billing, input=price.input, output=price.output)

    def reload(self) -> None:
        """Read the file again; where it is not valid, or the server cannot do what it says, the old one stays."""
        try:
            other = LiveConfig(self.changes, self.path, self.probes, self.api_key)
            if other.config.upstreams != self.config.upstreams:
                raise ConfigFileError(f"{self.path}: upstreams changed, which needs a restart; accepted: the same ones")
            if bool(other.keys) != bool(self.keys):
                raise ConfigFileError(f"{self.path}: keys cannot be introduced or given up without a restart")
            self.check(other)
        except TerselyError as error:
            _log.error("the configuration was not reloaded, and the old one stays: %s", error)
            return
        self.config, self.keys, self._resolved = other.config, other.keys, other._resolved
        if _log.isEnabledFor(logging.INFO):
            _log.info("the configuration was reloaded from %s", self.path)
        else:  # in vLLM's server, whose log is not ours
            print(f"the configuration was reloaded from {self.path}", file=sys.stderr, flush=True)

    def _read_keys(self) -> Mapping[str, str]:
        """The name of each key by its digest; empty asks for no key."""
        keys = {} if self.api_key is None else {self.api_key: ""}
        for name, rules in self.config.keys.items():
            secret = rules.read_key(self.folder, f"{self.path}: keys.{name}")
            if secret is None:
                raise ConfigFileError(f"{self.path}: keys.{name} has no key_env and no key_file; add one of them")
            if (digest := hash_key(secret)) in keys:
                raise ConfigFileError(f"{self.path}: keys.{name} is the same key as another; give each its own")
            keys[digest] = name
        return keys


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server answers."""

    config: LiveConfig = field(default_factory=LiveConfig)
    limits: ServerLimits = field(default_factory=ServerLimits)
    hosts: tuple[str, ...] | None = None  # accepted Host headers; None accepts all
    special_tokens: bool = False  # whether texts of users and tools may become special tokens
    recorder: ReplyRecorder | None = None  # of replies without control
    log: str = "off"  # one line per request; see `auth_middleware.LOG_FORMATS`
    metrics: str = "key"  # who may read /metrics; see `auth_middleware.Access`
