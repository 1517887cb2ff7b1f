"""What the chat models of all frameworks share: their settings, and how these become sessions and options."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, PrivateAttr

from ...errors import unknown
from ..api import resolve_helper, resolve_markers, resolve_verifier
from ..budgets import canonical_effort
from ..modifiers import resolve_modifier
from ..options import DEFAULT_MAX_NEW_TOKENS, SAMPLING_OPTIONS, GenerationOptions, make_options
from ..policies import make_policies
from ..session import Session
from .runner import shared_engine

_OPTIONS = (*("preset", "policies", "modifiers", "answer_reserve", "strategy", "probes"), *SAMPLING_OPTIONS)
CALL_SETTINGS = ("effort", "reasoning_effort", "max_tokens", *_OPTIONS)
"""Settings that may be given with each call."""


class TerselyModel(BaseModel):
    """A chat model on one of tersely's engines, whatever the framework.

    The settings mean what they mean in `tersely.generate`; `max_tokens` is its `max_new_tokens`. A model is a name or
    folder, an `Engine` or a `Session`; a name is loaded at its first use, once per process.
    """

    model: Any = "tersely-tiny-small"
    effort: str = "normal"
    preset: str | None = "balanced"
    policies: Sequence[Any] | None = None
    modifiers: Sequence[Any] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    probes: str | None = None
    answer_reserve: int | None = None
    strategy: Any = "tiers"
    markers: Any = None
    think_prompt: bool = False
    verifier: Any = None
    helper: Any = None

    _sessions: dict[str, Session] = PrivateAttr(default_factory=dict)

    @classmethod
    def _check_arguments(cls, names: Iterable[str], framework: type[BaseModel], ignored: Collection[str] = ()) -> None:
        """Raise OptionError for an argument that is neither ours nor the framework's."""
        ours = sorted(set(cls.model_fields) - set(framework.model_fields))
        check_names("argument", [n for n in names if n not in framework.model_fields and n not in ignored], ours)

    def _check_values(self) -> None:
        """Raise OptionError for an unknown effort, preset, policy or modifier."""
        canonical_effort(self.effort)
        make_policies(self.preset, self.policies)
        for modifier in self.modifiers:
            resolve_modifier(modifier)

    @property
    def model_name(self) -> str:
        """The model's name."""
        if isinstance(self.model, (str, os.PathLike)):
            return os.fspath(self.model)
        return str(getattr(self.model, "engine", self.model).name)

    def session(self, model: Any = None) -> Session:
        """The session of this model, or of another one given by name; opened at its first use."""
        model = self.model if model is None else model
        if isinstance(model, Session):
            return model
        name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
        if name not in self._sessions:
            self._sessions[name] = Session(
                shared_engine(model),
                resolve_markers(self.markers),
                self.think_prompt,
                verifier=resolve_verifier(self.verifier),
                helper=resolve_helper(self.helper),
            )
        return self._sessions[name]

    def _build_options(
        self, settings: Mapping[str, Any], after_tool: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> GenerationOptions:
        """The options of a call, whose settings take the place of the model's.

        The text of a tool is untrusted, so it must not raise the budget: `after_tool`, effort `auto` becomes `normal`.
        """
        own = {name: getattr(self, name) for name in CALL_SETTINGS if name in type(self).model_fields}
        settings = {**own, **settings}
        effort = settings.get("reasoning_effort") or settings["effort"]
        if after_tool and canonical_effort(effort) == "auto":
            effort = "normal"
        limit = settings["max_tokens"]
        return make_options(
            effort=effort,
            max_new_tokens=DEFAULT_MAX_NEW_TOKENS if limit is None else limit,
            tools=tools,
            **{name: settings[name] for name in _OPTIONS},
        )


def check_names(what: str, names: Iterable[str], accepted: Collection[str]) -> None:
    """Raise OptionError for a name that is not accepted; `what` says what it names."""
    for name in names:
        if name not in accepted:
            raise unknown(what, name, accepted)
