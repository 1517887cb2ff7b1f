"""Trace records: how they are built from generations, their files, and their layout on the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tersely
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.trace import Decision, GenerationResult, Span, Usage
from tersely.controller.types import Signals
from tersely.evaluation.trace_page import RunDisplay, display_record
from tersely.evaluation.trace_record import (
    RunView,
    TokenView,
    TraceError,
    TraceRecord,
    append_record,
    build_record,
    check_appendable,
    load_records,
    parse_record,
)
from tersely.io import WriteError
from tersely.models import get_model_path

from ...support.disk import files_no_longer_than
from ...support.word_tokenizer import WordTokenizer

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
    "tokens": [{"text": "2 ", "entropy": 0.5}, {"text": "+ 5"}, {"text": "7"}],
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


@pytest.mark.slow
def test_a_real_generation_becomes_a_record_and_comes_back(tmp_path: Path) -> None:
    if not get_model_path("tersely-tiny-small").is_dir():
        pytest.skip("the embedded model is not there yet")
    from tersely.controller.engines.transformers.engine import load_engine

    engine = load_engine("tersely-tiny-small")
    question = "Compute (5 + 4) - 6."
    controlled = {"policies": ["hint", "budget"], "max_new_tokens": 120}
    ours, plain = (tersely.generate(engine, prompts=question, seed=0, **k) for k in (controlled, {"preset": "off"}))
    record = build_record(ours, question, plain, codec=TokenizerAdapter(engine.tokenizer))
    assert record.output == ours.text
    assert len(record.tokens) == ours.usage.thinking + ours.usage.answer == len(ours.token_ids)
    assert {"forced", "kept"} == {s.kind for s in record.segments}
    assert "".join(s.text for s in record.segments if not s.thinking) == ours.answer
    for decision in record.decisions:
        start = sum(len(token.text) for token in record.tokens[: decision.position])
        assert record.output[start:].startswith(decision.text)
    assert record.uncontrolled is not None
    assert record.uncontrolled.output == plain.text
    append_record(tmp_path / "t.jsonl", record)
    append_record(tmp_path / "t.jsonl", record)
    assert load_records(tmp_path / "t.jsonl") == [record, record]
    starts = [sum(len(token.text) for token in record.tokens[: d.position]) for d in ours.trace]
    assert [placed.offset for placed in display_record(record).controlled.decisions] == starts


def test_characters_of_several_tokens_and_leading_spaces_survive() -> None:
    codec = TokenizerAdapter(Pieces(b" Caf", b"\xc3", b"\xa9 or", b" tea?", b" now", b"\xe2\x82"))
    spans = (("sampled", "Café or tea?"), ("forced", "now"), ("sampled", "\ufffd"))
    record = build_record(written(*spans, usage=Usage(thinking=6), token_ids=(0, 1, 2, 3, 4, 5)), "q", codec=codec)
    assert [token.text for token in record.tokens] == ["Caf", "", "é or", " tea?", "now", "\ufffd"]


def test_tokens_that_do_not_spell_the_text_are_left_out() -> None:
    done = written(("sampled", "other"), usage=Usage(thinking=1), token_ids=(0,))
    assert build_record(done, "q", codec=TokenizerAdapter(Pieces(b"text"))).tokens == ()


def test_thinking_and_answer_are_separate_segments() -> None:
    spans = (("sampled", "So 7.</think>\n\nIt is 7."),)
    done, codec = words(*spans, usage=Usage(thinking=5, answer=9), answer="It is 7.")
    record = build_record(done, "q", codec=codec)
    assert [(s.text, s.thinking) for s in record.segments] == [("So 7.</think>\n\n", True), ("It is 7.", False)]
    assert record.answer == "7"
    only = build_record(written(("sampled", "It is 7."), usage=Usage(answer=5), answer="It is 7."), "q")
    assert [s.thinking for s in only.segments] == [False]
    none = build_record(written(("sampled", "So 7"), usage=Usage(thinking=3)), "q")
    assert ([s.thinking for s in none.segments], none.answer, none.tokens) == ([True], "", ())


def test_signals_are_recorded_with_their_tokens() -> None:
    done, codec = words(("sampled", "a b"), usage=Usage(thinking=3))
    done = replace(done, signals=(None, Signals(2.0, 0.5, 0.5), Signals(1.0, 0.5, 0.5)))
    record = build_record(done, "q", codec=codec)
    assert record.tokens[1] == TokenView(text=" ", entropy=2.0)


def changed(**keys: Any) -> str:
    return json.dumps({k: v for k, v in {**LINE, **keys}.items() if v is not None})


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("{", "not_a_record", "not valid JSON"),
        ("[]", "not_a_record", "got []"),
        (changed(version=2), "unsupported_version", "version is 2; accepted: 1"),
        (changed(version=2, new="x"), "unsupported_version", "version is 2; accepted: 1"),
        (changed(version=None), "invalid_trace", "'version'"),
        (changed(finish_reason=None), "invalid_trace", "'finish_reason'"),
        (changed(decision=[]), "invalid_trace", "'decision'; did you mean 'decisions'?"),
        (
            changed(segments=[{"kind": "kept", "txt": "", "thinking": True}]),
            "invalid_trace",
            "'segments[0].txt'; did you mean 'text'?",
        ),
        (changed(segments=[{"kind": "kept", "thinking": True}]), "invalid_trace", "'segments[0].text'"),
        (
            changed(segments=[{"kind": "cut", "text": "", "thinking": True}]),
            "invalid_trace",
            "segments[0].kind is 'cut'; accepted: 'kept',",
        ),
        (changed(usage={"thinkin": 1}), "invalid_trace", "'usage.thinkin'; did you mean 'thinking'?"),
        (changed(usage={"thinking": "many"}), "invalid_trace", "usage.thinking is 'many'; accepted: a valid integer"),
        (changed(usage={"thinking": -1}), "invalid_trace", "negative"),
        (changed(decisions=[{"policy": "p"}]), "invalid_trace", "'decisions[0].action'"),
        (changed(tokens=[{"text": "other"}]), "invalid_trace", "'tokens' and 'segments'"),
        (
            changed(tokens=[{"text": "2 + 57", "entropy": float("nan")}]),
            "invalid_trace",
            "tokens[0].entropy is nan; accepted: a finite",
        ),
        (changed(id=""), "invalid_trace", "id is ''"),
        (changed(uncontrolled={**LINE}), "invalid_trace", "'uncontrolled."),
        (changed(question="x" * 900 + "\\ud800").replace("\\\\", "\\"), "not_a_record", "not valid JSON"),
    ],
)
def test_invalid_line_is_named_with_its_fault(tmp_path: Path, line: str, code: str, named: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(TraceError) as caught:
        load_records(path)
    message = str(caught.value)
    assert caught.value.code == code
    assert named in message
    assert message.startswith(f"{path}, line 1: ")
    assert len(message) < 600


def test_errors_name_the_line_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + changed().encode() + b"\r\n\n" + b'{"id": "caf\xe9"}\n')
    with pytest.raises(TraceError) as caught:
        load_records(path)
    assert caught.value.code == "invalid_trace"
    path.write_text(f"{changed()}\n\n{{}}")
    with pytest.raises(TraceError) as caught:
        load_records(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    path.write_text("\n \n")
    for place, code in ((path, "empty_trace"), (tmp_path / "none", "invalid_trace"), (tmp_path, "invalid_trace")):
        with pytest.raises(TraceError) as caught:
            load_records(place)
        assert caught.value.code == code


def test_appending_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    record = parse_record(changed(), "here")
    path.write_text(changed())  # its last line has no end
    append_record(path, record)
    before = path.read_bytes()
    assert len(load_records(path)) == 2
    with files_no_longer_than(len(before) + 40), pytest.raises(WriteError):
        append_record(path, record)
    assert path.read_bytes() == before


def test_places_that_cannot_be_appended_to_are_refused_beforehand(tmp_path: Path) -> None:
    check_appendable(tmp_path / "new.jsonl")
    (tmp_path / "empty").touch()
    check_appendable(tmp_path / "empty")
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(TraceError) as caught:
        check_appendable(tmp_path / "notes.md")
    assert caught.value.code == "not_a_record"
    (tmp_path / "blank").write_text("\n")
    with pytest.raises(TraceError) as caught:
        check_appendable(tmp_path / "blank")
    assert caught.value.code == "empty_trace"
    for place in (tmp_path, tmp_path / "none" / "t.jsonl"):
        with pytest.raises(WriteError):
            check_appendable(place)


def show(run: RunDisplay) -> str:
    """A run as the page shows it: decisions as [1], the divergence as |."""
    marks = {"divergence": "|"}
    pieces = [*run.thinking, *run.answer]
    return "".join(f"[{p.number}]" if p.kind == "decision" else marks.get(p.kind, p.text) for p in pieces)


def display(*arguments: Any, **options: Any) -> RunDisplay:
    return display_record(build_record(*arguments, **options)).controlled


def test_decisions_stand_where_they_were_taken() -> None:
    spans = (("sampled", "a b."), ("forced", HINT.text), ("sampled", "So 7."))
    shadow = replace(HINT, position=2, acted=False)
    late = replace(HINT, position=99, acted=False)
    done, codec = words(*spans, usage=Usage(thinking=12, injected=5), trace=(shadow, HINT, late))
    run = display(done, "q", codec=codec)
    assert show(run) == "a [1]b.[2]\n\nBe brief.\n\nSo 7.[3]"
    assert [placed.exact for placed in run.decisions] == [True, True, True]
    assert [piece.kind for piece in run.thinking if piece.text] == ["kept", "kept", "forced", "kept"]


def test_without_tokens_places_are_estimated() -> None:
    spans = (("sampled", "a b."), ("forced", HINT.text), ("sampled", "So 7. Right."))
    done = written(*spans, usage=Usage(thinking=20), trace=(HINT, replace(HINT, position=19, acted=False)))
    run = display(done, "q")
    assert show(run) == "a b.\n[1]\nBe brief.\n\nSo 7. Right.[2]"
    assert [placed.exact for placed in run.decisions] == [False, False]


def test_trimmed_text_is_shown_and_takes_no_tokens() -> None:
    record = parse_record(
        changed(
            segments=[
                {"kind": "kept", "text": "one ", "thinking": True},
                {"kind": "trimmed", "text": "Wait, again. ", "thinking": True},
                {"kind": "kept", "text": "two", "thinking": True},
            ],
            tokens=[{"text": "one "}, {"text": "two"}],
            decisions=[{"policy": "trim", "action": "trim", "reason": "r", "position": 1}],
        ),
        "here",
    )
    run = display_record(record).controlled
    assert show(run) == "one [1]Wait, again. two"
    assert [piece.kind for piece in run.thinking] == ["kept", "decision", "trimmed", "kept"]


def test_the_divergence_of_two_runs_and_their_answers() -> None:
    ours, codec = words(("sampled", "So 7."), ("forced", "\nEnd."), usage=Usage(thinking=8), answer="7")
    theirs, _ = words(("sampled", "So 7.\nBut no."), usage=Usage(thinking=10), answer="6")
    found = display_record(build_record(ours, "q", theirs).model_copy(update={"gold": "7.0"}))
    assert found.uncontrolled is not None
    assert (show(found.controlled), show(found.uncontrolled)) == ("So 7.\n|End.", "So 7.\n|But no.")
    assert (found.same_answer, found.controlled.right, found.uncontrolled.right) == (False, True, False)
    assert found.saving == pytest.approx(0.2)
    (one, codec), (other, _) = (words(("sampled", text), usage=Usage(thinking=3)) for text in ("a 12", "a 13"))
    split = display_record(build_record(one, "q", other, codec=codec)).controlled
    assert show(split) == "a |12", "the divergence stands before its token"
    alike = display_record(build_record(ours, "q", ours))
    assert (alike.same_answer, alike.controlled.right, show(alike.controlled)) == (True, None, "So 7.\nEnd.")
    longer = display_record(build_record(replace(ours, spans=(Span("sampled", "So"),)), "q", theirs))
    assert longer.uncontrolled is not None
    assert (show(longer.controlled), show(longer.uncontrolled)) == ("So|", "So| 7.\nBut no.")


def test_tags_of_records() -> None:
    done, _ = words(("sampled", "So 7."), usage=Usage(thinking=8), answer="7", trace=(HINT,))
    plain, _ = words(("sampled", "So 6."), usage=Usage(thinking=4), answer="6")
    judged = build_record(done, "q", plain).model_copy(update={"gold": "6"})
    assert display_record(judged).tags == ["acted", "other", "wrong", "longer"]
    told = replace(done, trace=(replace(HINT, action="note"), replace(HINT, acted=False)))
    assert display_record(build_record(told, "q")).tags == ["untouched"]


def test_runs_hold_no_further_runs() -> None:
    assert "uncontrolled" in TraceRecord.model_fields
    assert "uncontrolled" not in RunView.model_fields
