"""Episodes of agents: running one, judging it, and comparing arms on the same tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.errors import GraphRecursionError
from langgraph.graph.state import CompiledStateGraph

from ...controller.integrations.langchain.budget_middleware import count_tokens
from ...controller.integrations.langchain.messages import as_prompt
from ...controller.text.sanitizer import SpecialTokenSanitizer
from ..cli_utils import format_interval, format_table
from ..economics.costs import Price, cost_of_pass, set_cost_of_pass
from ..stats import paired_bootstrap, percentile_ends, resampled_means, wilson
from .tasks import Task
from .tools import TOOL_SCHEMAS


@dataclass(frozen=True, slots=True)
class Episode:
    """One run of an agent on a task."""

    id: str
    kind: str
    solved: bool
    answer: str
    written: int  # all generated tokens, tersely's own trials included
    read: int  # tokens of all prompts, which grow with every step
    thinking: int
    steps: int  # calls of the model
    calls: int
    failed_calls: int
    duplicates: float  # share of tool calls that repeat an earlier one
    isr: float | None  # as `ise`, of WebLeaper (arXiv 2510.24697); None for tasks without pages
    ise: float | None
    seconds: float
    mode: str | None = None
    error: str | None = None  # why the episode ended before the agent did, if so
    messages: Sequence[Mapping[str, Any]] = ()  # as for a chat template, without the system prompt


def run_episode(task: Task, agent: CompiledStateGraph, recursion_limit: int = 50) -> Episode:
    """Run an agent of LangChain's `create_agent` on a task; raises the model's errors, as they are not a result."""
    started = perf_counter()
    state: dict[str, Any] = {}
    error = None
    try:
        inputs = {"messages": [HumanMessage(task.question)]}
        for values in agent.stream(inputs, {"recursion_limit": recursion_limit}, stream_mode="values"):
            state = values
    except GraphRecursionError:
        error = f"not finished after {recursion_limit} graph steps"
    return judge_episode(task, state.get("messages", []), perf_counter() - started, state.get("tersely_mode"), error)


def judge_episode(
    task: Task, messages: Sequence[BaseMessage], seconds: float, mode: str | None = None, error: str | None = None
) -> Episode:
    """Judge the messages of one run; the last message is the answer, unless it calls tools."""
    replies = [message for message in messages if isinstance(message, AIMessage)]
    results = [message for message in messages if isinstance(message, ToolMessage)]
    calls = [(call["name"], json.dumps(call["args"], sort_keys=True)) for reply in replies for call in reply.tool_calls]
    last = messages[-1] if messages else None
    answer = last.text if isinstance(last, AIMessage) and not last.tool_calls and error is None else ""
    tokens = [count_tokens(messages[:i], m) for i, m in enumerate(messages) if isinstance(m, AIMessage)]
    isr, ise = _score_search(task, replies, results)
    return Episode(
        id=task.id,
        kind=task.kind,
        solved=task.solved_by(answer),
        answer=answer,
        written=sum(written for _, written in tokens),
        read=sum(read for read, _ in tokens),
        thinking=sum((m.usage_metadata or {}).get("output_token_details", {}).get("reasoning", 0) for m in replies),
        steps=len(replies),
        calls=len(calls),
        failed_calls=sum(result.status == "error" for result in results),
        duplicates=1 - len(set(calls)) / len(calls) if calls else 0.0,
        isr=isr,
        ise=ise,
        seconds=seconds,
        mode=mode,
        error=error,
        messages=as_prompt(messages, tools=True, sanitize=SpecialTokenSanitizer()),
    )


def _score_search(
    task: Task, replies: Sequence[AIMessage], results: Sequence[ToolMessage]
) -> tuple[float | None, float | None]:
    """The share of the required pages that was read, and the number read per tool call (WebLeaper, arXiv 2510.24697).

    Sources disagree on whether the latter counts the pages required, which would reward giving up early.
    """
    if not task.pages:
        return None, None
    lookups = {
        call["id"]: call["args"].get("name", "") for m in replies for call in m.tool_calls if call["name"] == "lookup"
    }
    read = {str(lookups[r.tool_call_id]).strip() for r in results if r.tool_call_id in lookups and r.status != "error"}
    found = len(task.pages & read)
    return found / len(task.pages), found / max(1, len(results))


def select_trajectories(
    arms: Mapping[str, Sequence[Episode]], system: str | None, isr: float, ise: float
) -> list[dict[str, Any]]:
    """The ended episodes whose scores are above both thresholds, solved or not (WebLeaper, arXiv 2510.24697).

    Each has `messages` and `tools`, as TRL's SFT trainer reads them, and says where it is from.
    """
    head = [{"role": "system", "content": system}] if system else []
    return [
        {
            "messages": [*head, *one.messages],
            "tools": TOOL_SCHEMAS,
            "id": one.id,
            "arm": arm,
            "solved": one.solved,
            "isr": one.isr,
            "ise": one.ise,
        }
        for arm, episodes in arms.items()
        for one in episodes
        if one.error is None and (one.isr or 0) > isr and (one.ise or 0) > ise
    ]


_MEANS = ("read", "thinking", "calls", "failed_calls", "duplicates", "seconds")


def compare_arms(arms: Mapping[str, Sequence[Episode]], price: Price | None = None, seed: int = 0) -> dict[str, Any]:
    """Figures of all arms on the same tasks; the first arm is the baseline. Infinite costs become None."""
    base = next(iter(arms.values()))
    rows = [
        {
            "arm": name,
            **_summarize(episodes, price, seed),
            **({} if episodes is base else _differences(episodes, base, seed)),
        }
        for name, episodes in arms.items()
    ]
    return {"tasks": len(base), "arms": rows}


def _summarize(episodes: Sequence[Episode], price: Price | None, seed: int) -> dict[str, Any]:
    solved, written = _columns(episodes)
    rate, per_solved = wilson(fmean(solved), len(solved)), set_cost_of_pass(written, solved, seed=seed)
    ends = [_finite(per_solved.low), _finite(per_solved.high)]
    successes = [e for e in episodes if e.solved]
    searches = [(e.isr, e.ise) for e in episodes if e.isr is not None and e.ise is not None]
    modes = sorted({e.mode for e in episodes if e.mode is not None})
    kinds = list(dict.fromkeys(e.kind for e in episodes))
    return {
        **_summarize_group(episodes, price),
        **rate.named("solved"),
        **{name: fmean(getattr(e, name) for e in episodes) for name in _MEANS},
        "written_per_solved_ci": ends,
        "steps_per_solved": fmean(e.steps for e in successes) if successes else None,
        "isr": fmean(isr for isr, _ in searches) if searches else None,
        "ise": fmean(ise for _, ise in searches) if searches else None,
        "unended": sum(e.error is not None for e in episodes),
        "kinds": {kind: _summarize_group([e for e in episodes if e.kind == kind], price) for kind in kinds},
        "modes": {mode: _summarize_group([e for e in episodes if e.mode == mode], price) for mode in modes},
    }


def _summarize_group(episodes: Sequence[Episode], price: Price | None) -> dict[str, Any]:
    """Size, success and cost-of-pass (arXiv 2504.13359) of some episodes, in tokens written and in US dollars."""
    solved, written = _columns(episodes)
    usd = None if price is None else cost_of_pass([price.cost(e.read, e.written) for e in episodes], solved)
    return {
        "n": len(episodes),
        "solved": fmean(solved),
        "written": fmean(written),
        "written_per_solved": _finite(cost_of_pass(written, solved)),
        "usd_per_solved": None if usd is None else _finite(usd),
    }


def _differences(episodes: Sequence[Episode], base: Sequence[Episode], seed: int) -> dict[str, Any]:
    """Differences from the baseline: success as a share of 1, and the saving of tokens per solved task."""
    (solved, written), (was_solved, was_written) = _columns(episodes), _columns(base)
    success = paired_bootstrap(np.subtract(solved, was_solved), seed=seed).named("delta_solved")
    if not sum(solved) or not sum(was_solved):
        return {**success, "saved": None, "saved_ci": None}
    saved = 1 - cost_of_pass(written, solved) / cost_of_pass(was_written, was_solved)
    means = resampled_means(np.stack([written, solved, was_written, was_solved], axis=1), seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = 1 - (means[:, 0] / means[:, 1]) / (means[:, 2] / means[:, 3])
    low, high = np.quantile(resampled[np.isfinite(resampled)], percentile_ends(len(solved)))
    return {**success, "saved": saved, "saved_ci": [float(low), float(high)]}


def _columns(episodes: Sequence[Episode]) -> tuple[list[float], list[float]]:
    return [float(e.solved) for e in episodes], [float(e.written) for e in episodes]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_HEADER = "arm|solved % [95% CI]|Δ points|written|per solved|saved % [95% CI]|read|steps|dup %|ISR|ISE".split("|")


def as_text(report: Mapping[str, Any]) -> str:
    """The table of arms, followed by each arm by kind of task and by mode."""
    lines = [format_table(_HEADER, map(_format_arm, report["arms"]))]
    for arm in report["arms"]:
        for grouping in ("kinds", "modes"):
            if len(arm[grouping]) > (grouping == "modes"):
                groups = (_format_group(name, group) for name, group in arm[grouping].items())
                lines += ["", f"{arm['arm']}, by {grouping[:-1]}", *groups]
    if "kept" in report:
        lines += ["", f"kept {report['kept']} trajectories"]
    return "\n".join(lines)


def _format_arm(arm: Mapping[str, Any]) -> list[str]:
    return [
        arm["arm"],
        format_interval(arm["solved"], arm["solved_ci"], ".1f", 100),
        format_interval(arm.get("delta_solved"), arm.get("delta_solved_ci"), "+.1f", 100),
        f"{arm['written']:.1f}",
        _format(arm["written_per_solved"], 1),
        format_interval(arm.get("saved"), arm.get("saved_ci"), ".1f", 100),
        f"{arm['read']:.0f}",
        _format(arm["steps_per_solved"], 1),
        f"{100 * arm['duplicates']:.1f}",
        _format(arm["isr"], 2),
        _format(arm["ise"], 2),
    ]


def _format_group(name: str, group: Mapping[str, Any]) -> str:
    usd, written = group["usd_per_solved"], group["written_per_solved"]
    dollars = "" if usd is None else f", {usd:.6f} USD"
    tokens = "none solved" if written is None else f"{written:.1f} tokens per solved"
    return f"  {name:<10} {group['n']:>5} tasks, {100 * group['solved']:5.1f}% solved, {tokens}{dollars}"


def _format(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
