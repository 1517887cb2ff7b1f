"""From a call of LangChain's to what an engine is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

from ....errors import TerselyError
from ...options import Options
from ...request_builder import Prepared
from ...session import Session
from ...text.tool_calls import OPEN, check_tools, chosen, knows_tools
from ...trace import Generation
from .call_options import OF_CALLS, options_of
from .messages import Made, as_prompt, ask_also
from .runner import Answering, Told, lock_of, run
from .safety import neutraliser_for
from .structured_output import wish_for

SETTINGS = (*OF_CALLS, *"model tools tool_choice response_format stream".split())
"""What may be given with a call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, ready to be answered; stops: strings that end the answer; name: of the model."""

    session: Session
    prompt: list[dict[str, Any]]
    options: Options
    stops: tuple[str, ...]
    tools: bool
    name: str

    @property
    def key(self) -> str:
        """By what the answers of one batch are told apart."""
        return repr((id(self.session.codec), self.name, self.prompt, self.options, self.stops))

    def answering(self, tell: Callable[[Told], None]) -> Answering:
        """Have it answered in a thread of its own."""
        hide = OPEN if self.tools else ""
        return Answering(self.session, self.prompt, self.options, self.stops, hide, tell)

    def made(self, generation: Generation) -> Made:
        """The answer as LangChain has it."""
        return Made(generation, self.name, self.stops, self.tools)


def answer(asked: Asked) -> Generation:
    """Answer one call."""
    with lock_of(asked.session.engine):
        rows = asked.session.prepare([asked.prompt], asked.options)
        return run(asked.session, rows, asked.options, asked.stops)[0]


def answer_together(asked: Sequence[Asked]) -> list[Generation | None]:
    """Answer calls with the same options as one batch, in order; None for one that cannot even be prepared."""
    first = asked[0]
    with lock_of(first.session.engine):
        rows: list[Prepared | None] = []
        for one in asked:
            try:
                rows += one.session.prepare([one.prompt], one.options)
            except TerselyError:  # as a call of its own it will say so
                rows.append(None)
        ready = [row for row in rows if row is not None]
        made = iter(run(first.session, ready, first.options, first.stops) if ready else ())
    return [None if row is None else next(made) for row in rows]


def ask(
    session: Session,
    name: str,
    messages: Sequence[BaseMessage],
    stops: Sequence[str],
    settings: Mapping[str, Any],
) -> Asked:
    """Put a call together; settings: all of `SETTINGS` that matter to it."""
    tools, wish = chosen(settings.get("tools") or (), settings.get("tool_choice"))
    tokenizer = session.engine.tokenizer
    prompt = as_prompt(messages, knows_tools(tokenizer), neutraliser_for(tokenizer, session.markers))
    for wanted in filter(None, (wish, wish_for(settings.get("response_format")))):
        prompt = ask_also(prompt, wanted)
    after_tool = bool(messages) and isinstance(messages[-1], ToolMessage)
    if tools:
        check_tools(session.engine)
    options = options_of(settings, after_tool, tuple(tools))
    return Asked(session, prompt, options, tuple(stops), bool(tools), name)
