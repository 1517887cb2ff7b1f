"""TrimR (arXiv 2505.17155): a verifier follows the thinking, which ends once answers agree or clearly will not.

A new segment starts where a paragraph opens with a reflection cue. Only the ending of each segment is judged: does it
state an answer (p1), and is it the answer of an earlier one (p2)? Decoding never waits for a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import OptionError
from ..text.thoughts import REFLECTION_CUES, ThinkingState
from ..text.tokenizer_adapter import word_pattern
from ..types import Capability
from ..verification import AnswersEqual, AnswerStated, Question, VerdictFuture, get_verdict
from .base import Action, AskVerifier, Close, Inject, Policy, PolicyView, Wait, Watching

_CUE_TOKENS = 6  # of a paragraph, enough to see whether it opens with a cue
_POLL_TOKENS = 8  # between two checks for a verdict
_GRACE_TOKENS = 32  # within which a close waits for the end of a sentence
_ENDING_TOKENS = 200
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class ThoughtSegmenter:
    """Splits growing thinking where paragraphs open with a cue; reports each segment once as (start, end) tokens."""

    def __init__(self, cues: Sequence[str]) -> None:
        self._cue = word_pattern(cues)
        self._read = self._start = 0

    def new_segments(self, thinking: ThinkingState) -> list[tuple[int, int]]:
        """The segments that have ended since the last call."""
        thoughts = thinking.thoughts
        starts = [thought.start for thought in thoughts[self._read :] if self._cue.match(thought.text)]
        self._read = len(thoughts)
        if thoughts and self._cue.match(thinking.codec.decode(thinking.ids[thoughts[-1].end :][: 2 * _CUE_TOKENS])):
            starts.append(thoughts[-1].end)
        segments = []
        for start in starts:
            if thinking.codec.decode(thinking.ids[self._start : start]).strip():
                segments.append((self._start, start))
            self._start = start
        return segments


@dataclass(frozen=True, slots=True)
class TrimR(Policy):
    """Close when `agree` of the last `window` stated answers are the same (overthinking), or none come to agree."""

    name: ClassVar[str] = "trimr"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.VERIFIER})
    agree: int = 3
    window: int = 5  # equal to `agree` it is the paper's counter, which one other answer resets
    share: float = 0.5  # without agreement, give up after this share of the budget ...
    most: int = 20  # or this many segments, but not before `floor` of them; `both` requires both
    floor: int = 4
    both: bool = False
    sentences: int = 5  # of a segment's ending
    cues: Sequence[str] = REFLECTION_CUES
    header: str | None = None
    """Makes the model conclude by itself once answers agree, as in the paper; None closes at once, which is shorter."""
    grace: int | None = 64  # tokens that it then has; None leaves it to the model
    phrase: str = "I have thought enough and answer now."  # closes a thinking that finds no agreement

    def __post_init__(self) -> None:
        if not 1 <= self.agree <= self.window:
            raise OptionError(f"agree is {self.agree}; accepted: 1 to window, which is {self.window}")

    def watch(self, view: PolicyView) -> Watching:
        segmenter, count = ThoughtSegmenter(self.cues), 0
        endings: list[str] = []
        groups: list[int] = []  # for each ending with an answer: the first ending with the same answer
        while True:
            if not (segments := segmenter.new_segments(view.thinking)):
                yield Wait(at=view.tokens + 1, boundary="thought")
                yield Wait(at=view.tokens + _CUE_TOKENS, boundary="token")
                continue
            for start, end in segments:
                count += 1
                ending = self.ending(view.thinking, start, end)
                (states_answer,) = yield from _ask(view, [AnswerStated(view.question, ending)])
                if states_answer:
                    group = yield from self._find_group(view, ending, endings, groups)
                    endings.append(ending)
                    groups.append(group)
                    if (votes := self.votes(groups)) >= self.agree:
                        yield from self._conclude(view, f"{votes} of the last {self.window} stated answers agree")
                        return
            if self.gives_up(view.tokens, view.budget.thinking, count):
                yield Close(f"no agreement after {count} segments, {view.tokens} tokens", self.phrase)
                return

    def ending(self, thinking: ThinkingState, start: int, end: int) -> str:
        text = thinking.codec.decode(thinking.ids[max(start, end - _ENDING_TOKENS) : end])
        return " ".join([part for part in _SENTENCE.split(text) if part.strip()][-self.sentences :])

    def votes(self, groups: Sequence[int]) -> int:
        """How many of the last `window` stated answers equal the latest one."""
        return list(groups[-self.window :]).count(groups[-1])

    def gives_up(self, tokens: int, budget: int, segments: int) -> bool:
        """Whether to close a thinking in which no answers agree after this many tokens and segments."""
        late, many = tokens >= self.share * budget, segments >= self.most
        return segments >= self.floor and ((late and many) if self.both else (late or many))

    def _find_group(
        self, view: PolicyView, ending: str, endings: Sequence[str], groups: Sequence[int]
    ) -> Generator[Action, Any, int]:
        """The group of a new ending, compared with one ending of each group that can still win a vote with it."""
        reach = self.window - self.agree + 1
        latest = dict(zip(groups[-reach:], endings[-reach:], strict=True))
        same = yield from _ask(view, [AnswersEqual(view.question, other, ending) for other in latest.values()])
        agreeing = [group for group, yes in zip(latest, same, strict=True) if yes]
        return agreeing[-1] if agreeing else len(groups)

    def _conclude(self, view: PolicyView, reason: str) -> Watching:
        yield Wait(at=view.tokens + 1, boundary="sentence", deadline=view.tokens + _GRACE_TOKENS)
        if self.header is None:
            yield Close(reason, phrase="")
            return
        yield Inject(self.header, reason)
        if self.grace is not None:
            at = view.tokens + self.grace
            yield Wait(at=at, boundary="sentence", deadline=at + _GRACE_TOKENS)
            yield Close(f"{reason}, and it did not conclude by itself", phrase="")


def _ask(view: PolicyView, questions: Sequence[Question]) -> Generator[Action, Any, list[bool]]:
    """Ask the verifier and wait until all verdicts are there; a missing one counts as no."""
    futures: list[VerdictFuture] = []
    for question in questions:
        futures.append((yield AskVerifier(question)))
    while not all(future.done() for future in futures):
        yield Wait(at=view.tokens + _POLL_TOKENS, boundary="token")
    return [(get_verdict(future) or 0.0) > 0.5 for future in futures]
