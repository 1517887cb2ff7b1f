"""The benchmark: what it counts and concludes, on a scripted session, and once on the embedded model."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import typer
from rich.console import Console

from tersely.controller.errors import OptionError, TerselyError
from tersely.controller.pretrained import path_of
from tersely.controller.prompts import Prompt
from tersely.controller.session import Options, Session
from tersely.controller.trace import Generation, Usage
from tersely.evaluation.arms import ARMS, make_arm, make_arms
from tersely.evaluation.batching import batch_seed, batches
from tersely.evaluation.bench import Records, compare, run_arm
from tersely.evaluation.cli import bench, run_all, write
from tersely.evaluation.table import show
from tersely.evaluation.tasks.questions import Question
from tersely.evaluation.verdict import EXIT_CODES, GOOD, INFERIOR, OPEN

KEYS = {
    "name", "n", "accuracy", "accuracy_ci", "tokens", "delta_accuracy", "delta_accuracy_ci", "delta_total",
    "delta_total_ci", "harm", "harm_upper", "help", "seconds",
}  # fmt: skip
EMBEDDED = "tersely-tiny-small"


class ScriptedSession:
    """Answers `What is K?` with K; the balanced preset errs at every `errs`-th K and thinks `cost` as much."""

    def __init__(self, errs: int = 0, cost: float = 0.5) -> None:
        self.errs, self.cost = errs, cost
        self.calls: list[tuple[str | None, int | None, list[str]]] = []

    def run(self, prompts: Sequence[Prompt], options: Options) -> list[Generation]:
        self.calls.append((options.preset, options.sampling.seed, [str(p) for p in prompts]))
        return [self._answer(str(prompt), options) for prompt in prompts]

    def _answer(self, prompt: str, options: Options) -> Generation:
        number = int(re.findall(r"\d+", prompt)[0])
        ours = options.preset == "balanced"
        wrong = ours and self.errs and number % self.errs == 0
        thinking = round((100 + number % 7) * (self.cost if ours else 1))
        usage = Usage(prompt=5, thinking=thinking, answer=10, discarded=3 if ours else 0)
        answer = f"The answer is \\boxed{{{number + bool(wrong)}}}."
        return Generation(answer, "", answer, "stop", "normal", usage)


def asked(n: int) -> list[Question]:
    return [Question(f"q{i}", f"What is {i}?", str(i), 1 + i % 3) for i in range(n)]


def outcome(session: ScriptedSession, n: int, *, rollouts: int = 1, margin: float = 0.02) -> dict[str, object]:
    arms = make_arms("full,balanced", Options())
    records = run_all(cast(Session, session), arms, asked(n), seed=3, rollouts=rollouts, batch=16)
    return compare(records, margin, seed=3)


def arms_of(result: dict[str, object]) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", result["arms"])


def test_a_saving_without_loss_is_found() -> None:
    result = outcome(ScriptedSession(), 300)
    full, ours = arms_of(result)
    assert result["verdict"] == GOOD
    assert result["needed_n"] is None
    assert set(ours) >= KEYS
    assert (full["accuracy"], ours["accuracy"], ours["harm"], ours["help"]) == (1.0, 1.0, 0.0, 0.0)
    assert full["delta_accuracy"] is None
    tokens = cast("dict[str, float]", ours["tokens"])
    assert set(tokens) == {"thinking", "answer", "overhead", "total"}
    assert tokens["overhead"] == 3
    assert tokens["total"] == tokens["thinking"] + tokens["answer"] + tokens["overhead"]
    assert 0 < cast(float, ours["harm_upper"]) < 0.011
    assert set(cast("dict[str, object]", ours["per_level"])) == {"1", "2", "3"}


def test_lost_answers_are_found_and_counted_as_harm() -> None:
    result = outcome(ScriptedSession(errs=5), 300)
    ours = arms_of(result)[1]
    assert result["verdict"] == INFERIOR
    assert ours["harm"] == pytest.approx(0.2)
    assert ours["delta_accuracy"] == pytest.approx(-0.2)
    assert ours["help"] == 0


def test_overhead_counts_against_the_saving() -> None:
    ours = arms_of(outcome(ScriptedSession(cost=1.0), 60))[1]
    assert ours["delta_total"] == pytest.approx(3)
    assert cast(float, ours["saving"]) < 0


def test_few_questions_stay_open_and_say_how_many_are_needed() -> None:
    result = outcome(ScriptedSession(), 20)
    assert result["verdict"] == OPEN
    assert cast(int, result["needed_n"]) > 20


def test_rollouts_do_not_pass_for_questions() -> None:
    once, thrice = (arms_of(outcome(ScriptedSession(errs=10), 60, rollouts=r))[1] for r in (1, 3))
    assert thrice["n"] == 60
    for key in ("accuracy_ci", "delta_accuracy_ci", "harm_upper"):
        assert thrice[key] == pytest.approx(once[key])


def test_arms_get_the_same_batches_and_seeds_and_rollouts_others() -> None:
    session = ScriptedSession()
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


def test_arms_that_answered_other_questions_are_not_compared() -> None:
    session = cast(Session, ScriptedSession())
    arms = make_arms("full,balanced", Options())
    first, second = (
        run_arm(session, arm, asked(n), seed=0, rollouts=1, batch=8) for arm, n in zip(arms, (10, 11), strict=True)
    )
    with pytest.raises(ValueError, match="asked other questions"):
        compare([first, second], 0.01, 0)
    shuffled = Records("balanced", list(reversed(first.rows)), 1, 0.0)
    with pytest.raises(ValueError, match="asked other questions"):
        compare([first, shuffled], 0.01, 0)


def test_answers_cut_off_count_as_wrong_and_are_reported() -> None:
    class Cut(ScriptedSession):
        def _answer(self, prompt: str, options: Options) -> Generation:
            return replace(super()._answer(prompt, options), answer="", finish_reason="length")

    full = arms_of(outcome(Cut(), 12))[0]
    assert (full["accuracy"], full["capped"], full["unanswered"]) == (0.0, 1.0, 1.0)


# -- arms and options ----------------------------------------------------------------------------------------------


def test_every_arm_is_made_and_keeps_the_common_options() -> None:
    for name in ARMS:
        assert make_arm(name, Options(max_new_tokens=77)).options.max_new_tokens == 77
    assert make_arm("no-think", Options()).options.effort == "none"
    assert make_arm("full", Options()).options.preset == "off"


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ("full,balansed", "did you mean 'balanced'"),
        ("full", "two or more"),
        ("full,full", "at most once"),
        ("", "two or"),
    ],
)
def test_bad_arms_are_refused(arms: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make_arms(arms, Options())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rollouts": 0}, "rollouts is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"margin": 1.5}, "margin is 1.5"),
        ({"out": Path("/no/such/folder/r.json")}, "cannot be written"),
        ({"arms": "full,fats"}, "did you mean 'fast'"),
        ({"tasks": "none.jsonl"}, "no task 'none.jsonl'"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(options: dict[str, object], says: str) -> None:
    with pytest.raises(TerselyError, match=says):
        bench(model="/no/such/model", **options)  # type: ignore[arg-type]


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "r.json", {"a": 1})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    (tmp_path / "folder").mkdir()
    with pytest.raises(TerselyError, match="cannot be written"):
        write(tmp_path / "folder", {"a": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "r.json"]


@pytest.mark.parametrize(("n", "says"), [(300, "non-inferior and saving"), (20, "questions would decide it")])
def test_the_table_shows_arms_and_verdict(n: int, says: str) -> None:
    result = outcome(ScriptedSession(), n)
    frame = {"tasks": ["tiny"], "model": "m", "splits": {"test": {"n": n, "sha256": "ab"}}, "margin": 0.02}
    text = io.StringIO()
    show({**frame, **result, "seed": 3, "rollouts": 1}, Console(file=text, width=80))
    for part in ("full", "balanced", "VERDICT: balanced against full at a margin of 2 point(s)", says, "sha ab"):
        assert part in text.getvalue()
    assert "…" not in text.getvalue(), "nothing is cut at 80 columns"


# -- with a model --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (path_of(EMBEDDED) / "model.safetensors").exists(), reason="the embedded model is not there yet"
)
def test_the_command_runs_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    with pytest.raises(typer.Exit) as ended:
        bench(
            model=EMBEDDED, arms="full,balanced,no-think", limit=12, batch=12, max_new_tokens=600, as_json=True, out=out
        )
    result = json.loads(capsys.readouterr().out)
    assert ended.value.exit_code == EXIT_CODES[result["verdict"]]
    assert set(result) >= {"tasks", "model", "splits", "margin", "arms", "verdict", "needed_n"}
    assert [arm["name"] for arm in result["arms"]] == ["full", "balanced", "no-think"]
    assert all(set(arm) >= KEYS for arm in result["arms"])
    full, ours, none = result["arms"]
    assert none["tokens"]["thinking"] == 0
    assert 0 < ours["tokens"]["thinking"] <= full["tokens"]["thinking"] * 1.5
    written = json.loads(out.read_text(encoding="utf-8"))
    assert len(written["rows"]) == 36
    assert {key: value for key, value in written.items() if key != "rows"} == result
