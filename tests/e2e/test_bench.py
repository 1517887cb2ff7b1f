"""The benchmark: its counts and verdicts on a scripted model, and the command on the embedded model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer

from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Policy, PolicyView, Wait, Watching
from tersely.controller.trace import GenerationResult
from tersely.errors import OptionError, TerselyError
from tersely.evaluation.bench import arms as arms_module
from tersely.evaluation.bench.arms import (
    ARMS,
    TRUNCATED_ARMS,
    CheckError,
    check_disjoint,
    check_unseen,
    load_own_arms,
    make_arm,
    make_arms,
)
from tersely.evaluation.bench.cli import bench
from tersely.evaluation.bench.compare import EXIT_CODES, GOOD, INFERIOR, OPEN, as_text, compare
from tersely.evaluation.bench.economics import CostModel
from tersely.evaluation.bench.records import ArmRecords
from tersely.evaluation.economics.costs import Price
from tersely.evaluation.runner import batch_seed, batches
from tersely.evaluation.tasks.questions import Question, TaskError, hash_question
from tersely.io import WriteError

from ..support.refusals import refused
from ..support.scripted import ScriptedAnswers, compare_both, make_bench, make_questions, run_both

KEYS = {
    "name", "n", "accuracy", "accuracy_ci", "tokens", "delta_accuracy", "delta_accuracy_ci", "delta_total",
    "delta_total_ci", "harm", "harm_upper", "help", "seconds",
}  # fmt: skip
EMBEDDED = "tersely-tiny-small"


def test_a_saving_without_loss_is_found() -> None:
    result = compare_both(ScriptedAnswers(), 300)
    full, ours = result["arms"]
    assert result["verdict"] == GOOD
    assert result["needed_n"] is None
    assert set(ours) >= KEYS
    assert (full["accuracy"], ours["accuracy"], ours["harm"], ours["help"]) == (1.0, 1.0, 0.0, 0.0)
    assert full["delta_accuracy"] is None
    tokens = ours["tokens"]
    assert set(tokens) == {"thinking", "answer", "overhead", "total"}
    assert tokens["overhead"] == 3
    assert tokens["total"] == tokens["thinking"] + tokens["answer"] + tokens["overhead"]
    assert 0 < ours["harm_upper"] < 0.011
    assert set(ours["per_level"]) == {"1", "2", "3"}


def test_lost_answers_are_found_and_counted_as_harm() -> None:
    result = compare_both(ScriptedAnswers(errs=5), 300)
    ours = result["arms"][1]
    assert result["verdict"] == INFERIOR
    assert ours["harm"] == pytest.approx(0.2)
    assert ours["delta_accuracy"] == pytest.approx(-0.2)
    assert ours["help"] == 0


def test_overhead_counts_against_the_saving() -> None:
    ours = compare_both(ScriptedAnswers(cost=1.0), 60)["arms"][1]
    assert ours["delta_total"] == pytest.approx(3)
    assert ours["saving"] < 0


def test_few_questions_stay_open_and_say_how_many_are_needed() -> None:
    result = compare_both(ScriptedAnswers(), 20)
    assert result["verdict"] == OPEN
    assert result["needed_n"] > 20


@pytest.mark.parametrize("cost", [0.5, 1.0])
def test_fewer_than_ten_questions_decide_nothing(cost: float) -> None:
    result = compare_both(ScriptedAnswers(errs=1, cost=cost), 9)
    assert result["verdict"] == OPEN


def test_rollouts_do_not_count_as_questions() -> None:
    once, thrice = (compare_both(ScriptedAnswers(errs=10), 60, rollouts=r)["arms"][1] for r in (1, 3))
    assert thrice["n"] == 60
    for key in ("accuracy_ci", "delta_accuracy_ci", "harm_upper"):
        assert thrice[key] == pytest.approx(once[key])


def test_arms_share_batches_and_seeds_and_rollouts_do_not() -> None:
    session = ScriptedAnswers()
    compare_both(session, 40, rollouts=2)
    full = [(seed, prompts) for preset, seed, prompts in session.calls if preset == "off"]
    ours = [(seed, prompts) for preset, seed, prompts in session.calls if preset == "balanced"]
    assert full == ours
    assert len(full) == 6
    assert len({seed for seed, _ in full}) == 6


def test_batches_hold_every_question_once_sorted_by_level() -> None:
    questions = make_questions(50)
    made = batches(questions, 16)
    assert sorted(i for rows in made for i in rows) == list(range(50))
    levels = [questions[i].level or 0 for rows in made for i in rows]
    assert levels == sorted(levels)
    assert batch_seed(0, 0, 1) != batch_seed(0, 1, 0)


def test_answers_cut_off_count_as_wrong_and_are_reported() -> None:
    class Cut(ScriptedAnswers):
        def answer_one(self, prompt: str, options: GenerationOptions) -> GenerationResult:
            return replace(super().answer_one(prompt, options), answer="", finish_reason="length")

    full = compare_both(Cut(), 12)["arms"][0]
    assert (full["accuracy"], full["capped"], full["unanswered"]) == (0.0, 1.0, 1.0)


# -- fairness ----------------------------------------------------------------------------------------------------


def test_arms_that_answered_other_questions_are_not_compared() -> None:
    (first, _), (second, _) = (run_both(make_bench(ScriptedAnswers(), n)) for n in (10, 11))
    shuffled = ArmRecords("balanced", list(reversed(first.rows)), 1, 0.0)
    for other in (second, shuffled):
        with pytest.raises(CheckError) as e:
            compare([first, other], 0.01, 0)
        assert e.value.code == "different_questions"


def test_an_arm_with_uncounted_tokens_is_refused() -> None:
    with refused(CheckError, "uncounted_tokens"):
        compare(run_both(make_bench(ScriptedAnswers(hidden=2), 10)), 0.01, 0)


def test_a_total_that_leaves_out_a_part_is_refused() -> None:
    full, ours = run_both(make_bench(ScriptedAnswers(), 10))
    row = ours.rows[3]
    for wrong in (replace(row, total=row.total - 3), replace(row, overhead=0.0)):
        rows = [*ours.rows[:3], wrong, *ours.rows[4:]]
        with refused(CheckError, "uncounted_tokens"):
            compare([full, replace(ours, rows=rows)], 0.01, 0)


@dataclass(frozen=True)
class Peeker(Policy):
    """A policy that was trained on the test questions."""

    hashes: frozenset[str]
    name: ClassVar[str] = "peeker"

    @property
    def provenance(self) -> frozenset[str]:
        return self.hashes

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(1)


def test_a_policy_trained_on_the_test_questions_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peeker = Peeker(frozenset(hash_question(question) for question in make_questions(4)))
    check_unseen([peeker], [Question("other", "What is 9 ?", "9")])
    with refused(CheckError, "train_test_overlap"):
        check_unseen([peeker], [Question("renamed", "What  is 3?", "3")])
    task = tmp_path / "t.jsonl"
    task.write_text(
        "".join(json.dumps({"id": q.id, "problem": q.problem, "answer": q.answer}) + "\n" for q in make_questions(9))
    )
    monkeypatch.setitem(arms_module.ARMS, "peeker", {"preset": None, "policies": (peeker,)})  # type: ignore[arg-type]
    with refused(CheckError, "train_test_overlap"):
        bench(model="/no/such/model", arms="full,peeker", tasks=str(task))


def test_a_question_in_two_splits_is_found_whatever_its_id() -> None:
    check_disjoint({"fit": make_questions(4), "test": make_questions(9)[4:]})
    with refused(CheckError, "repeated_question"):
        check_disjoint({"test": [*make_questions(3), Question("x", "What is 1?", "1")]})
    with refused(CheckError, "overlapping_splits"):
        check_disjoint({"fit": make_questions(4), "test": [Question("x", "What is  2?", "2")]})


# -- arms and options ----------------------------------------------------------------------------------------------


def test_every_arm_is_made_and_keeps_the_common_options() -> None:
    for name in ARMS:
        assert make_arm(name, GenerationOptions(max_new_tokens=77)).options.max_new_tokens == 77
    assert make_arm("no-think", GenerationOptions()).options.effort == "none"
    assert make_arm("full", GenerationOptions()).options.preset == "off"


@pytest.mark.parametrize(
    ("arms", "code"),
    [
        ("full,balansed", "unknown_name"),
        ("full", "invalid_option"),
        ("full,full", "repeated_value"),
        ("", "invalid_option"),
        ("full,random-stop", "implied_arm"),
        ("balanced,full", "invalid_option"),
        ("full,helper", "missing_helper"),
        ("full,tuned", "missing_config"),
    ],
)
def test_bad_arms_are_refused(arms: str, code: str) -> None:
    with pytest.raises(OptionError) as e:
        make_arms(arms, GenerationOptions())
    assert e.value.code == code


OWN_POLICY = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersely.controller.policies.base import Close, Policy, Wait


@dataclass(frozen=True)
class StopEarly(Policy):
    name: ClassVar[str] = "stop-early"
    at: int = 40

    def watch(self, view):
        yield Wait(at=self.at)
        yield Close("enough")


class Nameless:
    pass


class Balanced(StopEarly):
    name = "balanced"


class NeedsSettings(StopEarly):
    def __init__(self, at):
        super().__init__(at)
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN_POLICY)
    return path


def test_a_policy_of_ones_own_is_an_arm(own_file: Path) -> None:
    common = GenerationOptions(max_new_tokens=77)
    own = load_own_arms([f"{own_file}:StopEarly"], common)
    judged = make_arms("full", common, own=own)[1]
    assert (judged.name, judged.options.max_new_tokens) == ("stop-early", 77)
    assert [arm.name for arm in make_arms("full,balanced,stop-early", common, own=own)][:3] == [
        "full",
        "balanced",
        "stop-early",
    ]
    before = judged.source
    own_file.write_text(OWN_POLICY.replace("40", "50"))
    assert load_own_arms([f"{own_file}:StopEarly"], common)["stop-early"].source != before, "the log must not be reused"


@pytest.mark.parametrize("name", ["Missing", "Nameless", "Balanced", "NeedsSettings"])
def test_classes_that_are_not_usable_policies_are_refused(own_file: Path, name: str) -> None:
    with refused(OptionError, "invalid_policy"):
        load_own_arms([f"{own_file}:{name}"], GenerationOptions())


@pytest.mark.parametrize("spec", ["own.py", "", "/no/such/own.py:A", "no.such.module:A"])
def test_policies_that_cannot_be_loaded_are_refused(spec: str) -> None:
    with pytest.raises(OptionError) as e:
        load_own_arms([spec], GenerationOptions())
    assert e.value.code == "invalid_policy"


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"out": Path("/no/such/folder/r.json")}, WriteError, None),
        ({"effort": "hrad"}, OptionError, "unknown_name"),
        ({"max_new_tokens": 3}, OptionError, None),
        ({"engine": "vlm"}, OptionError, "unknown_name"),
        ({"verifier": "m"}, OptionError, "unused_verifier"),
        ({"price": "gpt-9"}, OptionError, "unknown_name"),
        ({"arms": "full,fats"}, OptionError, "unknown_name"),
        ({"policy": ["own.py:Missing"]}, OptionError, "invalid_policy"),
        ({"tasks": "none.jsonl"}, TaskError, None),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(
    options: dict[str, object], error: type[TerselyError], code: str | None
) -> None:
    with refused(error, code):
        bench(model="/no/such/model", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "says"), [(300, "non-inferior and saving"), (20, "questions would decide it")])
def test_the_table_shows_arms_and_verdict(n: int, says: str) -> None:
    result = compare_both(ScriptedAnswers(), n)
    for arm in result["arms"]:
        arm["iso_saving"] = None
    result["arms"][1] |= {"setting": "with [brackets]", "ideal_seconds": 2.5, "ideal_usd": 0.00125}
    kinds = ("words", "hedging", "thinking", "discourse")
    result["arms"][0]["markers"] = {kind: {"right": 7.0, "wrong": 8.04} for kind in kinds}
    votes = {"accuracy": {"1": 0.5, "2": 0.525}, "single": 0.5, "per_doubling": 0.025, "per_doubling_ci": [-0.01, 0.06]}
    result["arms"][1]["votes"] = votes
    frame = {"tasks": ["tiny"], "model": "m", "splits": {"test": {"n": n, "sha256": "ab"}}, "margin": 0.02}
    text = as_text({**frame, **result, "seed": 3, "rollouts": 1, "notes": ["noted"]})
    verdict = "VERDICT: balanced against full at a margin of 2 point(s)"
    voted = "balanced, majority of 1, 2: 50.0, 52.5 % right; +2.5 [-1.0, +6.0] points by each doubling"
    for part in (
        voted,
        "full",
        "balanced: with [brackets]",
        verdict,
        says,
        "sha ab",
        "noted",
        "ideal $/1k",
        " 1.25\n",
        "discourse 7.0 / 8.0",
    ):
        assert part in text


def test_costs_and_cost_of_pass() -> None:
    full, ours = run_both(make_bench(ScriptedAnswers(errs=2), 10))
    price = Price(prompt=1.0, output=10.0, as_of="2026-01-01")  # type: ignore[arg-type]
    figures = CostModel(price=price).measure(ours)
    usd = (5 * 1.0 + ours.mean("total") * 10.0) / 1e6
    assert figures["usd"] == pytest.approx(usd)
    assert figures["cost_of_pass"] == pytest.approx(usd / 0.5)
    assert figures["e3"] == pytest.approx(50**2 / ours.mean("total"))
    all_wrong = replace(full, rows=[replace(row, right=False) for row in full.rows])
    assert CostModel(price=price).measure(all_wrong)["cost_of_pass"] is None


# -- with a model --------------------------------------------------------------------------------------------------


def test_arms_with_a_helper_and_a_verifier(capsys: pytest.CaptureFixture[str]) -> None:
    """The token counter must not hide the helper's model from policies that read with it."""
    large = "tersely-tiny-large"
    with pytest.raises(typer.Exit):
        bench(
            model=EMBEDDED,
            arms="full,sirius,trimr",
            baselines=False,
            limit=2,
            batch_size=2,
            max_new_tokens=160,
            as_json=True,
            helper=large,
            verifier=large,
            verifier_rules=False,
        )
    result = json.loads(capsys.readouterr().out)
    arms = {arm["name"]: arm["overhead"] for arm in result["arms"]}
    assert set(arms) == {"full", "sirius", "trimr", "no-think", "helper"}
    assert arms["sirius"]["consulted"] > arms["sirius"]["delegated"] >= 0
    assert arms["trimr"]["verifier"] > 0, "without rules, it is asked whatever they could decide"
    assert not any(arms["full"].values()) and (result["helper"], result["verifier"]) == (large, large)
    assert result["weights"]["consulted"] == result["weights"]["helper"] == result["weights"]["verifier"] > 1


def test_the_command_runs_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    options: dict[str, Any] = {"limit": 4, "batch_size": 4, "max_new_tokens": 150, "out": out}
    with pytest.raises(typer.Exit) as ended:
        bench(model=EMBEDDED, arms="full,balanced", as_json=True, **options)
    result = json.loads(capsys.readouterr().out)
    assert ended.value.exit_code == EXIT_CODES[result["verdict"]]
    assert set(result) >= {"tasks", "model", "splits", "margin", "arms", "verdict", "needed_n"}
    assert {arm["name"] for arm in result["arms"]} == {
        "full",
        "balanced",
        "no-think",
        "equal:balanced",
        *TRUNCATED_ARMS,
    }
    assert all(set(arm) >= KEYS for arm in result["arms"])
    full, ours, none = result["arms"][:3]
    oracle = result["arms"][-1]
    assert none["tokens"]["thinking"] == 0
    assert 0 < ours["tokens"]["thinking"] <= full["tokens"]["thinking"] * 1.5
    assert oracle["accuracy"] >= full["accuracy"]
    assert oracle["tokens"]["total"] <= full["tokens"]["total"] + 10
    assert set(result["splits"]) > {"fit", "calibrate", "test"}
    assert result["calibration"]["n"] > 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert len(written["rows"]) == 4 * len(result["arms"])
    assert {key: value for key, value in written.items() if key != "rows"} == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"], "the checkpoint log is removed"
