"""What a helper has to think of drafts: the chance that it gives each token, or a grade, from one prefill.

Sirius (arXiv 2409.03856) has a full model check what a sparse one wrote and rewrite from the first token that it gives
too little a chance; SpecReason (arXiv 2504.07891) has a larger model grade each step from 0 to 9. The prompt is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..prompts import question_of
from .helper import Stretch, prompt_ids
from .model import chat_ids, reply_chances

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
class Verdict:
    """kept: what of a draft stands, None if that cannot be told, and then why; read: tokens read for it."""

    kept: str | None
    read: int
    error: str = ""


def look_over(session: Session, stretches: Sequence[Stretch]) -> list[Verdict]:
    """Judge the drafts of stretches that are to be reviewed, in order; needs a model in this process."""
    engine: Any = session.engine
    found: dict[int, Verdict] = {}
    for by, judge in (("chance", _by_chance), ("grade", _by_grade)):
        places = [i for i, s in enumerate(stretches) if s.review is not None and s.review.by == by]
        for start in range(0, len(places), _TOGETHER):
            some = places[start : start + _TOGETHER]
            found |= zip(some, judge(session, engine.model, [stretches[i] for i in some]), strict=True)
    return [found[i] for i in range(len(stretches))]


def _by_chance(session: Session, model: Any, stretches: Sequence[Stretch]) -> list[Verdict]:
    before = [prompt_ids(session, s.prompt, s.thinking) for s in stretches]
    whole = [prompt_ids(session, s.prompt, s.thinking + s.draft) for s in stretches]
    starts = [_agree(a, b) for a, b in zip(before, whole, strict=True)]
    verdicts = []
    for stretch, old, ids, start, row in zip(
        stretches, before, whole, starts, chances(model, whole, starts), strict=True
    ):
        assert stretch.review is not None
        good = next((i for i, chance in enumerate(row) if chance < stretch.review.least), None)
        kept = stretch.draft
        if good is not None:
            kept = session.codec.decode(ids[: start + good])[len(session.codec.decode(old)) :]
        verdicts.append(Verdict(kept, len(ids)))
    return verdicts


def _agree(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with alike: a draft may merge with what is before it."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@torch.no_grad()
def chances(model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
    """What a model gives each token of a row from its start (at least 1) on: one forward, padded on the left."""
    width = max(map(len, rows))
    most = max(len(row) - start for row, start in zip(rows, starts, strict=True))
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=places, logits_to_keep=most + 1, use_cache=False).logits
    given = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, width - most :, None])[..., 0].exp()
    return [row[most - (len(r) - s) :].tolist() for row, r, s in zip(given, rows, starts, strict=True)]


def _by_grade(session: Session, model: Any, stretches: Sequence[Stretch]) -> list[Verdict]:
    tokenizer = session.engine.tokenizer
    digits = [session.codec.encode(str(digit))[-1:] for digit in range(10)]
    prompts = [
        chat_ids(tokenizer, _GRADE.format(question=question_of(s.prompt), thinking=s.thinking, draft=s.draft))
        for s in stretches
    ]
    verdicts = []
    for stretch, ids, row in zip(stretches, prompts, reply_chances(model, prompts, digits), strict=True):
        assert stretch.review is not None
        share = sum(row)
        if share <= _LEAST:
            verdicts.append(Verdict(None, len(ids), f"garbage: digits have {share:.3f} of the next token"))
            continue
        grade = sum(digit * chance for digit, chance in enumerate(row)) / share
        verdicts.append(Verdict(stretch.draft if grade >= stretch.review.least else "", len(ids)))
    return verdicts
