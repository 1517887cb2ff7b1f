"""Baselines as their papers and their authors' code have them: constants, prompts, and decisions worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.controller import ControllerState
from tersely.controller.policies import get_presets
from tersely.controller.policies.base import Close, Trial, TrialAnswer, Wait
from tersely.controller.policies.exits import Certaindex, Deer, EntropyStop
from tersely.controller.replay import replay
from tersely.controller.text.markers import Markers
from tersely.controller.trace import Decision
from tersely.evaluation.bench.truncation import HARD_CLOSING
from tersely.evaluation.replay.run import match_budget

from ..support.trial_rows import Row
from ..support.word_tokenizer import WordTokenizer

MARKERS = Markers("<think>", "</think>")


def test_the_published_constants() -> None:
    deer, certaindex = Deer(), Certaindex()
    assert (deer.threshold, deer.most, deer.cues) == (0.95, 10, ("Wait",))
    assert deer.prompt is not None and certaindex.prompt is not None
    assert (deer.prompt.opening, deer.prompt.tokens) == ("\n**Final Answer**\n\\boxed{", 20)
    assert (certaindex.every, certaindex.agree) == (64, 3)  # effort "mid"
    assert certaindex.doubts == ("wait", "hold", "but", "okay", "no", "hmm")
    opening = "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{"
    assert (certaindex.prompt.opening, certaindex.prompt.tokens, certaindex.prompt.whole) == (opening, 20, True)
    assert get_presets()["deer"] == {"budget": {}, "deer": {}}
    assert get_presets()["certaindex"] == {"budget": {}, "certaindex": {}}
    assert HARD_CLOSING.startswith("Considering the limited time by the user, I have to give the solution based on")


# -- DEER: exit before a transition if the geometric mean probability of the trial answer exceeds 0.95 -----------------


@pytest.mark.parametrize(
    ("chances", "exits"),
    [
        ((0.97, 0.94), True),  # sqrt(0.9118) = 0.95489
        ((0.96, 0.94), False),  # sqrt(0.9024) = 0.94995
        ((1.0, 0.91), True),  # 0.95394
        ((1.0, 0.901), False),  # 0.94921; the arithmetic mean is 0.9505
    ],
)
def test_deer_compares_the_geometric_mean(chances: Sequence[float], exits: bool) -> None:
    row = Row(Deer())
    before = "So it is 5.\n\n"
    assert row.feed(before + "Wait") == before + "\n**Final Answer**\n\\boxed{", "asked before the cue"
    row.feed("5", chances[0])
    after = row.feed("}", chances[1])
    assert after == before + ("</think>\n\n" if exits else "Wait")
    assert (row.controller.state is ControllerState.ANSWER) == exits
    if exits:
        (decision,) = row.controller.decisions
        assert decision.reason.endswith(f"{math.sqrt(chances[0] * chances[1]):.3f}")
        assert row.controller.position == len(row.out)
    else:
        assert row.feed(", no.") == before + "Wait, no."
        assert row.controller.thinking.text == before + "Wait, no."
        assert row.controller.position == len(row.out) == row.controller.view.tokens


def follow(policy: Deer | Certaindex, text: str, replies: Sequence[TrialAnswer]) -> tuple[list[str], list[Decision]]:
    """The texts after which a recording is asked, with these replies, and the decisions."""
    asked: list[str] = []
    coming: Iterator[TrialAnswer] = iter(replies)

    def answer(thinking: str, trial: Trial) -> TrialAnswer:
        asked.append(thinking)
        return next(coming)

    tokenizer = WordTokenizer()
    ids = tokenizer(text)["input_ids"]
    decisions = replay(ids, [policy], tokenizer, MARKERS, Budget("normal", 1 << 30), answer_trial=answer)
    return asked, list(decisions)


UNSURE = TrialAnswer("7", 0.9, 5, text="7}")


def test_deer_asks_at_each_wait_that_begins_a_sentence_and_ten_times_at_most() -> None:
    text = "I wait. Wait, 1.\nWait: 2.\n\nWait. But Wait. (Wait)\n\n  Wait"
    asked, decisions = follow(Deer(), text, [UNSURE] * 9)
    assert asked == ["I wait. ", "I wait. Wait, 1.\n", text[: text.index("Wait. But")], text[: -len("  Wait")] + "  "]
    assert decisions == []
    asked, _ = follow(Deer(), "So.\n\n" + "Wait. " * 12, [UNSURE] * 12)
    assert len(asked) == 10


def test_deer_ends_the_thinking_before_the_cue() -> None:
    text = "So 7.\n\nWait, again: 8.\n\nWait, I am done."
    asked, (closing,) = follow(Deer(), text, [UNSURE, TrialAnswer("8", 0.951, 5)])
    assert asked[-1] == "So 7.\n\nWait, again: 8.\n\n"
    tokenizer = WordTokenizer()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids[: closing.position]) == asked[-1]


# -- Certaindex: exit where the last three probes agree and none sounds unsure -----------------------------------------


def reply(text: str) -> TrialAnswer:
    return TrialAnswer(text.partition("}")[0], 0.5, 20, text=text)


@pytest.mark.parametrize(
    ("texts", "exit_at"),
    [
        (["7} \\]", "7}", "7}"], 3),
        (["8}", "7}", "7}", "7}"], 4),
        (["7}", "7}", "8}", "7}", "7}", "7}"], 6),
        (["7}", "} \\]", "7}", "7}", "7}"], 5),  # an empty box
        (["7}", "7} Wait, that", "7}", "7}", "7}"], 5),
        (["7}", "7} I know", "7}", "7}", "7}"], 5),  # "no" within a word counts, as in the authors' code
        (["7}", "7 and so on", "7}", "7}", "7}"], 5),  # a box that is not closed
        (["7}", "8}", "7}", "8}", "7}"], None),
    ],
)
def test_certaindex_wants_three_sure_probes_in_a_row(texts: list[str], exit_at: int | None) -> None:
    words = "one " * (32 * len(texts))  # two tokens each
    asked, decisions = follow(Certaindex(), words, [reply(text) for text in texts] * 2)
    closes = [decision.position for decision in decisions]
    assert closes[:1] == ([] if exit_at is None else [64 * exit_at])
    assert [len(text.split()) * 2 for text in asked] == [64 * k for k in range(1, (exit_at or len(texts)) + 1)]


def test_certaindex_reads_its_probe_to_the_last_token() -> None:
    row = Row(Certaindex())
    row.feed("one " * 32)
    opened = row.codec.decode(row.out)
    assert opened.endswith("... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{")
    row.feed("7}" + " so" * 8 + " ")
    assert row.controller.state is ControllerState.TRIAL, "19 tokens"
    assert row.feed("Wait") == "one " * 32


# -- a budget at equal tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "target", "budget"),
    [((10, 20, 30), 60, 30), ((10, 20, 30), 50, 20), ((10, 20, 30), 30, 10), ((10, 20, 30), 44, 17), ((5, 5), 0, 1)],
)
def test_the_budget_that_spends_as_much(lengths: Sequence[int], target: int, budget: int) -> None:
    """Of 10, 20 and 30 tokens, a budget of 17 leaves 10 + 17 + 17 = 44."""
    assert match_budget(lengths, target) == budget


# -- EAT: exit where the moving variance of the entropy behind the closing marker is small -----------------------------


def authors_exit(entropy: Sequence[float], timescale: float, threshold: float, least: int) -> int | None:
    """The index at which the authors' functions stop: moving variance without its first value, from `least` on."""
    mean, variance = [entropy[0]], [0.0]
    for x in entropy[1:]:
        mean.append(timescale * x + (1 - timescale) * mean[-1])
        variance.append(timescale * (x - mean[-1]) ** 2 + (1 - timescale) * variance[-1])
    return next((i for i, value in enumerate(variance[1:]) if i >= least and value < threshold), None)


@pytest.mark.parametrize(("timescale", "threshold", "least"), [(0.2, 2e-4, 25), (0.1, 1e-2, 4), (0.3, 1e-5, 0)])
def test_eat_stops_where_the_authors_functions_do(timescale: float, threshold: float, least: int) -> None:
    entropy = [2.0 * 0.9**i + 0.3 * (i % 3 == 0) * 0.8**i for i in range(80)]
    wanted = authors_exit(entropy, timescale, threshold, least)
    watching = EntropyStop(timescale, threshold, least).watch(Row(EntropyStop()).controller.view)
    assert isinstance(next(watching), Wait)
    replies = iter(entropy)
    while isinstance(next(watching), Trial):
        if isinstance(watching.send(TrialAnswer("", 0.5, 1, entropy=next(replies))), Close):
            break
    assert wanted is not None and len(entropy) - len(list(replies)) == wanted + 2, "the first variance is left out"


def test_eat_asks_for_one_token_behind_the_closing_marker() -> None:
    row = Row(EntropyStop())
    assert row.feed("So it is 5.\n\n") == "So it is 5.\n\n</think>\n\n"
    assert row.feed("5", 0.9) == "So it is 5.\n\n", "its token is dropped"
    assert EntropyStop().least == 25 and get_presets()["eat"] == {"budget": {}, "eat": {}}
