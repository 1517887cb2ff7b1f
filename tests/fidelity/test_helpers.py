"""Methods with a larger model: constants of the authors' code, and its decisions on the same probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersely.controller import helpers
from tersely.controller.delegation import HelperRequest
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.helpers import CachedScorer, DraftReviewer
from tersely.controller.policies.speculative import ReflectionBudget, Sirius, SpecReason, SpeculativeThinking
from tersely.controller.session import Session
from tersely.controller.verification import ReviewCriterion


def test_the_published_constants() -> None:
    sirius, grading, helped = Sirius(), SpecReason(), SpeculativeThinking()
    assert (sirius.every, sirius.min_probability, sirius.temperature, sirius.tokens) == (16, 0.1, 0.6, 1)
    assert (grading.min_grade, grading.tokens) == (7.0, 512)
    assert (helped.draft, helped.takeover, helped.verify, helped.begin, helped.excess) == (20, 20, 125, 0, 15)
    budget = ReflectionBudget()
    spent = []
    for _ in range(5):
        spent.append((budget.limit, budget.spend()))
    assert spent == [(15, 125), (20, 150), (25, 175), (30, 200), (30, 200)]


def request(draft: str, criterion: ReviewCriterion) -> HelperRequest:
    return HelperRequest(prompt="What is 2 + 3?", thinking="So ", draft=draft, tokens=1, criterion=criterion)


# -- Sirius: a token stands if softmax(logits / 0.6) is at least 0.1 ---------------------------------------------------


def test_sirius_compares_probabilities_at_its_temperature(small: TransformersEngine) -> None:
    ids = small.tokenizer("Kai has 48 shells. Kai finds 31 shells.")["input_ids"]
    scores = CachedScorer(small.model).score(None, ids, 1, 0.6)
    with torch.no_grad():
        logits = small.model(torch.tensor([ids])).logits[0].float()
    wanted = (logits[:-1] / 0.6).softmax(-1)[range(len(ids) - 1), ids[1:]]
    assert scores.probabilities == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-6)


def test_sirius_rejects_what_is_likely_only_without_its_temperature(
    small: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odds of 8 to 1 are 0.111 at a temperature of 1, and 0.030 at 0.6."""

    def score(self: CachedScorer, key: Any, ids: Any, start: int, temperature: float = 1.0) -> helpers.TokenScores:
        chance = (torch.tensor([8.0, 1.0]).log() / temperature).softmax(-1)[1].item()
        return helpers.TokenScores([1.0, chance], [0, 0], 2)

    monkeypatch.setattr(CachedScorer, "score", score)
    reviewer = DraftReviewer(Session(small))
    for temperature, stands in ((1.0, True), (Sirius().temperature, False)):
        draft = "4 8 3 1"
        (review,) = reviewer.review([request(draft, ReviewCriterion(0.1, temperature=temperature))])
        assert (review.kept == draft) is stands


# -- SpecReason: the likeliest digit is the grade, and only correctness is judged ----------------------------------


@pytest.mark.parametrize(
    ("chances", "stands"),
    [
        ({7: 0.6, 0: 0.4}, True),  # 4.2 on average
        ({6: 0.5, 9: 0.45}, False),  # 7.4 on average
    ],
)
def test_specreason_takes_the_likeliest_digit(
    small: TransformersEngine, monkeypatch: pytest.MonkeyPatch, chances: dict[int, float], stands: bool
) -> None:
    asked: list[str] = []

    def digits(model: Any, prompts: Any, replies: Any) -> list[tuple[float, ...]]:
        asked.extend(small.tokenizer.decode(ids) for ids in prompts)
        return [tuple(chances.get(digit, 0.0) for digit in range(10)) for _ in prompts]

    monkeypatch.setattr(helpers, "next_token_probs", digits)
    criterion = ReviewCriterion(SpecReason().min_grade, "grade")
    (review,) = DraftReviewer(Session(small)).review([request("It is 5.", criterion)])
    assert review.kept == ("It is 5." if stands else "")
    assert "useful)" not in asked[0] and "usefulness do not count" in " ".join(asked[0].split())
