"""Baselines made by truncating recorded thinking: where they truncate, what it costs, and how they score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.options import GenerationOptions
from tersely.controller.trials import ANSWER_PREFIX
from tersely.controller.types import Completion, Signals
from tersely.evaluation.bench.arms import CONFIDENCE, EQUAL, FIXED, ORACLE, RANDOM, make_arms, run_arm
from tersely.evaluation.bench.compare import compare
from tersely.evaluation.bench.counterfactual import MAX_TRIALS, Counterfactual, ask_trials
from tersely.evaluation.bench.records import ArmRecords
from tersely.evaluation.bench.truncation import (
    HARD_CLOSING,
    Recording,
    TrialPoint,
    TruncationBaseline,
    bisect_to_cost,
    confident_stop,
    curve_budgets,
    estimate_cost,
    first_correct,
    random_stop,
)
from tersely.evaluation.runner import SessionRunner

from ...support.scripted import ScriptedEngine, make_bench, make_questions, tokenizer


def script(number: int) -> list[int]:
    """Right from the second thought on, in up to seven thoughts; every third question is spoiled by the last one."""
    values = [number + 50, *[number] * (3 + number % 4), number]
    return [*values[:-1], number + 70] if number % 3 == 0 else values


class Scenario:
    """A counterfactual on the scripted model, and its parts."""

    def __init__(
        self, n: int = 60, rollouts: int = 1, script: Callable[[int], Sequence[int]] = script, limit: int = 2048
    ) -> None:
        self.engine = ScriptedEngine(script)
        self.bench = make_bench(SessionRunner(self.engine), n, rollouts=rollouts)
        self.arm = make_arms("full,balanced", GenerationOptions(max_new_tokens=limit))[0]
        self.full = run_arm(self.bench, self.arm)
        self.counterfactual = Counterfactual(self.bench, self.arm)
        self.session = self.bench.runner.session
        self.truncator = TruncationBaseline(self.session.codec, self.session.markers)


@pytest.fixture(scope="module")
def scenario() -> Iterator[Scenario]:
    scenario = Scenario()
    with scenario.bench.checker:
        yield scenario


def accuracy(records: ArmRecords) -> float:
    return float(records.column("right").mean())


def text_of(ids: Sequence[int]) -> str:
    return str(tokenizer().decode(ids))


def test_trials_follow_whole_thoughts_and_are_graded(scenario: Scenario) -> None:
    for recording in scenario.counterfactual.recordings:
        number = int(recording.id[1:])
        thoughts = script(number)
        assert len(recording.ends) == len(recording.trials) == len(thoughts) - 1, "all but the last"
        for k, (end, trial) in enumerate(zip(recording.ends, recording.trials, strict=True), 1):
            kept = text_of(recording.ids[:end])
            assert kept.count("so it is") == k
            assert kept.endswith(f"{thoughts[k - 1]}.\n\n")
            assert trial.right == (thoughts[k - 1] == number)
            assert trial.confidence == pytest.approx(1 - 0.5**k)


def test_a_trial_costs_its_forced_tokens_and_its_boxed_answer(scenario: Scenario) -> None:
    recording = next(s for s in scenario.counterfactual.recordings if s.id == "q7")
    cut = scenario.truncator.truncate_at(recording, recording.ends[0])
    assert cut is not None
    assert text_of(cut.ids).endswith("</think>\n\n")
    written = tokenizer().encode("57}")
    assert recording.trials[0].tokens == cut.forced + len(tokenizer().encode(ANSWER_PREFIX)) + len(written)


def test_first_correct_is_right_if_any_trial_is(scenario: Scenario) -> None:
    *_, oracle = scenario.counterfactual.baselines(scenario.full.mean("total"))
    assert oracle.arm == ORACLE
    assert (accuracy(scenario.full), accuracy(oracle)) == (pytest.approx(40 / 60), 1.0)
    assert all(text.count("so it is") == 2 for text in map(text_of, ids_before_answers(scenario, oracle)))


def ids_before_answers(scenario: Scenario, oracle: ArmRecords) -> list[Sequence[int]]:
    """The output before the oracle's answers."""
    by_id = {recording.id: recording for recording in scenario.counterfactual.recordings}
    return [by_id[row.id].ids[: by_id[row.id].ends[1]] for row in oracle.rows]


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_baselines_match_the_cost_of_the_judged_arm(scenario: Scenario, share: float) -> None:
    target = share * scenario.full.mean("total")
    found = {records.arm: records for records in scenario.counterfactual.baselines(target)}
    assert list(found) == [FIXED, CONFIDENCE, RANDOM, ORACLE]
    for name in (FIXED, RANDOM):
        assert found[name].mean("total") == pytest.approx(target, rel=0.06)
    for name in (FIXED, CONFIDENCE, RANDOM):
        missed = abs(found[name].mean("total") / target - 1) > 0.02
        assert ("against its target" in found[name].setting) == missed
    assert "thinking tokens" in found[FIXED].setting
    assert all(records.truncated and records.seconds is None for records in found.values())
    compare([scenario.full, *found.values()], 0.01, 0)  # no question lost, every token counted


def test_a_hard_budget_cuts_to_the_token_with_the_words_of_qwen(scenario: Scenario) -> None:
    recording = next(one for one in scenario.counterfactual.recordings if one.id == "q7")
    words = f"\n\n{HARD_CLOSING}\n</think>\n\n"
    for budget in (1, 7, recording.thinking - 2):
        cut = scenario.truncator.truncate_hard(recording, budget)
        assert cut is not None
        assert cut.ids[: len(cut.ids) - cut.forced] == recording.ids[:budget]
        assert text_of(cut.ids).endswith(words)
    assert scenario.truncator.truncate_hard(recording, recording.thinking - 1) is None


def test_each_policy_is_compared_with_a_hard_budget_of_its_cost(scenario: Scenario) -> None:
    full = scenario.full
    low, high = (
        replace(full, arm=name, rows=[replace(row, total=row.total - less) for row in full.rows])
        for name, less in (("low", 30), ("high", 10))
    )
    found = scenario.counterfactual.equal_budgets([low, high])
    assert [one.arm for one in found] == [f"{EQUAL}low", f"{EQUAL}high"]
    for one, arm in zip(found, (low, high), strict=True):
        assert one.mean("total") == pytest.approx(arm.mean("total"), rel=0.06)
        assert one.truncated and one.setting.startswith("at exactly ")


def test_only_the_confidence_baseline_pays_for_trials(scenario: Scenario) -> None:
    found = {records.arm: records for records in scenario.counterfactual.baselines(0.9 * scenario.full.mean("total"))}
    by_id = {recording.id: recording for recording in scenario.counterfactual.recordings}
    for row in found[CONFIDENCE].rows:
        paid = [trial.tokens for trial in by_id[row.id].trials]
        assert row.probe in [sum(paid[:k]) for k in range(1, len(paid) + 1)]
        assert row.total == row.thinking + row.answer_tokens + row.probe
    assert not any(row.probe for name in (FIXED, RANDOM, ORACLE) for row in found[name].rows)


def test_rows_that_are_not_truncated_are_unchanged(scenario: Scenario) -> None:
    *_, never, _ = scenario.counterfactual.baselines(10 * scenario.full.mean("total"))
    assert [replace(row, arm="full") for row in never.rows] == list(scenario.full.rows)
    assert never.setting.startswith("with a probability of 0.00")


def test_the_curve_goes_from_little_thinking_to_nearly_all(scenario: Scenario) -> None:
    curve = scenario.counterfactual.curve()
    totals = [records.mean("total") for _, records in curve]
    assert totals == sorted(totals)
    assert totals[0] < 0.5 * scenario.full.mean("total") < 0.85 * scenario.full.mean("total") < totals[-1]
    sizes = [budget for budget, _ in curve]
    for budget, records in curve:
        assert all(row.thinking <= max(budget, 1) + 8 for row in records.rows), "a budget holds"
    assert sizes == sorted(set(sizes))


def test_checkpoints_are_reused_and_rollouts_are_truncated_independently() -> None:
    twice = Scenario(12, rollouts=2)
    asked_before = twice.engine.requests
    again = Counterfactual(twice.bench, twice.arm)
    assert twice.engine.requests == asked_before, "trials are in the checkpoint log"
    assert len(again.recordings) == 24
    found = again.baselines(0.6 * twice.full.mean("total"))[2]
    first, second = found.column("thinking").T
    assert (first != second).any(), "coins are thrown for each rollout"


def test_truncation_never_splits_mathematics_or_code(scenario: Scenario) -> None:
    codec = scenario.session.codec
    text = (
        "First.\n\n```\nx = 1\n\ny = 2\n```\n\nThen \\[ a\n\n+ b \\] it is 3.\n\nSo 3.\n\n</think>\n\nThe answer is 3."
    )
    ids = tuple(codec.encode(text))
    thinking = len(codec.encode(text[: text.index("</think>")]))
    recording = Recording("s", ids, thinking, len(ids) - thinking, True, Budget("normal", 500))
    for at in range(1, thinking):
        cut = scenario.truncator.truncate_at(recording, at)
        if cut is not None:
            kept = codec.decode(cut.ids[: len(cut.ids) - cut.forced])
            assert kept.count("```") != 1, kept
            assert kept.count("\\[") == kept.count("\\]"), kept
    assert scenario.truncator.truncate_at(recording, thinking + 50) is None


def test_a_recording_longer_than_its_tier_is_truncated_beyond_the_tier_and_leaves_room_to_answer() -> None:
    long = Scenario(2, script=lambda number: [number + 1] * 200 + [number], limit=4000)
    recording = long.counterfactual.recordings[0]
    assert recording.thinking > 2048
    assert len(recording.ends) > len(recording.trial_ends) == len(recording.trials) == MAX_TRIALS
    at = [long.truncator.truncate_to_budget(recording, budget) for budget in (2200, 2500)]
    assert at[0] is not None
    assert at[1] is not None
    assert len(at[0].ids) + 200 < len(at[1].ids), "a tier's cap binds no baseline"
    late = replace(recording, budget=replace(recording.budget, thinking=recording.ends[3]))
    assert long.truncator.find_ends(late) == recording.ends[:4]


def test_trials_respect_the_batch_size(scenario: Scenario) -> None:
    sizes: list[int] = []
    runner = scenario.bench.runner

    class Counting:
        session = runner.session

        def continue_from(self, texts: Any, limits: Any, sampling: Any) -> list[Completion]:
            sizes.append(len(texts))
            return runner.continue_from(texts, limits, sampling)

    recordings = scenario.counterfactual.recordings[:6]
    questions = {question.id: question for question in scenario.bench.questions}
    prepared = scenario.session.prepare([questions[s.id].problem for s in recordings], scenario.arm.options)
    rows = [(questions[r.id], r, p.request.prompt_ids) for r, p in zip(recordings, prepared, strict=True)]
    found = ask_trials(replace(scenario.bench, runner=Counting(), batch_size=7), rows)  # type: ignore[arg-type]
    assert found == [list(recording.trials) for recording in recordings]
    assert max(sizes) == 7


# -- rules, by hand ------------------------------------------------------------------------------------------------


def make_recording(*trials: tuple[float, bool]) -> Recording:
    ends = tuple(10 * k for k in range(1, len(trials) + 1))
    return Recording(
        "s",
        tuple(range(100)),
        90,
        10,
        True,
        Budget("normal", 500),
        ends,
        ends,
        tuple(TrialPoint(c, 5, r) for c, r in trials),
    )


def test_stopping_rules() -> None:
    recording = make_recording((0.5, False), (0.9, False), (0.8, True), (0.95, True))
    assert confident_stop(recording, 0.9) == (20, 10)
    assert confident_stop(recording, 0.93) == (40, 20)
    assert confident_stop(recording, 0.99) == (None, 20)
    assert first_correct(recording) == 30
    assert first_correct(make_recording((0.9, False))) is None
    assert random_stop(recording, 1.0, 0, 0) == 10
    assert random_stop(recording, 0.0, 0, 0) is None
    stops = [random_stop(recording, chance / 20, 7, 0) or 999 for chance in range(21)]
    assert stops == sorted(stops, reverse=True), "a higher chance never stops later"
    assert estimate_cost(recording, None, 7) == 107


def test_bisect_to_cost_reaches_any_target() -> None:
    tried: list[float] = []

    def costs(setting: float) -> float:
        tried.append(setting)
        return 100 * setting**2

    assert costs(bisect_to_cost(costs, 25, 0, 1)) == pytest.approx(25, rel=0.01)
    assert bisect_to_cost(costs, 1000, 0, 1) == 1
    assert bisect_to_cost(costs, -5, 0, 1) == 0
    assert len(tried) == len(set(tried)) + 1 or len(tried) < 60


def test_curve_budgets_without_thinking_are_empty() -> None:
    assert curve_budgets([], 8) == []
    assert curve_budgets([replace(make_recording(), thinking=0)], 8) == []


@pytest.mark.parametrize(
    ("written", "tokens"), [("57} and so on", "57}"), ("\\frac{1}{2}}.", "\\frac{1}{2}}"), ("57 and no end", None)]
)
def test_a_trial_answer_ends_with_its_box(scenario: Scenario, written: str, tokens: str | None) -> None:
    codec = scenario.session.codec

    class Writes:
        session = scenario.session

        def continue_from(self, texts: Any, limits: Any, sampling: Any) -> list[Completion]:
            ids = tuple(codec.encode(written))
            signals = (Signals(0.1, 0.5, 0.5),) * len(ids)
            return [Completion(ids, (False,) * len(ids), "stop", signals=signals) for _ in texts]

    recording = replace(next(s for s in scenario.counterfactual.recordings if s.id == "q7"), trials=())
    recording = replace(recording, trial_ends=recording.trial_ends[:1])
    bench = replace(scenario.bench, runner=Writes())  # type: ignore[arg-type]
    ((trial,),) = ask_trials(bench, [(make_questions(8)[7], recording, (1,))])
    forced = scenario.truncator.truncate_at(recording, recording.ends[0])
    assert forced is not None
    spent = len(codec.encode(tokens if tokens is not None else written))
    assert trial.tokens == forced.forced + len(codec.encode(ANSWER_PREFIX)) + spent
    assert trial.confidence == pytest.approx(0.5)
