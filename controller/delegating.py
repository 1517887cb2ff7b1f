"""The stretches of one row's thinking that a helper writes, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from .outside.asked import told
from .outside.helper import Help, Helper, Stretch
from .policies.base import Delegate
from .prompts import Prompt
from .sleeper import Sleeper


@dataclass(frozen=True, slots=True)
class Delegation:
    """One stretch: who wanted it, what was wanted, from which output token on, and what comes of it."""

    sleeper: Sleeper
    move: Delegate
    position: int
    help: Help


class Delegations:
    """Hands stretches of one row on to its helper, one at a time; what that raises becomes a stretch without a text."""

    def __init__(self, helper: Helper | None, prompt: Prompt) -> None:
        self.helper, self.prompt = helper, prompt
        self.tokens = self.read = 0
        self._open: Delegation | None = None

    @property
    def waiting(self) -> Sleeper | None:
        """Whose stretch is being written."""
        return None if self._open is None else self._open.sleeper

    def begin(self, sleeper: Sleeper, move: Delegate, position: int, thinking: str, tokens: int) -> Help:
        """Ask for at most `tokens` tokens that go on from this thinking."""
        assert self.helper is not None  # the controller asks nobody otherwise
        try:
            made = self.helper.write(Stretch(self.prompt, thinking, tokens))
        except Exception as error:  # a helper is anybody's code
            made = Help().fail(told(error))
        self._open = Delegation(sleeper, move, position, made)
        return made

    def end(self) -> Delegation:
        """The stretch that the row rested for."""
        assert self._open is not None  # no row wakes that did not rest
        done, self._open = self._open, None
        self.tokens += done.help.tokens
        self.read += done.help.read
        return done
