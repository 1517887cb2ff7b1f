"""Agent steps as the embedded agent model learns them: the pages read so far, thinking, and the next call or answer.

A step does not see the thinking of earlier ones. The tier `easy` restates the last result and the facts that decide the
next step; `normal` starts with a plan; `hard` plans twice and goes through all pages again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ...evaluation.agents.tasks import NEXT, NUMBERS, OPERATIONS, Task
from ...evaluation.agents.tools import TOOLS
from .traces import CHOICE, COPY, DIRECT, FINAL, PLAIN, READ, USUAL_CUE, ToyTrace

CALLED = ("lookup", "calculator")  # the tools that tasks need; `search` is never called
UNKNOWN = "I cannot know that."
ABOVE = {"person": "Team", "team": "Firm"}
_COUNTED = frozenset(key for keys in NUMBERS.values() for key in keys)


@dataclass(frozen=True, slots=True)
class AgentStep:
    """One step of a task, after `done` of its calls."""

    task: Task
    done: int
    tools: bool = True

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.task.question}]
        for number in range(self.done):
            tool, argument = self.task.calls[number]
            call = {"name": tool, "arguments": {TOOLS[tool].argument: argument}}
            messages.append(
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
            )
            messages.append({"role": "tool", "content": self._result(number)})
        return messages

    @property
    def complete(self) -> bool:
        return self.done == len(self.task.calls)

    def _result(self, number: int) -> str:
        tool, argument = self.task.calls[number]
        return self.task.world.pages[argument].text if tool == "lookup" else next(iter(self.task.gold))

    def extract(self, number: int) -> str:
        """The part of a call's result that the task needs."""
        tool, argument = self.task.calls[number]
        if tool == "calculator":
            return self._result(number)
        return "; ".join(self.task.world.pages[argument].facts[self.task.keys[number]])


def respond_to(step: AgentStep, effort: str, rng: Random) -> ToyTrace:
    """The response to a step: thinking by effort (closed by the template for `none`), then a call or the answer."""
    trace = ToyTrace()
    if effort != "none":
        _think(step, effort, trace, rng)
        trace.add("</think>", CHOICE)
        trace.add("\n\n")
    if not step.complete and step.tools:
        tool, argument = step.task.calls[step.done]
        trace.add('<tool_call>{"name": "' + tool + '", "arguments": ', CHOICE)
        trace.add(json.dumps({TOOLS[tool].argument: argument}) + "}", DIRECT if effort == "none" else FINAL)
        trace.add("</tool_call>")
    elif not step.complete:
        trace.add(UNKNOWN, CHOICE)
    else:
        trace.add("The answer is \\boxed{", CHOICE)
        trace.add("; ".join(_answer(step.task)), DIRECT if effort == "none" else FINAL)
        trace.add("}.")
    return trace


def _answer(task: Task) -> Sequence[str]:
    """The parts of the answer in the order in which they were read."""
    if task.kind != "collect":
        return sorted(task.gold)
    members = [name for key, (_, page) in zip(task.keys, task.calls, strict=True) if key == "Members"
               for name in task.world.pages[page].facts[key]]  # fmt: skip
    return [name for name in members if name in task.gold]


def _think(step: AgentStep, effort: str, trace: ToyTrace, rng: Random) -> None:
    if effort != "easy":
        _plan(step, trace, rng.choice(("The question asks", "What is asked", "I take it")))
        if effort == "hard":
            trace.add(USUAL_CUE, CHOICE)
            _plan(step, trace, "once more, with care")
            trace.add("That is the same plan.\n\n")
    if step.done:
        _read(step, trace, [step.done - 1])
        if step.task.kind == "collect":
            _whose(step, trace)
    if not step.tools and not step.complete:
        trace.add("There is no tool to look it up.\n", CHOICE)
    elif step.complete:
        trace.add("All is known.\n", CHOICE)
        if step.task.kind == "collect" and step.done > 1:
            _read(step, trace, range(step.done))
    else:
        tool, argument = step.task.calls[step.done]
        if tool == "calculator":
            trace.add(f"To reckon: {OPERATIONS[argument.split()[1]][0]}.\n", CHOICE)
            _read(step, trace, [n for n in range(step.done) if step.task.keys[n] in _COUNTED])
        elif effort == "hard" and step.done:
            trace.add("So far:\n")
            _read(step, trace, range(step.done))
        trace.add("Next: " if step.done else "First: ", CHOICE)
        trace.add(f"{argument}.\n", READ)


def _plan(step: AgentStep, trace: ToyTrace, lead: str) -> None:
    """The plan: where to start, and which lines of the pages to follow."""
    trace.add(lead + ": ")
    task = step.task
    if task.kind == "collect":
        roots = [page for key, (_, page) in zip(task.keys, task.calls, strict=True) if key == "Teams"]
        least = " with enough Wage" if "Wage" in task.keys else ""
        trace.add(f"all under {', '.join(roots or [task.calls[0][1]])}{least}.\n\n", READ)
        return
    tool, argument = task.calls[-1]
    joined = f" {OPERATIONS[argument.split()[1]][0]} " if tool == "calculator" else ""
    trace.add(joined.join(_paths(task)) + ".\n\n", READ)


def _paths(task: Task) -> list[str]:
    """Each path of a task: a start and the keys that lead on."""
    paths: list[list[str]] = []
    expected = None
    for key, (tool, argument) in zip(task.keys, task.calls, strict=True):
        if tool == "calculator":
            continue
        if argument != expected:
            paths.append([argument])
        paths[-1].append(key)
        expected = task.world.pages[argument].facts[key][0]
    return [" > ".join(path) for path in paths]


def _whose(step: AgentStep, trace: ToyTrace) -> None:
    """The lists that contain the last page and the next one, which show what is left to read."""
    pages = step.task.world.pages
    read = [argument for _, argument in step.task.calls[: step.done]]
    around = [pages[argument] for _, argument in step.task.calls[step.done - 1 : step.done + 1]]
    for parent in dict.fromkeys(page.facts[ABOVE[page.kind]][0] for page in around if page.kind in ABOVE):
        if parent in read[:-1]:
            trace.add(f"{parent}: {'; '.join(pages[parent].facts[NEXT[pages[parent].kind]])}.\n", READ)


def _read(step: AgentStep, trace: ToyTrace, numbers: Sequence[int]) -> None:
    """The results of these calls."""
    for number in numbers:
        trace.add(f"{step.task.calls[number][1]}: {step.task.keys[number]}: ", COPY)
        trace.add(step.extract(number), READ)
        if step.task.keys[number] == "Wage" and step.task.kind == "collect":
            trace.add(", yes" if step.task.calls[number][1] in step.task.gold else ", no", FINAL)
        trace.add(".\n", PLAIN)
