"""Rewards in other people's scripts: TRL's own trainer, the calls of verl and OpenRLHF, and data that are not ours."""

from __future__ import annotations

import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.errors import OptionError
from tersely.models import get_model_path
from tersely.training.rewards import Correctness, GroupBrevity, ReferenceBaseline, TierAdherence
from tersely.training.rewards.framework_adapters import compute_score, reward_func
from tersely.training.sampling import CompletionRequest, Sampler

from ..support.trainings import recipe

RIGHT, INSTANT = "Two.</think>\n\nThe answer is \\boxed{4}.", "</think>\n\n\\boxed{4}"
NUMBERS: tuple[Any, ...] = (4, 4.0, np.int64(4), np.float32(4), Decimal("4.00"), Fraction(4), "4")
NO_ANSWERS: tuple[Any, ...] = (None, float("nan"), float("inf"), True, ["4"], {})


def batch(reward: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    values: list[float | None] = reward(prompts=["q"] * len(completions), completions=completions, **columns)
    return values


def boxed(answer: str) -> str:
    return f"</think>\\boxed{{{answer}}}"


@pytest.mark.parametrize("gold", NUMBERS, ids=repr)
def test_answers_may_be_numbers(gold: Any) -> None:
    with Correctness() as reward:
        assert batch(reward, [RIGHT, boxed("5")], answer=[gold] * 2) == [1, 0]
    assert compute_score("tiny", RIGHT, gold)["score"] == 1
    assert compute_score("tiny", boxed("5"), gold)["score"] == 0
    assert reward_func(["q" + RIGHT, "q" + boxed("5")], ["q"] * 2, [gold] * 2)["rewards"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("gold", "said"),
    [(1e22, "1" + "0" * 22), (1e-05, "0.00001"), (10**400, "1" + "0" * 400)],
    ids=["large", "small", "beyond floats"],
)
def test_large_and_small_numbers_are_compared_digit_by_digit(gold: float, said: str) -> None:
    with Correctness() as reward:
        assert batch(reward, [boxed(said), boxed(said + "1")], answer=[gold] * 2) == [1, 0]


@pytest.mark.parametrize("gold", NO_ANSWERS, ids=repr)
def test_what_is_no_answer_is_named(gold: Any) -> None:
    # Even where the model says nothing, which would be wrong whatever the answer is.
    for completion in (RIGHT, "It may be"):
        with pytest.raises(OptionError, match=r"row 1 of this batch's column 'answer' is .*accepted: text or"):
            batch(Correctness(), [RIGHT, completion], answer=["4", gold])
        with pytest.raises(OptionError, match=r"ground_truth is .*accepted: text or"):
            compute_score("tiny", completion, gold)
        with pytest.raises(OptionError, match=r"label 0 of this batch is .*accepted: text or"):
            reward_func(["q" + completion], ["q"], [gold])


def test_what_is_judged_already_needs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def is_right(self: Correctness, gold: str, said: str, drawn: Any = None) -> bool:
        asked.append((gold, drawn))
        return False

    monkeypatch.setattr(Correctness, "is_right", is_right)
    entry = ["leg_counting", "{}"]
    columns = {"answer": [None, None, "4"], "solved": [True, None, None], "drawn": [None, entry, None]}
    assert batch(Correctness(), [RIGHT] * 3, **columns) == [1, 0, 0]
    assert asked == [("", entry), ("4", None)]


def test_openrlhf_reads_a_mapping_and_may_say_more() -> None:
    found = reward_func(["q" + RIGHT], ["q"], ["4"], datasource=["tiny"])
    assert found["rewards"].tolist() == found["scores"].tolist() == [1.0] and found["extra_logs"] == {}


def test_verl_may_leave_out_the_reference_but_not_what_is_weighed() -> None:
    assert compute_score("tiny", INSTANT, "4", {"reference": None}, delta=0.05)["score"] == pytest.approx(1.05)
    with pytest.raises(OptionError, match=r"extra_info\['reference'\] is 'half'"):
        compute_score("tiny", INSTANT, "4", {"reference": "half"})
    for info in ({"tier": "easy"}, {"tier": "easy", "thinking_tokens": None}):
        with pytest.raises(OptionError, match="extra_info has no 'thinking_tokens'"):
            compute_score("tiny", RIGHT, "4", info, adherence=0.2)
    with pytest.raises(OptionError, match=r"extra_info\['thinking_tokens'\] is 'many'"):
        compute_score("tiny", RIGHT, "4", {"tier": "easy", "thinking_tokens": "many"}, adherence=0.2)
    for extra in (None, {"tier": ["easy"]}):
        with pytest.raises(OptionError, match="unknown tier in extra_info"):
            compute_score("tiny", RIGHT, "4", extra, adherence=0.2)


def test_columns_that_are_no_numbers_are_named() -> None:
    with pytest.raises(OptionError, match="row 1 of this batch's column 'reference' is None"):
        batch(ReferenceBaseline(), [RIGHT] * 2, reference=[0.5, None])
    with pytest.raises(OptionError, match="row 0 of this batch's column 'thinking_tokens' is None"):
        batch(TierAdherence(), [RIGHT], tier=["easy"], thinking_tokens=[None])


@pytest.mark.parametrize("tier", ["esay", None, ["easy"]], ids=repr)
def test_a_tier_that_there_is_not_is_named(tier: Any) -> None:
    with pytest.raises(OptionError, match=r"unknown tier .*accepted: none, easy, normal, hard"):
        batch(TierAdherence(), [RIGHT], tier=[tier], thinking_tokens=[1])
    with pytest.raises(OptionError, match=r"accepted: easy$"):
        batch(TierAdherence({"easy": 100}), [RIGHT], tier=["hard"], thinking_tokens=[1])


def test_thinking_is_counted_by_its_last_token() -> None:
    reward = pickle.loads(pickle.dumps(TierAdherence({"easy": 4}, marker_id=9)))
    ids = [[1, 1, 1, 9, 5, 5], [1, 1, 1, 1, 1, 9, 5], [9, 5, 5, 5, 5, 5, 5], [1] * 6, [9, 1, 1, 1, 9, 5], []]
    easy = ["easy"] * len(ids)
    assert batch(reward, [""] * 6, tier=easy, completion_ids=ids) == [0, -0.5, 0, -0.5, -0.25, 0]
    # What the rollouts say is more than what ids tell.
    assert batch(reward, [""] * 6, tier=easy, completion_ids=ids, thinking_tokens=[6] * 6) == [-0.5] * 6
    with pytest.raises(OptionError, match=r"needs a column 'thinking_tokens'.*marker_id=tokenizer"):
        batch(TierAdherence(), [""] * 6, tier=easy, completion_ids=ids)
    with pytest.raises(OptionError, match="needs a column 'completion_ids'"):
        batch(reward, [""] * 6, tier=easy)


@pytest.mark.parametrize("marker_id", [-1, True, "</think>", [9], 9.0], ids=repr)
def test_a_marker_is_the_id_of_a_token(marker_id: Any) -> None:
    with pytest.raises(OptionError, match=r"marker_id is .*accepted: the id of one token"):
        TierAdherence(marker_id=marker_id)


def test_both_ways_of_counting_agree(tmp_path: Path) -> None:
    sampler = Sampler(load_engine("tersely-tiny-small"), recipe("ser", tmp_path).rollouts)
    begun = ["free", "no_think"] * 4
    made = sampler(
        [CompletionRequest("Kai has 9 shells. Kai finds 3 more. Count the shells.", begun=how) for how in begun], seed=0
    )
    columns = {"tier": ["easy"] * 8, "completion_ids": [list(rollout.ids) for rollout in made]}
    counted = batch(TierAdherence({"easy": 40}, sampler.close), [""] * 8, **columns)
    given = [rollout.thinking_tokens for rollout in made]
    assert counted == batch(TierAdherence({"easy": 40}), [""] * 8, thinking_tokens=given, **columns)
    assert len(set(given)) > 2 and 0 in given and min(value or 0 for value in counted) < 0


@pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")
def test_in_a_script_of_trl(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    model = str(get_model_path("tersely-tiny-small"))
    ask = "Kai has 9 shells. Kai finds 3 more. Count the shells."
    rows = [{"prompt": [{"role": "user", "content": ask}], "answer": 12, "tier": "normal"}] * 4
    close = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("</think>")
    with Correctness() as right:
        args = GRPOConfig(
            str(tmp_path / "grpo"),
            max_steps=1,
            num_generations=4,
            per_device_train_batch_size=4,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rewards = [right, GroupBrevity(right), TierAdherence({"normal": 20}, marker_id=close)]
        trainer = GRPOTrainer(model, rewards, args=args, train_dataset=Dataset.from_list(rows))
        trainer.train()
    logged = trainer.state.log_history[-1]
    assert logged["rewards/correctness/mean"] > 0 and "rewards/group_brevity/mean" in logged
    assert logged["rewards/tier_adherence/mean"] == -1, "the model thinks longer than twice 20 tokens"
