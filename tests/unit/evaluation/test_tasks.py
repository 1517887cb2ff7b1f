"""The embedded task family, and reading questions from files."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tersely.errors import OptionError
from tersely.evaluation.tasks import questions
from tersely.evaluation.tasks.questions import TaskError, fingerprint, is_right, load, load_all, load_pools
from tersely.evaluation.tasks.toy_problems import CALL_OFF, CALL_OFF_EXPR, KINDS, SPLITS, Problem, count_tokens, stream
from tersely.evaluation.tasks.toy_programs import HARD_HALF, LEVELS, LIMIT, run
from tersely.probes.stats import auroc


@cache
def sample(split: str, n: int, seed: int = 7) -> list[Problem]:
    return list(islice(stream(split, seed), n))


def test_splits_share_no_problem() -> None:
    texts = {split: {p.problem for p in sample(split, 360)} for split in SPLITS}
    for split in SPLITS:
        for other in set(SPLITS) - {split}:
            assert not texts[split] & texts[other]


def test_a_seed_gives_the_same_problems_and_another_gives_others() -> None:
    assert sample("test", 60) == list(islice(stream("test", 7), 60))
    others = {p.problem for p in sample("test", 60, seed=8)}
    assert len({p.problem for p in sample("test", 60)} & others) <= 1


def test_levels_and_kinds_are_balanced() -> None:
    counts = Counter((p.level, p.kind) for p in sample("test", 360))
    assert set(counts) == {(level, kind) for level in LEVELS for kind in KINDS}
    assert set(counts.values()) == {360 // 24}


def test_answers_equal_the_program() -> None:
    for problem in sample("fit", 360):
        values = run(problem.program)
        assert problem.answer == str(values[-1])
        assert all(0 <= v <= 9 * LIMIT for v in values)


def test_answers_equal_the_written_expression() -> None:
    seen = 0
    for problem in sample("test", 360):
        if problem.kind != "expr":
            continue
        found = max(re.findall(r"[\d(][\d+\-*() ]*", problem.problem.rsplit(". ", 1)[-1]), key=len)
        assert str(eval(found)) == problem.answer, problem.problem
        seen += 1
    assert seen == 90


def test_answers_equal_the_definitions_of_a_chain() -> None:
    for problem in sample("calibrate", 360):
        if problem.kind != "chain":
            continue
        values = dict(
            re.findall(r"\b([a-z]) (?:=|be|is|to) ((?:\w+) [-+*] (?:\w+))\.", problem.problem.replace("Let ", ""))
        )
        asked = re.findall(r"\b([a-z])\b", problem.problem.rsplit(". ", 1)[-1])[-1]

        def value(term: str, table: dict[str, str] = values) -> int:
            if term.isdigit():
                return int(term)
            left, op, right = table[term].split()
            x, y = value(left), value(right)
            return {"+": x + y, "-": x - y, "*": x * y}[op]

        assert str(value(asked)) == problem.answer, problem.problem


def test_length_does_not_predict_the_level() -> None:
    problems = sample("fit", 1200)
    lengths = np.array([count_tokens(p.problem) for p in problems])
    levels = np.array([p.level for p in problems])
    means = [lengths[levels == level].mean() for level in LEVELS]
    assert max(means) - min(means) < 6
    for level in LEVELS[1:]:
        pair = (levels == 1) | (levels == level)
        assert 0.40 < auroc(levels[pair] == level, lengths[pair]) < 0.67


def test_a_bag_of_words_does_not_predict_the_hard_half() -> None:
    fit, test = sample("fit", 1200), sample("test", 600)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    model.fit([p.problem for p in fit], [p.level in HARD_HALF for p in fit])
    chances = model.predict_proba([p.problem for p in test])[:, 1]
    assert 0.4 < auroc(np.array([p.level in HARD_HALF for p in test]), chances) < 0.6


def test_the_called_off_problem_is_irrelevant() -> None:
    """The numbers of a program all stand after the sentence that calls off what went before."""
    offs = [off.split("{")[0].strip() for off in (*CALL_OFF, *CALL_OFF_EXPR)]
    for problem in sample("test", 360):
        (off,) = [o for o in offs if o in problem.problem]
        after = problem.problem.split(off, 1)[1]
        literals = [o.literal for step in problem.program for o in (step.left, step.right) if o.step is None]
        assert not Counter(map(str, literals)) - Counter(re.findall(r"\d+", after)), problem.problem


@pytest.mark.parametrize("wrong", [{"split": "tset"}, {"levels": (9,)}, {"kinds": ("poem",)}])
def test_unknown_splits_levels_and_kinds_are_refused(wrong: dict[str, object]) -> None:
    settings: dict[str, object] = {"split": "test", "seed": 0, **wrong}
    with pytest.raises(OptionError) as e:
        next(stream(**settings))  # type: ignore[arg-type]
    assert e.value.code == "unknown_name"


# -- questions --------------------------------------------------------------------------------------


def write(path: Path, *lines: object) -> str:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return str(path)


GOOD = {"id": 1, "problem": "What is 2 + 2?", "answer": 4}


def test_a_file_is_read_in_order_with_or_without_levels(tmp_path: Path) -> None:
    second = {"id": "b", "problem": "A line\u2028 apart?", "answer": "x", "level": 3}
    questions = load(write(tmp_path / "q.jsonl", GOOD, "", second, ""), "test", None, 0)
    assert [(q.id, q.answer, q.level) for q in questions] == [("1", "4", None), ("b", "x", 3)]
    assert len(load(str(tmp_path / "q.jsonl"), "test", 1, 0)) == 1


def test_files_of_gsm8k_are_read_as_they_are(tmp_path: Path) -> None:
    lines = [{"question": f"What is {n} + 2?", "answer": f"It is <<{n}+2={n + 2}>>.\n#### {n + 2}"} for n in (1, 2)]
    questions = load(write(tmp_path / "gsm8k.jsonl", *lines), "test", None, 0)
    assert [(q.id, q.problem, q.answer) for q in questions] == [
        ("gsm8k-1", "What is 1 + 2?", "3"),
        ("gsm8k-2", "What is 2 + 2?", "4"),
    ]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([GOOD, "{broken"], "line 2"),
        ([GOOD, [1, 2]], "line 2"),
        ([{"id": 1, "problem": "?"}], "line 1: field 'answer'"),
        ([{**GOOD, "answer": None}], "line 1: answer"),
        ([{**GOOD, "answer": True}], "line 1: answer"),
        ([{**GOOD, "problem": " "}], "line 1: problem"),
        ([{**GOOD, "level": "hard"}], "line 1: level"),
        ([GOOD, "", GOOD], "line 3: id '1'"),
        (["", ""], "bad.jsonl"),
        ([GOOD, "[" * 100_000], "line 2"),
        (['{"id": 1, "problem": "?", "answer": NaN}'], "line 1: answer"),
        (['{"id": 1, "problem": "?", "answer": 1e999}'], "line 1: answer"),
        (['{"id": 1, "problem": "\\ud800", "answer": 1}'], "line 1"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, lines: list[object], says: str) -> None:
    path = write(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(TaskError) as caught:
        load(path, "test", None, 0)
    assert caught.value.code == "invalid_task" and says in str(caught.value)


def test_byte_order_marks_and_crlf_are_accepted(tmp_path: Path) -> None:
    lines = [json.dumps({**GOOD, "id": n}) for n in range(2)]
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert [q.id for q in load(str(tmp_path / "q.jsonl"), "test", None, 0)] == ["0", "1"]


def test_other_bad_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    for task, limit in ((str(tmp_path / "latin.jsonl"), None), ("gsm8k", None), ("q" * 5_000, None), ("tiny", 0)):
        with pytest.raises(TaskError) as caught:
            load(task, "test", limit, 0)
        assert caught.value.code == "invalid_task"
    with pytest.raises(OptionError) as unknown:
        load("tiny", "tset", 5, 0)
    assert unknown.value.code == "unknown_name"
    with pytest.raises(TaskError):
        load_all([], "test", None, 0)


@pytest.mark.parametrize("kinds", [["tiny", "tiny:chain"], ["tiny:story", "tiny:chain"]])
def test_kinds_of_the_embedded_task_are_one_task(kinds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "load", pytest.fail)  # before any is drawn
    with pytest.raises(TaskError):
        load_all(kinds, "test", 1, 0)


def test_repeated_ids_across_tasks_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, GOOD) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(TaskError) as caught:
        load_all(paths, "test", None, 0)
    assert caught.value.code == "invalid_task"


def test_pools_of_generated_tasks_and_of_files(tmp_path: Path) -> None:
    fit, calibrate = load_pools(["tiny"], {"fit": 5, "calibrate": 4}, 7)
    assert (fit, calibrate) == (load("tiny", "fit", 5, 7), load("tiny", "calibrate", 4, 7))
    files = [
        write(tmp_path / name, {**GOOD, "id": name}, {**GOOD, "id": f"{name}2"}) for name in ("a.jsonl", "b.jsonl")
    ]
    (pool,) = load_pools(files, {"fit": 1, "calibrate": 1}, 7)
    assert sorted(q.id for q in pool) == ["a.jsonl", "a.jsonl2", "b.jsonl", "b.jsonl2"]
    with pytest.raises(TaskError) as e:
        load_pools(["tiny", files[0]], {"fit": 1, "calibrate": 1}, 7)
    assert e.value.code == "mixed_tasks"


def test_tiny_questions_are_those_of_the_stream() -> None:
    questions = load("tiny", "test", 24, 7)
    assert [(q.id, q.problem, q.answer, q.kind) for q in questions] == [
        (p.id, p.problem, p.answer, p.kind) for p in sample("test", 60)[:24]
    ]


def test_kinds_of_tiny_are_a_task_of_their_own() -> None:
    found = load("tiny:story+chain", "test", 24, 0)
    assert {question.kind for question in found} == {"story", "chain"}
    assert {q.kind for pool in load_pools(["tiny:expr"], {"fit": 3, "test": 2}, 0) for q in pool} == {"expr"}
    with pytest.raises(OptionError):
        load("tiny:storey", "test", 1, 0)
    with pytest.raises(TaskError):
        load("tinystory", "test", 1, 0)


def test_the_fingerprint_changes_with_any_question() -> None:
    questions = load("tiny", "test", 12, 7)
    assert fingerprint(questions) == fingerprint(load("tiny", "test", 12, 7))
    assert fingerprint(questions) != fingerprint(questions[:-1])


def test_is_right_compares_normalized_text_only() -> None:
    assert is_right("1200", "1,200")
    assert is_right("5", "\\boxed{5}")
    assert not is_right("2", "\\frac{1}{2}")
    assert not is_right("", "")
