"""From a call of LangChain's to what an engine is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

from ....errors import TerselyError
from ...options import GenerationOptions
from ...request_builder import PreparedRequest
from ...session import Session
from ...text.tool_calls import OPEN, apply_tool_choice, check_tools, supports_tools
from ...trace import GenerationResult
from .call_options import CALL_OPTIONS, build_options
from .messages import MessageBuilder, append_instruction, as_prompt
from .runner import BackgroundGeneration, Told, engine_lock, run
from .safety import get_sanitizer
from .structured_output import format_instruction

SETTINGS = (*CALL_OPTIONS, *"model tools tool_choice response_format stream".split())
"""What may be given with a call."""


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """One call, ready to be answered; stops: strings that end the answer; name: of the model."""

    session: Session
    prompt: list[dict[str, Any]]
    options: GenerationOptions
    stops: tuple[str, ...]
    tools: bool
    name: str

    @property
    def key(self) -> str:
        """By what the answers of one batch are told apart."""
        return repr((id(self.session.codec), self.name, self.prompt, self.options, self.stops))

    def answering(self, tell: Callable[[Told], None]) -> BackgroundGeneration:
        """Have it answered in a thread of its own."""
        hide = OPEN if self.tools else ""
        return BackgroundGeneration(self.session, self.prompt, self.options, self.stops, hide, tell)

    def made(self, generation: GenerationResult) -> MessageBuilder:
        """The answer as LangChain has it."""
        return MessageBuilder(generation, self.name, self.stops, self.tools)


def answer(asked: PreparedCall) -> GenerationResult:
    """Answer one call."""
    with engine_lock(asked.session.engine):
        rows = asked.session.prepare([asked.prompt], asked.options)
        return run(asked.session, rows, asked.options, asked.stops)[0]


def answer_together(asked: Sequence[PreparedCall]) -> list[GenerationResult | None]:
    """Answer calls with the same options as one batch, in order; None for one that cannot even be prepared."""
    first = asked[0]
    with engine_lock(first.session.engine):
        rows: list[PreparedRequest | None] = []
        for one in asked:
            try:
                rows += one.session.prepare([one.prompt], one.options)
            except TerselyError:  # as a call of its own it will say so
                rows.append(None)
        ready = [row for row in rows if row is not None]
        made = iter(run(first.session, ready, first.options, first.stops) if ready else ())
    return [None if row is None else next(made) for row in rows]


def prepare_call(
    session: Session,
    name: str,
    messages: Sequence[BaseMessage],
    stops: Sequence[str],
    settings: Mapping[str, Any],
) -> PreparedCall:
    """Put a call together; settings: all of `SETTINGS` that matter to it."""
    tools, wish = apply_tool_choice(settings.get("tools") or (), settings.get("tool_choice"))
    tokenizer = session.engine.tokenizer
    prompt = as_prompt(messages, supports_tools(tokenizer), get_sanitizer(tokenizer, session.markers))
    for wanted in filter(None, (wish, format_instruction(settings.get("response_format")))):
        prompt = append_instruction(prompt, wanted)
    after_tool = bool(messages) and isinstance(messages[-1], ToolMessage)
    if tools:
        check_tools(session.engine)
    options = build_options(settings, after_tool, tuple(tools))
    return PreparedCall(session, prompt, options, tuple(stops), bool(tools), name)
