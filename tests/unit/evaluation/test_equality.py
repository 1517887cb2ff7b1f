"""Mathematical equality of answers, and the sandbox process: nothing may hang or crash the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tersely.errors import OptionError
from tersely.evaluation.tasks import equality
from tersely.evaluation.tasks.equality import LONGEST, AnswerChecker, right_answers
from tersely.evaluation.tasks.questions import Question
from tersely.evaluation.tasks.sandbox import CallError, CrashError, DeadlineError, SandboxError, SandboxProcess
from tersely.evaluation.tasks.sandbox_main import level

from ...support.cpu_limit import limited

TOWER = "9^{9^{9^{9}}}"
PATIENT = 60.0  # results must not depend on the load of the machine


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    pytest.importorskip("math_verify")
    with AnswerChecker(PATIENT) as checker:
        yield checker


@pytest.fixture(scope="module")
def hasty() -> Iterator[AnswerChecker]:
    pytest.importorskip("math_verify")
    with AnswerChecker(deadline=1.0) as checker:
        yield checker


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> AnswerChecker:
    """A checker where math-verify is not installed."""
    monkeypatch.setattr(equality, "find_spec", lambda name: None)
    return AnswerChecker()


# -- equality -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", r"\dfrac12"),
        (r"\frac{1}{2}", "0.5"),
        ("1/3", "0.333333"),
        (r"1\frac{4}{5}", "9/5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        (r"\left(\frac{3}{5},\frac{8}{3}\right]", r"\left ( \frac35 , \frac83 \right ]"),
        ("(8,-2)", r"\left(8, -2\right)."),
        ("3, 5, 7", "3,5,7"),
        ("-2,1", r"\(1, -2\)"),
        (r"3 \pm 2 \sqrt{2}", r"3+2\sqrt2, 3-2\sqrt2"),
        (r"x \in [-2,7]", "[-2,7]"),
        ("x=5", "5"),
        (r"90^\circ", "90"),
        (r"90^\circ", "90 degrees"),
        ("12", r"12\text{ cm}"),
        (r"\$18.90", "18.9"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        ("12345", "12{,}345"),
        (r"7\pi", "7 pi"),
        (r"2\sqrt{113}", "2sqrt(113)"),
        (r"2\sqrt{113}", "2√113"),
        ("(a+5)(b+2)", "ab + 2a + 5b + 10"),
        (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}"),
        ("4210_{5}", "4210_5"),
        (r"\text{(E)}", "E"),
        (r"\text{even}", "Even."),
    ],
)
def test_equal_answers(checker: AnswerChecker, gold: str, answer: str) -> None:
    assert checker.check(gold, answer).outcome == "equal"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(2,4)", "(2,4]"),
        ("(2,4)", "(4,2)"),
        ("-2,1", "-21"),
        ("3, 5, 7", "357"),
        ("2k+2", "2n+2"),
        (r"\frac{2}{1005}", "0.00199"),  # six decimal places alone would pass it
        (".0000672", ".0000671"),
        ("52_8", "52_9"),
        (r"\text{east}", "seat"),  # algebra would call them one product
        (r"\text{(E)}", "(B)"),
        ("5", "5, 6"),
        (r"\pi", "3.14"),
        ("3:45 pm", "3:45 am"),
        ("2023-01-02", "2023-02-01"),
        ("5x", "5"),
    ],
)
def test_different_answers(checker: AnswerChecker, gold: str, answer: str) -> None:
    assert checker.check(gold, answer).outcome == "different"


@pytest.mark.parametrize("answer", ["", "   ", "I cannot tell", "x^2+", r"\frac{1}{", "}{", "1" + "+1" * LONGEST])
def test_unparsable_answers(checker: AnswerChecker, answer: str) -> None:
    assert checker.check("5", answer).outcome == "unparsable"


def test_comparison_is_not_symmetric(checker: AnswerChecker) -> None:
    assert checker.check("x>2", r"(2,\infty)").equal
    assert not checker.check(r"(2,\infty)", "x>2").equal


def test_the_method_is_reported(checker: AnswerChecker) -> None:
    assert checker.check("1,200", "1200").method == "exact"
    assert checker.check("x+1", "1+x").method == "math-verify"
    assert checker.method == "math-verify"


def test_without_math_verify_only_exact_matches_count(exact: AnswerChecker) -> None:
    assert exact.method == "exact"
    assert exact.check("1,200", r"\boxed{1200}").equal
    assert exact.check(r"\frac{1}{2}", "0.5") == equality.Equality("different", "exact")
    assert exact.check("5", "").outcome == "unparsable"


@pytest.mark.parametrize(
    ("gold", "answer", "outcome"),
    [
        ("71", r"71\%", "equal"),
        (r"\text{(B)}", "B", "equal"),
        ("18+10i", "18 + 10i", "equal"),
        ("(1, 2)", "[1, 2)", "different"),
        ("12", "1 2", "different"),
    ],
)
def test_without_math_verify_markup_and_spaces_do_not_count(
    exact: AnswerChecker, gold: str, answer: str, outcome: str
) -> None:
    assert exact.check(gold, answer).outcome == outcome


def test_right_answers_grades_a_list(checker: AnswerChecker) -> None:
    asked = [(Question("a", "?", r"\frac12"), "0.5"), (Question("b", "?", "7"), "8"), (Question("c", "?", "7"), "7.")]
    assert right_answers(asked, checker) == [True, False, True]


# -- nothing hangs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hanging_comparison_times_out_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    with AnswerChecker(deadline=1.0) as checker:
        checker.check("1", "x")  # the libraries are loaded outside the deadline
        assert checker.check("5", TOWER) == equality.Equality("timeout", "math-verify")
        with monkeypatch.context() as patch:
            patch.setattr(SandboxProcess, "call", lambda *_, **__: pytest.fail("it is compared again"))
            assert not checker.check("5", TOWER).equal
        checker.deadline = PATIENT
        assert checker.check(r"\frac12", "0.5").equal, "a killed process is replaced"


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        "10**10**10",
        "{" * 9_000,
        r"\sqrt{" * 1_600,
        "(" * 4_900 + ")" * 4_900,
        r"\begin{pmatrix}" * 300,
        "x" * 1_000_000,
        r"\boxed{" * 140_000,
        "5\0{\0",
        "\ud800",
        "1" * 9_999,
        r"\frac{",
    ],
    ids=range(11),
)
def test_hostile_texts_are_survived(hasty: AnswerChecker, answer: str) -> None:
    started = time.monotonic()
    with limited():  # the sandbox is another process
        assert not hasty.check("7", answer).equal
    assert time.monotonic() - started < PATIENT


def test_threads_share_a_checker(checker: AnswerChecker) -> None:
    pairs = [(f"\\frac{{{n}}}{{4}}", str((n + shift) / 4)) for n in range(1, 12, 2) for shift in (0, 4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: checker.check(*pair).equal, pairs * 2))
    assert found == [True, False] * (len(pairs))


def test_the_process_starts_late_and_ends_with_the_checker() -> None:
    pytest.importorskip("math_verify")
    with AnswerChecker(PATIENT) as checker:
        assert checker.check("5", "5").equal
        sandbox = checker._sandboxes["math_verify"]
        assert sandbox._process is None
        assert checker.check("5", "10/2").equal
        process = sandbox._process
        assert process is not None and process.poll() is None
        assert checker.check("6", "12/2").equal and sandbox._process is process
    assert process.poll() is not None


@pytest.mark.slow
def test_a_script_without_a_main_guard_can_compare(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    script = tmp_path / "script.py"
    code = (
        "from tersely.evaluation.tasks.equality import AnswerChecker as A\nwith A(60) as c: print(c.check('5', '10/2'))"
    )
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "outcome='equal', method='math-verify'" in done.stdout
    assert done.stderr == ""


def test_bad_deadlines_are_refused() -> None:
    for wrong in (0, -1, float("nan")):
        with pytest.raises(OptionError, match=f"deadline is {wrong}"):
            AnswerChecker(wrong)


# -- the sandbox process --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    pytest.importorskip("math_verify")
    with SandboxProcess("math_verify") as sandbox:
        yield sandbox


@pytest.mark.slow
def test_timeouts_crashes_and_errors_are_distinguished(sandbox: SandboxProcess) -> None:
    with pytest.raises(DeadlineError, match=r"0\.5 s"):
        sandbox.call("compare", "5", TOWER, seconds=0.5)
    with pytest.raises(CallError, match="KeyError"):
        sandbox.call("guess", seconds=PATIENT)
    sandbox.call("compare", "5", "5", seconds=PATIENT)
    assert sandbox._process is not None
    timer = threading.Timer(0.5, sandbox._process.kill)
    timer.start()
    with pytest.raises(CrashError):
        sandbox.call("compare", "5", TOWER, seconds=PATIENT)
    timer.join()
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"


@pytest.mark.slow
def test_late_calls_cost_no_new_start(sandbox: SandboxProcess) -> None:
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"
    process = sandbox._process
    for _ in range(3):
        with pytest.raises(DeadlineError):
            sandbox.call("compare", "5", TOWER, seconds=0.2)
        assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"
    assert sandbox._process is process  # it has the library, and all that was drawn


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals")
def test_a_sandbox_that_does_not_reply_is_given_up_in_time(
    sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"
    assert sandbox._process is not None
    sandbox._process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr("tersely.evaluation.tasks.sandbox.GRACE", 1.0)
    started = time.monotonic()
    with pytest.raises(DeadlineError):
        sandbox.call("compare", "5", "5", seconds=0.1)
    assert time.monotonic() - started < PATIENT
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"


@pytest.mark.slow
def test_a_process_lost_while_idle_is_replaced(sandbox: SandboxProcess) -> None:
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"
    assert sandbox._process is not None
    sandbox._process.kill()
    sandbox._process.wait()
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to one thread")
def test_an_interrupted_call_leaves_no_reply_behind(sandbox: SandboxProcess) -> None:
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"
    main = threading.main_thread().ident
    assert main is not None
    # A process started in the background may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sandbox.call("compare", "5", TOWER, seconds=PATIENT)
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert sandbox.call("compare", "5", "5", seconds=PATIENT) == "equal"


@pytest.mark.slow
def test_a_library_that_does_not_start_is_named() -> None:
    with SandboxProcess("no_such") as sandbox, pytest.raises(SandboxError, match="no-such"):
        sandbox.call("compare", "1", "1", seconds=1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals")
def test_the_sandbox_ends_itself_when_its_parent_is_gone() -> None:
    pytest.importorskip("math_verify")
    code = (
        "import os, sys\nfrom tersely.evaluation.tasks.sandbox import SandboxProcess\n"
        "w = SandboxProcess('math_verify')\n"
        "w.call('compare', '1', '1', seconds=60)\nprint(w._process.pid, flush=True)\n"
        f'w._process.stdin.write(b\'["compare", 0.1, "5", "{TOWER}"]\\n\'); w._process.stdin.flush(); os._exit(0)'
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    pid, until = int(done.stdout), time.monotonic() + PATIENT
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the sandbox is still computing")


@pytest.mark.slow
def test_gym_levels_come_from_the_ranges_of_a_problem() -> None:
    ranges = {"terms": (2, 6), "digits": (1, 4), "fixed": (3, 3), "name": "x"}
    assert level({"difficulty": ranges, "terms": 2, "digits": 1}) == 1
    assert level({"difficulty": ranges, "terms": 6, "digits": 4}) == 5
    assert level({"difficulty": ranges, "terms": 4}) == 3
    assert level({"difficulty": ranges, "fixed": 3}) is None
    assert level({"difficulty": 2.0}) is None
