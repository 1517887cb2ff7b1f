"""The error tree. Every message says what was given, what is accepted and what to do."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterable

_SHOWN = 60  # characters that a message shows of a value that was not accepted


class TerselyError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one line fit for a terminal."""

    code: str = "error"  # a stable, machine-readable name, of the class or more specific where it is raised

    def __init_subclass__(cls, code: str | None = None) -> None:
        super().__init_subclass__()
        cls.code = code or cls.code

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.code


class OptionError(TerselyError, ValueError, code="invalid_option"):
    """An argument or option is not accepted."""


class MarkerError(TerselyError, ValueError, code="unknown_markers"):
    """The thinking markers of a model are unknown."""


class ModelError(TerselyError, OSError, code="model_unusable"):
    """A model cannot be found or loaded."""


class PromptError(TerselyError, ValueError, code="invalid_prompt"):
    """A prompt cannot be used: it is empty or too long for the context."""


class CapabilityError(TerselyError, RuntimeError, code="missing_capability"):
    """An engine cannot do what a policy or an option needs."""


def shorten(value: object) -> str:
    """The beginning of a value's repr; takes little time however large or deep the value is."""
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = cut.maxlong = 2 * _SHOWN
    cut.maxlevel = 3
    text = cut.repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Name the closest match, if any, and everything that is accepted."""
    names = list(known)
    near = difflib.get_close_matches(str(got)[:_SHOWN], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}accepted: {', '.join(names)}"


def check_known(what: str, names: str | float | Iterable[str | float], known: Collection[str | float]) -> None:
    """Raise OptionError for a name or number, or the first of several, that is not among the known ones."""
    for name in (names,) if isinstance(names, str | int | float) else names:
        if name not in known:
            raise unknown(what, str(name), map(str, known))


def unknown(what: str, got: str, known: Iterable[str]) -> OptionError:
    """Build the error for an unknown name of some kind."""
    return OptionError(f"unknown {what} {shorten(got)}; {did_you_mean(got, known)}", code="unknown_name")
