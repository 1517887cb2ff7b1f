"""What a model answers when its thinking is closed after a thought: closed as a policy would, sampled as all else.

A greedy trial answer will not do for that: where nothing has been worked out yet the model guesses, and how often a
sampled guess is right is another matter than whether the likeliest one is. Where the trial is all but certain, sampling
gives the same, and asking again would be most of the work of a collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ...controller.engines.base import Request
from ...controller.making import Prepared
from ...controller.options import Options
from ...controller.parts import first_prefix_with
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
        (row, place, request) for row, thought in enumerate(thoughts) for place, request in _requests(session, thought)
    ]
    wanted.sort(key=lambda one: len(one[2].prompt_ids))
    for start in range(0, len(wanted), size):
        part = wanted[start : start + size]
        done = session.engine.generate([request for _, _, request in part], options.sampling)
        for (row, place, _), written in zip(part, done, strict=True):
            made[row][place] = session.markers.answering + session.codec.decode(written.token_ids)
    return made


def _requests(session: Session, thought: Thought) -> Iterator[tuple[int, Request]]:
    """Which of the ends are asked about anew, and what the answers there are written after."""
    codec, markers, prepared, written = session.codec, session.markers, thought.prepared, thought.done.token_ids
    before = 0 if prepared.state == "thinking" else first_prefix_with(written, codec, markers.open)
    for place, end in enumerate(thought.ends):
        if end.trial is None or end.trial.confidence >= CERTAIN:
            continue
        ids = written[: before + end.end]
        closing = codec.encode(closing_text(markers, "", lead_after(codec.decode(ids[-4:]))))
        prompt = (*prepared.rendered.ids, *ids, *closing)
        yield place, replace(prepared.request, prompt_ids=prompt, max_new_tokens=prepared.budget.reserve)
