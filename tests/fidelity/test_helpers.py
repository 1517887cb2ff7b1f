"""Methods with a larger model: constants of the authors' code, and its decisions on the same probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersely.controller import helpers
from tersely.controller.budgets import Budget
from tersely.controller.delegation import HelperRequest
from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.helpers import CachedScorer, DraftReviewer
from tersely.controller.policies.base import Delegate, PolicyView
from tersely.controller.policies.speculative import (
    ReflectionBudget,
    Sirius,
    SpecReason,
    SpeculativeThinking,
    sentence_polarity,
)
from tersely.controller.session import Session
from tersely.controller.text.thoughts import ThinkingState
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.verification import ReviewCriterion

from ..support.word_tokenizer import WordTokenizer


def test_the_published_constants() -> None:
    sirius, grading, helped = Sirius(), SpecReason(), SpeculativeThinking()
    assert (sirius.every, sirius.min_probability, sirius.temperature, sirius.tokens) == (16, 0.1, 0.6, 1)
    assert (grading.min_grade, grading.tokens) == (7.0, 512)
    assert (helped.draft, helped.takeover, helped.verify, helped.begin, helped.excess) == (20, 20, 125, 0, 15)


# -- Speculative Thinking: cues decide who writes, and the count of reflections when a mistake is looked for ----------

AFFIRMS = ("yeah", "yes", "final answer", "confident")
REFLECTS = ("wait", "alternatively", "hold on", "another", "verify", "think again", "recap", "check")


@pytest.mark.parametrize("word", AFFIRMS)
def test_each_affirming_cue(word: str) -> None:
    assert sentence_polarity(f"So, {word.title()} it is") == 1
    assert sentence_polarity(f"{word}, {word}, but wait") == 1, "more of them than of the others"


@pytest.mark.parametrize("word", REFLECTS)
def test_each_reflecting_cue(word: str) -> None:
    assert sentence_polarity(f"So, {word.title()} it is") == -1
    assert sentence_polarity(f"yes, {word}") == -1, "a tie reflects"


def test_other_words_are_neutral() -> None:
    """Ours: whole words only, where the authors' code finds cues within words."""
    assert [sentence_polarity(text) for text in ("but double it", "", "yesterday's checkers")] == [0, 0, 0]


def test_limit_and_tokens_grow_as_often_as_mistakes_are_looked_for() -> None:
    budget, found = ReflectionBudget(), []
    for _ in range(5):
        limit = budget.limit
        budget.count = limit - 1
        assert not budget.exceeded()
        budget.count = limit
        assert budget.exceeded()
        found.append((limit, budget.spend()))
        assert budget.count == 0
    assert found == [(15, 125), (20, 150), (25, 175), (30, 200), (30, 200)]


def take_over(policy: SpeculativeThinking, steps: list[tuple[str, str]]) -> list[tuple[int, int, str]]:
    """What is delegated, as (tokens, retracted, prefix), given each paragraph's draft and what the helper writes."""
    thinking = ThinkingState(TokenizerAdapter(WordTokenizer()))
    view, asked = PolicyView(thinking, Budget("normal"), 0), list[tuple[int, int, str]]()
    watching, drafts, draft, reply = policy.watch(view), iter(steps), "", ""
    action: Any = next(watching)
    while True:
        if isinstance(action, Delegate):
            asked.append((action.tokens, action.retract, action.prefix))
            action = watching.send(reply)
        elif action.boundary == "token":
            assert action.at - view.tokens in (1, policy.draft)
            for token in thinking.codec.encode(draft):
                thinking.add(token)
            action = watching.send(None)
        else:
            draft, reply = next(drafts, ("", ""))
            if not draft:
                return asked
            action = watching.send(None)


def test_cues_in_the_draft_decide_who_writes() -> None:
    """Neutral: nothing. Affirming or reflecting: 20 tokens replace the draft. Verifying: 125 more follow."""
    steps = [
        ("So it is seven", ""),
        ("Yes it is seven", "It is seven"),
        ("Wait for it", "It is seven"),
        ("Wait for it", "Let me check"),
    ]
    assert take_over(SpeculativeThinking(), steps) == [(20, 7, ""), (20, 5, ""), (20, 5, ""), (125, 0, "")]


def test_the_text_that_stands_decides_whether_it_verifies() -> None:
    """The draft's own cue to verify is gone when the helper's text replaces it."""
    assert take_over(SpeculativeThinking(), [("Let me check", "It is seven")]) == [(20, 5, "")]
    assert take_over(SpeculativeThinking(always=True), [("It is seven", "It is eight")]) == [(20, 5, "")]


def test_fifteen_reflections_call_for_the_mistake() -> None:
    """Only texts that stand and reflect are counted; then 125 tokens after the lead, and the count begins at 0."""
    policy, reflects, neutral = SpeculativeThinking(), ("Wait for it", "Wait for it"), ("Wait for it", "It is seven")
    takeover, mistake = (20, 5, ""), (125, 0, policy.prefix)
    assert take_over(policy, [reflects] * 14 + [neutral] * 9) == [takeover] * 23
    found = take_over(policy, [*[reflects] * 15, ("unused", ""), *[reflects] * 3])
    assert found == [*[takeover] * 15, mistake, *[takeover] * 3]


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
