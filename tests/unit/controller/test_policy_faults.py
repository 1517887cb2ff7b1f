"""What policies say by the way, and what becomes of a row whose policies fail, misbehave or undo each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from tersely.controller import controller as core
from tersely.controller.controller import ControllerState
from tersely.controller.policies.base import (
    Action,
    AskVerifier,
    Close,
    Delegate,
    Inject,
    Note,
    Policy,
    PolicyView,
    Trial,
    Wait,
    Watching,
)
from tersely.controller.policies.exits import BudgetForcing, Convergence
from tersely.errors import OptionError

from ...support.policy_feeding import Fed

pytestmark = pytest.mark.filterwarnings("ignore:policy .* is disabled:RuntimeWarning")

CHAIN = (
    "2+3=5.\nSo I get 5.\n\nWait, once more in short.\n2+3=5.\nSo the answer is 5.\n\nHmm, again.\nThat makes 5.\n\n"
)
CUT = CHAIN[: CHAIN.index("Hmm")] + "</think>\n\n"


@dataclass(frozen=True)
class Made(Policy):
    """A policy of one function."""

    watching: Callable[[PolicyView], Watching]
    name: ClassVar[str] = "made"

    def watch(self, view: PolicyView) -> Watching:
        return self.watching(view)


def test_a_note_is_traced_and_the_policy_goes_on_at_once() -> None:
    seen: list[int] = []

    def watching(view: PolicyView) -> Watching:
        yield Note("begins")
        yield Wait(3, "token")
        seen.append(view.tokens)
        yield Note("three tokens")
        seen.append(view.tokens)
        yield Inject("HINT", "now", after=" ")

    row = Fed(Made(watching)).feed("a b c d")
    assert seen == [3, 3]
    assert [(d.action, d.reason, d.position, d.text, d.acted) for d in row.controller.decisions] == [
        ("note", "begins", 0, "", True),
        ("note", "three tokens", 3, "", True),
        ("inject", "now", 3, "\n\nHINT ", True),
    ]


def raises(view: PolicyView) -> Watching:
    yield Wait(view.tokens + 2, "token")
    raise ValueError("no\nsuch thing")


def raises_at_once(view: PolicyView) -> Watching:
    if view.tokens == 0:
        raise ValueError("no such thing")
    yield Wait()


def raises_after_its_bid(view: PolicyView) -> Watching:
    yield Wait(1, "token")
    yield Inject("HINT", "first")
    raise ValueError("no such thing")


def raises_after_a_trial(view: PolicyView) -> Watching:
    yield Wait(1, "token")
    yield Trial()
    raise ValueError("no such thing")


@pytest.mark.parametrize("watching", [raises, raises_at_once])
@pytest.mark.parametrize("shadow", [False, True])
def test_a_policy_that_raises_leaves_the_others_at_work(
    watching: Callable[[PolicyView], Watching], shadow: bool
) -> None:
    with pytest.warns(RuntimeWarning):
        row = Fed(Made(watching), Convergence(agree=2), shadow=shadow).feed(CHAIN)
    assert row.text == (CHAIN if shadow else CUT)
    assert row.said == [("made", "error"), ("convergence", "close")]
    error = row.controller.decisions[0]
    assert (error.reason, error.acted) == ("disabled after ValueError: no such thing", True)


@pytest.mark.parametrize("watching", [raises_after_its_bid, raises_after_a_trial])
def test_what_a_policy_did_before_it_raised_stays(watching: Callable[[PolicyView], Watching]) -> None:
    row = Fed(Made(watching)).feed("a 5} b c")
    assert row.said[-1] == ("made", "error")
    assert row.text == ("a\n\nHINT\n\n 5} b c" if watching is raises_after_its_bid else "a b c")


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (None, "yielded None; accepted: Wait, Inject, Close, "),
        ("close", "yielded 'close'"),
        (Wait(None, "token"), "TypeError"),  # type: ignore[arg-type]
        (Wait(3, "token", deadline="late"), "TypeError"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_move_leaves_the_policy_out(move: Any, message: str) -> None:
    def watching(view: PolicyView) -> Watching:
        yield Wait(1, "token")
        yield move

    row = Fed(Made(watching), Convergence(agree=2)).feed(CHAIN)
    assert (row.text, row.said[0]) == (CUT, ("made", "error"))
    assert message in row.controller.decisions[0].reason


@pytest.mark.parametrize("action", [Inject("</think>", "enough"), Delegate(9, "enough", prefix="So 5.</think>")])
def test_only_a_close_may_end_the_thinking(action: Action) -> None:
    def watching(view: PolicyView) -> Watching:
        yield Wait(1, "token")
        yield action

    row = Fed(Made(watching), Convergence(agree=2)).feed(CHAIN)
    assert (row.text, row.said) == (CUT, [("made", "error"), ("convergence", "close")])


def test_a_policy_that_only_talks_is_left_out() -> None:
    def watching(view: PolicyView) -> Watching:
        yield Wait(1, "token")
        while True:
            yield Note("and another thing")

    row = Fed(Made(watching), Convergence(agree=2)).feed(CHAIN)
    assert row.text == CUT
    assert "must wait after at most" in next(d.reason for d in row.controller.decisions if d.action == "error")
    assert 10 < row.said.count(("made", "note")) < 200


@pytest.mark.parametrize("action", [Trial, AskVerifier])
def test_a_text_is_no_trial_prompt_and_no_question(action: Any) -> None:
    with pytest.raises(OptionError) as caught:
        action("The answer is")
    assert caught.value.code == "invalid_option"


def test_a_wait_knows_its_boundaries_and_a_policy_without_a_name_has_that_of_its_class() -> None:
    with pytest.raises(OptionError) as caught:
        Wait(boundary="thougth")  # type: ignore[arg-type]
    assert caught.value.code == "unknown_name"

    class Nameless(Policy):
        def watch(self, view: PolicyView) -> Watching:
            yield Wait()

    assert (Nameless.name, Made.name) == ("Nameless", "made")


def test_acting_before_waiting_and_what_watch_itself_raises_are_mistakes_of_the_programmer() -> None:
    def hasty(view: PolicyView) -> Watching:
        yield Close("at once")

    def refuses(view: PolicyView) -> Watching:
        raise LookupError("these settings do not fit")

    for mistaken in (hasty, lambda view: None):
        with pytest.raises(OptionError) as caught:
            Fed(Made(mistaken))  # type: ignore[arg-type]
        assert caught.value.code == "invalid_policy"
    with pytest.raises(LookupError):
        Fed(Made(refuses))


def stubborn(view: PolicyView) -> Watching:
    while True:
        yield Wait(boundary="close")
        yield Inject("Wait.", "never enough", after=" ")


def chatty(view: PolicyView) -> Watching:
    while True:
        yield Wait(view.tokens + 1, "token")
        yield Inject("Go on.", "and on")


def test_who_takes_back_every_close_comes_to_an_end() -> None:
    row = Fed(Made(stubborn), thinking=100_000)
    row.feed("</think>" * (core.MAX_ACTIONS + 5))
    assert row.controller.state is ControllerState.ANSWER
    assert row.said.count(("made", "inject")) == core.MAX_ACTIONS
    assert row.said[-1] == ("made", "note") and "policies may be undoing each other" in row.last.reason


@pytest.mark.parametrize(("watching", "text"), [(stubborn, "word</think>"), (chatty, "word ")])
@pytest.mark.parametrize("thinking", range(40, 60))
def test_no_policy_talks_a_row_beyond_its_budget(
    watching: Callable[[PolicyView], Watching], text: str, thinking: int
) -> None:
    row = Fed(Made(watching), BudgetForcing(), thinking=thinking).feed(text * 200)
    written = row.text[: row.text.index("</think>")] + "</think>\n\n"
    assert row.said.count(("made", "inject")) >= 2
    assert len(row.codec.encode(written)) <= thinking


def test_after_the_last_injection_the_budget_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_ACTIONS", 3)
    row = Fed(Made(chatty), BudgetForcing(), thinking=80).feed("one two three. " * 60)
    assert row.said == [*[("made", "inject")] * 3, ("made", "note"), ("budget", "close")]
    assert row.text.endswith("I answer now.\n</think>\n\n")
