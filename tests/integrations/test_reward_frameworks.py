"""Rewards in other frameworks: TRL's own trainer, the calls of verl and OpenRLHF, and foreign data."""

from __future__ import annotations

import pickle
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.errors import OptionError
from tersely.models import get_model_path
from tersely.training.methods.adaptthink import ReferenceBaseline
from tersely.training.rewards import Correctness, GroupBrevity, TierAdherence, compute_score, reward_func
from tersely.training.sampling import CompletionRequest, RolloutSampler

from ..support.trainings import make_recipe

RIGHT, INSTANT = "Two.</think>\n\nThe answer is \\boxed{4}.", "</think>\n\n\\boxed{4}"
NUMBERS: tuple[Any, ...] = (4, 4.0, np.int64(4), np.float32(4), Decimal("4.00"), Fraction(4), "4")
NO_ANSWERS: tuple[Any, ...] = (None, float("nan"), float("inf"), True, ["4"], {})


def batch(reward: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    values: list[float | None] = reward(prompts=["q"] * len(completions), completions=completions, **columns)
    return values


def boxed(answer: str) -> str:
    return f"</think>\\boxed{{{answer}}}"


@pytest.mark.parametrize("gold", NUMBERS, ids=repr)
def test_gold_answers_may_be_numbers(gold: Any) -> None:
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
def test_invalid_gold_answers_are_refused(gold: Any) -> None:
    # Even where the model says nothing, which would be wrong whatever the answer is.
    for completion in (RIGHT, "It may be"):
        for source, call in (
            ("row 1 of", lambda: batch(Correctness(), [RIGHT, completion], answer=["4", gold])),  # noqa: B023
            ("ground_truth", lambda: compute_score("tiny", completion, gold)),  # noqa: B023
            ("row 0 of", lambda: reward_func(["q" + completion], ["q"], [gold])),  # noqa: B023
        ):
            with pytest.raises(OptionError) as error:
                call()
            assert error.value.code == "invalid_gold_answer" and source in str(error.value)


def test_a_verdict_of_the_environment_needs_no_gold_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def is_right(self: Correctness, gold: str, response: str, gym_entry: Any = None) -> bool:
        asked.append((gold, gym_entry))
        return False

    monkeypatch.setattr(Correctness, "is_right", is_right)
    entry = ["leg_counting", "{}"]
    columns = {"answer": [None, None, "4"], "solved": [True, None, None], "gym_entry": [None, entry, None]}
    assert batch(Correctness(), [RIGHT] * 3, **columns) == [1, 0, 0]
    assert asked == [("", entry), ("4", None)]


def test_openrlhf_gets_a_mapping_and_may_pass_more() -> None:
    found = reward_func(["q" + RIGHT], ["q"], ["4"], datasource=["tiny"])
    assert found["rewards"].tolist() == found["scores"].tolist() == [1.0] and found["extra_logs"] == {}


def test_verl_needs_only_the_data_of_weighted_parts() -> None:
    assert compute_score("tiny", INSTANT, "4", {"reference": None}, delta=0.05)["score"] == pytest.approx(1.05)
    with pytest.raises(OptionError) as error:
        compute_score("tiny", INSTANT, "4", {"reference": "half"})
    assert error.value.code == "invalid_number"
    for info in ({"tier": "easy"}, {"tier": "easy", "thinking_tokens": None}):
        with pytest.raises(OptionError) as error:
            compute_score("tiny", RIGHT, "4", info, adherence=0.2)
        assert error.value.code == "missing_column"
    for extra, code in (
        ({"tier": "easy", "thinking_tokens": "many"}, "invalid_number"),
        ({"tier": ["easy"]}, "unknown_name"),
        (None, "missing_column"),
    ):
        with pytest.raises(OptionError) as error:
            compute_score("tiny", RIGHT, "4", extra, adherence=0.2)
        assert error.value.code == code


def test_invalid_numbers_in_columns_are_refused() -> None:
    columns: dict[str, Any]
    for reward, columns in (
        (ReferenceBaseline(), {"reference": [0.5, None]}),
        (TierAdherence(), {"tier": ["easy"] * 2, "thinking_tokens": [1, None]}),
    ):
        with pytest.raises(OptionError) as error:
            batch(reward, [RIGHT] * 2, **columns)
        assert error.value.code == "invalid_number" and "row 1 of" in str(error.value)


@pytest.mark.parametrize("tier", ["esay", None, ["easy"]], ids=repr)
def test_unknown_tiers_are_refused(tier: Any) -> None:
    with pytest.raises(OptionError) as error:
        batch(TierAdherence(), [RIGHT], tier=[tier], thinking_tokens=[1])
    assert error.value.code == "unknown_name"
    with pytest.raises(OptionError):
        batch(TierAdherence({"easy": 100}), [RIGHT], tier=["hard"], thinking_tokens=[1])


def test_thinking_tokens_are_counted_up_to_the_marker() -> None:
    reward = pickle.loads(pickle.dumps(TierAdherence({"easy": 4}, marker_id=9)))
    ids = [[1, 1, 1, 9, 5, 5], [1, 1, 1, 1, 1, 9, 5], [9, 5, 5, 5, 5, 5, 5], [1] * 6, [9, 1, 1, 1, 9, 5], []]
    easy = ["easy"] * len(ids)
    assert batch(reward, [""] * 6, tier=easy, completion_ids=ids) == [0, -0.5, 0, -0.5, -0.25, 0]
    # The count of the rollouts takes precedence over the ids.
    assert batch(reward, [""] * 6, tier=easy, completion_ids=ids, thinking_tokens=[6] * 6) == [-0.5] * 6
    with pytest.raises(OptionError) as error:
        batch(TierAdherence(), [""] * 6, tier=easy, completion_ids=ids)
    assert error.value.code == "missing_column"
    with pytest.raises(OptionError) as error:
        batch(reward, [""] * 6, tier=easy)
    assert error.value.code == "missing_column"


def test_counted_and_given_thinking_tokens_agree(tmp_path: Path) -> None:
    sampler = RolloutSampler(load_engine("tersely-tiny-small"), make_recipe("ser", tmp_path).rollouts)
    question = "Kai has 9 shells. Kai finds 3 more. Count the shells."
    made = sampler([CompletionRequest(question, start_mode=mode) for mode in ["free", "no_think"] * 4], seed=0)
    columns = {"tier": ["easy"] * 8, "completion_ids": [list(rollout.ids) for rollout in made]}
    counted = batch(TierAdherence({"easy": 40}, sampler.close), [""] * 8, **columns)
    given = [rollout.thinking_tokens for rollout in made]
    assert counted == batch(TierAdherence({"easy": 40}), [""] * 8, thinking_tokens=given, **columns)
    assert len(set(given)) > 2 and 0 in given and min(value or 0 for value in counted) < 0


@pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")
def test_rewards_work_in_a_plain_trl_script(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what TRL imports
        from trl import GRPOConfig, GRPOTrainer

    model = str(get_model_path("tersely-tiny-small"))
    ask = "Kai has 9 shells. Kai finds 3 more. Count the shells."
    rows = [{"prompt": [{"role": "user", "content": ask}], "answer": 12, "tier": "normal"}] * 4
    close = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("</think>")
    with Correctness() as right:
        args = GRPOConfig(
            str(tmp_path / "grpo"),
            max_steps=1,
            max_completion_length=160,
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
