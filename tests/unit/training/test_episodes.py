"""Episodes with tools in a training: on the embedded model for agents, whose calls are carried out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.text.tool_calls import OPEN, ToolCall, read_calls
from tersely.errors import CapabilityError, OptionError
from tersely.evaluation.agents.tools import TOOL_SCHEMAS
from tersely.training.config import Data, RecipeError, Rollouts
from tersely.training.data import load_rows
from tersely.training.environment import Environment, load_environment, load_tasks
from tersely.training.episodes import EpisodeRollouts, TrainingEpisode, run_episode
from tersely.training.methods import method
from tersely.training.research.mode_alignment import cheapest, to_trace
from tersely.training.rewards.base import AGENTIC, NO_THINK, THINK
from tersely.training.sampling import FREE, CompletionRequest, Rollout, Sampler
from tersely.training.saving import MODEL

from ...support.trainings import recipe, train

DATA = Data(task="agents:lookup,instant", questions=4, efforts=("easy",))
MODEL_NAME = "tersely-tiny-agent"
ROWS = load_rows(DATA, MODEL_NAME)
ROLLOUT = Rollout(
    prompt_ids=(1,),
    ids=(2, 3),
    forced=(False, False),
    begun=FREE,
    mode=THINK,
    drawn=None,
    chance=0.1,
    thinking="t",
    response="r",
    thinking_tokens=1,
    response_tokens=1,
    finish_reason="stop",
    after_hint=None,
)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    settings = Rollouts(max_new_tokens=160, temperature=0.3)
    return Sampler(load_engine(MODEL_NAME), settings, no_think_tokens=48, tools=TOOL_SCHEMAS)


def environment() -> Environment:
    found = load_environment(DATA)
    assert found is not None
    return found


def played(sampler: Sampler, begun: str) -> list[TrainingEpisode]:
    asks = [CompletionRequest(row["prompt"], row["tier"], begun) for row in ROWS]
    return run_episode(sampler, asks, ROWS, environment(), later="easy", steps=6, seed=1)


def test_other_models_are_told_the_form_of_an_answer_as_in_use() -> None:
    assert [m["role"] for m in load_rows(DATA, "some/model")[0]["prompt"]] == ["system", "user"]
    assert [m["role"] for m in load_rows(DATA, MODEL_NAME)[0]["prompt"]] == ["user"]
    assert [m["role"] for m in load_rows(Data(questions=1), "some/model")[0]["prompt"]] == ["user"]


def test_free_episodes_call_what_they_need_and_read_the_results(sampler: Sampler) -> None:
    found = played(sampler, FREE)
    for one in found:
        looked_up = one.row["level"] == "lookup"
        assert one.mode == (AGENTIC if looked_up else THINK) and one.stayed
        assert len(one.steps) == one.calls + 1 and (one.calls > 0) == looked_up
        assert [m["role"] for m in one.messages] == ["user", *["assistant", "tool"] * one.calls]
    solved = [environment().solved(one.row["id"], one.answer) for one in found]
    assert sum(solved) >= 3, [one.answer for one in found]
    # Each step is asked by the conversation so far, in which no thinking stands.
    last = next(one for one in found if one.calls)
    prompt = sampler.session.codec.decode(last.steps[-1].prompt_ids)
    assert last.messages[-1]["content"] in prompt and last.steps[0].thinking[:20] not in prompt


@pytest.mark.parametrize("words", [1980, 2500], ids=["no room for a step", "nor for an answer"])
def test_an_episode_ends_where_the_context_does(words: int, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up_at_length(self: Environment, task: str, said: str, calls: list[ToolCall]) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": ""}, {"role": "tool", "content": "12 " * words}]

    monkeypatch.setattr(Environment, "turns", looked_up_at_length)
    for one in played(sampler, FREE):
        assert len(one.steps) == 1 and one.calls == (one.row["level"] == "lookup")


def test_modes_without_tools_have_none_and_a_call_is_opened_where_one_was_to_be(sampler: Sampler) -> None:
    for begun in (THINK, NO_THINK):
        for one in played(sampler, begun):
            assert one.calls == 0 and len(one.steps) == 1
            if one.row["level"] == "lookup":
                assert one.mode == AGENTIC and one.answer == "" and not one.stayed
    for one in played(sampler, AGENTIC):
        assert one.mode == AGENTIC and one.stayed and one.begun == AGENTIC
        if one.row["level"] == "instant":
            first = one.steps[0]
            opened = sampler.session.codec.decode([i for i, was in zip(first.ids, first.forced, strict=True) if was])
            assert opened.strip() == OPEN and first.thinking and len(first.forced) == len(first.ids)
            trace = to_trace(one, sampler.close)
            assert tuple(trace.ids) == first.ids[: len(trace.ids)] and trace.learnt[0] == 1
            assert sum(trace.learnt) == 1 + sum(first.forced), "to call is what it is to learn"


def test_thinking_after_the_end_of_thinking_is_no_answer_at_once(sampler: Sampler) -> None:
    free = Sampler(sampler.engine, sampler.settings.model_copy(update={"max_new_tokens": 400}), tools=TOOL_SCHEMAS)
    found = free([CompletionRequest(row["prompt"], "hard", NO_THINK) for row in ROWS for _ in range(3)], 0)
    twice = [one for one in found if one.ids.count(free.close) > 1]
    assert twice, "this model thinks on when its thinking is ended at once"
    for one in found:
        assert one.mode == (THINK if one in twice else NO_THINK)
        assert (one.thinking_tokens > 5) == (one in twice)


def test_an_episode_is_learnt_from_one_of_its_steps_on_average_from_all() -> None:
    steps = [replace(ROLLOUT, ids=(2,) * n, thinking_tokens=n) for n in (1, 2, 3)]
    one = TrainingEpisode({"id": "a"}, AGENTIC, steps, called=True)
    drawn = [one.learnt_from(place, True) for place in range(3)]
    # What the loss adds up, the tokens of a step with its weight, is on average that of all steps.
    assert fmean(r.weight * len(r.ids) for r in drawn) == one.tokens == 6
    assert all(r.thinking_tokens == 6 and r.solved and r.mode == AGENTIC for r in drawn)
    assert TrainingEpisode({"id": "a"}, NO_THINK, steps, called=True).learnt_from(0, False).weight == 0
    assert TrainingEpisode({"id": "a"}, FREE, steps, called=True).learnt_from(0, False).weight == 3


def test_what_opened_a_call_has_no_loss(sampler: Sampler) -> None:
    plan = [AGENTIC, NO_THINK]
    rollouts = EpisodeRollouts(sampler, plan, 0, environment(), later="easy", steps=6)
    rows = [ROWS[1], ROWS[1]]
    assert rows[0]["level"] == "instant"
    made = rollouts.sample([CompletionRequest(rows[0]["prompt"], "easy", begun) for begun in plan], rows, 0)
    for one in made:
        mask = rollouts.learnt(one)
        assert len(mask) == len(one.ids)
        assert all(mask[i] == 0 for i, forced in enumerate(one.forced) if forced)
        assert mask[0] == 0 or one.drawn is None, "the beginning was forced"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"name": "lookup", "arguments": {"name": "Nobody"}}, "there is no page 'Nobody'"),
        ({"name": "lookup", "arguments": {"title": "x"}}, "accepted: 'name'"),
        ({"name": "look", "arguments": {}}, "did you mean 'lookup'"),
        ({"name": "calculator", "arguments": {"expression": "2**9"}}, "no arithmetic"),
    ],
)
def test_what_a_call_cannot_do_is_its_result(call: dict[str, Any], says: str) -> None:
    _, calls = read_calls(f"{OPEN}{json.dumps(call)}</tool_call>")
    own, result = environment().turns(ROWS[0]["id"], "", calls)
    assert own["tool_calls"][0]["function"] == call and says in result["content"]


def test_what_is_no_call_is_answered_too() -> None:
    own, result = environment().turns(ROWS[0]["id"], "Well.", [ToolCall(None, {}, f"{OPEN}hm", "no JSON")])
    assert own["content"] == f"Well.{OPEN}hm" and "tool_calls" not in own
    assert result == {"role": "tool", "content": "that is no call: no JSON"}


def test_the_cheapest_mode_that_does_is_chosen() -> None:
    def made(begun: str, tokens: int, mode: str = "", finish: str = "stop") -> TrainingEpisode:
        step = replace(ROLLOUT, ids=(1,) * tokens, mode=mode or begun, finish_reason=finish)
        return TrainingEpisode({"id": "a"}, begun, [step], called=begun == AGENTIC)

    modes, right = (NO_THINK, THINK, AGENTIC), lambda one: one.tokens < 10
    both = [made(NO_THINK, 3), made(NO_THINK, 20), made(THINK, 5), made(THINK, 4)]
    assert cheapest(both, modes, 0.5, right) is both[0]
    assert cheapest(both, modes, 0.6, right) is both[3]
    assert cheapest([made(NO_THINK, 3, THINK), made(THINK, 20)], modes, 0.5, right) is None, "it thought all the same"
    assert cheapest([made(THINK, 3, finish="length")], modes, 0.5, right) is None
    agentic = [made(THINK, 20), made(AGENTIC, 9)]
    assert cheapest(agentic, modes, 0.5, right) is agentic[1]


def test_apo_with_three_modes(tmp_path: Path) -> None:
    out = tmp_path / "apo"
    said = train(
        "apo",
        out,
        model=MODEL_NAME,
        data={"task": "agents:lookup,instant", "questions": 4, "efforts": ["easy"]},
        rollouts={"max_new_tokens": 120},
        optimiser={"lora": {"rank": 2, "alpha": 4}},
        apo={
            "forced": 1,
            "no_think_tokens": 48,
            "align": {"samples": 2, "optimiser": {"steps": 1, "micro_batch": 2, "lora": {"rank": 2, "alpha": 4}}},
        },
    )
    logs = [json.loads(line) for line in (out / "curve.jsonl").read_text("utf-8").splitlines()]
    steps = [log for log in logs if "loss" in log]
    assert [log["step"] for log in steps] == [1, 2] and any(log["grad_norm"] > 0 for log in steps)
    assert all("modes/agentic/accuracy" in log and "level/lookup/accuracy" in log for log in steps)
    assert "played 4/4 questions" in said and any("agentic" in line for line in said if line.startswith("routed ")), (
        said
    )
    assert (out / "aligned" / MODEL).is_dir() and (out / MODEL).is_dir()


def test_tasks_with_tools_need_a_method_and_a_model_that_have_them(tmp_path: Path) -> None:
    assert load_tasks(Data(task="tiny")) is None
    agents = {"task": "agents", "questions": 4}
    with pytest.raises(RecipeError, match="'ser' has no tools"):
        method("ser").validate_recipe(recipe("ser", tmp_path / "a", data=agents))
    with pytest.raises(CapabilityError, match="cannot call tools"):
        method("apo").validate_recipe(recipe("apo", tmp_path / "b", data=agents, apo={"forced": 1}))
    with pytest.raises(OptionError, match="did you mean 'lookup'"):
        load_rows(Data(task="agents:lokup"))
    with pytest.raises(RecipeError, match="each of 3 modes"):
        recipe("apo", tmp_path / "c", data=agents, apo={"forced": 2}, rollouts={"generations": 6})
    with pytest.raises(RecipeError, match="accepted: easy, normal or hard"):
        method("apo").validate_recipe(recipe("apo", tmp_path / "d", apo={"forced": 1, "later": "none"}))
    align: dict[str, Any] = {"optimiser": {"micro_batch": 3}}
    with pytest.raises(RecipeError, match=r"apo\.align\.optimiser\.micro_batch"):
        method("apo").validate_recipe(recipe("apo", tmp_path / "e", apo={"forced": 1, "align": align}))
    wrong: dict[str, Any]
    for wrong, says in (
        ({"lora": {"merge": False}}, r"lora\.merge is false"),
        ({"dtype": "bfloat16"}, r"dtype is 'bfloat16'"),
    ):
        align = {"optimiser": {"micro_batch": 2, **wrong}}
        with pytest.raises(RecipeError, match=says):
            method("apo").validate_recipe(recipe("apo", tmp_path / "f", apo={"forced": 1, "align": align}))
    with pytest.raises(RecipeError, match="kl is not weighed"):
        method("apo").validate_recipe(recipe("apo", tmp_path / "g", data=agents, apo={"forced": 1, "kl": 0.1}))


@pytest.mark.parametrize(("mode", "learnt"), [(THINK, [1]), (NO_THINK, [1, 1, 1, 1])])
def test_only_what_decides_is_learnt(mode: str, learnt: list[int]) -> None:
    step = replace(ROLLOUT, ids=(5, 6, 7, 8), forced=(False,) * 4, mode=mode)
    trace = to_trace(TrainingEpisode({"id": "a"}, mode, [step]), close=9)
    assert trace.ids == [5, 6, 7, 8][: len(learnt)] and trace.learnt == learnt


def test_what_policies_wrote_is_not_learnt() -> None:
    # A budget that ends the thinking (7, 9) and a call that is opened after it (3, 4).
    step = replace(ROLLOUT, ids=(5, 6, 7, 9, 3, 4, 8), forced=(False, False, True, True, True, True, False))
    trace = to_trace(TrainingEpisode({"id": "a"}, AGENTIC, [step], called=True), close=9)
    assert trace.ids == [5, 6, 7, 9, 3, 4] and trace.learnt == [1, 0, 0, 0, 1, 1]
