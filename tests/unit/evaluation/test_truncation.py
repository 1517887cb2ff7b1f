"""Baselines that are cut from what the baseline thought: where they cut, what that costs, and how they come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.options import GenerationOptions
from tersely.evaluation.bench.arms import CONFIDENCE, FIXED, ORACLE, RANDOM, make_arms
from tersely.evaluation.bench.compare import compare
from tersely.evaluation.bench.counterfactual import Counterfactual
from tersely.evaluation.bench.records import ArmRecords
from tersely.evaluation.bench.run import run_arm
from tersely.evaluation.bench.trial_answers import LEAD, MOST_TRIALS, TrialAnswers
from tersely.evaluation.bench.truncation import (
    Recording,
    TrialPoint,
    TruncationBaseline,
    bisect_to_cost,
    budgets,
    confident_stop,
    cost,
    first_correct,
    random_stop,
)
from tersely.evaluation.runner import Continuation, SessionRunner

from ...support.scripted import ScriptedEngine, asked, bench_of, tokenizer


def script(number: int) -> list[int]:
    """Right from the second thought on, in up to seven thoughts; every third question is spoiled by the last one."""
    values = [number + 50, *[number] * (3 + number % 4), number]
    return [*values[:-1], number + 70] if number % 3 == 0 else values


class Made:
    """One counterfactual on the scripted model, with all that it is made of."""

    def __init__(
        self, n: int = 60, rollouts: int = 1, script: Callable[[int], Sequence[int]] = script, limit: int = 2048
    ) -> None:
        self.engine = ScriptedEngine(script)
        self.bench = bench_of(SessionRunner(self.engine), n, rollouts=rollouts)
        self.arm = make_arms("full,balanced", GenerationOptions(max_new_tokens=limit))[0]
        self.full = run_arm(self.bench, self.arm)
        self.cut = Counterfactual(self.bench, self.arm)
        self.session = self.bench.answerer.session
        self.cutter = TruncationBaseline(self.session.codec, self.session.markers)


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    made = Made()
    with made.bench.checker:
        yield made


def accuracy(records: ArmRecords) -> float:
    return float(records.column("right").mean())


def text_of(ids: Sequence[int]) -> str:
    return str(tokenizer().decode(ids))


def test_trials_are_asked_after_whole_thoughts_and_graded(made: Made) -> None:
    for source in made.cut.sources:
        number = int(source.id[1:])
        thoughts = script(number)
        assert len(source.ends) == len(source.trials) == len(thoughts) - 1, "all but the last"
        for k, (end, trial) in enumerate(zip(source.ends, source.trials, strict=True), 1):
            kept = text_of(source.ids[:end])
            assert kept.count("so it is") == k
            assert kept.endswith(f"{thoughts[k - 1]}.\n\n")
            assert trial.right == (thoughts[k - 1] == number)
            assert trial.confidence == pytest.approx(1 - 0.5**k)


def test_a_trial_costs_what_it_forces_and_what_it_writes_into_the_box(made: Made) -> None:
    source = next(s for s in made.cut.sources if s.id == "q7")
    cut = made.cutter.at(source, source.ends[0])
    assert cut is not None
    assert text_of(cut.ids).endswith("</think>\n\n")
    written = tokenizer().encode("57}")
    assert source.trials[0].tokens == cut.forced + len(tokenizer().encode(LEAD)) + len(written)


def test_the_first_correct_stop_is_right_wherever_any_stop_is(made: Made) -> None:
    *_, oracle = made.cut.baselines(made.full.total())
    assert oracle.arm == ORACLE
    assert (accuracy(made.full), accuracy(oracle)) == (pytest.approx(40 / 60), 1.0)
    assert all(text.count("so it is") == 2 for text in map(text_of, kept_of(made, oracle)))


def kept_of(made: Made, oracle: ArmRecords) -> list[Sequence[int]]:
    """What stood before the oracle's answers."""
    by_id = {source.id: source for source in made.cut.sources}
    return [by_id[row.id].ids[: by_id[row.id].ends[1]] for row in oracle.rows]


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_baselines_cost_what_the_judged_arm_costs_and_say_how(made: Made, share: float) -> None:
    target = share * made.full.total()
    found = {records.arm: records for records in made.cut.baselines(target)}
    assert list(found) == [FIXED, CONFIDENCE, RANDOM, ORACLE]
    for name in (FIXED, RANDOM):
        assert found[name].total() == pytest.approx(target, rel=0.06)
    for name in (FIXED, CONFIDENCE, RANDOM):
        missed = abs(found[name].total() / target - 1) > 0.02
        assert ("against the judged arm" in found[name].setting) == missed
    assert "thinking tokens" in found[FIXED].setting
    assert all(records.cut and records.seconds is None for records in found.values())
    compare([made.full, *found.values()], 0.01, 0)  # no question lost, every token counted


def test_trial_answers_are_paid_for_by_the_confidence_exit_alone(made: Made) -> None:
    found = {records.arm: records for records in made.cut.baselines(0.9 * made.full.total())}
    by_id = {source.id: source for source in made.cut.sources}
    for row in found[CONFIDENCE].rows:
        paid = [trial.tokens for trial in by_id[row.id].trials]
        assert row.probe in [sum(paid[:k]) for k in range(1, len(paid) + 1)]
        assert row.total == row.thinking + row.answer_tokens + row.probe
    assert not any(row.probe for name in (FIXED, RANDOM, ORACLE) for row in found[name].rows)


def test_what_is_not_cut_stays_as_it_was(made: Made) -> None:
    *_, never, _ = made.cut.baselines(10 * made.full.total())
    assert [replace(row, arm="full") for row in never.rows] == list(made.full.rows)
    assert never.setting.startswith("with a chance of 0.00")


def test_the_curve_rises_in_tokens_from_little_thinking_to_nearly_all(made: Made) -> None:
    curve = made.cut.curve()
    totals = [records.total() for _, records in curve]
    assert totals == sorted(totals)
    assert totals[0] < 0.5 * made.full.total() < 0.85 * made.full.total() < totals[-1]
    sizes = [budget for budget, _ in curve]
    for budget, records in curve:
        assert all(row.thinking <= max(budget, 1) + 8 for row in records.rows), "a budget holds"
    assert sizes == sorted(set(sizes))


def test_nothing_is_asked_twice_and_rollouts_are_cut_each_for_itself() -> None:
    twice = Made(12, rollouts=2)
    asked_before = twice.engine.requests
    again = Counterfactual(twice.bench, twice.arm)
    assert twice.engine.requests == asked_before, "trials stand in the journal"
    assert len(again.sources) == 24
    found = again.baselines(0.6 * twice.full.total())[2]
    first, second = found.column("thinking").T
    assert (first != second).any(), "coins are thrown for each rollout"


def test_a_cut_falls_where_a_controller_may_act(made: Made) -> None:
    codec = made.session.codec
    text = (
        "First.\n\n```\nx = 1\n\ny = 2\n```\n\nThen \\[ a\n\n+ b \\] it is 3.\n\nSo 3.\n\n</think>\n\nThe answer is 3."
    )
    ids = tuple(codec.encode(text))
    thinking = len(codec.encode(text[: text.index("</think>")]))
    source = Recording("s", ids, thinking, len(ids) - thinking, True, Budget("normal", 500))
    for at in range(1, thinking):
        cut = made.cutter.at(source, at)
        if cut is not None:
            kept = codec.decode(cut.ids[: len(cut.ids) - cut.forced])
            assert kept.count("```") != 1, kept
            assert kept.count("\\[") == kept.count("\\]"), kept
    assert made.cutter.at(source, thinking + 50) is None


def test_a_baseline_longer_than_its_tier_is_cut_where_it_is_long_and_never_too_late_to_answer() -> None:
    long = Made(2, script=lambda number: [number + 1] * 200 + [number], limit=4000)
    source = long.cut.sources[0]
    assert source.thinking > 2048
    assert len(source.ends) > len(source.tries) == len(source.trials) == MOST_TRIALS
    at = [long.cutter.at_budget(source, budget) for budget in (2200, 2500)]
    assert at[0] is not None
    assert at[1] is not None
    assert len(at[0].ids) + 200 < len(at[1].ids), "a tier's cap binds no baseline"
    late = replace(source, budget=replace(source.budget, thinking=source.ends[3]))
    assert long.cutter.ends(late) == source.ends[:4]


def test_trials_are_asked_in_batches_of_the_size_allowed(made: Made) -> None:
    sizes: list[int] = []
    answers = made.bench.answerer

    class Counting:
        session = answers.session

        def write_on(self, texts: Any, limits: Any, sampling: Any) -> list[Continuation]:
            sizes.append(len(texts))
            return answers.write_on(texts, limits, sampling)

    sources = made.cut.sources[:6]
    questions = {question.id: question for question in made.bench.questions}
    prepared = made.session.prepare([questions[s.id].problem for s in sources], made.arm.options)
    asked_for = [(questions[s.id], s) for s in sources]
    prompts = [row.request.prompt_ids for row in prepared]
    found = TrialAnswers(Counting(), made.bench.checker, 7).ask(asked_for, prompts)  # type: ignore[arg-type]
    assert found == [list(source.trials) for source in sources]
    assert max(sizes) == 7


# -- rules, by hand ------------------------------------------------------------------------------------------------


def source_of(*trials: tuple[float, bool]) -> Recording:
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


def test_the_rules_stop_where_they_say() -> None:
    source = source_of((0.5, False), (0.9, False), (0.8, True), (0.95, True))
    assert confident_stop(source, 0.9) == (20, 10)
    assert confident_stop(source, 0.93) == (40, 20)
    assert confident_stop(source, 0.99) == (None, 20)
    assert first_correct(source) == 30
    assert first_correct(source_of((0.9, False))) is None
    assert random_stop(source, 1.0, 0, 0) == 10
    assert random_stop(source, 0.0, 0, 0) is None
    stops = [random_stop(source, chance / 20, 7, 0) or 999 for chance in range(21)]
    assert stops == sorted(stops, reverse=True), "a higher chance never stops later"
    assert cost(source, None, 7) == 107


def test_a_setting_is_found_for_any_target() -> None:
    tried: list[float] = []

    def costs(setting: float) -> float:
        tried.append(setting)
        return 100 * setting**2

    assert costs(bisect_to_cost(costs, 25, 0, 1)) == pytest.approx(25, rel=0.01)
    assert bisect_to_cost(costs, 1000, 0, 1) == 1
    assert bisect_to_cost(costs, -5, 0, 1) == 0
    assert len(tried) == len(set(tried)) + 1 or len(tried) < 60


def test_budgets_of_nothing_are_none() -> None:
    assert budgets([], 8) == []
    assert budgets([replace(source_of(), thinking=0)], 8) == []


@pytest.mark.parametrize(
    ("written", "tokens"), [("57} and so on", "57}"), ("\\frac{1}{2}}.", "\\frac{1}{2}}"), ("57 and no end", None)]
)
def test_a_trial_answer_ends_with_its_box(made: Made, written: str, tokens: str | None) -> None:
    codec = made.session.codec

    class Writes:
        session = made.session

        def write_on(self, texts: Any, limits: Any, sampling: Any) -> list[Continuation]:
            ids = tuple(codec.encode(written))
            return [Continuation(ids, (0.5,) * len(ids), "stop") for _ in texts]

    source = replace(next(s for s in made.cut.sources if s.id == "q7"), trials=())
    source = replace(source, tries=source.tries[:1])
    ((trial,),) = TrialAnswers(Writes(), made.bench.checker, 4).ask([(asked(8)[7], source)], [(1,)])  # type: ignore[arg-type]
    forced = made.cutter.at(source, source.ends[0])
    assert forced is not None
    spent = len(codec.encode(tokens if tokens is not None else written))
    assert trial.tokens == forced.forced + len(codec.encode(LEAD)) + spent
    assert trial.confidence == pytest.approx(0.5)
