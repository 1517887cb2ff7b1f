"""One truth for what is thinking: controller, stream and result agree, whatever looks like a marker."""

from __future__ import annotations

from random import Random

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller, ControllerState
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies.exits import BudgetForcing
from tersely.controller.streaming import StreamEmitter
from tersely.controller.text.markers import MarkerDecoder, Markers, find_markers
from tersely.controller.text.reasoning_parser import ReasoningParser, ReasoningParts, split_reasoning
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter

CODEC = TokenizerAdapter(load_engine("tersely-tiny-small").tokenizer)
MARKERS = find_markers(CODEC.tokenizer)
PIECES = ["a", " b. ", "\n", "\n\n", "`", "```\n", "<think>", "</think>", "\ufdd0", " ", "Wait, no. ", "5"]


def spelled(text: str) -> list[int]:
    """The tokens of a text, character by character, so that none is a marker."""
    return [token for character in text for token in CODEC.encode(character)]


class Followed:
    """An output as the controller, a stream and the result see it."""

    def __init__(self, state: str = "thinking", budget: int = 500) -> None:
        self.state, self.ids = state, list[int]()
        self.controller = Controller(
            [BudgetForcing()], CODEC, MARKERS, Budget("normal", budget), opened=state == "thinking"
        )
        self.parser = ReasoningParser(MARKERS, state, codec=CODEC)
        self.emitter = StreamEmitter(CODEC, self.parser, lambda event: None, self.controller)

    def feed(self, ids: list[int] | tuple[int, ...]) -> Followed:
        for token in ids:
            directive = self.controller.observe(token)
            self.ids += (token, *directive.force)
            self.emitter((token,), False)
            if directive.force:
                self.emitter(directive.force, True)
        return self

    @property
    def parts(self) -> ReasoningParts:
        return split_reasoning(self.ids, CODEC, MARKERS, self.state, self.parser.forced)

    def check(self) -> None:
        parts = self.parts
        self.emitter.finish()
        assert (self.parser.channel == "thinking") == (self.controller.state is ControllerState.THINKING)
        assert (self.parser.thinking, self.parser.answer) == (parts.thinking, parts.answer)


@pytest.mark.parametrize("state", ["before", "thinking"])
def test_controller_stream_and_result_agree(state: str) -> None:
    for seed in range(100):
        rng = Random(seed)
        output = Followed(state)
        for _ in range(rng.randint(1, 24)):
            piece = rng.choice(PIECES)
            output.feed(spelled(piece) if rng.random() < 0.3 else CODEC.encode(piece))
        output.check()


def test_a_marker_that_is_spelled_out_ends_and_opens_nothing() -> None:
    output = Followed(budget=60).feed([*CODEC.encode("So.\n"), *spelled("</think>")])
    assert output.controller.state is ControllerState.THINKING
    output.feed(CODEC.encode("one two three. " * 12))
    assert "Time is short" not in output.parts.answer and "</think>" in output.parts.thinking
    answer = Followed().feed([*CODEC.encode("So.\n</think>\n\n"), *spelled("<think>"), *CODEC.encode(" opens it.")])
    assert answer.parts.answer == "<think> opens it."
    answer.check()


def test_text_before_a_late_opening_marker_stays_in_the_answer_and_counts_against_the_budget() -> None:
    quoted = Followed("before").feed(CODEC.encode("Wrap thoughts in <think> tags. 42 is the answer."))
    assert quoted.controller.state is ControllerState.BEFORE
    quoted.check()
    assert quoted.parser.answer == "Wrap thoughts in <think> tags. 42 is the answer."
    late = Followed("before", 80).feed(CODEC.encode("Let me see what that is, and how.\n<think>\n"))
    late.feed(CODEC.encode("one two three. " * 20))
    assert late.parser.forced and len(late.controller.thinking) <= 80
    assert "Let me see" in late.controller.thinking.text and late.parser.answer.startswith("Let me see")


def test_markers_of_several_tokens_are_text() -> None:
    decoder = MarkerDecoder(CODEC, Markers("[[think]]", "[[/think]]"))
    assert (decoder.open, decoder.decode(CODEC.encode("[[think]]"))) == ("[[think]]", "[[think]]")
