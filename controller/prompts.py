"""From a question to prompt ids: chat template, effort, and whether the thinking is open at the end of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError
from .budgets import Budget
from .text.markers import PROMPT, PROMPTED, Markers

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
_OPENAI_NAMES = {"easy": "low", "normal": "medium", "hard": "high"}


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """Prompt ids and the state they leave the model in: `before` thinking, `thinking`, or at the `answer`."""

    ids: tuple[int, ...]
    text: str
    state: str


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Messages of a prompt; raises PromptError if there is nothing in it."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if not messages or not str(messages[-1].get("content") or "").strip():
        raise PromptError("the prompt is empty; accepted: a question as text, or messages ending with one")
    return messages


def get_question(prompt: Prompt) -> str:
    """The text of the last message, "" if there is none."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "") if prompt else ""


def render(
    tokenizer: Any, prompt: Prompt, budget: Budget, markers: Markers, tools: Sequence[Mapping[str, Any]] = ()
) -> RenderedPrompt:
    """Render a prompt for a budget's tier.

    A template that knows efforts is told the tier; otherwise the tier's instruction follows the question, so that the
    question's own prefix stays cacheable. tools: told to a template that knows them. `markers.source == "prompted"`
    asks for thinking in a system prompt of ours.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise PromptError("this tokenizer has no chat template; set tokenizer.chat_template or use a chat model")
    messages = as_messages(prompt)
    knows_effort = "reasoning_effort" in str(template)
    options: dict[str, Any] = {}
    if budget.tier == "none":
        options["enable_thinking"] = False
    elif knows_effort:
        options["reasoning_effort"] = _OPENAI_NAMES[budget.tier]
    elif budget.instruction:
        _instruct(messages, budget.instruction)
    if markers.source == PROMPTED.source and budget.tier != "none":
        messages = _with_system(messages)
    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
    state = thinking_state_after(text, markers)
    if budget.tier == "none" and state != "answer" and markers.source != PROMPTED.source:
        opening = "" if state == "thinking" else f"{markers.open}\n"
        text, state = f"{text}{opening}\n{markers.close}{markers.after}", "answer"
    elif budget.tier == "none":
        state = "answer"
    elif markers.source == PROMPTED.source:
        text, state = f"{text}{markers.open}\n", "thinking"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return RenderedPrompt(tuple(ids), text, state)


def _instruct(messages: list[dict[str, Any]], instruction: str) -> None:
    """Append an instruction to the last message that is the user's: it must not seem to come from a tool."""
    place = next((n for n in reversed(range(len(messages))) if messages[n].get("role") == "user"), len(messages) - 1)
    messages[place] = {**messages[place], "content": f"{messages[place].get('content') or ''}\n\n{instruction}"}


def _with_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{PROMPT}"}, *messages[1:]]
    return [{"role": "system", "content": PROMPT}, *messages]


def thinking_state_after(text: str, markers: Markers) -> str:
    """The state at the end of a rendered prompt; only what follows the last turn's start can open the thinking."""
    tail = text[-80:].rstrip()
    if tail.endswith(markers.open):
        return "thinking"
    return "answer" if tail.endswith(markers.close) else "before"
