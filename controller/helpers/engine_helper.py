"""A larger model that writes parts of another model's thinking, as in Speculative Thinking (arXiv 2504.12329).

Only text goes from one model to the other, so they need not share a tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..delegation import HelperError, HelperFuture, HelperRequest, HelperText
from ..types import SamplingParams
from .engine_requests import make_request

if TYPE_CHECKING:
    from ..session import Session
    from .draft_reviewer import DraftReviewer

_Pending = tuple[HelperRequest, HelperFuture]


class EngineHelper:
    """Lets an engine write; implements `Helper`.

    All pending requests are written as one batch as soon as one of them is waited for.

    Args:
        session: of the larger model.
        timeout: seconds after which a batch is given up.
        sampling: None uses the model's own.
        seed: of its sampling.
        preset: controls it where it thinks from the question on.
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
        from ..engines.transformers.engine import TransformersEngine

        self.session, self.timeout, self.seed, self.preset = session, timeout, seed, preset
        self.sampling = sampling or SamplingParams()
        self.reviews = isinstance(session.engine, TransformersEngine)  # reviewing reads probabilities off the model
        self._pending: list[_Pending] = []
        self._batches = 0
        self._reviewer: DraftReviewer | None = None

    def write(self, request: HelperRequest) -> HelperFuture:
        """See `Helper.write`."""
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
        made = [make_request(session, request, deadline, self.preset) for request, _ in batch]
        # A seed of its own does not disturb the sampling of the sequences that wait.
        sampling = replace(self.sampling, seed=self.seed + self._batches)
        completions = session.engine.generate([engine_request for engine_request, _ in made], sampling)
        for (engine_request, watcher), completion, (request, future) in zip(made, completions, batch, strict=True):
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
            from .draft_reviewer import DraftReviewer

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
