"""Hostile answers and hostile rows: graders run nothing, write nothing, and keep their deadline."""

from __future__ import annotations

import ast
import base64
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tersely.evaluation.tasks import confinement
from tersely.evaluation.tasks.confinement import is_expression
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.evaluation.tasks.questions import Drawn, Question, TaskError
from tersely.evaluation.tasks.sandbox import GRACE, SandboxProcess
from tersely.training.rewards import Correctness

ROOT = Path(__file__).resolve().parents[2]
EVALUATING = ("countdown", "n_queens", "polynomial_multiplication", "simple_integration", "spiral_matrix")
"""Tasks whose scorers evaluate answers, of every kind."""
PATIENT = 60.0


def programs(mark: Path) -> list[str]:
    """Answers that make the file `mark` if they are ever evaluated."""
    shell = f"touch {mark}"
    spawn = f'.util.spawnv_passfds(b"/bin/sh",[b"sh",b"-c",b"{shell}"],[])'
    return [
        f'__import__("multiprocessing.util"){spawn}',
        f'[__import__("multiprocessing.util"){spawn}]',
        f"__import__('os').system('{shell}')",
        f"__import__('os').mkfifo('{mark}')",
        f"__import__('sqlite3').connect('{mark}').execute('create table t(x)')",
        f"open('{mark}', 'w')",
        f"[x for x in [open('{mark}', 'w')]]",
        f"().__class__.__base__.__subclasses__() or open('{mark}', 'w')",
        f"exec(\"open('{mark}', 'w')\")",
        f"S(\"open('{mark}', 'w')\")",
        f"N('open(chr(34))') + Symbol('x').__init__.__globals__['__builtins__']['open']('{mark}', 'w')",
        f"1 if open('{mark}', 'w') else 2",
        f"lambda: open('{mark}', 'w')",
        f"\\boxed{{open('{mark}', 'w')}}",
    ]


def need_gym() -> None:
    if find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed")


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    with AnswerChecker(PATIENT) as checker:
        yield checker


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder that any user may write to, unlike those of pytest: the graders are another user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_math_verify_evaluates_no_answer(checker: AnswerChecker, anyones: Path) -> None:
    for answer in programs(anyones / "mark"):
        assert not checker.check("x", answer).equal
    assert not list(anyones.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("task", EVALUATING)
def test_scorers_evaluate_no_answer(task: str, checker: AnswerChecker, anyones: Path) -> None:
    need_gym()
    ((_, right, _), *_) = checker._sandboxes["reasoning_gym"].call("draw", task, 1, seconds=PATIENT)
    question = Question("", "", right, drawn=Drawn(task, 1, 0))
    for answer in programs(anyones / "mark"):
        assert not checker.grade(question, answer).equal, answer
    assert not list(anyones.iterdir())
    assert checker.grade(question, right).equal


@pytest.mark.attack
def test_thousands_of_hostile_answers_to_every_grader(capsys: pytest.CaptureFixture[str], anyones: Path) -> None:
    need_gym()
    with SandboxProcess("reasoning_gym") as sandbox:
        names = sandbox.call("names", seconds=PATIENT)
    questions = [Question("", "", r"\frac{x^2}{3}"), *(Question(n, "", "", drawn=Drawn(n, 1, 3)) for n in names)]
    letters = "0123456789xyC+-*/^()[]{},.'\"\\_\n ="
    pieces = [*programs(anyones / "mark"), *letters, "\\frac{1}{2}", "**9" * 3, "(" * 200, "\x00"]
    outcomes: Counter[str] = Counter()
    seconds: list[float] = []
    with AnswerChecker(PATIENT) as checker:
        for question in questions:
            rng = Random(question.id)
            checker.deadline = PATIENT
            checker.grade(question, "0")  # starts the grader and draws the problem
            checker.deadline = 0.1
            for _ in range(5_000):
                answer, began = "".join(rng.choices(pieces, k=rng.randint(1, 12))), time.monotonic()
                outcomes[checker.grade(question, answer).outcome] += 1
                seconds.append(time.monotonic() - began)
            checker._cache.clear()
            assert not list(anyones.iterdir()) and max(seconds) < 0.1 + GRACE, question
            with capsys.disabled():
                print(
                    f"{question.id or 'math-verify'}: {len(seconds)} answers, slowest {max(seconds):.2f} s", flush=True
                )
    assert outcomes["crash"] == 0 and outcomes["equal"] < outcomes.total() / 1_000  # no grader takes any answer
    late = sum(one > 0.5 for one in seconds)
    with capsys.disabled():
        print(f"{len(questions)} graders, {dict(outcomes)}, {late} took more than 0.5 s")


def confined(program: str) -> str:
    """What a program prints after it has been confined as the graders are."""
    confine = f"import os, runpy, sys, sympy; c = runpy.run_path({confinement.__file__!r}); c['confine'](['sympy'])\n"
    command = [sys.executable, "-P", "-c", f"{confine}c['forbid_all_else']()\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=False).stdout.strip()


ATTEMPTS = [
    "open('MARK', 'w')",
    "os.mkfifo('MARK')",
    "os.mkdir('MARK')",
    "os.symlink('/', 'MARK')",
    "os.fork()",
    "os.execv('/bin/true', ['true'])",
    "import multiprocessing.util as u; assert not os.waitpid(u.spawnv_passfds(b'/bin/true', [b'true'], []), 0)[1]",
    "import sqlite3; sqlite3.connect('MARK').execute('create table t(x)')",
    "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
    "import ctypes; ctypes.CDLL(None).system(b'touch MARK')",
    "open('/etc/passwd').read()",
    "os.listdir('/')",
    "os.kill(os.getppid(), 0)",
]


def test_a_confined_process_computes_and_imports() -> None:
    assert confined("import colorsys; print(sympy.parse_expr('2*x + sqrt(4)'))") == "2*x + 2"


def test_a_confined_process_reaches_nothing(anyones: Path) -> None:
    program = "".join(
        f"try:\n    {attempt.replace('MARK', str(anyones / 'mark'))}\n    print('done')\n"
        "except BaseException as error:\n    print(type(error).__name__)\n"
        for attempt in ATTEMPTS
    )
    outcomes = confined(program).splitlines()
    assert len(outcomes) == len(ATTEMPTS) and not list(anyones.iterdir())
    assert "done" not in outcomes, dict(zip(ATTEMPTS, outcomes, strict=True))


def test_a_confined_process_has_no_environment_and_writes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_TESTS", "1")
    limits = "resource.getrlimit(resource.RLIMIT_FSIZE), resource.getrlimit(resource.RLIMIT_NPROC)"
    assert confined(f"import resource; print(dict(os.environ), {limits})") == "{} (0, 0) (0, 0)"


def test_a_confined_sympy_evaluates_expressions_alone() -> None:
    for text in ("__import__('os').getpid()", "open(1)", "x.__class__"):
        program = f"try:\n    print(sympy.parse_expr({text!r}))\nexcept SyntaxError:\n    print('refused')\n"
        assert confined(program) == "refused", text


@pytest.mark.slow
def test_confined_scorers_read_literals_where_they_would_evaluate() -> None:
    need_gym()
    confine = f"import runpy, reasoning_gym; runpy.run_path({confinement.__file__!r})['forbid_evaluation']()\n"
    program = (
        "from reasoning_gym.games import n_queens as scorer\nassert scorer.eval('[[1]]') == [[1]]\n"
        "try:\n    scorer.eval('len([])')\nexcept ValueError:\n    print('refused')\n"
    )
    command = [sys.executable, "-P", "-c", confine + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=True)
    assert done.stdout.strip() == "refused"


def test_a_confined_root_has_no_rights_left() -> None:
    drop = f"import os, runpy; runpy.run_path({confinement.__file__!r})['drop_user']([os.__file__])\n"
    program = f"{drop}print(os.getgroups(), open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stdout
    assert re.search(r"CapEff:\s*0+$", status, re.MULTILINE) and re.search(r"CapPrm:\s*0+$", status, re.MULTILINE)


def test_expressions_are_numbers_names_and_operators() -> None:
    for text in (
        "1 + 2*(3 - 4)/5",
        "x**2*exp(-3*x)/2 + C",
        "asin(x)",
        "1e-5",
        ".5",
        "-10*x**8",
        "(1, 2]",
        "x1 + y2",
        "yotta",
    ):
        assert is_expression(text), text
    for text in (
        "__import__",
        "a.b",
        "'x'",
        '"x"',
        "x.real",
        "lambda",
        "import os",
        "open(1)",
        "x\\y",
        "9_9",
        "@",
        "$",
    ):
        assert not is_expression(text), text


def test_what_reasoning_gym_evaluates_is_known() -> None:
    """A release whose scorers evaluate in another way must be looked at first."""
    need_gym()
    spec = find_spec("reasoning_gym")
    assert spec is not None and spec.origin is not None
    calls = re.compile(r"(?<![\w.])(?:eval|exec|compile|sympify|literal_eval)\(|parse_expr|pickle|parse_latex")
    folder = Path(spec.origin).parent
    found = {
        file.stem for file in folder.rglob("*.py") if "contrib" not in file.parts and calls.search(file.read_text())
    }
    literals = {"string_insertion", "spiral_matrix", "number_sorting", "binary_matrix", "n_queens"}
    own = {"codeio", "basic_arithmetic", "bitwise_arithmetic", "generators_00_49", "generators_50_99"}
    parsed = {"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"}
    assert found == literals | own | parsed | {"propositional_logic"}  # which has a parse_expr of its own


@pytest.mark.parametrize(
    "entry",
    [
        ["countdown", base64.b64encode(b"cos\nsystem\n(S'true'\ntR.").decode()],
        {"name": "countdown", "seed": 1, "index": 50},
        {"name": "countdown", "seed": "1", "index": 0},
        {"name": "countdown", "seed": 1, "index": True},
        {"name": 5, "seed": 1, "index": 1},
        {"name": "countdown", "seed": -1, "index": 1},
        {"name": "countdown", "seed": 1, "index": 1, "entry": "x"},
        "countdown",
    ],
)
def test_rows_of_strangers_only_name_a_problem(entry: Any) -> None:
    with Correctness(None) as reward, pytest.raises(TaskError) as caught:
        reward(["?"], ["1"], answer=[None], gym_entry=[entry])
    assert caught.value.code == "invalid_task"


def test_an_unknown_task_in_a_row_is_an_error(checker: AnswerChecker) -> None:
    need_gym()
    with pytest.raises(TaskError):
        checker.grade(Question("", "", "", drawn=Drawn("no_such_task", 1, 1)), "1")


def test_nothing_of_ours_unpickles_or_evaluates() -> None:
    """The vocabulary of Python's own evaluation does not occur in the product."""
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    functions = {"eval", "exec", "__import__"}
    vocabulary = re.compile("|".join(map(re.escape, [*modules, *functions, "torch.load"])))
    for folder in ("tersely", "controller", "evaluation", "probes", "training", "kernels"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            for node in ast.walk(ast.parse(text)) if vocabulary.search(text) else ():
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                    assert not modules & {name.split(".")[0] for name in names}, file
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in functions, file
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    assert {k.arg: ast.literal_eval(k.value) for k in node.keywords}["weights_only"], file
