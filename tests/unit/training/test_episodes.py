"""APO's episodes with tools and its alignment, on the embedded model for agents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.text.tool_calls import OPEN, ToolCall, parse_tool_calls
from tersely.errors import CapabilityError, OptionError
from tersely.evaluation.agents.tools import TOOL_SCHEMAS, World
from tersely.training.config import Data, RecipeError, Rollouts
from tersely.training.methods import load_method
from tersely.training.research import episodes
from tersely.training.research.apo import choose_cheapest, to_alignment_trace
from tersely.training.research.episodes import EpisodeRollouts, TrainingEpisode, run_calls
from tersely.training.rewards import AGENTIC, NO_THINK, THINK
from tersely.training.rollouts import load_rows, load_tasks
from tersely.training.sampling import FREE, CompletionRequest, Rollout, RolloutSampler
from tersely.training.training_run import MODEL

from ...support.trainings import make_recipe, train

DATA = Data(task="agents:lookup,instant", questions=4, efforts=("easy",))
MODEL_NAME = "tersely-tiny-agent"
ROWS = load_rows(DATA, MODEL_NAME)
TASKS = {task.id: task for task in load_tasks(DATA) or ()}
WORLD = TASKS[ROWS[0]["id"]].world
ROLLOUT = Rollout(
    prompt_ids=(1,),
    ids=(2, 3),
    forced=(False, False),
    start_mode=FREE,
    mode=THINK,
    first_token_logprob=None,
    p_no_think=0.1,
    thinking="t",
    response="r",
    thinking_tokens=1,
    response_tokens=1,
    finish_reason="stop",
    after_hint=None,
)


@pytest.fixture(scope="module")
def sampler() -> RolloutSampler:
    settings = Rollouts(max_new_tokens=160, temperature=0.3)
    return RolloutSampler(load_engine(MODEL_NAME), settings, no_think_tokens=48, tools=TOOL_SCHEMAS)


def played(sampler: RolloutSampler, start_mode: str) -> list[TrainingEpisode]:
    asks = [CompletionRequest(row["prompt"], row["tier"], start_mode) for row in ROWS]
    return EpisodeRollouts(sampler, TASKS, "easy", 6).run(asks, ROWS, 1)


def test_the_system_prompt_depends_on_the_model_as_in_use() -> None:
    assert [m["role"] for m in load_rows(DATA, "some/model")[0]["prompt"]] == ["system", "user"]
    assert [m["role"] for m in load_rows(DATA, MODEL_NAME)[0]["prompt"]] == ["user"]
    assert [m["role"] for m in load_rows(Data(questions=1), "some/model")[0]["prompt"]] == ["user"]


@pytest.mark.slow
def test_free_episodes_call_tools_and_read_the_results(sampler: RolloutSampler) -> None:
    found = played(sampler, FREE)
    for one in found:
        looked_up = one.row["level"] == "lookup"
        assert one.mode == (AGENTIC if looked_up else THINK) and one.followed_start
        assert len(one.steps) == one.calls + 1 and (one.calls > 0) == looked_up
        assert [m["role"] for m in one.messages] == ["user", *["assistant", "tool"] * one.calls]
    solved = [TASKS[one.row["id"]].solved_by(one.answer) for one in found]
    assert sum(solved) >= 3, [one.answer for one in found]
    # The prompt of each step is the conversation so far, without thinking.
    last = next(one for one in found if one.calls)
    prompt = sampler.session.codec.decode(last.steps[-1].prompt_ids)
    assert last.messages[-1]["content"] in prompt and last.steps[0].thinking[:20] not in prompt


@pytest.mark.parametrize("words", [1980, 2500], ids=["no room for a step", "nor for an answer"])
def test_episodes_end_when_the_context_is_full(
    words: int, sampler: RolloutSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_up_at_length(world: World, said: str, calls: list[ToolCall]) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": ""}, {"role": "tool", "content": "12 " * words}]

    monkeypatch.setattr(episodes, "run_calls", looked_up_at_length)
    for one in played(sampler, FREE):
        assert len(one.steps) == 1 and one.calls == (one.row["level"] == "lookup")


@pytest.mark.slow
def test_only_agentic_and_free_episodes_call_tools(sampler: RolloutSampler) -> None:
    for start_mode in (THINK, NO_THINK):
        for one in played(sampler, start_mode):
            assert one.calls == 0 and len(one.steps) == 1
            if one.row["level"] == "lookup":
                assert one.mode == AGENTIC and one.answer == "" and not one.followed_start
    for one in played(sampler, AGENTIC):
        assert one.mode == AGENTIC and one.followed_start and one.start_mode == AGENTIC
        if one.row["level"] == "instant":
            first = one.steps[0]
            opened = sampler.session.codec.decode([i for i, was in zip(first.ids, first.forced, strict=True) if was])
            assert opened.strip() == OPEN and first.thinking and len(first.forced) == len(first.ids)
            trace = to_alignment_trace(one, sampler.close)
            assert tuple(trace.ids) == first.ids[: len(trace.ids)] and trace.loss_mask[0] == 1
            assert sum(trace.loss_mask) == 1 + sum(first.forced), "only the first token and the call are learned"


def test_thinking_that_is_closed_twice_counts_as_thinking(sampler: RolloutSampler) -> None:
    free = RolloutSampler(
        sampler.engine, sampler.settings.model_copy(update={"max_new_tokens": 400}), tools=TOOL_SCHEMAS
    )
    found = free([CompletionRequest(row["prompt"], "hard", NO_THINK) for row in ROWS for _ in range(3)], 0)
    twice = [one for one in found if one.ids.count(free.close) > 1]
    assert twice, "this model thinks on when its thinking is ended at once"
    for one in found:
        assert one.mode == (THINK if one in twice else NO_THINK)
        assert (one.thinking_tokens > 5) == (one in twice)


def test_one_weighted_step_stands_for_all_steps_on_average() -> None:
    steps = [replace(ROLLOUT, ids=(2,) * n, thinking_tokens=n) for n in (1, 2, 3)]
    one = TrainingEpisode({"id": "a"}, AGENTIC, steps, called=True)
    drawn = [one.to_rollout(place, True) for place in range(3)]
    # The weighted tokens of a step are on average those of all steps.
    assert fmean(r.weight * len(r.ids) for r in drawn) == one.tokens == 6
    assert all(r.thinking_tokens == 6 and r.solved and r.mode == AGENTIC for r in drawn)
    assert TrainingEpisode({"id": "a"}, NO_THINK, steps, called=True).to_rollout(0, False).weight == 0
    assert TrainingEpisode({"id": "a"}, FREE, steps, called=True).to_rollout(0, False).weight == 3


def test_an_opened_call_is_masked_from_the_loss(sampler: RolloutSampler) -> None:
    plan = [AGENTIC, NO_THINK]
    rollouts = EpisodeRollouts(sampler, TASKS, "easy", 6, plan)
    rows = [ROWS[1], ROWS[1]]
    assert rows[0]["level"] == "instant"
    made = rollouts.sample([CompletionRequest(rows[0]["prompt"], "easy", start_mode) for start_mode in plan], rows, 0)
    for one in made:
        mask = rollouts.loss_mask(one)
        assert len(mask) == len(one.ids)
        assert all(mask[i] == 0 for i, forced in enumerate(one.forced) if forced)
        assert mask[0] == 0 or one.first_token_logprob is None, "the start was forced"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"name": "lookup", "arguments": {"name": "Nobody"}}, "Nobody"),
        ({"name": "lookup", "arguments": {"title": "x"}}, "name"),
        ({"name": "look", "arguments": {}}, "lookup"),
        ({"name": "calculator", "arguments": {"expression": "2**9"}}, "2**9"),
    ],
)
def test_the_result_of_a_failed_call_is_its_error(call: dict[str, Any], says: str) -> None:
    _, calls = parse_tool_calls(f"{OPEN}{json.dumps(call)}</tool_call>")
    own, result = run_calls(WORLD, "", calls)
    assert own["tool_calls"][0]["function"] == call and says in result["content"]


def test_an_invalid_call_is_answered_with_its_error() -> None:
    own, result = run_calls(WORLD, "Well.", [ToolCall(None, {}, f"{OPEN}hm", "no JSON")])
    assert own["content"] == f"Well.{OPEN}hm" and "tool_calls" not in own
    assert result == {"role": "tool", "content": "invalid tool call: no JSON"}


def test_the_cheapest_sufficient_mode_is_chosen() -> None:
    def made(start_mode: str, tokens: int, mode: str = "", finish: str = "stop") -> TrainingEpisode:
        step = replace(ROLLOUT, ids=(1,) * tokens, mode=mode or start_mode, finish_reason=finish)
        return TrainingEpisode({"id": "a"}, start_mode, [step], called=start_mode == AGENTIC)

    modes, right = (NO_THINK, THINK, AGENTIC), lambda one: one.tokens < 10
    both = [made(NO_THINK, 3), made(NO_THINK, 20), made(THINK, 5), made(THINK, 4)]
    assert choose_cheapest(both, modes, 0.5, right) is both[0]
    assert choose_cheapest(both, modes, 0.6, right) is both[3]
    assert choose_cheapest([made(NO_THINK, 3, THINK), made(THINK, 20)], modes, 0.5, right) is None, "it thought"
    assert choose_cheapest([made(THINK, 3, finish="length")], modes, 0.5, right) is None
    agentic = [made(THINK, 20), made(AGENTIC, 9)]
    assert choose_cheapest(agentic, modes, 0.5, right) is agentic[1]


@pytest.mark.slow
def test_apo_with_three_modes(tmp_path: Path) -> None:
    out = tmp_path / "apo"
    said = train(
        "apo",
        out,
        model=MODEL_NAME,
        data={"task": "agents:lookup,instant", "questions": 4, "efforts": ["easy"]},
        rollouts={"max_new_tokens": 120},
        optimizer={"steps": 1, "lora": {"rank": 2, "alpha": 4}},
        apo={
            "forced": 1,
            "no_think_tokens": 48,
            "align": {"samples": 2, "optimizer": {"steps": 1, "micro_batch": 2, "lora": {"rank": 2, "alpha": 4}}},
        },
    )
    logs = [json.loads(line) for line in (out / "curve.jsonl").read_text("utf-8").splitlines()]
    steps = [log for log in logs if "loss" in log]
    assert [log["step"] for log in steps] == [1] and any(log["grad_norm"] > 0 for log in steps)
    assert all("modes/agentic/accuracy" in log and "level/lookup/accuracy" in log for log in steps)
    assert "alignment: 4/4 questions" in said
    assert any(line.startswith("routed ") and "agentic" in line for line in said), said
    assert (out / "aligned" / MODEL).is_dir() and (out / MODEL).is_dir()


def test_recipes_for_tasks_with_tools_are_checked(tmp_path: Path) -> None:
    assert load_tasks(Data(task="tiny")) is None
    agents = {"task": "agents", "questions": 4}
    with pytest.raises(RecipeError) as error:
        load_method("ser").validate(make_recipe("ser", tmp_path / "a", data=agents))
    assert error.value.code == "no_tools"
    with pytest.raises(CapabilityError):
        load_method("apo").validate(make_recipe("apo", tmp_path / "b", data=agents, apo={"forced": 1}))
    with pytest.raises(OptionError) as unknown:
        load_rows(Data(task="agents:lokup"))
    assert unknown.value.code == "unknown_name"
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"data": agents, "apo": {"forced": 2}, "rollouts": {"generations": 6}}, "no_free_completions", "apo.forced"),
        ({"apo": {"followup_effort": "none"}}, "invalid_value", "apo.followup_effort"),
        ({"data": agents, "apo": {"kl": 0.1}, "model": MODEL_NAME}, "no_kl_with_tools", "apo.kl"),
    ]
    for wrong, code, key in cases:
        wrong["apo"] = {"forced": 1, **wrong["apo"]}
        with pytest.raises(RecipeError) as error:
            load_method("apo").validate(make_recipe("apo", tmp_path / "c", **wrong))
        assert error.value.code == code and key in str(error.value)
    wrong_optimizers: list[dict[str, Any]] = [{"micro_batch": 3}, {"lora": {"merge": False}}, {"dtype": "bfloat16"}]
    for wrong in wrong_optimizers:
        align = {"optimizer": {"micro_batch": 2, **wrong}}
        with pytest.raises(RecipeError) as error:
            load_method("apo").validate(make_recipe("apo", tmp_path / "f", apo={"forced": 1, "align": align}))
        assert error.value.code == "inconsistent_recipe" and f"align.optimizer.{next(iter(wrong))}" in str(error.value)


@pytest.mark.parametrize(("mode", "learnt"), [(THINK, [1]), (NO_THINK, [1, 1, 1, 1])])
def test_alignment_learns_only_the_deciding_tokens(mode: str, learnt: list[int]) -> None:
    step = replace(ROLLOUT, ids=(5, 6, 7, 8), forced=(False,) * 4, mode=mode)
    trace = to_alignment_trace(TrainingEpisode({"id": "a"}, mode, [step]), close=9)
    assert trace.ids == [5, 6, 7, 8][: len(learnt)] and trace.loss_mask == learnt


def test_alignment_masks_text_of_policies() -> None:
    # A budget closes the thinking (7, 9), and a call is opened after it (3, 4).
    step = replace(ROLLOUT, ids=(5, 6, 7, 9, 3, 4, 8), forced=(False, False, True, True, True, True, False))
    trace = to_alignment_trace(TrainingEpisode({"id": "a"}, AGENTIC, [step], called=True), close=9)
    assert trace.ids == [5, 6, 7, 9, 3, 4] and trace.loss_mask == [1, 0, 0, 0, 1, 1]
