"""TrimR (arXiv 2505.17155): a verifier follows the thinking, which ends once its answers agree, or will not agree.

The thinking falls into segments where a paragraph opens with a reflection cue. Of each segment only the ending is
judged: does it state an answer (p1), and is that the answer of an earlier one (p2)? Decoding never waits for a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...errors import OptionError
from ..text.thoughts import REFLECTION_CUES, ThinkingState
from ..text.tokenizer_adapter import word_pattern
from ..verification import AnswersEqual, AnswerStated, Question, VerdictFuture
from .base import AskVerifier, Close, Inject, Move, PolicyView, Wait, Watching

_LOOK = 6  # tokens of a paragraph that show whether it opens with a cue
_POLL = 8  # tokens between two looks for a verdict
_LATE = 32  # tokens within which an ending waits for the end of a sentence
_LONGEST = 200  # tokens of an ending
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class ThoughtSegmenter:
    """Cuts a growing thinking where paragraphs open with a cue; tells each segment once, as its first and end token."""

    def __init__(self, cues: Sequence[str]) -> None:
        self._cue = word_pattern(cues)
        self._seen = self._start = 0

    def ended(self, thinking: ThinkingState) -> list[tuple[int, int]]:
        """The segments that have ended since the last call."""
        thoughts = thinking.thoughts
        places = [thought.start for thought in thoughts[self._seen :] if self._cue.match(thought.text)]
        self._seen = len(thoughts)
        if thoughts and self._cue.match(thinking.codec.decode(thinking.ids[thoughts[-1].end :][: 2 * _LOOK])):
            places.append(thoughts[-1].end)
        found = []
        for place in places:
            if thinking.codec.decode(thinking.ids[self._start : place]).strip():
                found.append((self._start, place))
            self._start = place
        return found


@dataclass(frozen=True, slots=True)
class TrimR:
    """Close when `agree` of the last `window` stated answers are the same (overthinking), or none come to agree.

    window: equal to `agree` it is the paper's counter, which one other answer sets back. share and most: without
    agreement give up after this share of the budget, or so many segments, but not before `floor` segments; both: after
    both. sentences: of a segment's ending. cues: what opens a segment. header: what makes the model conclude by itself
    once answers agree, as in the paper; None closes outright, which is shorter. grace: tokens that it then has; None
    leaves it to the model. phrase: how a thinking is ended that finds no agreement.
    """

    name: ClassVar[str] = "trim"
    needs: ClassVar[frozenset[str]] = frozenset({"verifier"})
    agree: int = 3
    window: int = 5
    share: float = 0.5
    most: int = 20
    floor: int = 4
    both: bool = False
    sentences: int = 5
    cues: Sequence[str] = REFLECTION_CUES
    header: str | None = None
    grace: int | None = 64
    phrase: str = "I have thought enough and answer now."

    def __post_init__(self) -> None:
        if not 1 <= self.agree <= self.window:
            raise OptionError(f"{self.agree} of the last {self.window} answers cannot agree; accepted: 1 up to window")

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        segments, count = ThoughtSegmenter(self.cues), 0
        endings: list[str] = []
        groups: list[int] = []  # of each ending that states an answer: the first one that states the same
        while True:
            if not (ended := segments.ended(view.thinking)):
                view = yield Wait(at=view.tokens + 1, boundary="thought")
                view = yield Wait(at=view.tokens + _LOOK, boundary="token")
                continue
            for start, end in ended:
                count += 1
                ending = self.ending(view.thinking, start, end)
                view, (states,) = yield from _verdicts(view, [AnswerStated(view.question, ending)])
                if states:
                    view, group = yield from self._group(view, ending, endings, groups)
                    endings.append(ending)
                    groups.append(group)
                    if (votes := self.votes(groups)) >= self.agree:
                        yield from self._conclude(view, f"{votes} of the last {self.window} stated answers agree")
                        return
            if self.hopeless(view.tokens, view.budget.thinking, count):
                yield Close(f"no agreement after {count} segments, {view.tokens} tokens", self.phrase)
                return

    def ending(self, thinking: ThinkingState, start: int, end: int) -> str:
        """The last sentences of a segment."""
        text = thinking.codec.decode(thinking.ids[max(start, end - _LONGEST) : end])
        return " ".join([part for part in _SENTENCE.split(text) if part.strip()][-self.sentences :])

    def votes(self, groups: Sequence[int]) -> int:
        """How many of the last `window` stated answers are the latest one."""
        return list(groups[-self.window :]).count(groups[-1])

    def hopeless(self, tokens: int, budget: int, segments: int) -> bool:
        """Whether a thinking of so many tokens and segments, in which no answers agree, is given up."""
        late, many = tokens >= self.share * budget, segments >= self.most
        return segments >= self.floor and ((late and many) if self.both else (late or many))

    def _group(
        self, view: PolicyView, ending: str, endings: Sequence[str], groups: Sequence[int]
    ) -> Generator[Move, PolicyView, tuple[PolicyView, int]]:
        """The group of a new ending, compared with one ending of each that can still win a vote together with it."""
        reach = self.window - self.agree + 1
        latest = dict(zip(groups[-reach:], endings[-reach:], strict=True))
        view, same = yield from _verdicts(
            view, [AnswersEqual(view.question, known, ending) for known in latest.values()]
        )
        agreeing = [group for group, yes in zip(latest, same, strict=True) if yes]
        return view, agreeing[-1] if agreeing else len(groups)

    def _conclude(self, view: PolicyView, reason: str) -> Watching:
        view = yield Wait(at=view.tokens + 1, boundary="sentence", deadline=view.tokens + _LATE)
        if self.header is None:
            yield Close(reason, phrase="")
            return
        view = yield Inject(self.header, reason)
        if self.grace is not None:
            at = view.tokens + self.grace
            view = yield Wait(at=at, boundary="sentence", deadline=at + _LATE)
            yield Close(f"{reason}, and it did not conclude by itself", phrase="")


def _verdicts(
    view: PolicyView, questions: Sequence[Question]
) -> Generator[Move, PolicyView, tuple[PolicyView, list[bool]]]:
    """Ask, and sleep until the verdicts are there; one that does not come counts as a no."""
    tickets: list[VerdictFuture] = []
    for question in questions:
        view = yield AskVerifier(question)
        tickets.append(view.ticket)
    while not all(ticket.done for ticket in tickets):
        view = yield Wait(at=view.tokens + _POLL, boundary="token")
    return view, [ticket.yes is not None and ticket.yes > 0.5 for ticket in tickets]
