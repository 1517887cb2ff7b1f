"""Rewards and statistics of rollouts: values, calling convention, pickling."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from tersely.errors import OptionError
from tersely.training.methods.adaptthink import NoThinkBonus, ReferenceBaseline
from tersely.training.methods.length import HintBudget
from tersely.training.methods.vsrm import AccuracyCurve, find_cuts, step_rewards
from tersely.training.research.apo import AdaptiveDiscount
from tersely.training.rewards import (
    Correctness,
    GroupBrevity,
    Reward,
    TierAdherence,
    compute_score,
    reward_func,
)
from tersely.training.rollouts import rollout_statistics

RIGHT, WRONG, OPEN = "Two.</think>\n\nThe answer is \\boxed{4}.", "Two.</think>\n\n\\boxed{5}", "It may be \\boxed{4}."
INSTANT = "</think>\n\n\\boxed{4}"


def call(reward: Reward, completions: list[Any], **columns: Any) -> list[float | None]:
    """Call a reward as TRL does."""
    trl = {"trainer_state": None, "log_extra": None, "log_metric": None}
    return reward(prompts=["q"] * len(completions), completions=completions, **columns, **trl)


def test_an_answer_counts_only_after_the_thinking() -> None:
    with Correctness() as reward:
        answers = ["4"] * 4
        assert call(reward, [RIGHT, WRONG, OPEN, INSTANT], answer=answers) == [1, 0, 0, 1]
        messages = [[{"role": "assistant", "content": text}] for text in (RIGHT, WRONG, OPEN, INSTANT)]
        assert call(reward, messages, answer=answers) == [1, 0, 0, 1]
        assert call(reward, [""] * 2, answer=["1/2"] * 2, response=["\\boxed{0.5}", ""]) == [1, 0]
    assert call(Correctness(None), ["The answer is 4."], answer=["4"]) == [1]


def test_adaptthinks_advantage() -> None:
    rewards = [Correctness(), NoThinkBonus(0.05), ReferenceBaseline()]
    columns = {"answer": ["4"] * 3, "reference": [0.75] * 3}
    values = [call(reward, [RIGHT, WRONG, INSTANT], **columns) for reward in rewards]
    assert [sum(v or 0 for v in row) for row in zip(*values, strict=True)] == pytest.approx([0.25, -0.75, 0.3])
    assert call(rewards[1], [RIGHT], mode=["no_think"]) == [0.05]


def test_brevity_is_relative_to_right_completions_of_a_group() -> None:
    reward = GroupBrevity(Correctness(), weight=0.2, min_accuracy=0.5)
    ids = [[0] * n for n in (10, 20, 30, 5)]
    values = call(reward, [RIGHT, RIGHT, RIGHT, WRONG], answer=["4"] * 4, completion_ids=ids)
    assert values == pytest.approx([0.1, 0.0, -0.1, 0.0])
    assert call(reward, [RIGHT, WRONG, WRONG, WRONG], answer=["4"] * 4, completion_ids=ids) == [0] * 4
    assert call(reward, [RIGHT, RIGHT], answer=["4"] * 2, completion_ids=[[0], [0]]) == [0, 0]


def test_brevity_compares_only_completions_that_think() -> None:
    """Compared with an answer without thinking, all thinking would be long."""
    reward = GroupBrevity(Correctness(), weight=0.2, thinking_only=True)
    ids = [[0] * n for n in (4, 10, 30, 20)]
    modes = ["no_think", "think", "think", "think"]
    values = call(reward, [INSTANT, RIGHT, RIGHT, WRONG], answer=["4"] * 4, completion_ids=ids, mode=modes)
    assert values == pytest.approx([0.0, 0.1, -0.1, 0.0])
    with pytest.raises(OptionError) as error:
        call(reward, [RIGHT], answer=["4"], completion_ids=[[0]])
    assert error.value.code == "missing_column"


def test_groups_are_questions() -> None:
    reward = GroupBrevity(Correctness())
    ids = [[0] * n for n in (10, 20, 10, 20)]
    values = reward(["a", "a", "b", "b"], [RIGHT] * 4, answer=["4"] * 4, completion_ids=ids)
    assert values == pytest.approx([0.1, -0.1, 0.1, -0.1])


def test_exceeding_budgets_is_penalised() -> None:
    tiers = TierAdherence({"easy": 100})
    assert call(tiers, [""] * 3, tier=["easy"] * 3, thinking_tokens=[50, 150, 900]) == pytest.approx([0, -0.5, -1])
    hints = HintBudget(100)
    assert call(hints, [""] * 3, after_hint=[None, 100, 125]) == [None, 0, -0.25]


def test_forced_answers_that_thought_do_not_make_a_question_easy() -> None:
    reward = AdaptiveDiscount(Correctness())
    columns = {"answer": ["1"] * 4, "solved": [True] * 4, "start_mode": ["no_think", "no_think", "think", "free"]}
    thought = reward(["q"] * 4, ["x"] * 4, mode=["think"] * 4, **columns)
    assert thought == [1.0] * 4, "nothing was right without thinking, so thinking is not discounted"
    really = reward(["q"] * 4, ["x"] * 4, mode=["no_think", "no_think", "think", "think"], **columns)
    assert really == [1.0, 1.0, 0.0, 0.0]


def test_thinking_is_discounted_on_easy_questions() -> None:
    reward = AdaptiveDiscount(Correctness(), alpha=2, easy=0.5)
    starts = ["no_think", "no_think", "no_think", "think", "free"]
    easy = call(reward, [INSTANT, INSTANT, INSTANT, RIGHT, RIGHT], answer=["4"] * 5, start_mode=starts)
    assert easy == [1, 1, 1, 0, 0]
    wrong = "</think>\n\n\\boxed{5}"
    hard = call(reward, [INSTANT, wrong, wrong, RIGHT, WRONG], answer=["4"] * 5, start_mode=starts)
    assert hard == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "reward",
    [
        Correctness(),
        NoThinkBonus(),
        ReferenceBaseline(),
        GroupBrevity(Correctness()),
        TierAdherence(),
        HintBudget(),
        AdaptiveDiscount(Correctness()),
    ],
    ids=lambda reward: reward.name,
)
def test_rewards_can_be_pickled_and_have_names(reward: Reward) -> None:
    columns = {
        "answer": ["4"],
        "completion_ids": [[1]],
        "tier": ["easy"],
        "thinking_tokens": [9000],
        "after_hint": [1],
        "start_mode": ["free"],
        "reference": [0.5],
    }
    before = call(reward, [INSTANT], **columns)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.__name__ == reward.name and call(copy, [INSTANT], **columns) == before


def test_a_reward_can_be_pickled_while_its_helper_process_runs() -> None:
    said = ["</think>\\boxed{\\frac{1}{2}}"]
    with Correctness() as reward:
        assert call(reward, said, answer=["1/2"]) == [1]  # math-verify's process is running now
        with pickle.loads(pickle.dumps(reward)) as copy:
            assert call(copy, ["</think>\\boxed{0.5}"], answer=["0.5"]) == [1]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(OptionError) as error:
        call(TierAdherence(), [""])
    assert error.value.code == "missing_column"


def test_functions_for_verl_and_openrlhf() -> None:
    made = compute_score("tiny", INSTANT, "4", {"reference": 0.5}, delta=0.05)
    assert made == {"score": 0.55, "correctness": 1, "no_think_bonus": 0.05, "tier_adherence": 0}
    info = {"tier": "easy", "thinking_tokens": 1536, "prompts": "what else a data set has"}
    made = compute_score("tiny", RIGHT, "4", info, adherence=0.2)
    assert made["score"] == pytest.approx(0.9)
    found = reward_func(["q" + RIGHT, "q" + OPEN], ["q", "q"], ["4", "4"])
    assert torch.equal(found["rewards"], torch.tensor([1.0, 0.0]))


def test_cuts_follow_the_sentence_before_a_cue() -> None:
    text = "A is 1. B is 2.\nWait, check A. It is 1. So B is 2. But wait. However, done.\n"
    assert [text[:at] for at in find_cuts(text, floor=0, spacing=1)] == [
        "A is 1. B is 2.\n",
        "A is 1. B is 2.\nWait, check A. It is 1. ",
        "A is 1. B is 2.\nWait, check A. It is 1. So B is 2. ",
        "A is 1. B is 2.\nWait, check A. It is 1. So B is 2. But wait. ",
    ]
    assert find_cuts(text, floor=20, spacing=1)[0] == text.index("So B")
    assert find_cuts(text, floor=0, spacing=1000) == [16]
    assert find_cuts("A butler waits. So be it.", floor=0, spacing=1) == [16]


@pytest.mark.parametrize(
    ("chances", "rewards"),
    [
        ([0.2, 0.8, 0.6], [0.6, -0.2]),
        ([0.2, 0.2, 0.2, 0.8], [0.6 * 0.49, 0.6 * 0.7, 0.6]),
        ([0.2] * 6 + [0.8], [0, 0.6 * 0.7**4, 0.6 * 0.7**3, 0.6 * 0.49, 0.6 * 0.7, 0.6]),
        ([0.5, 0.5], [0.0]),
        ([0.5], []),
    ],
)
def test_steps_are_rewarded_for_their_effect(chances: list[float], rewards: list[float]) -> None:
    assert step_rewards(chances) == pytest.approx(rewards)


def test_without_look_ahead_only_the_own_effect_counts() -> None:
    assert step_rewards([0.2, 0.2, 0.2, 0.8, 0.8], look_ahead=0) == pytest.approx([0, 0, 0.6, 0])
    assert step_rewards([0.2, 0.2, 0.8, 0.8], look_ahead=1) == pytest.approx([0.42, 0.6, 0])


def test_steps_without_effect_are_penalised_if_the_answer_is_right() -> None:
    # Not while it is wrong, and not where a change is still to come.
    chances = [0.2, 0.2, 0.8, 0.8, 1.0, 1.0, 1.0]
    assert step_rewards(chances, 4, 0.1) == pytest.approx([0.42, 0.6, 0.14, 0.2, -0.1, -0.1])
    assert step_rewards([0.0, 0.0, 0.0], 4, 0.1) == [0, 0]


def test_settled_is_the_first_cut_as_good_as_the_end() -> None:
    curves = [AccuracyCurve((5, 7, 9), (0.2, 0.9, 1.0)), AccuracyCurve((5, 7, 9), (1.0, 0.2, 0.4))]
    assert [curve.settled for curve in (*curves, AccuracyCurve((5,), (0.4,)))] == [7, 5, 5]


def row(start_mode: str, right: float, p_no_think: float, tokens: int, **more: Any) -> dict[str, Any]:
    mode = "think" if start_mode == "free" else start_mode
    return {
        "id": "a",
        "start_mode": start_mode,
        "mode": mode,
        "right": right,
        "p_no_think": p_no_think,
        "thinking_tokens": 0 if mode == "no_think" else tokens,
        "response_tokens": 10,
        "finish_reason": "stop",
        "tier": "easy",
        "weight": 1.0,
        "level": 1,
        **more,
    }


def test_forced_modes_are_weighted_with_the_policys_probability() -> None:
    rows = [
        row("think", 1, 0.25, 100),
        row("think", 0, 0.25, 100),
        row("no_think", 0, 0.25, 0),
        row("no_think", 0, 0.25, 0),
    ]
    made = rollout_statistics(rows, empty_tokens=4)
    assert made["policy/accuracy"] == pytest.approx(0.75 * 0.5)
    assert made["policy/tokens"] == pytest.approx(0.75 * 110 + 0.25 * 10)
    assert made["tier/easy/accuracy"] == made["level/1/accuracy"] == made["policy/accuracy"]
    assert (made["modes/think/accuracy"], made["modes/no_think/accuracy"], made["policy/no_think"]) == (0.5, 0, 0.25)
    assert rollout_statistics([row("free", 1, 0.1, 2), *rows], empty_tokens=4)["policy/accuracy"] == 1
    assert rollout_statistics([row("free", 1, 0.1, 2)], empty_tokens=4)["modes/think/empty"] == 1
