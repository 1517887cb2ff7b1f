"""What a model answers when its thinking is closed after a thought: closed as a policy would, sampled as all else.

A greedy trial answer will not do for that: where nothing has been worked out yet the model guesses, and how often a
sampled guess is right is another matter than whether the likeliest one is. Where the trial is all but certain, sampling
gives the same, and asking again would be most of the work of a collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...controller.engines.base import Request
from ...controller.making import Prepared
from ...controller.options import Options
from ...controller.parts import split_output
from ...controller.policies.record import Boundary
from ...controller.session import Session
from ...controller.trace import Generation
from ...controller.wording import closing_text, lead_after

CERTAIN = 0.999
"""The confidence from which on the trial's answer is taken for the sampled one."""


@dataclass(frozen=True, slots=True)
class Thought:
    """One row whose thinking was recorded: how it was asked, what came of it, and where its thoughts end."""

    prepared: Prepared
    done: Generation
    ends: Sequence[Boundary]


def answers_at(session: Session, thoughts: Sequence[Thought], options: Options, size: int) -> list[list[str]]:
    """The answer at each end of each row, "" where there was no room for a trial; size: rows decoded at once."""
    made = [[f"\\boxed{{{end.trial.answer}}}" if end.trial else "" for end in thought.ends] for thought in thoughts]
    wanted = [
        (row, place, _request(session, thought, end))
        for row, thought in enumerate(thoughts)
        for place, end in enumerate(thought.ends)
        if end.trial is not None and end.trial.confidence < CERTAIN
    ]
    wanted.sort(key=lambda one: len(one[2].prompt_ids))
    for start in range(0, len(wanted), size):
        part = wanted[start : start + size]
        done = session.engine.generate([request for _, _, request in part], options.sampling)
        for (row, place, _), written in zip(part, done, strict=True):
            made[row][place] = session.markers.answering + session.codec.decode(written.token_ids)
    return made


def _request(session: Session, thought: Thought, end: Boundary) -> Request:
    """What the answer at one end is written after."""
    codec, prepared = session.codec, thought.prepared
    ids = thought.done.token_ids[: _before(session, thought) + end.end]
    closing = codec.encode(closing_text(session.markers, "", lead_after(codec.decode(ids[-4:]))))
    prompt = (*prepared.rendered.ids, *ids, *closing)
    return replace(prepared.request, prompt_ids=prompt, max_new_tokens=prepared.budget.reserve, watcher=None)


def _before(session: Session, thought: Thought) -> int:
    """Output tokens before the thinking, the marker that opens it included."""
    if thought.prepared.state == "thinking":
        return 0
    ids, codec = thought.done.token_ids, session.codec
    whole = split_output(ids, codec, session.markers, thought.prepared.state).thinking_tokens
    return next(size for size in range(whole + 1) if session.markers.open in codec.decode(ids[:size]))
