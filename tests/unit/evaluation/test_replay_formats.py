"""Recorded outputs in the forms that servers and gateways log."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.trace import Decision, Usage
from tersely.evaluation.replay.formats import Fields, RecordedOutput, RowError, read_row
from tersely.evaluation.replay.logs import LogError, RecordedSet, load_set
from tersely.evaluation.replay.run import is_right
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.evaluation.trace_record import RunView, SegmentView, TraceRecord

from ...support.refusals import refused

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
CHAT = {"role": "assistant", "content": "It is 4.", "reasoning_content": "Two and two. So 4."}
TAGGED = "<think>\nTwo and two. So 4.\n</think>\n\nIt is 4."
CLAUDE = [
    {"type": "thinking", "thinking": "Two and two.", "signature": "x"},
    {"type": "thinking", "thinking": "So 4.", "signature": "y"},
    {"type": "tool_use", "name": "add", "input": {}},
    {"type": "text", "text": "It is 4."},
]
REASONING = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Two and two. So 4."}]}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is 4."}]}

CONVERSE = {
    "output": {
        "message": {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "Two and two. So 4.", "signature": "x"}}},
                {"text": "It is 4."},
            ],
        }
    },
    "stopReason": "end_turn",
}


def langchain(kind: str, **fields: Any) -> dict[str, Any]:
    kwargs = {"type": "human" if kind == "HumanMessage" else "ai", **fields}
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind], "kwargs": kwargs}


THOUGHT = langchain("AIMessage", content="It is 4.", additional_kwargs={"reasoning_content": "Two and two. So 4."})


def langsmith(finish: str) -> dict[str, Any]:
    done = {"text": "It is 4.", "generation_info": {"finish_reason": finish}, "message": THOUGHT}
    asked = {"messages": [[langchain("HumanMessage", content="2 + 2?")]]}
    return {"inputs": asked, "outputs": {"generations": [[done]]}}


CONTROLLED = "controlled already, and recorded without its uncontrolled run"
CLOSE = {"action": "close", "acted": True}
STREAM = "a stream as text; put its pieces together first"
COUNTED = "a number of thinking tokens and no text, as in an access log"
HIDDEN = "only a summary of the thinking, or an encrypted one"


def completion(message: Any, finish: str = "stop") -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }


def pair(request: Any, response: Any) -> dict[str, Any]:
    return {"request": request, "response": response}


def record(*, acted: bool = False, plain: bool = False) -> dict[str, Any]:
    run = RunView(
        answer="4",
        tier="easy",
        finish_reason="stop",
        usage=Usage(thinking=8, answer=4),
        segments=(
            SegmentView(kind="kept", text="<think>Two and two. So 4.</think>", thinking=True),
            SegmentView(kind="kept", text="\n\nIt is 4.", thinking=False),
        ),
        decisions=(Decision("convergence", "close", "why", 8, acted=acted),),
    )
    whole = TraceRecord(
        version=1, id="t", question="2 + 2?", gold="4", uncontrolled=run if plain else None, **dict(run)
    )
    return dict(json.loads(whole.model_dump_json()))


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "2 + 2?", "thinking": "Two and two. So 4.", "answer_text": "It is 4.", "choices": ["3", "4"]},
        {"question": "2 + 2?", "thinking": "<think>Two and two. So 4.</think>", "response": "It is 4."},
        {"prompt": "2 + 2?", "completion": TAGGED},
        {"prompt": "2 + 2?", "choices": [{"text": TAGGED, "finish_reason": "stop"}]},
        {"problem": "2 + 2?", "generation": TAGGED.removeprefix("<think>\n")},
        pair({"messages": ASKED}, completion(CHAT)),
        pair({"body": {"messages": ASKED}}, {"status_code": 200, "body": completion(CHAT)}),
        pair(json.dumps({"messages": ASKED}), json.dumps(completion(CHAT))),
        {"standard_logging_object": {"messages": ASKED, "response": completion(CHAT), "status": "success"}},
        pair({"messages": ASKED}, completion({"content": "It is 4.", "reasoning": "Two and two. So 4."})),
        pair({"messages": json.dumps(ASKED)}, completion(CHAT)),
        {"prompt": "2 + 2?", "outputs": [{"text": f"{TAGGED}<|im_end|>", "finish_reason": "stop"}]},
        {"prompt": "2 + 2?", "completion": "analysisTwo and two. So 4.assistantfinalIt is 4."},
        {"prompt": "2 + 2?", "completion": TAGGED.replace("It is 4.", "<|begin_of_box|>It is 4.<|end_of_box|>")},
        pair({"messages": ASKED}, completion({"content": TAGGED, "reasoning_content": None})),
        {"messages": [*ASKED, {"role": "assistant", "content": TAGGED}]},
        {"conversations": [*ASKED, CHAT]},
        completion({"content": "It is 4.", "thinking_blocks": [{"thinking": "Two and two. So 4."}]})
        | {"prompt": "2 + 2?"},
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": TAGGED}]},
        {
            "prompt": "2 + 2?",
            "message": {"role": "assistant", "content": "It is 4.", "thinking": CHAT["reasoning_content"]},
        },
        pair({"input": "2 + 2?"}, {"object": "response", "status": "completed", "output": [REASONING, SAID]}),
        pair(
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "2 + 2?"}]}]},
            {"output": [REASONING, SAID]},
        ),
        langsmith("stop"),
        {"inputs": {"messages": [{"type": "human", "content": "2 + 2?"}]}, "outputs": {"messages": [THOUGHT]}},
        {"question": "2 + 2?", "doc": {"title": "x"}, "reasoning": "Two and two. So 4.", "answer": "It is 4."},
        {"messages": [{"role": "user", "content": "2 + 2?", "data": {"id": 3}}, CHAT], "candidates": None},
        pair({"input": "2 + 2?"}, {"output": {"tokens": 3}, "message": CHAT}),
        pair({"messages": [{"role": "user", "content": [{"text": "2 + 2?"}]}]}, CONVERSE),
        {"doc": {"question": "2 + 2?"}, "target": "4", "arguments": {}, "resps": [[TAGGED]], "filtered_resps": ["4"]},
        record(),
        record(acted=True, plain=True),
        record(acted=True, plain=False) | {"decisions": []},
    ],
)
def test_forms_are_recognised(row: dict[str, Any]) -> None:
    (output,) = read_row(row, Fields(), "1")
    assert (output.question, output.thinking, output.answer) == ("2 + 2?", "Two and two. So 4.", "It is 4.")


def test_thinking_blocks_are_joined_and_tool_calls_left_out() -> None:
    message = {"id": "m", "type": "message", "role": "assistant", "content": CLAUDE, "stop_reason": "end_turn"}
    row = pair({"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]}, message) | {"gold": 4}
    assert read_row(row, Fields(), "1") == [RecordedOutput("m", "2 + 2?", "Two and two.\n\nSo 4.", "It is 4.", "4")]
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "So 4."}]}, {"type": "text", "text": "4"}]
    (output,) = read_row(completion({"content": parts}), Fields(), "1")
    assert (output.question, output.thinking, output.answer) == ("", "So 4.", "4")


def test_each_choice_is_an_output() -> None:
    row = completion(CHAT)
    row["choices"] = [*row["choices"], *completion(CHAT, "length")["choices"], {"message": CHAT}]
    assert [output.id for output in read_row(row, Fields(), "1")] == ["c1", "c1.2"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (3, "not an object"),
        ({"level": 3}, "unknown format"),
        ({"messages": ASKED, "response": None, "status": "failure", "error_str": "late"}, "a failed call"),
        ({"custom_id": "1", "response": None, "error": {"code": "expired"}}, "a failed call"),
        ({"choices": [{"label": "A", "text": "4"}]}, "unknown format"),
        ({"question": "q", "answer": "4"}, "no thinking"),
        (completion({"content": "4"}), "no thinking"),
        (completion({"content": None, "reasoning_content": "So 4."}), "no answer"),
        (completion(CHAT, "length"), "truncated"),
        ({"response": "It is 4.", "thinking": "So 4.", "done_reason": "length"}, "truncated"),
        ({"choices": [{"delta": {"content": "4"}, "finish_reason": None}]}, "a piece of a stream"),
        (completion(CHAT | {"reasoning_details": [{"type": "reasoning.summary", "summary": "s"}]}), HIDDEN),
        (completion({"content": "4", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}), HIDDEN),
        ({"thinking": "So 4.", "answer": "4", "truncated": True}, "truncated"),
        ({"completion": "<think>Two and"}, "truncated"),
        ({"role": "assistant", "content": CLAUDE, "stop_reason": "max_tokens"}, "truncated"),
        ({"status": "incomplete", "output": [REASONING]}, "truncated"),
        ({"output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}]}, HIDDEN),
        ({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, HIDDEN),
        (record(acted=True), CONTROLLED),
        (
            {"choices": [{"message": CHAT, "tersely": {"usage": {"injected": 3}}}]},
            CONTROLLED,
        ),
        (pair({}, {"choices": [{"message": CHAT, "tersely": {"decisions": [CLOSE]}}]}), CONTROLLED),
        (pair({}, 'data: {"choices": [{"delta": {"content": "4"}}]}\n\ndata: [DONE]'), STREAM),
        (pair({}, {"body": "event: response.created\ndata: {}"}), STREAM),
        ({"status": 200, "id": "r", "tier": "easy", "thinking": 31, "answer": 9, "exit": "model"}, COUNTED),
        (
            {"thinking": "So 4.", "answer": "4", "decisions": [CLOSE]},
            CONTROLLED,
        ),
        (CONVERSE | {"stopReason": "max_tokens"}, "truncated"),
        (pair({}, CONVERSE | {"stopReason": "max_tokens"}), "truncated"),
        ({"candidates": [{"content": {"parts": [{"text": "s", "thought": True}]}, "finishReason": "STOP"}]}, HIDDEN),
        ({"candidates": [{"content": {"parts": [{"text": "4"}]}, "finishReason": "MAX_TOKENS"}]}, "truncated"),
        (langsmith("length"), "truncated"),
        ({"response": {"output": {"message": CHAT, "stopReason": "max_tokens"}}}, "truncated"),
        ({"generations": [[{"message": 3, "generation_info": 3}]]}, "unknown format"),
        ({"content": [{"reasoningContent": {"reasoningText": 3}}], "role": "assistant"}, "no thinking"),
        (record() | {"version": 9}, "an invalid record of tersely, or one of another version"),
    ],
)  # fmt: skip
def test_rows_are_left_out_with_a_reason(row: object, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read_row(row, Fields(), "1")
    assert str(caught.value) == reason


def test_there_may_be_several_right_answers() -> None:
    row = {"problem": "Who?", "thinking": "So Ann.", "answer_text": "Ann", "gold": ["Ann Lee", "Ann"]}
    (output,) = read_row(row, Fields(), "1")
    with AnswerChecker() as checker:
        assert [is_right(output, answer, checker) for answer in ("Ann", "Ann Lee", "Lee")] == [True, True, False]
    (output,) = read_row({**row, "gold": [{"text": "Ann"}], "target": 7}, Fields(), "1")
    assert (output.gold, output.other_golds) == ("7", ())


def test_fields_may_be_named_and_nested() -> None:
    row = {"q": "2 + 2?", "trace": {"steps": "So 4."}, "said": "5", "metadata": {"gold": "4"}, "thinking": "other"}
    fields = Fields(question=("q",), thinking=("trace.steps",), answer=("said",), gold=("metadata.gold",))
    assert read_row(row, fields, "7") == [RecordedOutput("7", "2 + 2?", "So 4.", "5", "4")]


ROW = {"problem": "q", "thinking": "So 4. \ud800", "answer_text": "4"}


def load(path: Path, content: str | bytes, limit: int | None = None) -> RecordedSet:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_set(path, "set", Fields(), limit)


def test_files_may_be_lines_arrays_or_documents(tmp_path: Path) -> None:
    line, path = json.dumps(ROW), tmp_path / "log.jsonl"
    spread = json.dumps(ROW, indent=2)
    for content in (
        f"{line}\n\n{line}\r\n",
        f"\ufeff{line}\n{line}",
        json.dumps([ROW, ROW]),
        json.dumps([ROW, ROW], indent=4),
        f"[{line}]\n[{line}]\n",
        f"{spread}\n{spread}\n",
        gzip.compress(f"{line}\n{line}\n".encode()),
        f"{line}\n{line}\n".encode("utf-16"),
    ):
        found = load(path, content)
        assert [row.thinking for row in found.rows] == ["So 4. ?"] * 2, content
        assert not found.left_out
    assert len(load(path, f"{line}\n" * 9, limit=2).rows) == 2


def test_bad_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    line, nested = json.dumps(ROW).encode(), b"[" * 900 + b"]" * 900
    lines = [b"INFO started", line, line[:-5], b"caf\xe9 " + line, b"[" * 100_000, b"7" * 9_000, b"x" * 2_500_000, line]
    lines += [b'{"role": "assistant", "content": ' + nested + b"}", line.replace(b"So 4.", b"So 4. " * 90_000)]
    found = load(tmp_path / "log.jsonl", b"\n".join(lines))
    assert len(found.rows) == 3
    assert found.left_out["not JSON"] == 5
    assert found.left_out["not UTF-8"] == 1
    assert found.left_out.total() == 7
    array = json.dumps([ROW] * 3, indent=1)
    found = load(tmp_path / "log.json", array.replace('"4"', '"4', 1)[:-30])
    assert (len(found.rows), found.left_out) == (1, {"not JSON": 2})


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_log"),
        (b"\n \n", "empty_log"),
        (b"[]", "empty_log"),
        (b"\x00\x01\x02\xff" * 50, "nothing_readable"),
        (b"\x1f\x8b\x08 broken", "unreadable"),
        (b"\xff\xfe\x00", "unreadable"),
        (b"question,answer\n1,2\n", "nothing_readable"),
        (b'{"level": 3}\n', "nothing_readable"),
        (b'{"thinking": "a", "truncated": true}\n', "nothing_readable"),
    ],
)
def test_a_file_without_anything_to_replay_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    with refused(LogError, code):
        load(tmp_path / "log.jsonl", content)


@pytest.mark.parametrize("kind", ["question", "answer", "gold"])
def test_a_named_field_that_no_row_has_is_refused(tmp_path: Path, kind: str) -> None:
    (path := tmp_path / "log.jsonl").write_text('{"q": "2 + 2?", "cot": "Two and two.", "text": "4", "target": "4"}')
    with refused(LogError, "missing_field"):
        load_set(path, "log", Fields(**{kind: ("missing",)}), None)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with refused(LogError, "no_such_file"):
        load_set(tmp_path / "none", "none", Fields(), None)
    with refused(LogError, "not_a_file"):
        load_set(tmp_path, "folder", Fields(), None)
