"""From a loaded model to a session that a server may rely on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..api import resolve_helper, resolve_verifier
from ..options import GenerationOptions
from ..session import Session
from ..text.markers import Markers
from ..types import Engine

_NO_MARKERS = Markers("<think>", "</think>", "none")


@dataclass(frozen=True, slots=True)
class ReasoningMode:
    """How a model thinks, as far as its user says; thinks: False is for one that does not."""

    markers: Markers | None = None
    prompted: bool = False
    thinks: bool = True


def open_session(
    engine: Engine, thinking: ReasoningMode, verifier: str | None = None, helper: str | None = None
) -> Session:
    """The session of an engine; raises MarkerError for a model whose thinking cannot be told apart."""
    if not thinking.thinks:
        return Session(engine, _NO_MARKERS)
    asked, helps = resolve_verifier(verifier), resolve_helper(helper)
    return Session(engine, thinking.markers, thinking.prompted, verifier=asked, helper=helps)


def warm_up(session: Session, defaults: GenerationOptions, thinks: bool) -> None:
    """Answer a word before the first request comes, so that what every request would be refused for is told now.

    Raises what `Session.run` raises.
    """
    options = defaults if thinks else replace(defaults, effort="normal", preset="off", policies=None)
    session.run(["1 + 1"], replace(options, max_new_tokens=2, answer_reserve=1))
