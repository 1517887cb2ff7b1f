"""Tasks of reasoning-gym: deterministic, with disjoint splits, scored by their own rules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from tersely.errors import OptionError
from tersely.evaluation.tasks import questions as module
from tersely.evaluation.tasks.equality import AnswerChecker, right_answers
from tersely.evaluation.tasks.questions import Question, TaskError, load
from tersely.evaluation.tasks.sandbox import GRACE, SandboxProcess
from tersely.evaluation.tasks.toy_problems import SPLITS

pytestmark = pytest.mark.slow
PATIENT = 60.0


def need_package() -> None:
    pytest.importorskip("reasoning_gym")


class Kept(SandboxProcess):
    """Serves many calls of `load`, as starting one takes seconds."""

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def _one_sandbox() -> Iterator[None]:
    kept = Kept("reasoning_gym")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SandboxProcess", lambda library: kept)
        yield
    kept.close()


def test_loading_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    need_package()
    ended: list[int | None] = []

    class Watched(SandboxProcess):
        def close(self) -> None:
            process = self._process
            super().close()
            ended.append(None if process is None else process.poll())

    monkeypatch.setattr(module, "SandboxProcess", Watched)
    assert load("gym:chain_sum", "test", 2, 0)
    assert len(ended) == 1 and ended[0] is not None


@pytest.fixture(scope="module")
def sums() -> list[Question]:
    need_package()
    return load("gym:chain_sum", "test", 40, 0)


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    need_package()
    with AnswerChecker(PATIENT) as checker:
        yield checker


def test_a_seed_gives_the_same_questions_and_another_gives_others(sums: list[Question]) -> None:
    assert load("gym:chain_sum", "test", 40, 0) == sums
    assert [q.problem for q in load("gym:chain_sum", "test", 40, 1)] != [q.problem for q in sums]


def test_fields_of_gym_questions(sums: list[Question]) -> None:
    assert len({q.id for q in sums}) == len(sums) == 40
    assert sums[3].id == "gym:chain_sum-test-0-3"
    assert {q.kind for q in sums} == {"chain_sum"}
    assert {1, 3} < {q.level for q in sums} <= {1, 2, 3, 4, 5}
    assert all(q.problem.startswith("State the final answer") and q.answer.lstrip("-").isdigit() for q in sums)


def test_splits_of_a_small_generator_are_disjoint() -> None:
    need_package()
    # 216 problems in all, whatever the seed: to ask for more gives those of the split, each once.
    texts = {split: [q.problem for q in load("gym:string_splitting", split, 500, 0)] for split in SPLITS}
    for split, other in combinations(SPLITS, 2):
        assert not set(texts[split]) & set(texts[other])
    drawn = [text for split in SPLITS for text in texts[split]]
    assert len(drawn) == len(set(drawn)) > 200
    assert all(len(texts[split]) > 30 for split in SPLITS)


def test_gym_scores_its_own_answers(sums: list[Question], checker: AnswerChecker) -> None:
    asked = [(q, q.answer) for q in sums[:5]] + [(q, f"{q.answer}7") for q in sums[:5]]
    assert right_answers(asked, checker) == [True] * 5 + [False] * 5
    assert checker.grade(sums[0], rf"So it is \boxed{{{sums[0].answer}}}.").equal
    assert checker.grade(sums[0], sums[0].answer).method == "score_answer"


def test_one_of_many_right_answers_is_right(checker: AnswerChecker) -> None:
    (question,) = load("gym:countdown", "test", 1, 0)
    assert checker.grade(question, f"({question.answer})").equal
    assert not checker.grade(question, f"{question.answer} + 1").equal


def test_multi_line_answers(checker: AnswerChecker) -> None:
    (question,) = load("gym:rotate_matrix", "test", 1, 0)
    assert "\n" in question.answer
    assert checker.grade(question, rf"\boxed{{{question.answer}}}").equal
    (question,) = load("gym:syllogism", "fit", 1, 0)
    assert checker.grade(question, rf"\boxed{{\text{{{question.answer}}}}}").equal


def test_hostile_answers_have_no_effect(
    checker: AnswerChecker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (question,) = load("gym:countdown", "test", 1, 0)  # its scorer evaluates what it is given
    mark = tmp_path / "mark"
    for answer in (f"open({str(mark)!r}, 'w')", f"__import__('os').system('touch {mark}')", "", "(" * 5_000):
        assert not checker.grade(question, answer).equal
    assert not mark.exists()
    assert not checker.grade(question, "__import__('os')._exit(3)").equal
    with monkeypatch.context() as patched:
        patched.setattr(checker, "deadline", 0.5)
        assert not checker.grade(question, "9**9**9**9").equal
    assert checker.grade(question, question.answer).equal


def test_an_error_of_the_scorer_means_unparsable(checker: AnswerChecker) -> None:
    (question,) = load("gym:prime_factorization", "test", 1, 0)
    assert checker.grade(question, "no idea").outcome == "unparsable"
    assert checker.grade(question, question.answer).equal


def test_unknown_names_are_refused() -> None:
    need_package()
    for name, split in (("chain_summ", "test"), ("chain_sum", "tset"), ("game_of_life_halting", "test")):
        with pytest.raises(OptionError) as caught:
            load(f"gym:{name}", split, 3, 0)
        assert caught.value.code == "unknown_name"


def test_a_missing_package_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(TaskError) as caught:
        load("gym:chain_sum", "test", 3, 0)
    assert "tersely[gym]" in str(caught.value)


def test_a_failing_generator_is_a_task_error(monkeypatch: pytest.MonkeyPatch) -> None:
    need_package()
    monkeypatch.setattr(module, "SandboxProcess", SandboxProcess)  # it is killed
    monkeypatch.setattr(module, "GYM_DRAW_SECONDS", -GRACE)
    with pytest.raises(TaskError) as caught:
        load("gym:chain_sum", "test", 3, 0)
    assert caught.value.code == "invalid_task"


def test_generation_does_not_depend_on_the_process() -> None:
    need_package()
    names = ("acre", "list_functions", "family_relationships", "word_ladder")  # sets, state, chance
    with SandboxProcess("reasoning_gym") as one, SandboxProcess("reasoning_gym") as other:
        for name in names:
            first, second = (sandbox.call("draw", name, 3, seconds=PATIENT) for sandbox in (one, other))
            assert first == second, name
