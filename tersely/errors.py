"""One error tree: every message says what was got, what is accepted and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TerselyError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one line fit for a terminal."""


class OptionError(TerselyError, ValueError):
    """An argument or option is not accepted."""


class MarkerError(TerselyError, ValueError):
    """It cannot be told how this model opens and closes its thinking."""


class ModelError(TerselyError, OSError):
    """A model cannot be found or loaded."""


class PromptError(TerselyError, ValueError):
    """A prompt cannot be used: empty, or too long for the context."""


class CapabilityError(TerselyError, RuntimeError):
    """An engine cannot do what a policy needs."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """A sentence naming the near match, if any, and all that is accepted."""
    names = list(known)
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}accepted: {', '.join(names)}"


def unknown(what: str, got: str, known: Iterable[str]) -> OptionError:
    """The error for an unknown name of some kind."""
    return OptionError(f"unknown {what} {got!r}; {did_you_mean(got, known)}")
