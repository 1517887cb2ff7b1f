"""What an episode of an agent came to: whether it solved its task, what it spent, and how it went about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.errors import GraphRecursionError

from ...controller.integrations.langchain.budget_middleware import count_tokens
from ..economics.cost_metrics import SearchScore, duplicate_rate
from .tasks import Task


@dataclass(frozen=True, slots=True)
class Episode:
    """One task and what an agent made of it.

    written: tokens, thinking and what tersely spent beside the text included. read: tokens of all prompts, which grow
    with every step. steps: calls of the model; calls: of tools, duplicates: the share of them made before. isr, ise:
    WebLeaper's (arXiv 2510.24697), of pages read, None for tasks without any. mode: where one was chosen. error: what
    ended the episode before the agent did.
    """

    id: str
    kind: str
    solved: bool
    answer: str
    written: int
    read: int
    thinking: int
    steps: int
    calls: int
    failed_calls: int
    duplicates: float
    isr: float | None
    ise: float | None
    seconds: float
    mode: str | None = None
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """The episode as JSON has it."""
        return asdict(self)


def run_episode(
    task: Task, agent: Any, recursion_limit: int = 50, clock: Callable[[], float] = perf_counter
) -> Episode:
    """Have an agent of `create_agent` do a task.

    An agent that does not come to an end in `recursion_limit` steps of its graph has not solved it. Errors of the model
    are raised: they are no result.
    """
    began = clock()
    state: dict[str, Any] = {}
    error = None
    try:
        asked = {"messages": [HumanMessage(task.question)]}
        for reached in agent.stream(asked, {"recursion_limit": recursion_limit}, stream_mode="values"):
            state = reached
    except GraphRecursionError:
        error = f"no end after {recursion_limit} steps of the graph"
    return episode(task, state.get("messages", []), clock() - began, state.get("tersely_mode"), error)


def episode(
    task: Task, messages: Sequence[BaseMessage], seconds: float, mode: str | None = None, error: str | None = None
) -> Episode:
    """Judge the messages of one run of an agent; what was said last is the answer if nothing is called there."""
    said = [message for message in messages if isinstance(message, AIMessage)]
    results = [message for message in messages if isinstance(message, ToolMessage)]
    actions = [(call["name"], json.dumps(call["args"], sort_keys=True)) for reply in said for call in reply.tool_calls]
    last = messages[-1] if messages else None
    answer = last.text if isinstance(last, AIMessage) and not last.tool_calls and error is None else ""
    spent = [count_tokens(messages[:i], m) for i, m in enumerate(messages) if isinstance(m, AIMessage)]
    search = _search(task, said, results)
    return Episode(
        id=task.id,
        kind=task.kind,
        solved=task.solved_by(answer),
        answer=answer,
        written=sum(written for _, written in spent),
        read=sum(read for read, _ in spent),
        thinking=sum((m.usage_metadata or {}).get("output_token_details", {}).get("reasoning", 0) for m in said),
        steps=len(said),
        calls=len(actions),
        failed_calls=sum(result.status == "error" for result in results),
        duplicates=duplicate_rate(actions),
        isr=None if search is None else search.isr,
        ise=None if search is None else search.ise,
        seconds=seconds,
        mode=mode,
        error=error,
    )


def _search(task: Task, said: Sequence[AIMessage], results: Sequence[ToolMessage]) -> SearchScore | None:
    """What was read of what had to be; a step is a call of a tool, as several fit into one reply."""
    if not task.pages:
        return None
    asked = {
        call["id"]: call["args"].get("name", "") for m in said for call in m.tool_calls if call["name"] == "lookup"
    }
    seen = {str(asked[r.tool_call_id]).strip() for r in results if r.tool_call_id in asked and r.status != "error"}
    return SearchScore(task.pages, frozenset(seen), max(1, len(results)))
