"""The controller: phases, sleeping policies, conflicts, protection, shadow, always an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller, ControllerState
from tersely.controller.policies import make_policies
from tersely.controller.policies.base import Close, Inject, Policy, PolicyView, Wait, Watching
from tersely.controller.policies.exits import BudgetForcing, Convergence
from tersely.controller.policies.hint import BrevityHint
from tersely.controller.replay import replay
from tersely.controller.text.markers import PROMPTED, Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.types import KEEP

from ...support.word_tokenizer import WordTokenizer

MARKERS = Markers("<think>", "</think>")
CHAIN = (
    "2+3=5.\nSo I get 5.\n\nWait, once more in short.\n2+3=5.\nSo the answer is 5.\n\nHmm, again.\nThat makes 5.\n\n"
)


@dataclass(frozen=True)
class Scripted(Policy):
    """Does one thing at one place."""

    at: int
    action: Inject | Close
    boundary: str = "token"
    name: ClassVar[str] = "scripted"

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(self.at, self.boundary)  # type: ignore[arg-type]
        yield self.action


@dataclass(frozen=True)
class Second(Scripted):
    name: ClassVar[str] = "second"


class Row:
    """Feeds text to a controller as an engine would and keeps the output."""

    def __init__(self, *policies, thinking: int = 500, opened: bool = True, shadow: bool = False) -> None:
        self.codec = TokenizerAdapter(WordTokenizer())
        self.controller = Controller(
            policies, self.codec, MARKERS, Budget("normal", thinking), opened=opened, shadow=shadow
        )
        self.text = ""

    def feed(self, text: str) -> str:
        for token in self.codec.encode(text):
            directive = self.controller.observe(token)
            self.text += self.codec.decode([token]) + self.codec.decode(directive.force)
            if self.controller.state is ControllerState.ANSWER and directive is not KEEP:
                break
        return self.text


def test_convergence_closes_at_the_second_equal_answer_and_names_it():
    row = Row(Convergence(agree=2))
    out = row.feed(CHAIN)
    assert out == CHAIN[: CHAIN.index("Hmm")] + "</think>\n\n"
    (decision,) = row.controller.decisions
    assert (decision.policy, decision.action) == ("convergence", "close")
    assert "2 derivations agree on the answer 5" in decision.reason


def test_a_model_that_was_asked_to_think_is_led_into_its_answer() -> None:
    codec = TokenizerAdapter(WordTokenizer())
    controller = Controller([BudgetForcing()], codec, PROMPTED, Budget("normal", 8))
    forced = [d.force for token in codec.encode("one two three. " * 9) if (d := controller.observe(token)) is not KEEP]
    assert codec.decode(forced[0]).endswith("</think>\n\nThe final answer is")


def test_convergence_needs_successive_equal_answers():
    changing = (
        "So the answer is 5.\n\nWait, no, one two three four five.\nSo I get 6.\n\n"
        "Hmm, six seven eight nine ten.\nSo I get 5.\n\n"
    )
    assert Row(Convergence(agree=2)).feed(changing) == changing


def test_a_restatement_is_not_a_derivation():
    text = "So the answer is 5.\n\nThe answer is 5.\n\nand on\n\n"
    assert Row(Convergence(agree=2)).feed(text) == text
    assert "</think>" in Row(Convergence(agree=2)).feed(text.replace("\n\nThe", "\n\nLet me check. The"))


def test_what_is_only_concluded_does_not_end_the_thinking():
    text = "So that leaves 5.\n\nWait, let me check.\nSo that leaves 5.\n\n" * 3
    assert Row(Convergence(agree=2)).feed(text) == text


def test_long_thoughts_are_read_at_the_ends_of_sentences():
    text = (
        "So the answer is 5 eggs. But wait, one more check. "
        + "word " * 60
        + "So the answer is 5 eggs. And on it goes."
    )
    row = Row(Convergence(agree=2))
    assert row.feed(text).endswith("So the answer is 5 eggs.\n\n</think>\n\n")
    assert row.controller.decisions[0].policy == "convergence"


@pytest.mark.parametrize("limit", [20, 60, 120])
def test_budget_is_never_exceeded_closing_included(limit):
    row = Row(BudgetForcing(), thinking=limit)
    out = row.feed("word and word, " * 200)
    thinking = out[: out.index("</think>")] + "</think>\n\n"
    assert len(row.codec.encode(thinking)) <= limit
    assert out.endswith("</think>\n\n")
    assert ("Time is short, so I answer now.\n" in out) == (limit > 40)


def test_budget_prefers_a_sentence_end_within_its_slack():
    row = Row(BudgetForcing(slack=24), thinking=80)
    out = row.feed("one two three. " * 60)
    assert out.split("\n\n")[0].endswith("three.")


def test_hint_is_injected_on_a_line_of_its_own_and_again_in_the_next_block():
    row = Row(BrevityHint(alpha=30, beta=0.0, earliest=12))
    out = row.feed("one two. " * 40)
    assert out.count("\n\n[Be concise.]\n\n") >= 2
    first, second = row.controller.decisions[:2]
    assert 12 <= first.position < 18
    assert second.position >= 30


def test_a_decimal_point_is_no_sentence_end():
    row = Row(Scripted(1, Inject("HINT", "h"), "sentence"))
    assert row.feed("pi is 3.14 here. And") == "pi is 3.14 here.\n\nHINT\n\n And"


def test_hint_interval_is_the_papers():
    hint = BrevityHint()
    assert [hint.interval(n) for n in (0, 1000, 4480, 9999)] == [128, 328, 1024, 1024]


def test_closing_beats_injecting_and_the_first_policy_wins_otherwise():
    inject, close = Scripted(3, Inject("A", "a")), Second(3, Close("b"))
    assert Row(inject, close).feed("x y z w ").endswith("</think>\n\n")
    row = Row(Scripted(3, Inject("A", "a")), Second(3, Inject("B", "b")))
    assert "A" in row.feed("x y z w v ") and "B" not in row.text


@pytest.mark.parametrize(
    "opening", ["```python\nx = 1\n", "<tool_call>\n", "\\[ x + ", "$$ a ", '{"name": ', "so $x + y "]
)
def test_nothing_acts_in_code_math_or_tool_calls(opening):
    text = opening + "a b c d e f "
    assert Row(Scripted(len(TokenizerAdapter(WordTokenizer()).encode(opening)), Inject("HINT", "h"))).feed(text) == text


def test_a_deadline_injects_nothing_into_code():
    @dataclass(frozen=True)
    class Late(Scripted):
        def watch(self, view: PolicyView) -> Watching:
            yield Wait(self.at, "thought", deadline=self.at)
            yield self.action

    code = "```\n" + "x = 1\n" * 100
    assert Row(Late(3, Inject("Be brief.", "late"))).feed(code) == code
    assert "</think>" in Row(Late(3, Close("late"))).feed(code)


@pytest.mark.parametrize("limit", [28, 40, 72])
def test_a_phrase_that_does_not_fit_the_budget_is_left_out(limit: int) -> None:
    row = Row(Scripted(limit // 4, Close("so", phrase="a b c " * 20)), BudgetForcing(), thinking=limit)
    row.feed("one two three " * 40)
    assert row.controller.decisions[0].reason == "so" and "a b c" not in row.controller.decisions[0].text
    assert len(row.controller.thinking) <= limit and row.controller.state is ControllerState.ANSWER


def test_a_deferred_action_comes_after_the_region_closes():
    row = Row(Scripted(2, Inject("HINT", "h")))
    out = row.feed("```\ncode code\n```\nand on we go ")
    assert out.index("HINT") > out.rindex("```")


def test_a_currency_sign_opens_no_region():
    assert "HINT" in Row(Scripted(6, Inject("HINT", "h"))).feed("It costs $5 and more than that ")


def test_nothing_acts_in_the_answer_or_before_thinking():
    row = Row(Scripted(1, Inject("HINT", "h"), "sentence"), opened=False)
    text = "Sure. Ok. "
    assert row.feed(text) == text
    row = Row(Convergence(agree=1))
    text = "no answer\n\n</think>\n\nSo the answer is 5.\n\nSo the answer is 5.\n\n"
    assert row.feed(text) == text
    assert row.controller.state is ControllerState.ANSWER


@pytest.mark.parametrize("shadow", [False, True])
def test_a_turn_that_ends_within_the_thinking_is_closed_so_that_an_answer_follows(shadow):
    tokenizer = WordTokenizer()
    codec = TokenizerAdapter(tokenizer)
    (end,) = codec.encode("END")
    tokenizer.eos_token_id = end
    controller = Controller((Convergence(),), codec, MARKERS, Budget("normal", 500), shadow=shadow)
    for token in codec.encode("2+3=5.\n"):
        assert controller.observe(token) is KEEP
    directive = controller.observe(end)
    assert codec.decode(directive.force) == ("" if shadow else "\n</think>\n\n")
    assert directive.retract == (0 if shadow else 1)
    (decision,) = controller.decisions
    assert (decision.policy, decision.action, decision.acted) == ("controller", "close", not shadow)
    if not shadow:
        assert controller.observe(end) is KEEP, "in the answer it ends as it should"


def test_thinking_opened_by_the_model_is_noticed():
    row = Row(Convergence(agree=1), opened=False)
    assert row.feed("<think>\nSo the answer is 5.\n\nmore").endswith("5.\n\n</think>\n\n")


def test_markers_of_several_tokens_are_noticed_though_fused():
    class NoMarkers(WordTokenizer):
        def get_added_vocab(self):
            return {}

    codec = TokenizerAdapter(NoMarkers())
    markers = Markers("[go]", "[stop]")
    controller = Controller((), codec, markers, Budget("normal", 100), opened=False)
    for token in codec.encode("a\n[go] b"):
        controller.observe(token)
    assert controller.state is ControllerState.THINKING
    for token in codec.encode(" c [stop] d"):
        controller.observe(token)
    assert controller.state is ControllerState.ANSWER


def test_shadow_changes_nothing_and_records_what_would_be():
    row = Row(Convergence(agree=2), shadow=True)
    assert row.feed(CHAIN) == CHAIN
    assert [d.acted for d in row.controller.decisions] == [False]


def test_replay_finds_the_same_decision():
    tokenizer = WordTokenizer()
    ids = tokenizer(CHAIN)["input_ids"]
    (decision,) = replay(ids, make_policies("balanced"), tokenizer, MARKERS, Budget("normal", 500))
    assert decision.policy == "convergence"


def test_a_replay_may_end_where_the_thinking_would():
    tokenizer, policies = WordTokenizer(), make_policies(policies=("convergence", "budget"))
    ids, budget = tokenizer(CHAIN)["input_ids"], Budget("normal", 55)
    whole = replay(ids, policies, tokenizer, MARKERS, budget)
    assert [decision.policy for decision in whole] == ["budget", "convergence"]
    assert replay(ids, policies, tokenizer, MARKERS, budget, until_close=True) == whole[:1]


@pytest.mark.filterwarnings("ignore:policy .* is disabled:RuntimeWarning")
def test_a_policy_must_wait_between_actions():
    @dataclass(frozen=True)
    class Greedy(Policy):
        name: ClassVar[str] = "greedy"

        def watch(self, view: PolicyView) -> Watching:
            yield Wait(1, "token")
            while True:
                yield Inject("x", "x")

    row = Row(Greedy())
    assert row.feed("a b c").count("x") == 1
    assert [(d.policy, d.action) for d in row.controller.decisions] == [("greedy", "inject"), ("greedy", "error")]
    assert "must wait between two actions" in row.controller.decisions[-1].reason
