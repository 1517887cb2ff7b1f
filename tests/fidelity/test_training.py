"""Training methods with public code: the pairs that the authors' formulas give, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.evaluation.agents.tasks import Task
from tersely.evaluation.agents.tools import build_world
from tersely.training.config import Rollouts
from tersely.training.methods.adaptthink import AdaptThink, NoThinkBonus, ReferenceBaseline, plan_group
from tersely.training.methods.adar1 import AdaR1, make_pairs
from tersely.training.methods.length import (
    Dler,
    Lcpo,
    LengthControl,
    Resampling,
    Truncation,
    grpo_options,
    with_limits,
)
from tersely.training.methods.sft import Hint, Sft, prune_steps, token_entropies
from tersely.training.methods.vsrm import DECAY, FLOOR, LOOK_AHEAD, SPACING, Vsrm, step_rewards
from tersely.training.offline import SampledTrace
from tersely.training.research.episodes import EpisodeRollouts, TrainingEpisode
from tersely.training.rewards import NO_THINK, THINK, Correctness
from tersely.training.sampling import FREE, CompletionRequest, Rollout, RolloutSampler
from tersely.training.training_run import CURVE, MODEL

from ..support.trainings import train
from ..support.word_tokenizer import WordTokenizer


def sample(length: int, right: bool) -> SampledTrace:
    return SampledTrace([1], [2] * length, [1], right, True)


def test_adar1_constants() -> None:
    settings = AdaR1()
    assert (settings.share, settings.samples, settings.beta, settings.groups, settings.instances) == (
        0.8,
        12,
        0.1,
        4,
        2,
    )
    assert (settings.min_accuracy, settings.nll_weight) == (0.0, 0.0)


def test_adar1_prefers_the_shortest_right_completion_to_the_two_longest_right_ones() -> None:
    """The authors' script filters the preferred group to right completions first, so wrong ones are never losers."""
    long = [sample(90, True), sample(70, True), sample(50, True), sample(60, True), sample(200, False)]
    short = [sample(10, False)] * 5
    found = make_pairs(long, short, Random(0))
    instance = [(p.chosen.length, p.rejected.length) for p in found if p.level == "instance"]
    assert instance == [(50, 90), (50, 70)]
    group = [(p.chosen.right, p.rejected.right, p.rejected.length) for p in found if p.level == "group"]
    assert group == [(True, False, 10)] * 4


def test_adaptthink_constants_and_advantage() -> None:
    """1(no thinking) * delta + right - reference, for half of 16 completions that are forced each way."""
    settings = AdaptThink()
    assert (settings.delta, settings.share, settings.reference_samples, settings.brevity) == (0.05, 0.5, 16, 0.0)
    assert (settings.importance, settings.clip) == ("sequence", 0.2)
    modes = plan_group(16, settings.share)
    assert modes.count(NO_THINK) == modes.count(THINK) == 8
    prompts, columns = ["q"] * 16, {"mode": modes, "reference": [0.25] * 16}
    bonus = NoThinkBonus(settings.delta)(prompts, [""] * 16, **columns)
    minus = ReferenceBaseline()(prompts, [""] * 16, **columns)
    advantages = [1.0 + b + m for b, m in zip(bonus, minus, strict=True) if b is not None and m is not None]
    assert advantages == pytest.approx([0.8] * 8 + [0.75] * 8)


def test_vsrm_constants() -> None:
    settings = Vsrm()
    assert (FLOOR, SPACING, LOOK_AHEAD, DECAY) == (1000, 400, 4, 0.7)
    assert (settings.answers, settings.temperature, settings.unfinished_penalty) == (5, 0.6, 10.0)
    assert (settings.look_ahead, settings.ineffective_penalty) == (LOOK_AHEAD, 0.0)


@pytest.mark.parametrize(
    ("accuracies", "rewards"),
    [
        ([0.0, 0.0, 0.0, 0.4, 0.4, 0.6], [0.4 * 0.49, 0.4 * 0.7, 0.4, 0.2 * 0.7, 0.2]),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.7**4, 0.7**3, 0.7**2, 0.7, 1.0]),  # four more flat steps: nothing
        ([0.2, 0.8, 0.4], [0.6, -0.4]),
        ([0.5, 0.5, 0.5], [0.0, 0.0]),
    ],
)
def test_vsrm_rewards_steps_by_what_they_change(accuracies: list[float], rewards: list[float]) -> None:
    assert step_rewards(accuracies) == pytest.approx(rewards)


# -- DLER: a limit of tokens, the batch's deviation, a higher upper clip ---------------------------------------------


def test_dler_rewards_only_what_ends_within_the_limit() -> None:
    with Correctness() as correct:
        columns = {"answer": ["7"] * 3, "finish_reason": ["stop", "length", "length"]}
        texts = ["So 7.</think>\\boxed{7}", "So 7.</think>\\boxed{7}", "So 8.</think>\\boxed{8}"]
        found = [correct([""] * 3, texts, **columns), Truncation(correct)([""] * 3, texts, **columns)]
    assert [sum(pair) for pair in zip(*found, strict=True)] == [1.0, 0.0, 0.0]  # type: ignore[arg-type]


def test_dler_samples_other_questions_where_a_group_has_no_difference() -> None:
    """Completions of `cut` are cut, half of `mixed`, too, half of `other` are wrong, and all others right."""
    asked: list[list[Any]] = []

    def complete(prompt: Any, odd: bool) -> Rollout:
        response = "8" if odd and prompt == "other" else "7"
        finish = "length" if prompt == "cut" or (odd and prompt == "mixed") else "stop"
        tokens: dict[str, Any] = {"prompt_ids": (), "ids": (1,), "forced": (False,), "first_token_logprob": None}
        counts = {"p_no_think": 0.0, "thinking_tokens": 0, "response_tokens": 1, "after_hint": None}
        kind = {"start_mode": "free", "mode": THINK, "thinking": "", "finish_reason": finish}
        return Rollout(**tokens, **counts, **kind, response=response)  # type: ignore[arg-type]

    def sampler(requests: list[CompletionRequest], seed: int) -> list[Rollout]:
        asked.append([request.prompt for request in requests])
        return [complete(prompt, at % 2 > 0) for at, prompt in enumerate(asked[-1])]

    names = ("flat", "cut", "mixed", "other", "flat too")
    pool = [{"id": name, "prompt": name, "answer": "7", "tier": "normal"} for name in names]
    rows = [dict(row) for row in pool[:3] for _ in range(2)]
    with Correctness() as correct:
        rollouts = Resampling(sampler, 0, pool, correct, rounds=3, size=2)  # type: ignore[arg-type]
        found = rollouts.sample([CompletionRequest(row["prompt"]) for row in rows], rows, 5)
    assert [sorted(prompts) for prompts in asked[:2]] == [
        ["cut", "cut", "flat", "flat", "mixed", "mixed"],
        ["flat too", "flat too", "other", "other"],
    ]
    assert len(asked) == 2, "no question comes back"
    prompts = [row["id"] for row in rows]
    assert prompts == [row["prompt"] for row in rows] and prompts[4:] == ["mixed"] * 2 and "other" in prompts
    assert [one.response for one in found] == [complete(name, at % 2 > 0).response for at, name in enumerate(prompts)]


def test_dler_constants() -> None:
    assert grpo_options(Dler()) == {"scale_rewards": "batch", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0}


# -- LCPO-Max: right, times clip(alpha (limit - tokens) + delta, 0, 1) -----------------------------------------------


def test_lcpo_rewards_by_the_distance_to_the_limit() -> None:
    """1000 below, at, 1000 above, far above and far below the limit, and a wrong answer."""
    tokens = [1000, 2000, 3000, 4000, 0, 1000]
    with Correctness() as correct:
        rewards = LengthControl(correct)(
            [""] * 6,
            ["</think>\\boxed{7}"] * 5 + ["</think>\\boxed{8}"],
            answer=["7"] * 6,
            limit=[2000] * 6,
            completion_ids=[[0] * count for count in tokens],
        )
    assert rewards == pytest.approx([0.8, 0.5, 0.2, 0.0, 1.0, 0.0])


def test_lcpo_states_a_limit_in_each_prompt() -> None:
    rows: list[dict[str, Any]] = [{"id": str(i), "prompt": [{"role": "user", "content": "2+5?"}]} for i in range(300)]
    found = with_limits(rows, Lcpo(), 3)
    assert found == with_limits(rows, Lcpo(), 3) and found != with_limits(rows, Lcpo(), 4)
    limits = [row["limit"] for row in found]
    assert min(limits) < 150 and max(limits) > 3900 and min(limits) >= 100 and max(limits) <= 4000
    assert found[0]["prompt"][0]["content"] == f"2+5?\n\nThink for maximum {limits[0]} tokens."
    assert rows[0]["prompt"][0]["content"] == "2+5?"


# -- Compress, Then Prompt: 100 new tokens first, and the loss of the next token in the uncompressed model's text -----


def test_a_prompt_has_as_many_tokens_as_in_the_authors_script() -> None:
    assert (Hint().tokens, Hint().strength, Hint().objective) == (100, 1.0, "brief")


@pytest.mark.slow
def test_a_prompt_learns_all_tokens_of_the_teachers_text(tmp_path: Path) -> None:
    """The first logged loss is that of the text behind the prompt as it starts: one mean over all tokens."""
    teacher, model = "tersely-tiny-large", "tersely-tiny-small"
    hint = {"objective": "recover", "teacher": teacher, "tokens": 3, "samples": 1}
    optimizer = {"steps": 1, "micro_batch": 2, "learning_rate": 1e-9, "lora": None}
    train("hint", tmp_path / "run", model=model, hint=hint, data={"questions": 2}, optimizer=optimizer)
    (logged,) = [json.loads(line)["loss"] for line in (tmp_path / "run" / CURVE).read_text().splitlines()[:1]]
    lines = (json.loads(line) for line in (tmp_path / "run" / "traces.jsonl").read_text().splitlines())
    traces = [trace for line in lines if "value" in line for group in line["value"] for trace in group]
    engine = load_engine(str(tmp_path / "run" / MODEL))
    losses: list[float] = []
    for trace in traces:
        prompt = [*range(len(engine.tokenizer) - 3, len(engine.tokenizer)), *trace["prompt_ids"]]
        with torch.no_grad():
            logits = engine.model(torch.tensor([[*prompt, *trace["ids"]]])).logits[0, len(prompt) - 1 : -1]
        losses += [-row.log_softmax(-1)[token].item() for row, token in zip(logits, trace["ids"], strict=True)]
    assert len(traces) == 2 and logged == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    header = json.loads((tmp_path / "run" / "traces.jsonl").read_text().splitlines()[0])
    assert header["run"]["fingerprint"] == load_engine(teacher).fingerprint(), "it is the teacher's text"


# -- step entropy: the steps with the lowest sums of token entropies become markers -----------------------------------

STEPS = ("one two\n\n", "three\n\n", "four five six\n\n", "seven\n\n", "eight\n")
TOKENS = (0.2, 0.0, 0.2, 0.1, 0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.9, 0.0, 0.3, 0.1)
"""Their sums are 0.5, 0.6, 0.7, 0.9 and 0.4; by the mean of a token, the third would be the lowest."""


@pytest.mark.parametrize(
    ("share", "skip", "text"),
    [
        (0.2, "[SKIP]", "one two\n\nthree\n\nfour five six\n\nseven\n\n[SKIP]\n"),
        (0.4, "[SKIP]", "[SKIP]\n\nthree\n\nfour five six\n\nseven\n\n[SKIP]\n"),
        (0.8, "[SKIP]", "[SKIP]\n\n[SKIP]\n\n[SKIP]\n\nseven\n\n[SKIP]\n"),
        (0.79, "", "four five six\n\nseven\n\n"),
        (0.1, "[SKIP]", "".join(STEPS)),
    ],
)
def test_step_entropy_prunes_the_steps_of_the_lowest_sums(share: float, skip: str, text: str) -> None:
    codec = TokenizerAdapter(WordTokenizer())
    ids = list(codec.encode("".join(STEPS) + "</think>So 8\n\nNine."))
    trace = SampledTrace([5], ids, [1] * len(ids), True, True)
    entropies = [*TOKENS, *[0.0] * (len(ids) - len(TOKENS))]
    made = prune_steps(trace, entropies, codec, codec.encode("</think>")[0], share, skip)
    assert codec.decode(made.ids) == f"{text}</think>So 8\n\nNine."
    assert made.loss_mask == [1] * len(made.ids), "markers are learned"


def test_step_entropy_prunes_only_when_asked_and_marks_as_in_the_paper() -> None:
    assert (Sft().prune, Sft().skip) == (0.0, "[SKIP]")


def test_entropies_are_those_before_each_token(small: TransformersEngine) -> None:
    trace = SampledTrace([12, 40, 7], [33, 90, 2, 61], [1] * 4, True, True)
    with torch.no_grad():
        logits = small.model(torch.tensor([[12, 40, 7, 33, 90, 2]])).logits[0, 2:]
    wanted = [-sum(p * p.log() for p in row.softmax(-1)).item() for row in logits]
    assert token_entropies(small.model, trace) == pytest.approx(wanted, rel=1e-4)


# -- WebLeaper: (1 + w^2) P R / (w^2 P + R) of the names, where several are asked for; else right or wrong ------------


@pytest.mark.parametrize(
    ("named", "wrong", "omega", "reward"),
    [
        (4, 0, 1.0, 1.0),
        (2, 0, 1.0, 2 / 3),  # P 1, R 1/2
        (3, 3, 1.0, 0.6),  # P 1/2, R 3/4
        (2, 0, 2.0, 5 * 0.5 / 4.5),  # recall counts for more
        (2, 2, 0.5, 0.5),  # P and R 1/2
        (0, 2, 1.0, 0.0),
    ],
)
def test_webleaper_rewards_names_by_their_f_score(named: int, wrong: int, omega: float, reward: float) -> None:
    world = build_world(0)
    people = [page.name for page in world.list_pages("person")]
    task = Task("t", "collect", "Who?", frozenset(people[:4]), world)
    answer = f"\\boxed{{{'; '.join([*people[:named], *people[4 : 4 + wrong]])}}}"
    assert task.score(answer, omega) == pytest.approx(reward)
    assert task.solved_by(answer) is (reward == 1)


def test_webleaper_rewards_other_tasks_as_right_or_wrong() -> None:
    world = build_world(0)
    first, other = (page.name for page in world.list_pages("town")[:2])
    task = Task("t", "lookup", "Which town?", frozenset({first}), world)
    assert [task.score(text, 1.0) for text in (first, f"{first}; {other}", other)] == [1.0, 0.0, 0.0]
    assert Task("t", "instant", "2+5?", frozenset({"7"}), world).score("\\boxed{7}", 1.0) == 1.0


@pytest.mark.parametrize(("omega", "solved"), [(None, 0.0), (1.0, 2 / 3)])
def test_episodes_are_rewarded_by_the_f_score_if_asked(
    small: TransformersEngine, omega: float | None, solved: float
) -> None:
    world = build_world(0)
    first, second = (page.name for page in world.list_pages("town")[:2])
    task = Task("t", "collect", "Which towns?", frozenset({first, second}), world)
    rollouts = EpisodeRollouts(RolloutSampler(small, Rollouts()), {"t": task}, "easy", 2, omega=omega)
    step = Rollout(
        (), (), (), FREE, THINK, None, 0.0, "", response=first, thinking_tokens=1, response_tokens=1,
        finish_reason="stop", after_hint=None,
    )  # fmt: skip
    assert rollouts.score(TrainingEpisode({"id": "t"}, FREE, [step])) == pytest.approx(solved)
    assert not rollouts.score(TrainingEpisode({"id": "t"}, NO_THINK, [step])), "it left its mode"
