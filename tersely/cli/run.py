"""`tersely run`: one prompt under control, shown while it is answered."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..controller.options import GenerationOptions, check_budget, load_config, make_options
from ..controller.policies import make_policies
from ..controller.registry import resolve_modifier
from ..controller.trace import GenerationResult
from ..errors import OptionError, PromptError
from . import options as o
from .loading import Interruptible, ModelSource, load, open_session, spinner
from .terminal import TerminalRenderer, comparison, format_outcome, writer

if TYPE_CHECKING:
    from ..controller.session import Session

_NOTES = ("error", "note")
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input (UTF-8).")]


def run(
    prompt: Prompt,
    model: o.Model = None,
    effort: o.Effort = "normal",
    preset: o.Preset = "balanced",
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
    if config is not None:
        chosen = _configured(chosen, config)
    origin = ModelSource(model, engine, markers, think_prompt, base_url, tokenizer)
    _check(chosen, trace)
    text = _prompt_text(prompt)
    with closing(Interruptible(load(origin))) as running:
        session = open_session(running, origin, helper, verifier)
        comparing = not (as_json or quiet) if compare is None else compare
        _answer(session, running, text, chosen, "json" if as_json else "quiet" if quiet else "full", comparing, trace)


def _configured(chosen: GenerationOptions, config: Path) -> GenerationOptions:
    """The options with those of a file; raises OptionError if the command line sets the same ones."""
    default = GenerationOptions()
    if (chosen.effort, chosen.preset, chosen.policies) != (default.effort, default.preset, default.policies):
        raise OptionError("--config sets effort, preset and policies; leave out --effort, --preset and --policy")
    return replace(chosen, **load_config(config))


def _check(chosen: GenerationOptions, trace: Path | None) -> None:
    """Refuse invalid options before a model is loaded."""
    check_budget(chosen)
    make_policies(chosen.preset, chosen.policies)
    for modifier in chosen.modifiers:
        resolve_modifier(modifier)
    if trace is not None:
        from ..evaluation.view.record import check_appendable

        check_appendable(trace)


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
    output: Literal["json", "quiet", "full"],
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
        from ..evaluation.view.record import append_record, build_record

        append_record(trace, build_record(done, prompt, plain, codec=session.codec))
    if engine.interrupted:
        sys.stdout.flush()
        raise KeyboardInterrupt


def _notes(done: GenerationResult) -> list[str]:
    """What policies have to say beyond what they did, such as that a probe does not know the question."""
    return [f"{decision.policy}: {decision.reason}" for decision in done.trace if decision.action in _NOTES]


def _show_outcome(show: TerminalRenderer, done: GenerationResult) -> None:
    """Print what a reader must know beyond the text."""
    show.finish()
    if (line := format_outcome(done)) is not None:
        show.mark(line)
    for line in _notes(done):
        show.mark(line)
    for decision in done.trace:
        if decision.action not in _NOTES and not decision.acted:
            at, would = f"at {decision.position} tokens", f"{decision.policy} would {decision.action}"
            show.mark(f"shadow: {at} {would}: {decision.reason}")
