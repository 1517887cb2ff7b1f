"""Features of a thought: figures computed by hand, the same live and afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.readiness import FeatureTracker
from tersely.controller.policies.record import PassiveRecorder, ThoughtRecord
from tersely.controller.session import Session
from tersely.controller.text.thoughts import ThinkingState
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.types import SamplingParams, Signals, StepInfo
from tersely.probes.rule import FEATURES, TRIAL_FEATURES, ThoughtReading, trial_features

from ...support.planted_records import features
from ...support.word_tokenizer import WordTokenizer

THOUGHTS = ("So the answer is 5.\n\n", "Wait, the answer is 6.\n\n", "Hmm.\n\n", "The answer is 6.\n\n")
ENTROPIES = ([0.1] * 4 + [1.2] + [0.1] * 6, [0.2] * 11 + [0.8], [0.3, 0.6, 0.9], [0.05] * 9)


class GrowingThinking:
    """A thinking extended by texts; a token of entropy e has top 1 - e / 2 and margin 0.9 - e / 2."""

    def __init__(self) -> None:
        self.codec = TokenizerAdapter(WordTokenizer())
        self.thinking = ThinkingState(self.codec)
        self.readings = FeatureTracker()

    def add(self, text: str, entropies: Sequence[float] | None = None) -> None:
        ids = self.codec.encode(text)
        signals = (
            [None for _ in ids] if entropies is None else [Signals(e, 1 - e / 2, 0.5, 0.9 - e / 2) for e in entropies]
        )
        for token, seen in zip(ids, signals, strict=True):
            self.thinking.add(token, seen)

    @property
    def features(self) -> dict[str, float]:
        values = features(self.readings.update(self.thinking))
        assert values.dtype == np.float32
        return dict(zip(FEATURES, values.tolist(), strict=True))


def expected(*values: float) -> dict[str, Any]:
    return {name: pytest.approx(value, rel=1e-6) for name, value in zip(FEATURES, values, strict=True)}


def test_features_of_four_thoughts() -> None:
    grown = GrowingThinking()
    found = []
    for text, entropies in zip(THOUGHTS, ENTROPIES, strict=True):
        grown.add(text, entropies)
        found.append(grown.features)
    log = math.log
    # thoughts; tokens, of the thought; reflective; entropies: mean, largest, last, mean so far; top; margin; answers
    assert found[0] == expected(1, log(12), log(12), 0, 0.2, 1.2, 0.1, 0.2, 0.4, 0.8, 1, 1, 1, 0, 1.2)
    assert found[1] == expected(2, log(24), log(13), 1, 0.25, 0.8, 0.8, 5.2 / 23, 0.6, 0.775, 1, 2, 1, 1, 0.8)
    assert found[2] == expected(3, log(27), log(4), 1, 0.6, 0.9, 0.9, 7 / 26, 0.55, 0.6, 0, 2, 1, 1, 0.8)
    assert found[3] == expected(4, log(36), log(10), 0, 0.05, 0.05, 0.05, 7.45 / 35, 0.975, 0.875, 1, 3, 2, 1, 0.05)
    assert grown.readings.stated == "6"


def test_features_without_a_stated_answer() -> None:
    grown = GrowingThinking()
    grown.add("Hmm.\n\n", [0.3, 0.6, 0.9])
    grown.add("And on.\n\n", [0.1] * 5)
    answers = [grown.features[name] for name in FEATURES[10:]]
    assert answers == [0, 0, 0, 0, pytest.approx(0.9)]
    assert grown.readings.stated is None


def test_features_without_signals_are_those_of_certainty() -> None:
    grown = GrowingThinking()
    grown.add(THOUGHTS[0])
    assert grown.features == expected(1, math.log(12), math.log(12), 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0)


def test_forced_tokens_belong_to_no_thought() -> None:
    grown = GrowingThinking()
    grown.add("one two", [0.4, 0.5, 0.6])
    grown.thinking.add_forced(grown.codec.encode("\n\nThe answer is 9.\n\n"))
    grown.add("three.\n\n", [0.1, 0.2, 0.3])
    assert grown.features["thoughts"] == 2
    first, second = grown.readings.thoughts
    assert (first.tokens, first.entropy_last, first.answer) == (3, 0.6, None)
    assert (second.tokens, second.entropy_mean, second.entropy_max) == (3, pytest.approx(0.2), 0.3)
    assert grown.readings.stated is None


def test_trial_features() -> None:
    assert len(TRIAL_FEATURES) == 4
    assert trial_features(["5", "6", "6"], 0.9, "6").tolist() == pytest.approx([math.log(9), 1, 2, 3])
    assert trial_features(["6", "5"], 0.25, "6").tolist() == pytest.approx([-math.log(3), 0, 1, 2])
    assert trial_features(["5"], 1.0, None).tolist() == pytest.approx([math.log(1e6), 0, 1, 1], rel=1e-4)
    assert trial_features(["5"], 0.0, None).tolist()[0] == pytest.approx(-math.log(1e6), rel=1e-4)
    assert trial_features([3], 0.5, None).tolist() == [0, 0, 1, 1]


def test_features_of_a_thought_without_tokens_are_finite() -> None:
    assert np.isfinite(features([ThoughtReading(0, False, None, 0.5, 0.5, 0.5, 0.5, 0.5)])).all()


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def test_live_and_offline_features_are_the_same(engine: TransformersEngine) -> None:
    """Sampled in a batch with trial answers: features reported live, and those of a replay of the output."""
    live: list[list[ThoughtRecord]] = []

    def begin_in(rows: list[list[ThoughtRecord]]) -> PassiveRecorder:
        def begin():
            rows.append([])
            return rows[-1].append

        return PassiveRecorder(begin, (-1, 2)) if rows is live else PassiveRecorder(begin, (), trials=False)

    session = Session(engine)
    problems = ["Set a to 6 + 4. What is a?", "Compute 9 - 4 + 2."]
    options = GenerationOptions(
        policies=(begin_in(live),), max_new_tokens=150, signals=True, sampling=SamplingParams(seed=1)
    )
    rows = session.prepare(problems, GenerationOptions())
    for number, (done, row) in enumerate(zip(session.run(problems, options), rows, strict=True)):
        offline: list[list[ThoughtRecord]] = []
        budget = Budget("normal", 2048)
        controller = Controller((begin_in(offline),), session.codec, session.markers, budget, shadow=True)
        assert row.state == "thinking"
        grown, ends = ThinkingState(session.codec), FeatureTracker()
        by_hand = []
        for token, signals in zip(done.token_ids, done.signals, strict=True):
            controller.observe(token, StepInfo(signals, _no_state))
            if session.codec.decode([token]) == "</think>":
                break
            grown.add(token, signals)
            if grown.boundary == "thought":
                by_hand.append(features(ends.update(grown)))
        assert len(live[number]) == len(offline[0]) == len(by_hand) >= 3
        prompt = row.request.prompt_ids
        with torch.no_grad():
            out = engine.model(torch.tensor([[*prompt, *done.token_ids]]), output_hidden_states=True)
        for one, again, values in zip(live[number], offline[0], by_hand, strict=True):
            np.testing.assert_array_equal(one.features, again.features)
            np.testing.assert_array_equal(one.features, values)
            assert (one.end, one.stated) == (again.end, again.stated)
            assert one.trial is not None and again.trial is None
            for layer, state in one.states.items():
                truth = out.hidden_states[layer][0, len(prompt) + one.end - 2]  # it gave the last token of the thought
                np.testing.assert_allclose(state, truth.numpy(), atol=2e-4, rtol=1e-3)
        best, second = out.logits[0, len(prompt) - 1 : -1].softmax(-1).topk(2).values.unbind(-1)
        margins = [signals.margin for signals in done.signals if signals is not None]
        np.testing.assert_allclose(margins, (best - second).numpy(), atol=2e-4)


def _no_state(layer: int) -> np.ndarray:
    raise AssertionError
