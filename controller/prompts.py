"""From a prompt to token ids: chat template, effort, and whether the thinking is open at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..errors import PromptError, did_you_mean, shorten
from .budgets import OPENAI_EFFORTS, TIERS, Budget
from .text.markers import PROMPT, PROMPTED, Markers
from .text.tokenizer_adapter import TokenizerAdapter
from .types import Prompt

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """Prompt ids, and the state in which they leave the model: `before` thinking, `thinking`, or at the `answer`."""

    ids: tuple[int, ...]
    text: str
    state: str


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages of a prompt; raises PromptError if it is empty or not a prompt."""
    if isinstance(prompt, str):
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt):
        given = cast("Sequence[Mapping[str, Any]]", prompt)
        messages = [{**message, "content": _join_parts(message.get("content"))} for message in given]
    else:
        raise PromptError(
            f"the prompt is of type {type(prompt).__name__}; accepted: a text, or a list of messages with role and "
            "content",
            code="invalid_prompt_type",
        )
    if not messages or not str(messages[-1].get("content") or "").strip():
        raise PromptError("the prompt is empty; accepted: a question as text, or messages with one")
    return messages


def _join_parts(content: Any) -> Any:
    """The text of OpenAI content parts; anything else as it is."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "input_text"):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise PromptError(
                f"a content part is {kind!r}; accepted: parts of type 'text'", code="invalid_content_part"
            )
        texts.append(str(part.get("text", "")))
    return "".join(texts)


def get_question(prompt: Prompt) -> str:
    """The text of the last message, "" if there is none."""
    if isinstance(prompt, str):
        return prompt
    return str(_join_parts(prompt[-1].get("content")) or "") if prompt else ""


def render(
    tokenizer: Any, prompt: Prompt, budget: Budget, markers: Markers, tools: Sequence[Mapping[str, Any]] = ()
) -> RenderedPrompt:
    """Render a prompt for a budget's tier, with tools for templates that know tools.

    A template that knows efforts gets the tier, and no instruction of ours. Other instructions follow the question, so
    that the question's own prefix stays cacheable. With `markers.source == "prompted"` a system prompt of ours asks for
    thinking.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise PromptError("this tokenizer has no chat template; set tokenizer.chat_template or use a chat model")
    messages = as_messages(prompt)
    _check_roles(messages, str(template))
    supports_effort = "reasoning_effort" in str(template)
    options: dict[str, Any] = {}
    if budget.tier == "none":
        options["enable_thinking"] = False
    else:
        ours = budget.instruction == TIERS[budget.tier].instruction
        if supports_effort:
            options["reasoning_effort"] = OPENAI_EFFORTS[budget.tier]
        if budget.instruction and not (supports_effort and ours):
            _instruct(messages, budget.instruction)
    if markers.source == PROMPTED.source and budget.tier != "none":
        messages = _with_system(messages)
    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
    except Exception as error:  # a template is a program
        raise PromptError(f"the model's chat template refuses these messages: {shorten(str(error))}") from error
    state = thinking_state_after(text, markers)
    if budget.tier == "none" and state != "answer" and markers.source != PROMPTED.source:
        opening = "" if state == "thinking" else f"{markers.open}\n"
        text, state = f"{text}{opening}\n{markers.close}{markers.close_suffix}", "answer"
    elif budget.tier == "none":
        state = "answer"
    elif markers.source == PROMPTED.source:
        text, state = f"{text}{markers.open}\n", "thinking"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return RenderedPrompt(tuple(ids), text, state)


def _check_roles(messages: Sequence[Mapping[str, Any]], template: str) -> None:
    """Raise PromptError for a role that neither we nor the model's template know."""
    roles = [str(message.get("role")) for message in messages]
    if strange := [role for role in roles if role not in ROLES and role not in template]:
        raise PromptError(f"unknown role {shorten(strange[0])}; {did_you_mean(strange[0], ROLES)}", code="unknown_role")


def _instruct(messages: list[dict[str, Any]], instruction: str) -> None:
    """Append an instruction to the last user message, so that it does not seem to come from a tool."""
    place = next((n for n in reversed(range(len(messages))) if messages[n].get("role") == "user"), len(messages) - 1)
    messages[place] = {**messages[place], "content": f"{messages[place].get('content') or ''}\n\n{instruction}"}


def _with_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{PROMPT}"}, *messages[1:]]
    return [{"role": "system", "content": PROMPT}, *messages]


def thinking_state_after(text: str, markers: Markers) -> str:
    """The state in which a rendered prompt leaves the model; only its end can open the thinking."""
    tail = text[-80:].rstrip()
    if tail.endswith(markers.open):
        return "thinking"
    return "answer" if tail.endswith(markers.close) else "before"


def thinking_state_after_tokens(
    ids: Sequence[int], codec: TokenizerAdapter, markers: Markers, end: Sequence[int] = ()
) -> str:
    """The state in which the tokens of any prompt leave the model, also within thinking that the prompt has begun.

    `end` are the tokens that end a turn: what earlier turns say about markers opens nothing.
    """
    state = thinking_state_after(codec.decode(ids[-32:]), markers)
    if state != "before":
        return state
    start = next((n for n in range(len(ids), 0, -1) if ids[n - 1] in end), 0)
    turn = codec.decode(ids[start:])
    at = turn.rfind(markers.open)
    opens = at > turn.rfind(markers.close) and not turn[:at].rpartition("\n")[2].strip()  # not quoted in a line
    return "thinking" if opens else "before"
