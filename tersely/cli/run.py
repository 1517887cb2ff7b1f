"""`tersely run`: one prompt under control, shown while it is answered, in colours on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..controller.options import GenerationOptions, check_budget, load_config, make_options
from ..controller.policies import make_policies, resolve_modifier
from ..controller.streaming import TextDeltaEvent
from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.trace import GenerationResult
from ..errors import OptionError, PromptError
from . import options as o
from .options import Interruptible, ModelSource, load, spinner, start_session

if TYPE_CHECKING:
    from ..controller.session import Session

Write = Callable[[str, str], None]  # writes text in a rich style; a plain writer ignores the style
_NOTES = ("error", "note")


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


Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input (UTF-8).")]


def run(
    prompt: Prompt,
    model: o.Model = None,
    effort: o.Effort = "normal",
    preset: o.Preset = "balanced",
    strategy: o.StrategyName = "tiers",
    policy: o.Policies = None,
    modifier: o.Modifiers = None,
    config: o.Config = None,
    probes: o.Probes = None,
    helper: o.Helper = None,
    verifier: o.Verifier = None,
    engine: o.Engine = "transformers",
    base_url: o.BaseUrl = None,
    tokenizer: o.Tokenizer = None,
    seed: o.Seed = 0,
    max_new_tokens: o.MaxNewTokens = None,
    thinking_budget: o.ThinkingBudget = None,
    answer_reserve: o.AnswerReserve = None,
    temperature: o.Temperature = None,
    markers: o.Markers = None,
    think_prompt: o.ThinkPrompt = False,
    shadow: o.Shadow = False,
    as_json: o.Json = False,
    compare: o.Compare = None,
    quiet: o.Quiet = False,
    trace: o.Trace = None,
) -> None:
    """Answer one prompt; show the thinking, every decision with its reason, and what it saved."""
    chosen = make_options(
        effort=effort,
        preset=preset,
        strategy=strategy,
        policies=tuple(policy) if policy else None,
        modifiers=tuple(modifier or ()),
        max_new_tokens=max_new_tokens,
        thinking_budget=thinking_budget,
        answer_reserve=answer_reserve,
        shadow=shadow,
        signals=trace is not None and engine != "openai",  # which shows no entropy
        probes=probes,
        temperature=temperature,
        seed=seed,
    )
    origin = ModelSource(model, engine, markers, think_prompt, base_url, tokenizer)
    chosen = _complete(chosen, config, trace)
    text, output = _prompt_text(prompt), "json" if as_json else "quiet" if quiet else "full"
    with closing(Interruptible(load(origin))) as running:
        session = start_session(running, origin, verifier, helper)
        _answer(session, running, text, chosen, output, output == "full" if compare is None else compare, trace)


def _complete(chosen: GenerationOptions, config: Path | None, trace: Path | None) -> GenerationOptions:
    """The options with those of a file, which the command line must not set; refuses invalid ones before loading."""
    if config is not None:
        default, fields = GenerationOptions(), ("effort", "preset", "policies", "strategy")
        if any(getattr(chosen, field) != getattr(default, field) for field in fields):
            raise OptionError(
                "--config sets effort, policies and strategy; leave out --effort, --preset, --policy and --strategy"
            )
        chosen = replace(chosen, **load_config(config))
    check_budget(chosen)
    make_policies(chosen.preset, chosen.policies)
    for modifier in chosen.modifiers:
        resolve_modifier(modifier)
    if trace is not None:
        from ..evaluation.trace_record import check_appendable

        check_appendable(trace)
    return chosen


def _prompt_text(given: str) -> str:
    """The prompt, read from standard input for `-`; raises PromptError unless it is UTF-8 text."""
    try:
        if given == "-":
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        else:
            text = given.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        where = "standard input" if given == "-" else "the prompt"
        raise PromptError(f"{where} is not UTF-8 (byte {error.start}); accepted: UTF-8 text") from error
    if not text.strip():
        raise PromptError("the prompt is empty; accepted: a question as text, or - to read it from standard input")
    return text


def _answer(
    session: Session,
    engine: Interruptible,
    prompt: str,
    options: GenerationOptions,
    output: str,
    comparing: bool,
    trace: Path | None,
) -> None:
    show = TerminalRenderer(*writer()) if output == "full" else None
    done, plain = session.run([prompt], options, show)[0], None
    if engine.interrupted:
        done = replace(done, finish_reason="interrupted")
    if show is not None:
        _show_outcome(show, done)
    elif output == "quiet":
        for line in filter(None, (format_outcome(done), *_notes(done))):
            print(line, file=sys.stderr)
        print(done.answer)
    if comparing and not engine.interrupted:
        uncontrolled = replace(options, effort="normal", preset="off", policies=None, shadow=False)
        with spinner("running it uncontrolled"):
            plain = session.run([prompt], uncontrolled)[0]
    if engine.interrupted:
        plain = None
    if output == "json":
        print(json.dumps(done.as_dict() | ({} if plain is None else {"uncontrolled": plain.as_dict()})))
    elif plain is not None:
        print(comparison(done, plain))
    if trace is not None:
        from ..evaluation.trace_record import append_record, build_record

        append_record(trace, build_record(done, prompt, plain, codec=session.codec))
    if engine.interrupted:
        sys.stdout.flush()
        raise KeyboardInterrupt


def _notes(done: GenerationResult) -> list[str]:
    """What policies have to say beyond what they did, such as that a probe does not know the question."""
    return [f"{decision.policy}: {decision.reason}" for decision in done.trace if decision.action in _NOTES]


def _show_outcome(show: TerminalRenderer, done: GenerationResult) -> None:
    show.finish()
    if (line := format_outcome(done)) is not None:
        show.mark(line)
    for line in _notes(done):
        show.mark(line)
    for decision in done.trace:
        if decision.action not in _NOTES and not decision.acted:
            at, would = f"at {decision.position} tokens", f"{decision.policy} would {decision.action}"
            show.mark(f"shadow: {at} {would}: {decision.reason}")
