"""Trace records: how they come from generations, what a file of them must be, what the page is told of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tersely
from tersely.controller.replay import WordTokenizer
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.trace import Decision, GenerationResult, Span, Usage
from tersely.controller.types import Signals
from tersely.evaluation.view.files import TraceError, append, check_appendable, parse, read
from tersely.evaluation.view.record import RunView, SegmentView, TokenView, TraceRecord, build_record
from tersely.evaluation.view.trace_layout import record_data
from tersely.io import WriteError
from tersely.models import get_model_path

from ...support.disk import files_no_longer_than

HINT = Decision("hint", "inject", "hint 1, block of 128 tokens", 4, "\n\nBe brief.\n\n")
LINE: dict[str, Any] = {
    "version": 1,
    "id": "a",
    "question": "2 + 5?",
    "answer": "7",
    "tier": "easy",
    "finish_reason": "stop",
    "usage": {"thinking": 4, "answer": 1},
    "segments": [{"kind": "kept", "text": "2 + 5", "thinking": True}, {"kind": "kept", "text": "7", "thinking": False}],
    "tokens": [{"text": "2 ", "entropy": 0.5, "probe": {"ready": 0.1}}, {"text": "+ 5"}, {"text": "7"}],
    "decisions": [{"policy": "hint", "action": "inject", "reason": "r", "position": 1}],
}


class Pieces:
    """A tokenizer of given byte pieces; as some real ones, it drops a leading space of what it decodes."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace").removeprefix(" ")


def written(*spans: tuple[str, str], usage: Usage, answer: str = "", **more: Any) -> GenerationResult:
    text = "".join(text for _, text in spans)
    made = tuple(Span(kind, text) for kind, text in spans)  # type: ignore[arg-type]  # the kinds are spelt right here
    return GenerationResult(text, "", answer, "stop", "normal", usage, spans=made, **more)


def words(
    *spans: tuple[str, str], usage: Usage, answer: str = "", **more: Any
) -> tuple[GenerationResult, TokenizerAdapter]:
    """A generation whose tokens are those of `WordTokenizer`."""
    tokenizer = WordTokenizer()
    ids = tuple(i for _, text in spans for i in tokenizer(text)["input_ids"])
    return written(*spans, usage=usage, answer=answer, token_ids=ids, **more), TokenizerAdapter(tokenizer)


def test_a_real_generation_becomes_a_record_and_comes_back(tmp_path: Path) -> None:
    if not get_model_path("tersely-tiny-small").is_dir():
        pytest.skip("the embedded model is not there yet")
    from tersely.controller.engines.transformers.engine import load_engine

    engine = load_engine("tersely-tiny-small")
    question = "Compute (48 + 27) - 36."
    controlled = {"policies": ["hint", "budget"], "max_new_tokens": 120}
    ours, plain = (tersely.generate(engine, prompts=question, seed=0, **k) for k in (controlled, {"preset": "off"}))
    record = build_record(ours, question, plain, codec=TokenizerAdapter(engine.tokenizer), gold="39")
    assert record.output == ours.text
    assert len(record.tokens) == ours.usage.thinking + ours.usage.answer == len(ours.token_ids)
    assert {"forced", "kept"} == {s.kind for s in record.segments}
    assert "".join(s.text for s in record.segments if not s.thinking) == ours.answer
    for decision in record.decisions:
        start = sum(len(token.text) for token in record.tokens[: decision.position])
        assert record.output[start:].startswith(decision.text)
    assert record.uncontrolled is not None
    assert record.uncontrolled.output == plain.text
    append(tmp_path / "t.jsonl", record)
    append(tmp_path / "t.jsonl", record)
    assert read(tmp_path / "t.jsonl") == [record, record]
    data = record_data(record)
    assert [d["position"] for d in data["controlled"]["decisions"]] == [d.position for d in ours.trace]
    assert [d["at"] for d in data["controlled"]["decisions"]] == [d.position for d in ours.trace]


def test_characters_of_several_tokens_and_leading_spaces_survive() -> None:
    codec = TokenizerAdapter(Pieces(b" Caf", b"\xc3", b"\xa9 or", b" tea?", b" now", b"\xe2\x82"))
    spans = (("sampled", "Café or tea?"), ("forced", "now"), ("sampled", "\ufffd"))
    record = build_record(written(*spans, usage=Usage(thinking=6), token_ids=(0, 1, 2, 3, 4, 5)), "q", codec=codec)
    assert [token.text for token in record.tokens] == ["Caf", "", "é or", " tea?", "now", "\ufffd"]


def test_tokens_that_do_not_spell_the_text_are_left_out() -> None:
    done = written(("sampled", "other"), usage=Usage(thinking=1), token_ids=(0,))
    assert build_record(done, "q", codec=TokenizerAdapter(Pieces(b"text"))).tokens == ()


def test_thinking_and_answer_are_told_apart() -> None:
    spans = (("sampled", "So 7.</think>\n\nIt is 7."),)
    done, codec = words(*spans, usage=Usage(thinking=5, answer=9), answer="It is 7.")
    record = build_record(done, "q", codec=codec)
    assert [(s.text, s.thinking) for s in record.segments] == [("So 7.</think>\n\n", True), ("It is 7.", False)]
    assert record.answer == "7"
    only = build_record(written(("sampled", "It is 7."), usage=Usage(answer=5), answer="It is 7."), "q")
    assert [s.thinking for s in only.segments] == [False]
    none = build_record(written(("sampled", "So 7"), usage=Usage(thinking=3)), "q")
    assert ([s.thinking for s in none.segments], none.answer, none.tokens) == ([True], "", ())


def test_signals_stand_beside_their_tokens() -> None:
    done, codec = words(("sampled", "a b"), usage=Usage(thinking=3))
    done = replace(done, signals=(None, Signals(2.0, 0.5, 0.5), Signals(1.0, 0.5, 0.5)))
    record = build_record(done, "q", codec=codec, probe={"ready": [0.1, 0.2, 0.3]})
    assert record.tokens[1] == TokenView(text=" ", entropy=2.0, probe={"ready": 0.2})
    with pytest.raises(ValueError, match="2 values of 'ready' for 3 tokens; accepted: one for each"):
        build_record(done, "q", codec=codec, probe={"ready": [0.1, 0.2]})


def changed(**keys: Any) -> str:
    return json.dumps({k: v for k, v in {**LINE, **keys}.items() if v is not None})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not JSON (EOF while parsing an object at column 1); accepted: one record a line"),
        ("[]", "line 1: got [], not an object"),
        (changed(version=2), "line 1: version 2; accepted: 1, the one that this tersely reads"),
        (changed(version=2, new="x"), "version 2; accepted: 1"),
        (changed(version=None), "line 1: 'version' is missing"),
        (changed(finish_reason=None), "'finish_reason' is missing; accepted here: version, id, question, gold, answer"),
        (changed(decision=[]), "unknown key 'decision'; did you mean 'decisions'?"),
        (
            changed(segments=[{"kind": "kept", "txt": "", "thinking": True}]),
            "unknown key 'segments[0].txt'; did you mean",
        ),
        (changed(segments=[{"kind": "kept", "thinking": True}]), "'segments[0].text' is missing"),
        (
            changed(segments=[{"kind": "cut", "text": "", "thinking": True}]),
            "'segments[0].kind' is 'cut'; accepted: 'kept',",
        ),
        (changed(usage={"thinkin": 1}), "unknown key 'usage.thinkin'; did you mean 'thinking'?"),
        (changed(usage={"thinking": "many"}), "'usage.thinking' is 'many'; accepted: a valid integer"),
        (changed(usage={"thinking": -1}), "is negative"),
        (
            changed(decisions=[{"policy": "p"}]),
            "'decisions[0].action' is missing; accepted here: policy, action, reason",
        ),
        (changed(tokens=[{"text": "other"}]), "'tokens' spell another text than 'segments'"),
        (
            changed(tokens=[{"text": "2 + 57", "entropy": float("nan")}]),
            "'tokens[0].entropy' is nan; accepted: a finite",
        ),
        (changed(id=""), "'id' is ''"),
        (changed(uncontrolled={**LINE}), "unknown key 'uncontrolled."),
        (changed(question="x" * 900 + "\\ud800").replace("\\\\", "\\"), "not JSON"),
    ],
)
def test_a_line_that_is_no_record_is_named_with_what_is_wrong(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(TraceError) as caught:
        read(path)
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"{path}, line 1: ")
    assert len(message) < 600


def test_errors_name_the_line_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + changed().encode() + b"\r\n\n" + b'{"id": "caf\xe9"}\n')
    with pytest.raises(TraceError, match=r"line 3: not UTF-8 text \(byte 11 of the line\)"):
        read(path)
    path.write_text("\n \n")
    with pytest.raises(TraceError, match=r"holds no records.*tersely run PROMPT --trace FILE"):
        read(path)
    with pytest.raises(TraceError, match="no trace file"):
        read(tmp_path / "none")
    with pytest.raises(TraceError, match="is a folder"):
        read(tmp_path)


def test_appending_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    record = parse(changed().encode(), "here")
    path.write_text(changed())  # its last line has no end
    append(path, record)
    before = path.read_bytes()
    assert len(read(path)) == 2
    with files_no_longer_than(len(before) + 40), pytest.raises(WriteError, match="cannot be written: File too large"):
        append(path, record)
    assert path.read_bytes() == before


def test_where_nothing_can_be_appended_is_known_beforehand(tmp_path: Path) -> None:
    check_appendable(tmp_path / "new.jsonl")
    (tmp_path / "empty").touch()
    check_appendable(tmp_path / "empty")
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(TraceError, match=r"notes.md, line 1: not JSON"):
        check_appendable(tmp_path / "notes.md")
    for place in (tmp_path, tmp_path / "none" / "t.jsonl"):
        with pytest.raises(WriteError, match="in a folder that exists"):
            check_appendable(place)


def shown(run: dict[str, Any]) -> str:
    """A run as the page shows it: marks as [1], where the runs part as |."""
    out = []
    for segment in run["segments"]:
        for i, text in enumerate([*segment["pieces"], ""]):
            out.append("|" if segment["parting"] == i else "")
            out += [f"[{number + 1}]" for number in segment["marks"].get(i, [])]
            out.append(text)
    return "".join(out)


def test_decisions_stand_where_they_were_taken() -> None:
    spans = (("sampled", "a b."), ("forced", HINT.text), ("sampled", "So 7."))
    shadow = replace(HINT, position=2, acted=False)
    late = replace(HINT, position=99, acted=False)
    done, codec = words(*spans, usage=Usage(thinking=12, forced=5), trace=(shadow, HINT, late))
    run = record_data(build_record(done, "q", codec=codec))["controlled"]
    assert shown(run) == "a [1]b.[2]\n\nBe brief.\n\nSo 7.[3]"
    assert [d["exact"] for d in run["decisions"]] == [True, True, True]
    assert [(s["start"], s["end"], s["token"]) for s in run["segments"]] == [(0, 4, 0), (4, 10, 4), (10, 14, 10)]


def test_without_tokens_forced_text_is_found_and_the_rest_is_estimated() -> None:
    spans = (("sampled", "a b."), ("forced", HINT.text), ("sampled", "So 7. Right."))
    done = written(*spans, usage=Usage(thinking=20), trace=(HINT, replace(HINT, position=19, acted=False)))
    run = record_data(build_record(done, "q"))["controlled"]
    assert shown(run) == "a b.[1]\n\nBe brief.\n\nSo 7. Right.[2]"
    assert [d["exact"] for d in run["decisions"]] == [True, False]


def test_trimmed_text_is_shown_and_takes_no_tokens() -> None:
    segments = [("kept", "one "), ("trimmed", "Wait, again. "), ("kept", "two")]
    made = tuple(SegmentView(kind=kind, text=text, thinking=True) for kind, text in segments)  # type: ignore[arg-type]
    record = TraceRecord(
        **{**dict(parse(changed(tokens=[], decisions=[]).encode(), "")), "segments": made},
    ).model_copy(
        update={
            "decisions": (Decision("trim", "trim", "r", 1),),
            "tokens": (TokenView(text="one "), TokenView(text="two")),
        }
    )
    run = record_data(record)["controlled"]
    assert shown(run) == "one [1]Wait, again. two"
    assert [(s["start"], s["end"], s["token"]) for s in run["segments"]] == [(0, 1, 0), (1, 1, None), (1, 2, 1)]


def test_a_token_across_thinking_and_answer_belongs_to_both() -> None:
    done = written(("sampled", "So.It is 7"), usage=Usage(thinking=1, answer=1), answer="It is 7", token_ids=(0, 1))
    run = record_data(build_record(done, "q", codec=TokenizerAdapter(Pieces(b"So.I", b"t is 7"))))["controlled"]
    assert [(s["token"], s["pieces"]) for s in run["segments"]] == [(0, ["So."]), (0, ["I", "t is 7"])]


def test_a_token_without_text_keeps_its_number() -> None:
    codec = TokenizerAdapter(Pieces(b"a", b"\xc3", b"\xa9", b"b"))
    done = written(("sampled", "aéb"), usage=Usage(thinking=4), token_ids=(0, 1, 2, 3))
    run = record_data(build_record(done, "q", codec=codec))["controlled"]
    assert run["segments"][0]["pieces"] == ["a", "", "é", "b"]


def test_the_page_knows_where_runs_part_and_who_is_right() -> None:
    ours, codec = words(("sampled", "So 7."), ("forced", "\nEnd."), usage=Usage(thinking=8), answer="7")
    theirs, _ = words(("sampled", "So 7.\nBut no."), usage=Usage(thinking=10), answer="6")
    data = record_data(build_record(ours, "q", theirs, gold="7.0"))
    assert shown(data["controlled"]) == "So 7.\n|End."
    assert shown(data["uncontrolled"]) == "So 7.\n|But no."
    assert (data["same"], data["controlled"]["right"], data["uncontrolled"]["right"]) == (False, True, False)
    (one, codec), (other, _) = (words(("sampled", text), usage=Usage(thinking=3)) for text in ("a 12", "a 13"))
    assert shown(record_data(build_record(one, "q", other, codec=codec))["controlled"]) == "a |12"  # before the token
    alike = record_data(build_record(ours, "q", ours))
    assert (alike["same"], alike["controlled"]["right"], shown(alike["controlled"])) == (True, None, "So 7.\nEnd.")
    longer = record_data(build_record(replace(ours, spans=(Span("sampled", "So"),)), "q", theirs))
    assert (shown(longer["controlled"]), shown(longer["uncontrolled"])) == ("So|", "So| 7.\nBut no.")


def test_runs_hold_no_further_runs() -> None:
    assert "uncontrolled" in TraceRecord.model_fields
    assert "uncontrolled" not in RunView.model_fields
