"""The benchmark: what it counts and concludes, on a scripted session, and once on the embedded model."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from rich.console import Console

from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import PolicyView, Wait, Watching
from tersely.controller.trace import GenerationResult
from tersely.errors import OptionError, TerselyError
from tersely.evaluation.bench import arms as arms_module
from tersely.evaluation.bench.arms import ARMS, CUTS, make_arm, make_arms
from tersely.evaluation.bench.cli import bench
from tersely.evaluation.bench.compare import compare
from tersely.evaluation.bench.costs import CostModel
from tersely.evaluation.bench.fairness import CheckError, check_disjoint, check_unseen
from tersely.evaluation.bench.records import ArmRecords
from tersely.evaluation.bench.table import show
from tersely.evaluation.bench.verdict import EXIT_CODES, GOOD, INFERIOR, OPEN
from tersely.evaluation.economics.prices import Price
from tersely.evaluation.runner import batch_seed, batches
from tersely.evaluation.tasks.questions import Question, hash_question

from ..support.scripted import ScriptedAnswers, asked, bench_of, outcome, run_both

KEYS = {
    "name", "n", "accuracy", "accuracy_ci", "tokens", "delta_accuracy", "delta_accuracy_ci", "delta_total",
    "delta_total_ci", "harm", "harm_upper", "help", "seconds",
}  # fmt: skip
EMBEDDED = "tersely-tiny-small"


def test_a_saving_without_loss_is_found() -> None:
    result = outcome(ScriptedAnswers(), 300)
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
    result = outcome(ScriptedAnswers(errs=5), 300)
    ours = result["arms"][1]
    assert result["verdict"] == INFERIOR
    assert ours["harm"] == pytest.approx(0.2)
    assert ours["delta_accuracy"] == pytest.approx(-0.2)
    assert ours["help"] == 0


def test_overhead_counts_against_the_saving() -> None:
    ours = outcome(ScriptedAnswers(cost=1.0), 60)["arms"][1]
    assert ours["delta_total"] == pytest.approx(3)
    assert ours["saving"] < 0


def test_few_questions_stay_open_and_say_how_many_are_needed() -> None:
    result = outcome(ScriptedAnswers(), 20)
    assert result["verdict"] == OPEN
    assert result["needed_n"] > 20


@pytest.mark.parametrize("cost", [0.5, 1.0])
def test_a_handful_of_questions_decides_nothing(cost: float) -> None:
    result = outcome(ScriptedAnswers(errs=1, cost=cost), 9)
    assert result["verdict"] == OPEN


def test_rollouts_do_not_pass_for_questions() -> None:
    once, thrice = (outcome(ScriptedAnswers(errs=10), 60, rollouts=r)["arms"][1] for r in (1, 3))
    assert thrice["n"] == 60
    for key in ("accuracy_ci", "delta_accuracy_ci", "harm_upper"):
        assert thrice[key] == pytest.approx(once[key])


def test_arms_get_the_same_batches_and_seeds_and_rollouts_others() -> None:
    session = ScriptedAnswers()
    outcome(session, 40, rollouts=2)
    full = [(seed, prompts) for preset, seed, prompts in session.calls if preset == "off"]
    ours = [(seed, prompts) for preset, seed, prompts in session.calls if preset == "balanced"]
    assert full == ours
    assert len(full) == 6
    assert len({seed for seed, _ in full}) == 6


def test_batches_hold_every_question_once_and_like_with_like() -> None:
    questions = asked(50)
    made = batches(questions, 16)
    assert sorted(i for rows in made for i in rows) == list(range(50))
    levels = [questions[i].level or 0 for rows in made for i in rows]
    assert levels == sorted(levels)
    assert batch_seed(0, 0, 1) != batch_seed(0, 1, 0)


def test_answers_cut_off_count_as_wrong_and_are_reported() -> None:
    class Cut(ScriptedAnswers):
        def one(self, prompt: str, options: GenerationOptions) -> GenerationResult:
            return replace(super().one(prompt, options), answer="", finish_reason="length")

    full = outcome(Cut(), 12)["arms"][0]
    assert (full["accuracy"], full["capped"], full["unanswered"]) == (0.0, 1.0, 1.0)


# -- flatterers ----------------------------------------------------------------------------------------------------


def test_arms_that_answered_other_questions_are_not_compared() -> None:
    (first, _), (second, _) = (run_both(bench_of(ScriptedAnswers(), n)) for n in (10, 11))
    shuffled = ArmRecords("balanced", list(reversed(first.rows)), 1, 0.0)
    for other in (second, shuffled):
        with pytest.raises(CheckError, match="asked other questions"):
            compare([first, other], 0.01, 0)


def test_an_arm_that_does_not_count_its_probes_is_caught() -> None:
    with pytest.raises(CheckError, match="counts 1124 tokens, but its engine put out 1144"):
        compare(run_both(bench_of(ScriptedAnswers(hidden=2), 10)), 0.01, 0)


def test_a_row_whose_total_leaves_out_a_part_is_caught() -> None:
    full, ours = run_both(bench_of(ScriptedAnswers(), 10))
    row = ours.rows[3]
    for flattered in (replace(row, total=row.total - 3), replace(row, overhead=0.0)):
        rows = [*ours.rows[:3], flattered, *ours.rows[4:]]
        with pytest.raises(CheckError, match="'q3'"):
            compare([full, replace(ours, rows=rows)], 0.01, 0)


@dataclass(frozen=True)
class Peeker:
    """Says that it has seen what it is tested on."""

    learned_from: tuple[str, ...]
    name: ClassVar[str] = "peeker"
    needs: ClassVar[frozenset[str]] = frozenset()

    def watch(self, view: PolicyView) -> Watching:
        yield Wait(1)


def test_a_policy_that_learnt_from_the_test_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peeker = Peeker(tuple(hash_question(question) for question in asked(4)))
    check_unseen([peeker], [Question("other", "What is 9 ?", "9")])
    with pytest.raises(CheckError, match="'peeker' has learnt from 1 of the questions"):
        check_unseen([peeker], [Question("renamed", "What  is 3?", "3")])
    task = tmp_path / "t.jsonl"
    task.write_text(
        "".join(json.dumps({"id": q.id, "problem": q.problem, "answer": q.answer}) + "\n" for q in asked(9))
    )
    monkeypatch.setitem(arms_module.ARMS, "peeker", {"preset": None, "policies": (peeker,)})  # type: ignore[arg-type]
    with pytest.raises(CheckError, match=r"from 4 of the questions .*test on others"):
        bench(model="/no/such/model", arms="full,peeker", tasks=str(task))


def test_a_question_in_two_splits_is_found_under_any_name() -> None:
    check_disjoint({"fit": asked(4), "test": asked(9)[4:]})
    with pytest.raises(CheckError, match="'q1' and 'x' are one"):
        check_disjoint({"test": [*asked(3), Question("x", "What is 1?", "1")]})
    with pytest.raises(CheckError, match="'x' of split 'test' is also in split 'fit'"):
        check_disjoint({"fit": asked(4), "test": [Question("x", "What is  2?", "2")]})


# -- arms and options ----------------------------------------------------------------------------------------------


def test_every_arm_is_made_and_keeps_the_common_options() -> None:
    for name in ARMS:
        assert make_arm(name, GenerationOptions(max_new_tokens=77)).options.max_new_tokens == 77
    assert make_arm("no-think", GenerationOptions()).options.effort == "none"
    assert make_arm("full", GenerationOptions()).options.preset == "off"


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ("full,balansed", "did you mean 'balanced'"),
        ("full", "two or more"),
        ("full,full", "at most once"),
        ("", "two or"),
        ("full,random-stop", "leave it out"),
        ("balanced,full", "the first arm is 'balanced'; accepted: 'full'"),
        ("full,helper", "--helper"),
    ],
)
def test_bad_arms_are_refused(arms: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make_arms(arms, GenerationOptions())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rollouts": 0}, "rollouts is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"margin": 1.5}, "margin is 1.5"),
        ({"out": Path("/no/such/folder/r.json")}, "cannot be written"),
        ({"effort": "hrad"}, "did you mean 'hard'"),
        ({"max_new_tokens": 3}, "max_new_tokens is 3"),
        ({"engine": "vlm"}, "did you mean 'vllm'"),
        ({"verifier": "m"}, "would never be asked"),
        ({"price": "gpt-9"}, "gpt-9"),
        ({"arms": "full,fats"}, "did you mean 'fast'"),
        ({"tasks": "none.jsonl"}, "no task 'none.jsonl'"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(options: dict[str, object], says: str) -> None:
    with pytest.raises(TerselyError, match=says):
        bench(model="/no/such/model", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "says"), [(300, "non-inferior and saving"), (20, "questions would decide it")])
def test_the_table_shows_arms_and_verdict(n: int, says: str) -> None:
    result = outcome(ScriptedAnswers(), n)
    for arm in result["arms"]:
        arm["iso_saving"] = None
    result["arms"][1]["setting"] = "with [brackets]"
    frame = {"tasks": ["tiny"], "model": "m", "splits": {"test": {"n": n, "sha256": "ab"}}, "margin": 0.02}
    text = io.StringIO()
    show({**frame, **result, "seed": 3, "rollouts": 1, "notes": ["noted"]}, Console(file=text, width=80))
    verdict = "VERDICT: balanced against full at a margin of 2 point(s)"
    for part in ("full", "balanced: with [brackets]", verdict, says, "sha ab", "noted"):
        assert part in text.getvalue()
    assert "…" not in text.getvalue(), "nothing is cut at 80 columns"


def test_costs_are_priced_and_right_answers_divide_them() -> None:
    full, ours = run_both(bench_of(ScriptedAnswers(errs=2), 10))
    price = Price(prompt=1.0, output=10.0, as_of="2026-01-01")  # type: ignore[arg-type]
    figures = CostModel(price=price).of(ours)
    usd = (5 * 1.0 + ours.total() * 10.0) / 1e6
    assert figures["usd"] == pytest.approx(usd)
    assert figures["cost_of_pass"] == pytest.approx(usd / 0.5)
    assert figures["e3"] == pytest.approx(50**2 / ours.total())
    nobody = replace(full, rows=[replace(row, right=False) for row in full.rows])
    assert CostModel(price=price).of(nobody)["cost_of_pass"] is None


# -- with a model --------------------------------------------------------------------------------------------------


def test_arms_that_have_a_helper_review_and_a_verifier_decide(capsys: pytest.CaptureFixture[str]) -> None:
    """The meter that counts tokens must not hide the helper's model from those that read with it."""
    large = "tersely-tiny-large"
    with pytest.raises(typer.Exit):
        bench(
            model=EMBEDDED,
            arms="full,sirius,trimr",
            baselines=False,
            limit=4,
            batch=4,
            max_new_tokens=400,
            as_json=True,
            helper=large,
            verifier=large,
        )
    result = json.loads(capsys.readouterr().out)
    arms = {arm["name"]: arm["overhead"] for arm in result["arms"]}
    assert set(arms) == {"full", "sirius", "trimr", "no-think", "helper"}
    assert arms["sirius"]["consulted"] > arms["sirius"]["delegated"] >= 0
    assert not any(arms["full"].values()) and (result["helper"], result["verifier"]) == (large, large)
    assert result["weights"]["consulted"] == result["weights"]["helper"] == result["weights"]["verifier"] > 1


def test_the_command_runs_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    options: dict[str, Any] = {"limit": 12, "batch": 12, "max_new_tokens": 600, "out": out}
    with pytest.raises(typer.Exit) as ended:
        bench(model=EMBEDDED, arms="full,balanced", as_json=True, **options)
    result = json.loads(capsys.readouterr().out)
    assert ended.value.exit_code == EXIT_CODES[result["verdict"]]
    assert set(result) >= {"tasks", "model", "splits", "margin", "arms", "verdict", "needed_n"}
    assert {arm["name"] for arm in result["arms"]} == {"full", "balanced", "no-think", *CUTS}
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
    assert len(written["rows"]) == 12 * len(result["arms"])
    assert {key: value for key, value in written.items() if key != "rows"} == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"], "the journal has to go"
