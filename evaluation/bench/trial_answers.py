"""Trial answers of recorded thinking, as `controller.trial` asks for them live.

A trial costs its forced and its written tokens; the text before it is not paid for again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...controller.text.tokenizer_adapter import TokenizerAdapter
from ...controller.trial_answers import LEAD as LEAD
from ...controller.trial_answers import MOST_TOKENS, boxed_content, brace_depth
from ...controller.types import SamplingParams
from ..runner import Continuation, EvalRunner
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question
from .truncation import Recording, TrialPoint, TruncationBaseline

MOST_TRIALS = 12
"""Trials of one generation, at thoughts evenly spread over it."""
GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class TrialAnswers:
    """Asks for trial answers on one model."""

    answerer: EvalRunner
    checker: AnswerChecker
    batch: int

    def ask(
        self, asked: Sequence[tuple[Question, Recording]], prompts: Sequence[tuple[int, ...]]
    ) -> list[list[TrialPoint]]:
        """The trials of each source at its `tries`; `prompts` are the rendered ones the sources came from."""
        codec = self.answerer.session.codec
        cutter = TruncationBaseline(codec, self.answerer.session.markers)
        lead = codec.encode(LEAD)
        places, texts, forced = [], [], []
        for row, (_, source) in enumerate(asked):
            for end in source.tries:
                cut = cutter.at(source, end)
                if cut is not None:
                    places.append(row)
                    texts.append((*prompts[row], *cut.ids, *lead))
                    forced.append(cut.forced + len(lead))
        written: list[Continuation] = []
        for start in range(0, len(texts), self.batch):
            some = texts[start : start + self.batch]
            written += self.answerer.write_on(some, [MOST_TOKENS] * len(some), GREEDY)
        found: list[list[TrialPoint]] = [[] for _ in asked]
        for row, extra, one in zip(places, forced, written, strict=True):
            found[row].append(self._read(asked[row][0], one, extra, codec))
        return found

    def _read(self, question: Question, written: Continuation, forced: int, codec: TokenizerAdapter) -> TrialPoint:
        size = _boxed_tokens(written, codec)
        said = boxed_content(codec.decode(written.token_ids[:size]))
        answer = f"{LEAD}{said}{'}' * brace_depth(1, said)}"
        mean = sum(math.log(max(chance, 1e-12)) for chance in written.chances[:size]) / size if size else -math.inf
        return TrialPoint(math.exp(mean), forced + size, self.checker.grade(question, answer).equal)


def _boxed_tokens(written: Continuation, codec: TokenizerAdapter) -> int:
    """How many tokens it takes until the brace that `LEAD` opened is closed; all if it never is."""
    depth = 1
    for place, token in enumerate(written.token_ids, 1):
        depth = brace_depth(depth, codec.decode([token]))
        if depth == 0:
            return place
    return len(written.token_ids)
