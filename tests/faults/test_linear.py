"""Linear time: every pattern that meets the text of models or clients reads 100,000 hostile letters at once."""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tersely.controller.text.answers import extract_answer, extract_boxed, extract_stated_answer, find_statements
from tersely.controller.text.evidence import AnswerEvidence
from tersely.controller.text.markers import Markers
from tersely.controller.text.reasoning_parser import ReasoningParser, split_text
from tersely.controller.text.regions import ProtectedRegions, unclosed_region
from tersely.controller.text.tool_calls import parse_tool_calls
from tersely.controller.text.values import answers_equal, normalize_answer, parse_value
from tersely.evaluation.tasks.confinement import is_expression
from tersely.evaluation.tasks.equality import AnswerChecker

from ..support.cpu_limit import TooSlowError, limited
from ..support.policy_feeding import Fed

ROOT = Path(__file__).resolve().parents[2]
LETTERS, PIECE = 100_000, 32
UNITS = [
    unit
    for units in (
        (
            " ",
            "\n",
            "a",
            "A",
            "1",
            ".",
            ",",
            "(",
            "[",
            "{",
            "}",
            "\\",
            "$",
            "*",
            "_",
            "`",
            ":",
            "=",
            "是",
            "²",
            "√",
            "<",
        ),
        ("a ", "A ", "1 ", "1,", "1.", "A. ", "1. ", "(A", "\\text{", "\\frac{", "sqrt(", "answer is ", "the ", "not "),
        (
            "1/",
            "$1",
            "$a ",
            "`a",
            "**a",
            "\\(",
            "\\[",
            "<answer>",
            "x=",
            "=a",
            "A B ",
            "A'",
            "so ",
            "是 ",
            ",\\!",
            "{,}",
        ),
        ("1000,", "\\quad ", "wait\n\n", "so it is 1. ", '{"a":', "<tool_call>", "</think>", "<think>", "<|", "A. x\n"),
        ("both methods give 1 ", "i'm sure a ", "i think 1 ", "answer to the ", "the abc of ", "1 million "),
    )
    for unit in units
]
MODULES = (
    "controller.text.answers controller.text.endings controller.text.reasoning_parser "
    "controller.text.value_reader controller.engines.openai.events probes.drift controller.text.evidence "
    "controller.text.choices controller.text.mentions controller.text.questions controller.text.regions "
    "controller.text.sanitizer controller.text.sentences controller.text.thoughts controller.text.tokenizer_adapter "
    "controller.text.values controller.policies.trimr controller.policies.hint controller.policies.speculative "
    "controller.policies.research.plan controller.integrations.langchain.messages evaluation.tasks.equality "
    "evaluation.tasks.confinement training.methods.vsrm controller.serving.limits "
    "controller.serving.auth_middleware controller.serving.vllm_limits controller.chat_stream controller.verifiers"
).split()
"""Modules with patterns for the text of models and clients."""
TRUSTED = {
    "tersely/models/__init__.py": "names of models, given by the user",
    "controller/engines/transformers/research/nowait.py": "tokens of a vocabulary",
    "controller/vllm/processes.py": "names of sockets, of this process's own making",
    "evaluation/bench/records.py": "outputs of models, by alternatives of fixed words",
    "evaluation/replay/formats.py": "recorded outputs, read once by their owner",
    "evaluation/replay/reader.py": "recorded outputs, read once by their owner",
    "evaluation/replay/run.py": "reasons of decisions, written by policies",
    "evaluation/replay/logs.py": "recorded outputs, read once by their owner",
    "evaluation/trace_page.py": "a trace that its owner looks at",
    "training/run.py": "names of files in a run's folder",
}
"""Files whose patterns see no text of models or clients."""
BOUNDED = {
    ("answers", "_ANSWER_BEHIND"): "sentences of at most 1,000 letters",
    ("thoughts", "_DELIBERATES"): "eight tokens",
    ("questions", "_PART"): "sentences of at most 1,000 letters",
    ("answers", "_SETTLED"): "sentences of at most 1,000 letters",
    ("answers", "_NAME"): "sentences of at most 1,000 letters",
    ("endings", "_REPLIES"): "only matched at the beginning of a sentence, among the last 1,200 letters",
    ("value_reader", "_NEGATED"): "sentences of at most 1,000 letters",
    ("value_reader", "_JOINED"): "only matched at the end of a value",
    ("value_reader", "_NAME"): "only matched at the beginning of a phrase",
    ("sentences", "_DISPLAY"): "only matched after a line that ends with a colon",
    ("sentences", "_ABBREVIATED"): "nine letters",
    ("thoughts", "_CUE"): "only matched at the beginning of a thought",
    ("values", "_OPERATOR"): "only matched behind an operand",
    ("values", "_PLAIN_FRACTION"): "only a whole answer",
    ("values", "_QUANTITY"): "only a whole answer",
    ("values", "_ASSIGNMENT"): "only a whole answer",
    ("choices", "_INLINE_OPTION"): "the last 8,000 letters of a question",
}
"""Patterns that would be slow on a long text, and why they never see one; the functions below are tested with it."""


SHORT_TEXTS = ("endings", "mentions")
"""Modules whose patterns see the last 1,200 letters of a text at most, where they may be quadratic."""
SHORT, SHORT_UNITS = 1_200, ("，", "是，", "=", "x=", "yes, ", "than A ", "1 hour, ")


def hostile(unit: str, size: int = LETTERS) -> str:
    return (unit * (size // len(unit) + 1))[:size] + "~"


def patterns() -> Iterator[tuple[str, str, re.Pattern[str]]]:
    for module in MODULES:
        for name, value in vars(importlib.import_module(f"tersely.{module}")).items():
            for pattern in _patterns_in(value):
                yield module.rpartition(".")[2], name, pattern


def _patterns_in(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield (
            value if isinstance(value.pattern, str) else re.compile(value.pattern.decode("latin-1"), value.flags | re.A)
        )
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _patterns_in(part)


def test_every_file_with_a_pattern_is_known() -> None:
    known = {module.replace(".", "/") + ".py" for module in MODULES} | set(TRUSTED)
    found = set()
    for folder in ("tersely", "controller", "evaluation", "probes", "training", "kernels"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = file.read_text()
            nodes = ast.walk(ast.parse(text)) if "re." in text else ()
            calls = (node.func for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
            of_re = {call.attr for call in calls if isinstance(call.value, ast.Name) and call.value.id == "re"}
            if of_re - {"escape"}:
                found.add(str(file.relative_to(ROOT)))
    assert found <= known, "tell in this test what text these patterns see"
    assert set(TRUSTED) <= found, "these have no patterns any more"


def check_patterns(units: list[str], size: int) -> None:
    slow = set()
    seen = set()
    for module, name, pattern in patterns():
        if pattern in seen or (module, name) in BOUNDED:
            continue
        seen.add(pattern)
        short = module in SHORT_TEXTS
        for unit in (*units, *SHORT_UNITS) if short else units:
            try:
                with limited(0.3 if short else 2.0):
                    sum(1 for _ in pattern.finditer(hostile(unit, SHORT if short else size)))
                    if short:
                        pattern.fullmatch(hostile(unit, SHORT) + "x")
            except TooSlowError:
                slow.add((module, name, unit))
                break
    assert not slow
    assert len(seen) > 120


def test_patterns_are_linear() -> None:
    check_patterns([" ", "\n", "A", "1", "."], LETTERS)


@pytest.mark.attack
def test_patterns_are_linear_on_all_units() -> None:
    check_patterns([*UNITS, *(one + other for one in UNITS[:22] for other in UNITS[:22])], LETTERS)


CHOICE, COUNT, WHO = "Which is it?\nA. one\nB. two\nC. three", "How many shells does Mia have?", "Who is the tallest?"
MARKERS = Markers("<think>", "</think>")


def read_in_pieces(text: str) -> None:
    evidence = AnswerEvidence(COUNT)
    for start in range(0, len(text), 500):
        evidence.read(text[start : start + 500])


def follow_regions(text: str) -> None:
    regions = ProtectedRegions()
    for start in range(0, len(text), PIECE):
        regions.feed(text[start : start + PIECE])
        assert regions.open in (None, "code", "math", "JSON", "tool call")


def stream(text: str) -> None:
    parser = ReasoningParser(MARKERS, "before", ("STOP",), "<tool_call>")
    for start in range(0, len(text), PIECE):
        parser.feed(text[start : start + PIECE])
    parser.finish()


FREQUENT = (" ", "\n", ".", "1", "A", "x=", "{", "\\(", "answer is ", "<tool_call>")
OF_ANSWERS = (
    "(",
    "[",
    "\\[",
    "\\boxed{",
    "$",
    "`",
    "1,",
    "so ",
    "all right ",
    "it's ",
    "= ",
    "the answer to ",
    "a.",
    "√",
    "9!",
)
FUNCTIONS: dict[str, Callable[[str], object]] = {
    "extract_boxed": extract_boxed,
    "extract_answer": extract_answer,
    "extract_answer, boxed": lambda text: extract_answer(rf"\boxed{{{text}}}"),
    "extract_answer, stated": lambda text: extract_answer(f"The answer is {text}"),
    "extract_answer of a choice": lambda text: extract_answer(text, CHOICE),
    "extract_answer of a number": lambda text: extract_answer(text, COUNT),
    "extract_answer of a name": lambda text: extract_answer(text, WHO),
    "extract_answer of a list": lambda text: extract_answer(text, "List the boxes that are left in order."),
    "find_statements": lambda text: list(find_statements(text)),
    "read_question": lambda text: list(find_statements("So it is 4.", text)),
    "normalize_answer": normalize_answer,
    "parse_value": parse_value,
    "answers_equal": lambda text: answers_equal(text, text + "1"),
    "AnswerEvidence": read_in_pieces,
    "unclosed_region": unclosed_region,
    "ProtectedRegions": follow_regions,
    "ReasoningParser": stream,
    "split_text": lambda text: split_text(text, MARKERS, "thinking"),
    "parse_tool_calls": parse_tool_calls,
    "parse_tool_calls, one": lambda text: parse_tool_calls(f"<tool_call>{text}</tool_call>"),
    "AnswerChecker": lambda text: AnswerChecker().check("1", text),
    "is_expression": is_expression,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_linear(name: str) -> None:
    for unit in FREQUENT:
        with limited():
            FUNCTIONS[name](hostile(unit))


@pytest.mark.parametrize("name", ["extract_answer of a list", "find_statements", "normalize_answer", "unclosed_region"])
def test_four_times_the_text_takes_four_times_as_long(name: str) -> None:
    """The square would take sixteen times, and be below the limit for some units."""

    def cpu_seconds(text: str) -> float:
        start = time.thread_time()
        FUNCTIONS[name](text)
        return time.thread_time() - start

    for unit in OF_ANSWERS:
        with limited():
            few, many = (cpu_seconds(hostile(unit, size)) for size in (LETTERS // 4, LETTERS))
        assert many < 12 * max(few, 0.02), unit


@pytest.mark.parametrize("unit", [*FREQUENT, *SHORT_UNITS])
@pytest.mark.parametrize("question", [CHOICE, COUNT, WHO])
def test_the_end_of_a_text_is_read_quickly(unit: str, question: str) -> None:
    for end in ("", "x"):
        with limited(0.3):
            extract_stated_answer(hostile(unit, SHORT - 10) + end, question)


@pytest.mark.attack
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_linear_on_all_units(name: str) -> None:
    for unit in UNITS:
        with limited():
            FUNCTIONS[name](hostile(unit))


@pytest.mark.parametrize("piece", ["$ ", "{ ", "` ", "( $ wait\n\n"])
def test_thinking_with_open_regions_is_decoded_a_few_times(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fed, decoded = Fed(thinking=40_000), 0
    thinking, decode = fed.controller.thinking, fed.controller.codec.decode

    def count(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    monkeypatch.setattr(fed.controller.codec, "decode", count)
    fed.feed(piece * 1_000)
    for token in fed.controller.codec.encode(piece * 100):
        thinking.add(token)
        assert thinking.protected in (None, "code", "math", "JSON")
    assert len(thinking) > 1_000 and decoded < 20 * len(thinking)
