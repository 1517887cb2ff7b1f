"""Showing a generation while it is made: thinking dim, forced text with its reason, the answer bright; or plainly."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..controller.streaming import TextDeltaEvent
from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.trace import GenerationResult

Write = Callable[[str, str], None]  # writes text in a rich style; a plain writer ignores the style


def writer() -> tuple[Write, bool]:
    """A writer to standard output, and whether it has styles."""
    if not sys.stdout.isatty():

        def write_plainly(text: str, style: str) -> None:
            sys.stdout.write(_harmless(text))
            sys.stdout.flush()

        return write_plainly, False
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def write(text: str, style: str) -> None:
        console.print(Text(_harmless(text), style), end="", soft_wrap=True)

    return write, True


def _harmless(text: str) -> str:
    """Model output must not steer the terminal, so its escape character is shown as a picture of one."""
    return text.replace("\x1b", "␛")


class TerminalRenderer:
    """An event sink that shows one row; call `finish` at the end."""

    def __init__(self, write: Write, styled: bool) -> None:
        self.styled = styled
        self._write = write
        self._shown: str | None = None
        self._tail = "\n\n"  # the last characters written
        encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
        self.sign, self.arrow = ("◆", "→") if encoding.startswith("utf") else ("*", "->")

    def __call__(self, event: TextDeltaEvent) -> None:
        """Show an event; see `streaming.EventSink`."""
        if event.decision is None:
            self._show(event.text, event.channel)
        else:
            self.mark(f"{event.decision.policy}: {event.decision.reason}", event.text.strip())

    def mark(self, text: str, forced: str = "") -> None:
        """A line about something that the model did not write itself, with the text that was put into its mouth."""
        self.finish()
        self._put(f"{self.sign} {text}", "bold yellow")
        if forced:
            self._put(f" {self.arrow} {forced}", "yellow")
        self._put("\n")

    def _show(self, text: str, channel: str) -> None:
        if self._tail.endswith("\n"):
            text = text.lstrip("\n")
        if self._shown != channel:
            self.finish()
            if self._tail != "\n\n":
                self._put("\n")
            if not self.styled:
                self._put(f"[{channel}]\n")
            self._shown = channel
        self._put(text, "dim" if channel == "thinking" else "bold")

    def _put(self, text: str, style: str = "") -> None:
        self._write(text, style)
        self._tail = (self._tail + text)[-2:]

    def finish(self) -> None:
        """End the line, if one is open."""
        if not self._tail.endswith("\n"):
            self._put("\n")


def format_outcome(done: GenerationResult) -> str | None:
    """A line about an answer that never came or was cut off, or None."""
    if done.finish_reason == "length" and done.answer:
        return "the answer may be incomplete: it was cut off at the token limit; raise --max-new-tokens"
    if done.answer or done.finish_reason == "interrupted":
        return None
    if done.finish_reason == "length":
        return "no answer: the token limit was reached first; raise --max-new-tokens or use a preset with a budget"
    return "no answer: the model ended without one"


def comparison(done: GenerationResult, plain: GenerationResult) -> str:
    """One line that sets a generation against the uncontrolled one of the same prompt and seed."""
    ours, theirs = done.usage.total, plain.usage.total
    saving = 1 - ours / theirs if theirs else 0.0
    saved = f"{saving:.0%} saved" if saving >= 0 else f"{-saving:.0%} more"
    return f"uncontrolled: {_verdict(done, plain)}, {ours} tokens instead of {theirs}, {saved}"


def _verdict(done: GenerationResult, plain: GenerationResult) -> str:
    if not plain.answer:
        return "no answer within the limit" if plain.finish_reason == "length" else "no answer"
    if not done.answer:
        return f"an answer ({_brief(plain)}) where this run has none"
    if normalize_answer(extract_answer(done.answer)) == normalize_answer(extract_answer(plain.answer)):
        return f"same answer ({_brief(plain)})"
    return f"other answer ({_brief(plain)})"


def _brief(done: GenerationResult) -> str:
    answer = " ".join(extract_answer(done.answer).split())
    return _harmless(answer if len(answer) <= 40 else f"{answer[:39]}…")
