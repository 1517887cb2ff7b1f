"""What a controller makes of trial answers: where they end, what they need, who shares them."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import ControllerState
from tersely.controller.policies.base import PolicyView, Trial, TrialPrompt, Wait, Watching
from tersely.controller.text.answers import find_closing_brace
from tersely.controller.text.markers import PROMPTED
from tersely.controller.trials import ANSWER_PREFIX, MAX_TRIAL_TOKENS

from ...support.trial_rows import CLOSE, Asking, Row

OPENED = "So 5.\n\n</think>\n\nThe answer is \\boxed{"


class Also(Asking):
    name: ClassVar[str] = "also"


def test_two_policies_share_a_trial_and_brackets_nest() -> None:
    first, second = Asking(), Also()
    row = Row(first, second)
    assert row.feed("So 5.\n\n") == OPENED
    assert row.feed("\\frac{1") == OPENED + "\\frac{1"
    assert row.feed("}", 0.25) == OPENED + "\\frac{1}"
    assert row.feed("}", 0.125) == "So 5.\n\n"
    ((end, reply),) = first.heard[0]
    assert first.heard == second.heard
    forced = len(row.codec.encode(OPENED)) - len(row.codec.encode("So 5.\n\n"))
    assert reply is not None
    assert (end, reply.answer, reply.tokens) == (5, "\\frac{1}", forced + 6)
    assert reply.confidence == pytest.approx((0.5**4 * 0.25 * 0.125) ** (1 / 6))
    assert [(d.retract, d.trial) for d in row.said] == [(0, True), (forced + 6, False)]
    assert row.feed("And on.") == "So 5.\n\nAnd on."
    assert row.controller.position == len(row.out) == row.controller.view.tokens


def test_policies_that_ask_in_different_ways_do_not_share_a_trial() -> None:
    class Differently(Also):
        def watch(self, view: PolicyView) -> Watching:
            yield Wait(at=1, boundary="thought")
            self.heard.append([(view.tokens, (yield Trial(prompt=TrialPrompt("\\boxed{", 2))))])

    first, second = Asking(), Differently()
    row = Row(first, second)
    assert row.feed("So 5.\n\n") == OPENED
    row.feed("5}")
    assert [reply is not None for _, reply in first.heard[0]] == [True]
    assert second.heard == [[(5, None)]]


def test_a_prompt_of_its_own_opens_the_box_within_the_thinking_and_bounds_the_reply() -> None:
    class Briefly(Asking):
        def watch(self, view: PolicyView) -> Watching:
            yield Wait(at=1, boundary="thought")
            self.heard.append([(view.tokens, (yield Trial(prompt=TrialPrompt(" \\boxed{", 3))))])

    row = Row(policy := Briefly())
    assert row.feed("So 5.\n\n") == "So 5.\n\n \\boxed{"
    row.feed("1 2 3")
    ((_, reply),) = policy.heard[0]
    assert reply is not None
    assert (reply.text, reply.answer) == ("1 2", "1 2")


def test_a_trial_that_never_closes_its_box_is_cut() -> None:
    policy = Asking()
    row = Row(policy)
    row.feed("So 5.\n\n")
    row.feed("7 " * (MAX_TRIAL_TOKENS // 2 - 1) + "7")
    assert policy.heard == [[]]
    assert row.feed(" ") == "So 5.\n\n"
    ((_, reply),) = policy.heard[0]
    assert reply is not None
    assert reply.answer == " ".join("7" * (MAX_TRIAL_TOKENS // 2))


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("opened", [True, False])
def test_a_trial_needs_room_for_the_longest(opened: bool, short: int) -> None:
    before = "" if opened else "<think>"
    row = Row(Asking())
    size = len(row.codec.encode(before + OPENED)) + MAX_TRIAL_TOKENS
    row = Row(policy := Asking(), budget=Budget("normal", size - 10 - short, 10), opened=opened)
    row.feed(before + "So 5.\n\n")
    assert bool(row.said) != bool(short)
    assert policy.heard == ([[(5, None)]] if short else [[]])


@pytest.mark.filterwarnings("ignore:policy .* is disabled:RuntimeWarning")
def test_two_trials_without_a_wait_between_them_are_a_mistake() -> None:
    row = Row(Asking(Trial()))
    row.feed("So 5.\n\n")
    assert row.feed("5} And on.") == "So 5.\n\n And on."
    (decision,) = row.controller.decisions
    assert decision.action == "error" and "must wait between two trials" in decision.reason


@pytest.mark.parametrize("options", [{"shadow": True}, {"budget": Budget("normal", 12, 4)}])
def test_a_policy_may_act_where_no_trial_was_asked(options: dict[str, Any]) -> None:
    row = Row(Asking(CLOSE), **options)
    row.feed("So 5.\n\n")
    assert [d.action for d in row.controller.decisions] == ["close"]


def test_a_turn_that_ends_within_a_trial_ends_the_trial_alone() -> None:
    row = Row(policy := Asking())
    (row.codec.tokenizer.eos_token_id,) = row.codec.encode("END")
    assert row.feed("So 5.\n\n7 END") == "So 5.\n\n"
    assert row.controller.state is ControllerState.THINKING and not row.controller.decisions
    ((_, reply),) = policy.heard[0]
    assert reply is not None
    assert reply.tokens == row.said[-1].retract


def test_a_trial_answer_is_what_stands_before_the_end_of_the_turn() -> None:
    row = Row(policy := Asking())
    (row.codec.tokenizer.eos_token_id,) = row.codec.encode("END")
    row.feed("So 5.\n\n7 END")
    ((_, reply),) = policy.heard[0]
    assert reply is not None
    assert reply.answer == "7"


def test_a_model_that_was_asked_to_think_reads_one_sentence() -> None:
    row = Row(Asking(), markers=PROMPTED)
    said = row.feed("So 5.\n\n").partition("</think>")[2]
    assert said.endswith("\\boxed{") and "isThe" not in said


def test_braces_are_counted_to_the_one_that_closes_the_first() -> None:
    texts = ("a{b}", "{{", "a}{{", "", "a{b}c}d}", "}")
    assert [find_closing_brace(text) for text in texts] == [None, None, 1, None, 5, 0]
    assert ANSWER_PREFIX.count("{") == 1
