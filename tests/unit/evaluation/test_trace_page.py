"""The page of a trace file and the commands around it: `tersely view` and `tersely run --trace`."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tersely.cli.app import main
from tersely.controller.trace import Decision, Usage
from tersely.evaluation.trace_page import describe_ending, trace_page
from tersely.evaluation.trace_record import SegmentView, TraceRecord, append_record, load_records
from tersely.models import get_model_path

from ...support.commands import refused
from ...support.disk import files_no_longer_than

NASTY = "</script><script>alert(1)</script><!-- <script> --> & <!--DATA--> \\u003c \u2028 'é' \"😀\" {{x}}"
QUESTION = "Mia has 4 shells. Mia finds 3 shells. How many shells does Mia have now?"
CUT = ("--policy", "budget", "--max-new-tokens", "100")

needs_model = pytest.mark.skipif(
    not get_model_path("tersely-tiny-small").is_dir(), reason="the embedded model is not there yet"
)


def record(text: str = "So 7.", name: str = "a") -> TraceRecord:
    return TraceRecord(
        version=1,
        id=name,
        question=text,
        answer=text,
        tier="easy",
        finish_reason="stop",
        usage=Usage(thinking=4),
        segments=(SegmentView(kind="kept", text=text, thinking=True),),
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    append_record(path, record())
    return path


class Document(HTMLParser):
    """The elements of a page as a browser would find them, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.comments: list[str] = []
        self.shown: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style", "title"):
            self._inside = tag
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            tag, text = self.texts.pop()
            self.texts.append((tag, text + data))
        else:
            self.shown.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def test_the_end_of_a_run_names_who_closed_the_thinking() -> None:
    run, close = record(), Decision("budget", "close", "used up", 3)
    assert describe_ending(run) == "ended by itself"
    watched = run.model_copy(update={"decisions": (replace(close, acted=False),)})
    assert describe_ending(watched) == "ended by itself"
    closed = run.model_copy(update={"decisions": (close,)})
    assert describe_ending(closed) == "thinking closed by budget"
    cut = closed.model_copy(update={"finish_reason": "length"})
    assert describe_ending(cut) == "thinking closed by budget, cut off at the token limit"


def test_text_of_a_model_is_escaped() -> None:
    html = trace_page([record(NASTY, NASTY), record()], NASTY)
    document = Document(html)
    assert document.comments == []
    assert [tag for tag, _ in document.texts] == ["title", "style", "script"]
    assert document.texts[0] == ("title", f"{NASTY} · tersely")
    assert "".join(document.shown).count(NASTY) >= 4, "id, question, answer and text"


def test_page_loads_nothing_and_its_policy_allows_only_itself() -> None:
    text = trace_page([record()], "runs.jsonl")
    document = Document(text)
    policy = next(a["content"] for _, a in document.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    own = [text for tag, text in document.texts if tag in ("script", "style")]
    for source in own:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy
    targets = [a[key] for _, a in document.elements for key in ("src", "href", "action") if key in a]
    assert sorted(map(str, targets)) == ["#content", "data:,"]
    assert not re.search(r"https?://", text)
    assert not re.search(r"@import|url\(", text)


def test_view_writes_next_to_the_trace_and_may_be_repeated(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goal = trace.with_suffix(".html")
    assert main(["view", str(trace)]) == 0
    assert capsys.readouterr() == (f"{goal}: 1 record\n", "")
    append_record(trace, record(name="b"))
    assert main(["view", str(trace)]) == 0
    assert capsys.readouterr().out == f"{goal}: 2 records\n"
    assert sorted(p.name for p in trace.parent.iterdir()) == ["runs.html", "runs.jsonl"]
    assert goal.read_text(encoding="utf-8") == trace_page(load_records(trace), trace.name)
    assert stat.S_IMODE(goal.stat().st_mode) == stat.S_IMODE(trace.stat().st_mode)


def test_view_follows_a_link(trace: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    link.symlink_to(real)
    assert main(["view", str(trace), "--out", str(link)]) == 0
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_view_overwrites_nothing_that_is_not_its_own(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "notes.html"
    other.write_text("<h1>Notes</h1>")
    assert "notes.html" in (message := refused(capsys, "view", trace, "--out", other)) and "--force" in message
    assert other.read_text() == "<h1>Notes</h1>"
    assert main(["view", str(trace), "--out", str(other), "--force"]) == 0
    assert other.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_view_never_overwrites_the_trace_or_a_device(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trace.read_bytes()
    assert "runs.jsonl" in refused(capsys, "view", trace, "--out", trace, "--force")
    assert trace.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    os.write(end, bytes(4096))  # so that a reader would not block
    assert "is a device or a pipe" in refused(capsys, "view", trace, "--out", tmp_path / "pipe", "--force")
    os.close(end)
    assert "in a folder that exists" in refused(capsys, "view", trace, "--out", tmp_path / "none" / "page.html")
    assert "in a folder that exists" in refused(capsys, "view", trace, "--out", tmp_path)


def test_view_names_the_fault_of_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.jsonl" in refused(capsys, "view", tmp_path / "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"version": 1}\n')
    assert "bad.jsonl, line 1: field 'id'" in refused(capsys, "view", bad)
    assert "TRACE" in refused(capsys, "view")
    assert "--force" in refused(capsys, "view", bad, "--forec")


def test_a_full_disk_is_one_line_and_leaves_nothing(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_no_longer_than(5_000):
        assert f"{trace.with_suffix('.html')} cannot be written: File too large" in refused(capsys, "view", trace)
    assert [p.name for p in trace.parent.iterdir()] == ["runs.jsonl"]


@pytest.mark.slow
def test_open_starts_the_browser(trace: Path, tmp_path: Path) -> None:
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/opened"\n')
    script.chmod(0o755)
    command = [sys.executable, "-P", "-m", "tersely.cli", "view", str(trace), "--open"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "BROWSER": f"{script} %s"})
    assert (tmp_path / "opened").read_text().strip() == trace.with_suffix(".html").as_uri()
    nowhere = {**os.environ, "BROWSER": f"{tmp_path}/none %s", "PATH": ""}
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        nowhere.pop(name, None)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=nowhere)
    assert done.stderr == f"could not start a browser; open {trace.with_suffix('.html')} yourself\n"


@pytest.mark.slow
def test_view_and_the_help_import_no_model_library(trace: Path) -> None:
    code = (
        "import sys; from tersely.cli.app import main\n"
        "assert main(['view', '--help']) == 0 and main(['--help']) == 0 and main(['view', sys.argv[1]]) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(trace)], capture_output=True, text=True, check=True)
    assert "Usage: tersely view" in done.stdout
    assert re.search(r"view +Show a trace file as one HTML page", done.stdout)


@pytest.mark.slow
@needs_model
def test_run_appends_its_record_with_the_uncontrolled_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    assert main(["run", QUESTION, *CUT, "--trace", str(path)]) == 0
    first = capsys.readouterr().out
    assert main(["run", QUESTION, *CUT, "--trace", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    compared, alone = load_records(path)
    assert compared.uncontrolled is not None
    assert f"{compared.usage.total} tokens instead of {compared.uncontrolled.usage.total}" in first
    assert alone.uncontrolled is None
    assert (alone.question, alone.output, alone.answer) == (QUESTION, found["text"], found["answer"])
    assert [d.reason for d in alone.decisions] == [d["reason"] for d in found["decisions"]]
    for run in (alone, compared.uncontrolled):
        surprises = [token.entropy for token in run.tokens if token.entropy is not None]
        assert len(surprises) == len(run.tokens) - run.usage.injected, "all but forced tokens have one"
        assert max(surprises) > 0.5 > min(surprises) >= 0
    assert main(["view", str(path)]) == 0


@needs_model
def test_run_refuses_a_bad_place_before_and_reports_a_full_disk_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/dev/full").exists():
        assert main(["run", QUESTION, *CUT, "--quiet", "--trace", "/dev/full"]) == 2
        out, err = capsys.readouterr()
        assert out.startswith("The answer is")
        assert err == "error: /dev/full cannot be written: No space left on device; make room there\n"
    monkeypatch.setattr("tersely.cli.run.load", lambda source: pytest.fail("the model was loaded"))
    notes = tmp_path / "notes.md"
    notes.write_text("# Notes\n")
    assert "notes.md, line 1" in refused(capsys, "run", QUESTION, "--trace", notes)
    assert "in a folder that exists" in refused(capsys, "run", QUESTION, "--trace", tmp_path)
