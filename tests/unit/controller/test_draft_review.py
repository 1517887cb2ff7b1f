"""A helper that reviews the thinking: what it keeps stands, what it rejects is rewritten."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers.utils import logging

from tersely.controller import helpers
from tersely.controller.delegation import HelperFuture, HelperRequest, HelperText, PrefixKey
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.helpers import CachedScorer, EngineHelper
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import get_presets, make_policies
from tersely.controller.policies.speculative import Sirius, SpecReason
from tersely.controller.session import Session
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.trace import GenerationResult
from tersely.controller.types import SamplingParams
from tersely.controller.verification import ReviewCriterion
from tersely.errors import CapabilityError

SHELLS = "Tom has 3 shells. Tom finds 5 shells. How many shells does Tom have now?"
OTHER = "Set a to 5 + 4. Set b to a - 7. What is b?"
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def small() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


@pytest.fixture(scope="module")
def large() -> TransformersEngine:
    return load_engine("tersely-tiny-large")


class FakeReviewer:
    """Replaces each draft by the next of its texts; None, or no text left, keeps the draft."""

    reviews = True

    def __init__(self, *texts: str | None) -> None:
        self.texts = list(texts)
        self.requests: list[HelperRequest] = []

    def write(self, request: HelperRequest) -> HelperFuture:
        self.requests.append(request)
        text = self.texts.pop(0) if self.texts else None
        future = HelperFuture()
        future.tokens = 0 if text is None else 1
        future.set_result(HelperText(request.draft if text is None else text, closed=False))
        return future


def run(
    engine: Any, helper: Any, *policies: Any, prompts: Any = (SHELLS, OTHER), emit: Any = None
) -> list[GenerationResult]:
    options = GenerationOptions(policies=policies, max_new_tokens=400, sampling=GREEDY)
    return Session(engine, helper=helper).run(list(prompts), options, emit)


@pytest.fixture(scope="module")
def plain(small: TransformersEngine) -> list[GenerationResult]:
    return run(small, None)


def test_kept_drafts_are_not_touched(small: TransformersEngine, plain: list[GenerationResult]) -> None:
    helper = FakeReviewer()
    done = run(small, helper, Sirius(every=8))
    assert [d.token_ids for d in done] == [p.token_ids for p in plain]
    assert all(d.usage.injected == d.usage.discarded == 0 for d in done)
    assert {decision.action for d in done for decision in d.trace} == {"review"}
    assert "keeps the last 8 tokens" in done[0].trace[0].reason
    drafts = [request for request in helper.requests if request.prompt == SHELLS]
    assert len(drafts) == plain[0].usage.thinking // 8
    for one, other in pairwise(drafts):
        assert other.thinking == one.thinking + one.draft


def test_drafts_are_rewritten_from_the_first_rejected_token_on(
    small: TransformersEngine, plain: list[GenerationResult]
) -> None:
    first = small.tokenizer.decode(plain[0].token_ids[:5])
    draft = small.tokenizer.decode(plain[0].token_ids[:8])
    events: list[TextDeltaEvent] = []
    helper = FakeReviewer(first + " So")
    (done,) = run(small, helper, Sirius(every=8), prompts=(SHELLS,), emit=events.append)
    assert helper.requests[0].draft == draft
    assert done.token_ids[:5] == plain[0].token_ids[:5]
    assert done.thinking.startswith(f"{first} So")
    assert done.usage.discarded == 3
    assert done.trace[0].action == "delegate" and done.trace[0].text == first + " So"
    assert helper.requests[1].thinking == first + " So"
    assert done.answer


def test_endless_rewriting_ends(small: TransformersEngine) -> None:
    helper = FakeReviewer(*["Hm. "] * 900)
    (done,) = run(small, helper, Sirius(every=1, tokens=4), prompts=(SHELLS,))
    assert done.answer
    assert done.usage.thinking + done.usage.answer <= 400


def test_scores_are_the_probabilities_of_the_model(large: TransformersEngine) -> None:
    """A text that grows, is cut and continues differently, against one forward pass over all of it."""
    whole = large.tokenizer(SHELLS)["input_ids"]
    other = [*whole[:12], *large.tokenizer(OTHER)["input_ids"]]
    scorer, key = CachedScorer(large.model), PrefixKey()
    for ids, start, tokens in ((whole[:8], 4, 8), (whole, 8, len(whole) - 7), (other, 12, len(other) - 11)):
        scores = scorer.score(key, ids, start)
        with torch.no_grad():
            logits = large.model(torch.tensor([ids])).logits[0].softmax(-1)
        expected = [logits[i - 1, ids[i]].item() for i in range(start, len(ids))]
        assert scores.probabilities == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert list(scores.most_likely) == logits[start - 1 : -1].argmax(-1).tolist()
        assert scores.read == tokens
    assert scorer.score(None, other, 12).read == len(other)
    del key
    assert not scorer._caches, "the cache entry dies with its key"


@pytest.mark.slow
def test_the_large_model_corrects_the_small_one(small: TransformersEngine, large: TransformersEngine) -> None:
    helper = EngineHelper(Session(large), sampling=GREEDY)
    both = run(small, helper, Sirius(min_probability=0.5))
    (alone,) = run(small, helper, Sirius(min_probability=0.5), prompts=(SHELLS,))
    assert both[0].token_ids == alone.token_ids
    actions = [decision.action for b in both for decision in b.trace]
    assert "review" in actions and "delegate" in actions
    for done in both:
        corrected = sum(decision.action == "delegate" for decision in done.trace)
        assert done.usage.helper_completion == corrected and done.usage.helper_prompt > 0 and done.answer


@pytest.mark.slow
def test_a_model_accepts_its_own_drafts(small: TransformersEngine, plain: list[GenerationResult]) -> None:
    helper = EngineHelper(Session(small), sampling=GREEDY)
    done = run(small, helper, Sirius(every=16, min_probability=0.05))
    assert [d.token_ids for d in done] == [p.token_ids for p in plain]
    rewritten = run(small, helper, Sirius(every=16, min_probability=1.1), prompts=(SHELLS,))
    assert all(d.trace[0].action == "delegate" for d in rewritten), "no chance is that high"
    assert all("dropped more tokens than the thinking may have" in d.trace[-1].reason and d.answer for d in rewritten)


def test_drafts_with_low_grades_are_rewritten(
    small: TransformersEngine, large: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded models cannot grade, so the digits are a script; what follows from them is real."""
    grades = iter([9.0, 2.0])
    seen: list[str] = []

    def digits(model: Any, prompts: Any, replies: Any) -> list[tuple[float, ...]]:
        seen.extend(large.tokenizer.decode(ids) for ids in prompts)
        best = int(next(grades, 9.0))
        return [tuple(0.8 if digit == best else 0.01 for digit in range(10)) for _ in prompts]

    monkeypatch.setattr(helpers, "next_token_probs", digits)
    (done,) = run(small, EngineHelper(Session(large), sampling=GREEDY), SpecReason(), prompts=(SHELLS,))
    assert [decision.action for decision in done.trace][:2] == ["review", "delegate"]
    assert done.trace[1].text.endswith("\n\n"), "the helper writes one thought"
    assert SHELLS in seen[0] and "usefulness do not count" in " ".join(seen[0].split())
    assert done.answer


def test_replies_that_are_not_grades_change_nothing(
    small: TransformersEngine, large: TransformersEngine, plain: list[GenerationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "next_token_probs", lambda *args: [(0.001,) * 10 for _ in args[1]])
    done = run(small, EngineHelper(Session(large)), SpecReason())
    assert [d.token_ids for d in done] == [p.token_ids for p in plain]
    assert all("digits have probability 0.010" in decision.reason for d in done for decision in d.trace)


def test_presets_have_the_values_of_the_papers(small: TransformersEngine) -> None:
    assert list(get_presets()["sirius"]) == ["budget", "sirius"] and list(get_presets()["specreason"]) == [
        "budget",
        "specreason",
    ]
    (_, correction), (_, grading) = make_policies("sirius"), make_policies("specreason")
    assert correction == Sirius() and grading == SpecReason()
    helper = FakeReviewer()
    helper.reviews = False
    with pytest.raises(CapabilityError) as error:
        run(small, helper, correction)
    assert error.value.code == "missing_draft_review"
    assert replace(ReviewCriterion(0.1), by="grade") == ReviewCriterion(0.1, "grade")
