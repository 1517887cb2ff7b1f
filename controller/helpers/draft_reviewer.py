"""What a helper has to think of drafts: the chance that it gives each token, or a grade, from one prefill.

Sirius (arXiv 2409.03856) has a full model check what a sparse one wrote and rewrite from the first token that it gives
too little a chance; SpecReason (arXiv 2504.07891) has a larger model grade each step from 0 to 9. The prompt is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..prompts import get_question
from ..verifiers.llm_verifier import encode_chat, next_token_probs
from .cached_scorer import CachedScorer, common_prefix_length
from .engine_helper import HelperRequest, encode_prompt

if TYPE_CHECKING:
    from ..session import Session

_TOGETHER = 16
"""Drafts of one forward."""
_LEAST = 0.1
"""Share of the next token that digits must have more than, or the grade is garbage."""
_GRADE = """Question:
{question}

A piece of reasoning about it:
{thinking}

The next step of it:
{draft}

Grade this step from 0 (wrong or useless) to 9 (right and useful). Reply with one digit only."""


@dataclass(frozen=True, slots=True)
class DraftScore:
    """kept: what of a draft stands, None if that cannot be told, and then why; read: tokens read for it.

    next: the token that should follow what stands, where that is known already.
    """

    kept: str | None
    read: int
    error: str = ""
    next: int | None = None


class DraftReviewer:
    """Judges drafts with the model of a session, which is in this process."""

    def __init__(self, session: Session) -> None:
        self.session = session
        engine: Any = session.engine
        self._model, self._reader = engine.model, CachedScorer(engine.model)

    def look_over(self, stretches: Sequence[HelperRequest]) -> list[DraftScore]:
        """Judge the drafts of stretches that are to be reviewed, in order."""
        graded = [i for i, s in enumerate(stretches) if s.review is not None and s.review.by == "grade"]
        found: dict[int, DraftScore] = {}
        for at in range(0, len(graded), _TOGETHER):
            some = graded[at : at + _TOGETHER]
            found |= zip(some, self._by_grade([stretches[i] for i in some]), strict=True)
        return [found.get(i) or self._by_chance(s) for i, s in enumerate(stretches)]

    def _by_chance(self, stretch: HelperRequest) -> DraftScore:
        assert stretch.review is not None  # that is what is to be judged
        codec, least = self.session.codec, stretch.review.least
        before, ids = encode_prompt(
            self.session, stretch.prompt, stretch.thinking, f"{stretch.thinking}{stretch.draft}"
        )
        start = common_prefix_length(before, ids)  # a draft may merge with what is before it
        found = self._reader.read(stretch.text, ids, start)
        good = next((i for i, chance in enumerate(found.chances) if chance < least), None)
        if good is None:
            return DraftScore(stretch.draft, found.tokens)
        kept = codec.decode(ids[: start + good])[len(codec.decode(before)) :]
        return DraftScore(kept, found.tokens, next=found.likeliest[good])

    def _by_grade(self, stretches: Sequence[HelperRequest]) -> list[DraftScore]:
        session = self.session
        tokenizer = session.engine.tokenizer
        digits = [session.codec.encode(str(digit))[-1:] for digit in range(10)]
        prompts = [
            encode_chat(tokenizer, _GRADE.format(question=get_question(s.prompt), thinking=s.thinking, draft=s.draft))
            for s in stretches
        ]
        verdicts = []
        for stretch, ids, row in zip(stretches, prompts, next_token_probs(self._model, prompts, digits), strict=True):
            assert stretch.review is not None
            share = sum(row)
            if share <= _LEAST:
                verdicts.append(DraftScore(None, len(ids), f"garbage: digits have {share:.3f} of the next token"))
                continue
            grade = sum(digit * chance for digit, chance in enumerate(row)) / share
            verdicts.append(DraftScore(stretch.draft if grade >= stretch.review.least else "", len(ids)))
        return verdicts
