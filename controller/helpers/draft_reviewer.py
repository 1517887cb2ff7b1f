"""How a helper judges drafts: by the probability it gives each token, or by a grade; either way with one prefill.

Sirius (arXiv 2409.03856) has a full model check what a sparse one wrote, and rewrite it from the first token on that it
finds too unlikely. SpecReason (arXiv 2504.07891) has a larger model grade each step from 0 to 9. The prompt is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

from ..delegation import HelperRequest, PrefixKey
from ..engines.transformers.model_runner import can_be_ragged
from ..prompts import get_question
from ..verifiers.llm_verifier import encode_chat, next_token_probs
from .engine_requests import encode_thinking

if TYPE_CHECKING:
    from ..session import Session

_BATCH_SIZE = 16
"""Most drafts that are graded in one forward pass."""
_MIN_PROBABILITY = 0.1
"""All digits together must be more likely than this, or the reply is not a grade."""
_GRADE = """Question:
{question}

A piece of reasoning about it:
{thinking}

The next step of it:
{draft}

Grade this step from 0 (wrong or useless) to 9 (right and useful). Reply with one digit only."""


@dataclass(frozen=True, slots=True)
class DraftReview:
    """What a helper thinks of a draft.

    Attributes:
        kept: the part of the draft that stands; None if there is no judgement, for the reason `error`.
        read: how many tokens were read.
        next_token: the token that should follow what stands, if that is known already.
    """

    kept: str | None
    read: int
    error: str = ""
    next_token: int | None = None


class DraftReviewer:
    """Judges drafts with the model of a session on the transformers engine."""

    def __init__(self, session: Session) -> None:
        self.session = session
        engine: Any = session.engine
        self._model, self._scorer = engine.model, CachedScorer(engine.model)

    def review(self, requests: Sequence[HelperRequest]) -> list[DraftReview]:
        """Judge the drafts of requests with a criterion, in order."""
        graded = [i for i, r in enumerate(requests) if r.criterion is not None and r.criterion.by == "grade"]
        reviews: dict[int, DraftReview] = {}
        for start in range(0, len(graded), _BATCH_SIZE):
            batch = graded[start : start + _BATCH_SIZE]
            reviews |= zip(batch, self._review_by_grade([requests[i] for i in batch]), strict=True)
        return [reviews.get(i) or self._review_by_probability(request) for i, request in enumerate(requests)]

    def _review_by_probability(self, request: HelperRequest) -> DraftReview:
        assert request.criterion is not None  # only drafts with a criterion are reviewed
        codec, limit = self.session.codec, request.criterion.at_least
        before, ids = encode_thinking(
            self.session, request.prompt, request.thinking, f"{request.thinking}{request.draft}"
        )
        start = common_prefix_length(before, ids)  # the first token of a draft may merge with the last one before it
        scores = self._scorer.score(request.prefix_key, ids, start)
        rejected = next((i for i, probability in enumerate(scores.probabilities) if probability < limit), None)
        if rejected is None:
            return DraftReview(request.draft, scores.read)
        kept = codec.decode(ids[: start + rejected])[len(codec.decode(before)) :]
        return DraftReview(kept, scores.read, next_token=scores.most_likely[rejected])

    def _review_by_grade(self, requests: Sequence[HelperRequest]) -> list[DraftReview]:
        session = self.session
        tokenizer = session.engine.tokenizer
        digits = [session.codec.encode(str(digit))[-1:] for digit in range(10)]
        prompts = [
            encode_chat(tokenizer, _GRADE.format(question=get_question(r.prompt), thinking=r.thinking, draft=r.draft))
            for r in requests
        ]
        reviews = []
        for request, ids, row in zip(requests, prompts, next_token_probs(self._model, prompts, digits), strict=True):
            assert request.criterion is not None
            total = sum(row)
            if total <= _MIN_PROBABILITY:
                reviews.append(DraftReview(None, len(ids), f"no grade: digits have probability {total:.3f} only"))
                continue
            grade = sum(digit * probability for digit, probability in enumerate(row)) / total
            reviews.append(DraftReview(request.draft if grade >= request.criterion.at_least else "", len(ids)))
        return reviews


@dataclass(frozen=True, slots=True)
class TokenScores:
    """How a model scores the tokens of a text from some position on.

    Attributes:
        probabilities: of each token.
        most_likely: the token that the model would have written in its place.
        read: how many tokens were read for that.
    """

    probabilities: Sequence[float]
    most_likely: Sequence[int]
    read: int


class CachedScorer:
    """Scores texts with one model; keeps the keys and values of growing texts if the model's cache can be cropped."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._can_crop = can_be_ragged(model)
        self._cached: WeakKeyDictionary[PrefixKey, tuple[list[int], Any]] = WeakKeyDictionary()

    @torch.no_grad()
    def score(self, key: PrefixKey | None, ids: Sequence[int], start: int) -> TokenScores:
        """Score a text's tokens from `start` (at least 1) on; `key` identifies a text that grows."""
        cached = None if key is None else self._cached.get(key)
        known, cache = cached or ([], DynamicCache(config=self.model.config.get_text_config(decoder=True)))
        common = min(common_prefix_length(known, ids), start - 1)
        if common < len(known):
            cache.crop(common - len(known))  # a negative count, which is relative to the cache's length
        fed = torch.tensor([list(ids[common:])], device=self.model.device)
        keep = len(ids) - start + 1
        logits = self.model(fed, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[0, :-1].float()
        if key is not None and self._can_crop:
            self._cached[key] = (list(ids), cache)
        tokens = torch.tensor(list(ids[start:]), device=logits.device)
        probabilities = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].exp()
        return TokenScores(probabilities.tolist(), logits.argmax(-1).tolist(), fed.size(1))


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
