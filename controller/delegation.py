"""The stretches of one row's thinking that a helper writes or looks over, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .helpers.engine_helper import Helper, HelperFuture, HelperRequest, PrefixKey
from .pending_questions import format_error
from .policies.base import Action, AskHelper, Delegate, HelperAction, ReviewDraft, Trial
from .policy_runner import PolicyTask
from .prompts import Prompt
from .text.closing import paragraph_separator
from .text.thoughts import ThinkingState
from .types import Directive


@dataclass(frozen=True, slots=True)
class Delegation:
    """One stretch: who wanted it, what was wanted, from which output token on, and what comes of it.

    reviewed: how many of the latest tokens the helper was shown to keep or to rewrite.
    """

    sleeper: PolicyTask
    move: HelperAction
    position: int
    help: HelperFuture
    reviewed: int

    @property
    def kind(self) -> str:
        """What it was, for the trace: `ask`, `review` where the helper let all stand, or `delegate`."""
        if isinstance(self.move, AskHelper):
            return "ask"
        return "review" if self.reviewed and not self.help.tokens else "delegate"

    def told(self) -> str:
        """Why the helper wrote, and how much."""
        did = f"keeps the last {self.reviewed} tokens" if self.kind == "review" else f"wrote {self.help.tokens} tokens"
        return f"{self.move.reason}; the helper {did}"


class DelegationManager:
    """Hands stretches of one row on to its helper, one at a time; what that raises becomes a stretch without a text."""

    def __init__(self, helper: Helper | None, prompt: Prompt, thinking: ThinkingState) -> None:
        self.helper, self.prompt, self.thinking = helper, prompt, thinking
        self.tokens = self.read = self.taken_back = 0
        self._open: Delegation | None = None
        self._text = PrefixKey()

    @property
    def waiting(self) -> PolicyTask | None:
        """Whose stretch is being written."""
        return None if self._open is None else self._open.sleeper

    def begin(self, sleeper: PolicyTask, move: HelperAction, position: int, room: int) -> Directive:
        """Have a move carried out, and let the row rest until it is: what goes, and what is put out before that.

        position: how many tokens of the output stand. room: most tokens that the thinking may still grow by.
        """
        if isinstance(move, ReviewDraft):
            return self._revise(sleeper, move, position, room)
        thinking = self.thinking
        anew = isinstance(move, Delegate) and move.anew
        back = thinking.take_back(len(thinking) if anew else move.take_back)
        self.taken_back += back
        if isinstance(move, AskHelper):
            asked = HelperRequest(move.message, "", move.tokens, reply=True)
            return Directive(drop=back, until=self._write(asked, sleeper, move, position - back))
        lead = f"{paragraph_separator(thinking.tail(4))}{move.lead} " if move.lead else ""
        forced = thinking.codec.encode(lead)
        for token in forced:
            thinking.add(token)
        grown = len(forced) - back
        stretch = HelperRequest(
            self.prompt, lead if anew else thinking.text, min(move.tokens, room - grown), whole=anew
        )
        return Directive(forced, drop=back, until=self._write(stretch, sleeper, move, position + grown))

    def _revise(self, sleeper: PolicyTask, move: ReviewDraft, position: int, room: int) -> Directive:
        """Show the helper the latest tokens, all of which stand until it has said which of them do."""
        thinking = self.thinking
        latest = thinking.own(move.latest)
        before = thinking.codec.decode(thinking.ids[: len(thinking) - latest])
        draft, tokens = thinking.text[len(before) :], min(move.tokens, room + latest)
        stretch = HelperRequest(
            self.prompt, before, tokens, move.thought, draft=draft, review=move.review, text=self._text
        )
        return Directive(until=self._write(stretch, sleeper, move, position - latest, latest))

    def _write(
        self, stretch: HelperRequest, sleeper: PolicyTask, move: HelperAction, position: int, reviewed: int = 0
    ) -> HelperFuture:
        assert self.helper is not None  # the controller asks nobody otherwise
        try:
            made = self.helper.write(stretch)
        except Exception as error:  # a helper is anybody's code
            made = HelperFuture().fail(format_error(error))
        self._open = Delegation(sleeper, move, position, made, reviewed)
        return made

    def end(self) -> Delegation:
        """The stretch that the row rested for."""
        assert self._open is not None  # no row wakes that did not rest
        done, self._open = self._open, None
        self.tokens += done.help.tokens
        self.read += done.help.read
        return done

    def take_in(self, done: Delegation, room: int) -> tuple[int, tuple[int, ...]]:
        """Put the text of a stretch into the thinking: how many of the latest tokens went for it, and which came.

        room: most tokens that the thinking may still grow by.
        """
        if done.kind in ("ask", "review"):
            return 0, ()
        thinking, codec, text, kept = self.thinking, self.thinking.codec, done.help.text or "", 0
        window = thinking.ids[len(thinking) - done.reviewed :]
        while kept < done.reviewed and text.startswith(codec.decode(window[: kept + 1])):
            kept += 1
        back = thinking.take_back(done.reviewed - kept)
        self.taken_back += back
        ids = codec.encode(text[len(codec.decode(window[:kept])) :])[: max(0, room + back)]
        for token in ids:
            thinking.add(token)
        return back, ids


def without_retraction(move: Action | Trial) -> Action | Trial:
    """A move as it can follow what a helper did: what was just put out is neither taken back nor looked over."""
    if isinstance(move, ReviewDraft):
        return replace(move, latest=0)
    return replace(move, take_back=0) if isinstance(move, (Delegate, AskHelper)) else move
