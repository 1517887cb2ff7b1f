"""Rows under control inside vLLM, without vLLM: which tokens wait, and what a preempted request keeps."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tersely.controller import vllm
from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.policies import make_policies
from tersely.controller.replay import bind_for_replay
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import TokenFlags, TokenizerAdapter
from tersely.controller.types import KEEP, Capability, Signals, StepInfo
from tersely.controller.vllm.request_controller import (
    FENCE,
    LINE,
    LOUD,
    PARAGRAPH,
    QUIET,
    SENTENCE,
    RequestController,
    classify,
)
from tersely.controller.vllm.row_table import ControlledRow, RowTable
from tersely.evaluation.replay.reader import PieceTokenizer

FOLDER = Path(vllm.__file__).parent
ON_DEVICE = ("step.py", "token_history.py", "logits_processor.py")
MARKERS = Markers("<think>", "</think>")
END = 30_000
PIECES = (
    "So 12 times 7 is 84", ", and then 3.5 more", ". ", "\n\n", "\n", "Wait, ", "let me see", " $x = 4$", "{a: 1}",
    "\\[ 3 \\]", "<tool_call>", '{"name": "add"}', "</tool_call>", "```py\ncode\n```", "The answer is 84.", " 7", "5",
    "<function=", "</function>",
)  # fmt: skip


class Model:
    """What a worker knows of the model."""

    def __init__(self) -> None:
        self.codec = TokenizerAdapter(PieceTokenizer())

    def classify(self, token: int) -> int:
        return classify(token, self.codec, MARKERS, (END,))

    def row(self, preset: str, budget: int, opened: bool = True) -> ControlledRow:
        policies = bind_for_replay(make_policies(preset))
        controller = Controller(policies, self.codec, MARKERS, Budget("normal", budget), opened=opened, prompt="1 + 1")
        reads = frozenset({Capability.LOGIT_SIGNALS})
        return ControlledRow(RequestController(controller, (END,), reads, lazy=True), [])


def play(
    model: Model, table: RowTable, rows: list[ControlledRow], texts: Sequence[Sequence[int]], drafts: int = 0
) -> list[Any]:
    """Let rows decode texts, or what is forced, with so many drafts, all right; returns what each step asked for."""
    for slot, row in enumerate(rows):
        table.put(slot, row)
    lengths, given, asked = np.zeros(len(rows), dtype=np.int64), [iter(text) for text in texts], []
    slots = np.arange(len(rows))
    while lengths.min() < 300:
        table.note(slots, Step(lengths.copy()))
        asked.append((table.forced[slots].tolist(), table.offered[slots].tolist()))
        forced, room = np.column_stack((table.forced[slots], table.ahead[slots])), table.room(slots)
        tokens = np.zeros((len(rows), 1 + drafts), dtype=np.int64)
        for slot in range(len(rows)):
            made: list[int] = []
            while lengths[slot] < 300 and len(made) <= drafts:
                wanted = forced[slot, len(made)]
                made.append(next(given[slot]) if wanted < 0 else int(wanted))
                lengths[slot] += 1
                if len(made) > room[slot, model.classify(made[-1])] or made[-1] == table.offered[slot]:
                    break
            tokens[slot, 1 + drafts - len(made) :] = made
        table.land(slots, lengths.copy(), tokens)
    return asked


@pytest.mark.parametrize("preset", ["budget", "careful", "balanced", "concise"])
def test_tokens_that_wait_change_nothing(preset: str) -> None:
    rng = Random(3)
    model = Model()
    texts = [model.codec.encode("".join(rng.choice(PIECES) for _ in range(400)))[:400] for _ in range(6)]
    texts[0] = model.codec.encode("<think>\n") + texts[0]
    texts[1] = (*texts[1][:80], *model.codec.encode("</think>\n\n"), *texts[1][80:])
    reads: list[int] = []
    results, every = [], []
    for kind, drafts in ((model.classify, 0), (lambda token: LOUD, 0), (model.classify, 3)):
        rows = [model.row(preset, 150 + 40 * slot, opened=slot > 0) for slot in range(len(texts))]
        table = RowTable(kind, drafts)
        calls = 0
        original = table.read

        def count(slots: Any, draft: int = 0, original: Any = original) -> None:
            nonlocal calls
            slots = list(slots)
            calls += len(slots)
            original(slots, draft)

        table.read = count  # type: ignore[method-assign,assignment]
        asked = play(model, table, rows, texts, drafts)
        for slot in range(len(rows)):
            table.flush(slot)
        signals = [row.controller.controller.thinking.signals for row in rows if row.controller.controller]
        results.append((asked, [row.output for row in rows], [list(row.controller.decisions) for row in rows], signals))
        reads.append(calls)
        every.append(rows)
    assert results[0] == results[1] and results[0][1:] == results[2][1:]
    assert len(results[2][0]) < len(results[0][0]), "drafts are accepted"
    assert any(decisions for decisions in results[0][2]) and all(any(known) for known in results[0][3])
    assert reads[0] < 0.8 * reads[1], "most tokens wake no policy"
    thoughts = [
        [[t.text for t in c.thinking.thoughts] for row in rows if (c := row.controller.controller)] for rows in every
    ]
    assert thoughts[0] == thoughts[1] == thoughts[2] and any(thoughts[0])


def test_a_bracket_that_begins_no_call_makes_nothing_due() -> None:
    model = Model()
    row, table = model.row("budget", 1000), RowTable(model.classify)
    table.put(0, row)
    read = []
    for length, text in enumerate(("<", "$", "$", "$"), 1):
        table.land(np.array([0]), np.array([length]), np.array([model.codec.encode(text)]))
        read.append(len(row.controller.forced))
    assert read == [1, 2, 2, 2], "what follows the bracket shows that it begins no call"


def test_a_line_break_waits_and_what_is_offered_changes() -> None:
    model = Model()
    row, table = model.row("budget", 1000), RowTable(model.classify)
    table.put(0, row)
    starts = {text: model.codec.encode(f"{text}</think>")[0] for text in ("", "\n", "\n\n")}
    slot = np.array([0])
    for length, (text, read, offered) in enumerate(
        [
            (" word", 0, "\n\n"),
            ("\n", 0, "\n"),
            (" word", 0, "\n\n"),
            ("\n\n", 0, ""),
            ("\n", 5, ""),
            (" a", 5, "\n\n"),
        ],
        1,
    ):
        table.note(slot, Step(np.array([length])))
        table.land(slot, np.array([length]), np.array([model.codec.encode(text)]))
        assert (len(row.controller.forced), table.offered[0]) == (read, starts[offered])
        assert (table.room(slot)[0, QUIET] > 0) == (offered == "\n\n"), "drafts end where what is offered changes"


@pytest.mark.parametrize("swapped", [True, False])
def test_the_first_token_of_a_closing_is_read_where_it_stands_for_the_end(swapped: bool) -> None:
    model = Model()
    (end,) = model.codec.encode("END")
    model.codec.tokenizer.eos_token_id = end
    row, table = model.row("budget", 1000), RowTable(model.classify)
    row.controller.end = (end,)
    table.put(0, row)
    slot, step = np.array([0]), Step(np.array([1]))
    step.swapped = lambda place, draft: swapped  # type: ignore[method-assign]
    for length, text in enumerate((" word", "\n\n"), 1):
        table.note(slot, step)
        table.land(slot, np.array([length]), np.array([model.codec.encode(text)]))
    closing = model.codec.encode("\n\n</think>\n\n")
    assert row.controller.forced == ([False, True] if swapped else [])
    assert table.forced[0] == (closing[1] if swapped else -1)


def test_drafts_of_requests_without_control_have_no_limit() -> None:
    model = Model()
    table = RowTable(model.classify, 3)
    table.put(0, model.row("budget", 1000))
    table.land(np.array([0]), np.array([1]), np.array([model.codec.encode(" word")]))
    room = table.room(np.array([0, 5]))
    assert room[0, LINE] == 0 < room[0, QUIET], "what is offered behind a line differs"
    assert (room[1, QUIET:] > 3).all()


def test_drafts_end_at_line_breaks_where_no_policy_waits() -> None:
    model = Model()
    question, (policy,) = "Write a poem about the sea.", make_policies("careful")[-1:]
    controller = Controller((policy,), model.codec, MARKERS, Budget("normal", 1000), opened=True, prompt=question)
    table = RowTable(model.classify, 3)
    table.put(0, ControlledRow(RequestController(controller, (END,), lazy=True), []))
    table.land(np.array([0]), np.array([1]), np.array([model.codec.encode(" word")]))
    room = table.room(np.array([0]))
    assert [decision.action for decision in controller.decisions] == ["note"], "the policy has ended"
    assert room[0, LINE] == room[0, PARAGRAPH] == 0 < room[0, QUIET]


def test_kinds_of_tokens() -> None:
    model = Model()
    kinds = {
        LOUD: ("<", "TOOL", "["),
        LINE: ("\n",),
        PARAGRAPH: ("\n\n", "\n\n\n"),
        FENCE: ("$", "]", "=", "\\"),
        SENTENCE: (".", "!"),
        QUIET: (" word", "7", " ,"),
    }
    for kind, texts in kinds.items():
        for text in texts:
            (token,) = model.codec.encode(text)
            assert model.classify(token) == kind, text
    assert model.codec.flags[model.codec.encode("<")[0]] & TokenFlags.CALL


class Recorder:
    """A watcher that keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, float]] = []

    def observe(self, token: int, step: StepInfo | None = None) -> Any:
        assert step is not None and step.signals is not None
        self.seen.append((token, step.signals.entropy, float(step.state(-1)[0])))
        return KEEP


def state(value: float, layer: int) -> Any:
    return np.array([value])


def test_a_request_that_comes_back_reads_its_signals_and_states_again() -> None:
    reads = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})
    first, second = Recorder(), Recorder()
    before, output = RequestController(first, (END,), reads), list[int]()
    for token in range(5):
        before.next_step = partial(StepInfo, Signals(token / 2, 0.5, 0.5), partial(state, 10.0 + token))
        output.append(token)
        before.read(output)
    after = RequestController(second, (END,), reads)
    after.replay(before, 4)
    after.read(output[:4])  # vLLM has dropped the last one
    assert second.seen == first.seen[:4] and len(first.seen) == 5
    after.next_step = partial(StepInfo, Signals(9.0, 0.5, 0.5), partial(state, 99.0))
    after.read([*output[:4], 7])
    assert second.seen[4] == (7, 9.0, 99.0)


def test_a_row_that_missed_tokens_is_left_alone() -> None:
    model = Model()
    row, table = model.row("budget", 100), RowTable(model.classify)
    table.put(0, row)
    table.land(np.array([0]), np.array([2]), np.array([model.codec.encode(" word")]))
    assert table.finished == {0} and row.controller.decisions[-1].action == "error"


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", ON_DEVICE)
def test_nothing_in_a_step_waits_for_the_device(file: str) -> None:
    tree = ast.parse((FOLDER / file).read_text())
    for call in calls(tree):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{file}:{call.lineno}: {ast.unparse(call)}"
        assert name not in ("tolist", "item", "cpu", "cuda", "nonzero", "unique", "masked_select"), where
        if name == "to":
            assert words.get("non_blocking") == "True", where
        if name == "copy_":
            assert words.get("non_blocking") == "True", where
        if ast.unparse(call.func) in ("torch.tensor", "torch.as_tensor", "torch.from_numpy"):
            assert "device" not in words and "pin_memory" in words, where
        if name == "where":
            assert len(call.args) == 3, where
    waits = [call for call in calls(tree) if getattr(call.func, "attr", "") == "synchronize"]
    assert len(waits) == (file == "token_history.py"), "only for the end of the previous step"


def test_what_reads_arrays_knows_no_tensors() -> None:
    assert "torch" not in (FOLDER / "row_table.py").read_text()


class Step:
    """What one step says of its rows: for each token, how many came before."""

    def __init__(self, lengths: Any) -> None:
        self.lengths = lengths

    def signals(self, places: Any, draft: int) -> Any:
        return np.repeat((self.lengths[places] + draft)[:, None], 3, axis=1).astype(np.float32)

    def info(self, place: int, draft: int) -> StepInfo:
        value = float(self.lengths[place] + draft)
        return StepInfo(Signals(value, value, math.nan, value), partial(state, value))

    def swapped(self, place: int, draft: int) -> bool:
        return False


def test_the_last_token_that_is_read_from_outside_has_its_own_step() -> None:
    recorder = Recorder()
    reads = frozenset({Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})
    row, table = ControlledRow(RequestController(recorder, (END,), reads), []), RowTable(lambda token: QUIET)
    table.put(0, row)
    for number in range(4):
        table.note(np.array([0]), Step(np.array([number])))
        if number < 3:
            table.land(np.array([0]), np.array([number + 1]), np.array([[number]]))
    row.controller.read([*row.output, 3])  # vLLM has ended the request
    assert recorder.seen == [(number, float(number), float(number)) for number in range(4)]
