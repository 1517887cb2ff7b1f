"""Larger models that write or review parts of another model's thinking, for the policies of `policies.speculative`.

Only text goes from one model to the other, so they need not share a tokenizer. Drafts are judged with one prefill: by
the probabilities of their tokens, as in Sirius (arXiv 2409.03856), or by a grade, as in SpecReason (arXiv 2504.07891).
The words of the prompt for grades are ours; the likeliest digit is the grade, as by default there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .budgets import TIERS, UNLIMITED, fit_budget
from .controller import Controller, ControllerState
from .delegation import HelperError, HelperFuture, HelperRequest, HelperText, PrefixKey
from .engines.transformers.model_runner import PrefixCache
from .options import GenerationOptions
from .prompts import get_question, render
from .session import Session
from .text.markers import MarkerMatcher
from .text.tokenizer_adapter import TokenFlags, count_common
from .types import KEEP, Directive, Prompt, Request, SamplingParams, StepInfo
from .verifiers import encode_chat, next_token_probs

_Pending = tuple[HelperRequest, HelperFuture]
_STOP = Directive(stop=True)
_BATCH_SIZE = 16  # most drafts that are graded in one forward pass
_MIN_PROBABILITY = 0.1  # all digits together must be more likely than this, or the reply is not a grade
_GRADE = """Question:
{question}

A piece of reasoning about it:
{thinking}

The next step of it:
{draft}

Is this step correct, and does it follow from what came before? Judge nothing else: its style, its wording and its
usefulness do not count. Grade it from 0 to 9. Reply with one digit only."""


class EngineHelper:
    """Lets an engine write; implements `Helper`.

    All pending requests are written as one batch as soon as one of them is waited for; `timeout` is in seconds for the
    whole batch. `preset` controls the model where it thinks from the question on.
    """

    def __init__(
        self,
        session: Session,
        *,
        timeout: float = 60.0,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        preset: str = "balanced",
    ) -> None:
        from .engines.transformers.engine import TransformersEngine

        self.session, self.timeout, self.seed, self.preset = session, timeout, seed, preset
        self.sampling = sampling or SamplingParams()
        self.reviews = isinstance(session.engine, TransformersEngine)  # reviewing reads probabilities off the model
        self._pending: list[_Pending] = []
        self._batches = 0
        self._reviewer: DraftReviewer | None = None

    def write(self, request: HelperRequest) -> HelperFuture:
        future = HelperFuture(self._write_pending)
        self._pending.append((request, future))
        return future

    def _write_pending(self) -> None:
        batch, self._pending = self._pending, []
        self._batches += 1
        deadline = time.monotonic() + self.timeout
        try:
            self._write_batch(self._review_drafts(batch), deadline)
        except Exception as error:  # what goes wrong with a helper must not end the sequences that wait for it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)

    def _write_batch(self, batch: Sequence[_Pending], deadline: float) -> None:
        if not batch:
            return
        session = self.session
        prepared = [make_request(session, request, deadline, self.preset) for request, _ in batch]
        # A seed of its own does not disturb the sampling of the sequences that wait.
        sampling = replace(self.sampling, seed=self.seed + self._batches)
        completions = session.engine.generate([engine_request for engine_request, _ in prepared], sampling)
        for (engine_request, watcher), completion, (request, future) in zip(prepared, completions, batch, strict=True):
            future.tokens = len(completion.token_ids) + completion.dropped + completion.trial
            future.read += len(engine_request.prompt_ids)
            if watcher.late:
                future.set_exception(HelperError(f"the helper was not done after {self.timeout:g} s"))
                continue
            text = session.codec.decode(completion.token_ids)
            if request.whole and text.startswith(session.markers.open):
                text = text.removeprefix(session.markers.open).lstrip("\n")
            thinking, close, _ = text.partition(session.markers.close)
            closed = (bool(close) or completion.finish_reason == "stop") and not request.reply
            future.set_result(HelperText(request.draft + thinking, closed))

    def _review_drafts(self, batch: Sequence[_Pending]) -> list[_Pending]:
        """Review the drafts of a batch; return what must still be written, with the part of each draft that stands."""
        rest = [(request, future) for request, future in batch if request.criterion is None]
        drafts = [(request, future) for request, future in batch if request.criterion is not None]
        if not drafts:
            return rest
        if self._reviewer is None:
            self._reviewer = DraftReviewer(self.session)
        reviews = self._reviewer.review([request for request, _ in drafts])
        for (request, future), review in zip(drafts, reviews, strict=True):
            future.read = review.read
            if review.kept is None:
                future.set_exception(HelperError(review.error))
            elif review.kept == request.draft:
                future.set_result(HelperText(request.draft, closed=False))
            elif review.next_token is not None and request.tokens == 1:
                self._append_token(future, review.kept, review.next_token)
            else:
                rest.append((replace(request, thinking=request.thinking + review.kept, draft=review.kept), future))
        return rest

    def _append_token(self, future: HelperFuture, kept: str, token: int) -> None:
        """Complete a review by the one token that follows what stands, which needs no decoding."""
        codec, future.tokens = self.session.codec, 1
        text = codec.decode([token])
        closed = token == codec.tokenizer.eos_token_id or text == self.session.markers.close
        future.set_result(HelperText(kept if closed else kept + text, closed))


class StopAfter:
    """Ends a sequence after `tokens` tokens, at the end of a thought or of the thinking, or once it is `late`.

    A sequence that has a `controller` ends where that has ended its thinking.
    """

    def __init__(
        self, session: Session, request: HelperRequest, deadline: float, controller: Controller | None = None
    ) -> None:
        self.tokens_left, self.deadline, self.late = request.tokens, deadline, False
        self._codec, self._one_thought = session.codec, request.one_thought
        self._close = MarkerMatcher(session.codec, session.markers.close)
        self._controller = controller

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        self.tokens_left -= 1
        self.late = time.monotonic() > self.deadline
        if self.tokens_left <= 0 or self.late:
            return _STOP
        if self._controller is not None:
            ended = self._controller.state is ControllerState.ANSWER
            return _STOP if ended else self._controller.observe(token, step)
        thought_ended = self._one_thought and bool(self._codec.flags[token] & TokenFlags.BLANK)
        return _STOP if self._close.completes(token) or thought_ended else KEEP


def make_request(session: Session, request: HelperRequest, deadline: float, preset: str) -> tuple[Request, StopAfter]:
    """The engine's request, and the watcher that ends it."""
    if request.whole:
        limit = request.tokens + TIERS["normal"].reserve
        (prepared,) = session.prepare([request.prompt], GenerationOptions(preset=preset, max_new_tokens=limit))
        watcher = StopAfter(session, request, deadline, prepared.controller)
        return replace(prepared.request, watcher=watcher), watcher
    if request.reply:
        budget = fit_budget("none", UNLIMITED)
        prompt_ids = render(session.engine.tokenizer, request.prompt, budget, session.markers).ids
    else:
        (prompt_ids,) = encode_thinking(session, request.prompt, request.thinking)
    limit, context = request.tokens + 1, session.engine.context_length
    if context is not None:
        limit = max(1, min(limit, context - len(prompt_ids)))  # the engine refuses a prompt that leaves no room
    watcher = StopAfter(session, request, deadline)
    return Request(prompt_ids, limit, watcher), watcher


def encode_thinking(session: Session, prompt: Prompt, *thinkings: str) -> list[tuple[int, ...]]:
    """The ids of a prompt followed by each of these beginnings of a thinking."""
    rendered = render(session.engine.tokenizer, prompt, fit_budget("normal", UNLIMITED), session.markers)
    opening = "" if rendered.state == "thinking" else f"{session.markers.open}\n"
    return [(*rendered.ids, *session.codec.encode(f"{opening}{thinking}")) for thinking in thinkings]


@dataclass(frozen=True, slots=True)
class DraftReview:
    """What a helper thinks of a draft."""

    kept: str | None  # the part of the draft that stands; None without a judgement, for the reason `error`
    read: int  # tokens
    error: str = ""
    next_token: int | None = None  # the token that should follow what stands, if that is known already


class DraftReviewer:
    """Judges drafts with a session's model on the transformers engine, as Sirius does (arXiv 2409.03856)."""

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
        start = count_common(before, ids)  # the first token of a draft may merge with the last one before it
        scores = self._scorer.score(request.prefix_key, ids, start, request.criterion.temperature)
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
            grade = row.index(max(row))
            reviews.append(DraftReview(request.draft if grade >= request.criterion.at_least else "", len(ids)))
        return reviews


@dataclass(frozen=True, slots=True)
class TokenScores:
    """How a model scores the tokens of a text from some position on."""

    probabilities: Sequence[float]
    most_likely: Sequence[int]  # the tokens that the model would have written in their places
    read: int  # tokens


class CachedScorer:
    """Scores texts with one model; reads growing texts only once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._caches: WeakKeyDictionary[PrefixKey, PrefixCache] = WeakKeyDictionary()

    def score(self, key: PrefixKey | None, ids: Sequence[int], start: int, temperature: float = 1.0) -> TokenScores:
        """Score a text's tokens from `start` (at least 1) on; `key` identifies a text that grows."""
        cache = None if key is None else self._caches.get(key)
        if cache is None:
            cache = PrefixCache(self.model)
            if key is not None:
                self._caches[key] = cache
        found, read = cache.read(ids, len(ids) - start + 1)
        logits = found[:-1].float()
        tokens = torch.tensor(list(ids[start:]), device=logits.device)
        probabilities = (logits / temperature).log_softmax(-1).gather(-1, tokens[:, None])[:, 0].exp()
        return TokenScores(probabilities.tolist(), logits.argmax(-1).tolist(), read)
