"""`tersely replay`: where policies would have stopped recorded thinking, and what that would have cost."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

from tersely.cli.app import main
from tersely.controller.budgets import Budget
from tersely.controller.engines.transformers.model_runner import PrefixCache
from tersely.controller.policies.base import Trial, TrialAnswer, TrialPrompt
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.trace import Decision
from tersely.controller.trials import trial_opening
from tersely.errors import CapabilityError, ModelError, OptionError
from tersely.evaluation.replay.cli import replay
from tersely.evaluation.replay.formats import RecordedOutput
from tersely.evaluation.replay.reader import PieceTokenizer, load_tokenizer
from tersely.evaluation.replay.result import summarize
from tersely.evaluation.replay.run import (
    EQUAL_BUDGET,
    FIRST_CORRECT,
    ReplayedRow,
    Stop,
    cut_at_equal_tokens,
    is_right,
    make_replay_arms,
    replay_rows,
)
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.models import get_model_path

from ...support.cpu_limit import limited
from ...support.refusals import refused

BUDGET = Budget("normal", 1 << 30)
REST = "Now I go through all of it once more, slowly, to be entirely sure that nothing was forgotten on the way."
POLICY = """
import tersely

class First(tersely.Policy):
    name = "first"

    def watch(self, view):
        yield tersely.Wait(at=1, boundary="thought")
        yield tersely.Close(f"{view.tokens} tokens are enough", phrase="")
"""


def thinking(*answers: str) -> str:
    """Paragraphs that come to these answers one after the other, and a last one without any."""
    said = (
        f"Wait, let me check. {REST} The first way is to count them one by one. So the answer is {answer}."
        for answer in answers
    )
    return "\n\n".join([*said, REST])


def row(name: str, thought: str, answer: str, gold: str | None = "12") -> dict[str, Any]:
    return {"id": name, "problem": "How many?", "thinking": thought, "answer_text": answer, "gold": gold}


ROWS = [
    row("kept", thinking("12", "12", "12"), "\\boxed{12}"),
    row("lost", thinking("9", "9", "12"), "\\boxed{12}"),
    row("repaired", thinking("12", "12", "9"), "\\boxed{9}"),
    row("untouched", thinking("9", "12"), "\\boxed{12}"),
    row("no known form", "\n\n".join(["Perhaps it is a dozen, or so it seems to me."] * 9), "\\boxed{12}"),
    {**row("cut", thinking("12"), ""), "truncated": True},
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    assert main(["replay", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_what_is_saved_lost_and_repaired(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, log)
    assert (result["preset"], result["reader"]) == ("balanced", None)
    (found,) = result["sets"]
    assert (found["name"], found["n"], found["left_out"]) == ("log", 5, {"truncated": 1})
    assert (found["right_full"], found["right_controlled"]) == (0.8, 0.8)
    assert (found["lost"], found["repaired"]) == (0.25, 1.0)
    assert found["lost_upper"] == pytest.approx(0.7514, abs=1e-4)  # Clopper and Pearson: 1 of 4, one-sided
    assert found["stops"] == {"convergence: … derivations agree on the answer …": 3}
    assert found["thinking_saved_ci"][0] < found["thinking_saved"] < found["thinking_saved_ci"][1]
    assert found["control_us_per_token"] > 0


def test_without_gold_the_recorded_answer_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps({**one, "gold": None}) for one in ROWS[:5]))
    (found,) = run_json(capsys, path)["sets"]
    assert (found["right_full"], found["right_controlled"], found["lost"]) == (1.0, 0.6, 0.4)


def test_several_arms_and_sets(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, other = tmp_path / "own.py", tmp_path / "more" / "log.jsonl"
    own.write_text(POLICY)
    other.parent.mkdir()
    other.write_bytes(log.read_bytes())
    specs = ("--preset", "balanced", "--preset", "off", "--policy", f"{own}:First")
    results = run_json(capsys, log, other, *specs)["presets"]
    assert [result["preset"] for result in results] == ["balanced", "off", f"{own}:First"]
    assert [one["name"] for one in results[0]["sets"]] == [str(log), str(other)]
    assert results[0]["all"]["n"] == 10
    assert results[1]["all"]["stops"] == {}
    assert results[1]["all"]["thinking_saved"] == 0
    assert results[2]["all"]["stops"] == {"first: … tokens are enough": 10}
    alone = run_json(capsys, log, "--policy", "convergence", "--limit", "1")
    assert (alone["preset"], alone["sets"][0]["n"]) == ("convergence", 1)


def test_a_margin_that_is_not_a_share_is_refused(log: Path) -> None:
    assert main(["replay", str(log), "--margin", "2"]) == 2


def test_the_margin_decides_the_exit_code(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, log, "--margin", "0.7", code=1)
    run_json(capsys, log, "--margin", "0.8")
    run_json(capsys, log, "--preset", "careful", "--margin", "0.01", code=1)  # nothing is lost, but of four rows


def test_a_budget_caps_the_thinking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(row("long", thinking(*map(str, range(60))), "59", "59")))
    (found,) = run_json(capsys, path, "--thinking-budget", "1024", "--policy", "budget")["sets"]
    assert list(found["stops"]) == ["budget: budget of … thinking tokens (normal) is used up"]
    assert (found["lost"], found["lost_upper"]) == (1.0, 1.0)
    assert run_json(capsys, path, "--policy", "budget")["sets"][0]["stops"] == {}


def test_people_get_a_table_and_a_page(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):  # a page of ours may be replaced
        assert main(["replay", str(log), "--margin", "0.01", "--page", str(page)]) == 1
    out = capsys.readouterr().out
    for text in (
        "3 of 5 rows were stopped",
        "left out of log: 1 truncated",
        "not shown to hold on log",
        "four characters",
        "is unknown",
    ):
        assert text in out
    html = page.read_text()
    assert html.index("lost, lost") < html.index("kept, right") < html.index("repaired, repaired")


def test_a_page_without_stops_and_a_name_with_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, page = tmp_path / "[red]a.jsonl", tmp_path / "page.html"
    log.write_text(json.dumps(ROWS[3]))
    assert main(["replay", str(log), "--page", str(page)]) == 0
    assert "[red]a" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"preset": ["nothing"]}, "unknown_name"),
        ({"policy": ["nothing"]}, "unknown_name"),
        ({"policy": ["none.py:Own"]}, "invalid_policy"),
        ({"tokenizer": Path("nowhere")}, "no_such_file"),
    ],
)
def test_bad_options_are_refused(log: Path, changes: dict[str, Any], code: str) -> None:
    with refused(OptionError, code):
        replay([log], **changes)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"preset": ["certified"]}, CapabilityError.code),
        ({"preset": ["deer"]}, "missing_reader"),
        ({"policy": ["certaindex"]}, "missing_reader"),
        ({"policy": ["steer"]}, "cannot_replay"),
        ({"preset": ["steer"]}, "cannot_replay"),
    ],
)
def test_a_policy_that_needs_the_model_is_refused(log: Path, changes: dict[str, Any], code: str) -> None:
    with refused(CapabilityError, code):
        replay([log], **changes)


def test_each_policy_has_its_baselines(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row "lost" states 9 at first; the oracle stops where 12 is stated first, so it saves nothing there."""
    balanced, off = run_json(capsys, log, "--preset", "balanced", "--preset", "off")["presets"]
    equal, first = (balanced["baselines"][name]["sets"][0] for name in (EQUAL_BUDGET, FIRST_CORRECT))
    assert equal["thinking_saved"] == pytest.approx(balanced["sets"][0]["thinking_saved"], abs=0.01)
    assert equal["thinking_saved"] > 0 and equal["budget"] > 0
    assert list(equal["stops"]) == ["equal-budget: budget of … thinking tokens is used up"]
    assert (first["lost"], first["repaired"], first["right_controlled"]) == (0.0, 1.0, 1.0)
    assert list(first["stops"]) == ["first-correct: the right answer is stated"]
    assert first["thinking_saved"] > balanced["sets"][0]["thinking_saved"]
    assert (off["baselines"][EQUAL_BUDGET]["sets"][0]["budget"], off["sets"][0]["thinking_saved"]) == (None, 0)
    assert off["baselines"][FIRST_CORRECT] == balanced["baselines"][FIRST_CORRECT]
    assert "baselines" not in run_json(capsys, log, "--no-baselines")


def test_baselines_stand_below_their_set(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(log)]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    at = names.index("log")
    assert names[at : at + 3] == ["log", EQUAL_BUDGET, FIRST_CORRECT]


def test_logs_are_not_overwritten_or_counted_twice(log: Path) -> None:
    before = log.read_bytes()
    with refused(OptionError, "overwrites_other_file"):
        replay([log], page=log)
    with refused(OptionError, "repeated_value"):
        replay([log, log.parent / "." / log.name])
    assert log.read_bytes() == before


def run_rows(
    rows: list[RecordedOutput], deadline: float = 5.0, preset: str = "balanced", **options: Any
) -> list[ReplayedRow]:
    arms = make_replay_arms([preset], [], trials="reader" in options)
    with AnswerChecker(deadline) as checker:
        (found,) = replay_rows(rows, arms, PieceTokenizer(), BUDGET, checker, lambda: None, **options)
    return found


class Sure:
    """A reader that is sure of its trial answers from the second statement of 12 on; each costs 3 tokens."""

    name = "sure"
    verifier = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def read(self, texts: Any) -> list[str]:
        return ["12"] * len(texts)

    def answer_trial(self, question: str, thinking: str, asked: Trial) -> TrialAnswer:
        self.asked.append(thinking)
        assert (question, asked.retract > 0) == ("How many?", True)
        return TrialAnswer("12", 0.96 if thinking.count("is 12") >= 2 else 0.5, 3)


def test_a_reader_answers_trials_and_their_tokens_are_counted() -> None:
    rows = [RecordedOutput(one["id"], "How many?", one["thinking"], one["answer_text"], "12") for one in ROWS[:5]]
    kept, *_, wordless = found = run_rows(rows, preset="deer", reader=(reader := Sure()))
    assert kept.stop is not None
    assert rows[0].thinking.startswith(kept.stop.thinking) and kept.stop.thinking.count("is 12") == 2
    assert not kept.stop.thinking.rstrip().endswith("Wait"), "it stops before the cue"
    assert kept.stop.reason.startswith("deer: a trial answer has a confidence of")
    assert [one.trial_tokens for one in found] == [6, 6, 6, 3, 0]
    assert len(reader.asked) == 7
    assert wordless.stop is None
    figures = summarize("log", found, {})
    assert figures["trial_tokens"] == 21 / sum(one.tokens for one in found)
    with AnswerChecker() as checker:
        cut = cut_at_equal_tokens(found, get_adapter(PieceTokenizer()), None, checker)
    spent = sum(one.used + one.trial_tokens for one in found)
    assert sum(one.used for one in cut) == pytest.approx(spent, abs=len(cut)), "trials are spent too"


@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "{" * 5_000, "\\frac{" * 900 + "}" * 900, "\0\x1b[2J\ud7ff"])
def test_hostile_answers_end(answer: str) -> None:
    started = time.monotonic()
    with limited():  # the sandbox is another process
        (found,) = run_rows([RecordedOutput("1", "q", thinking(answer, answer), f"\\boxed{{{answer}}}", "12")], 1.0)
    assert time.monotonic() - started < 60
    assert not found.right_full


def test_a_reader_says_the_answer_at_stops() -> None:
    class Constant:
        name = "constant"
        verifier = None

        def read(self, texts: Any) -> list[str]:
            asked.extend(texts)
            return ["12"] * len(texts)

        def answer_trial(self, question: str, thinking: str, asked: Trial) -> TrialAnswer:
            raise AssertionError

    asked: list[tuple[str, str]] = []
    rows = [RecordedOutput(one["id"], "How many?", one["thinking"], one["answer_text"], "12") for one in ROWS[:5]]
    found = run_rows(rows, reader=Constant())
    assert [one.right_controlled for one in found] == [True] * 5
    assert [question for question, _ in asked] == ["How many?"] * 3
    assert all(text.rstrip().endswith((" 12.", " 9.")) for _, text in asked)


def test_a_model_reads_the_answer_off_the_thinking() -> None:
    from tersely.evaluation.replay.reader import ModelReader

    reader = ModelReader("tersely-tiny-small")
    question = "Mia has 48 shells. Mia finds 31 shells. How many shells does Mia have now?"
    texts = [
        (question, "A=48+31=79.\nSo I get 79."),
        ("", "So 7.\n\n" * 3_000),
        (question, "A=48+31=78.\nSo I get 78."),
    ]
    assert reader.read(texts) == ["79", "7", "78"]
    sure = reader.answer_trial(*texts[0], Trial())
    assert sure.answer == "79" and sure.text.startswith("79}")
    assert 0.9 < sure.confidence < 1
    assert sure.tokens == len(reader.codec.encode(trial_opening(reader.markers, texts[0][1]) + sure.text))
    long = reader.answer_trial(*texts[1], Trial(prompt=TrialPrompt("\n\\boxed{", 4, whole=True)))
    assert long.tokens <= 4 + len(reader.codec.encode("\n\\boxed{"))


def test_a_reader_reads_what_texts_share_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersely.evaluation.replay.reader import ModelReader

    read = PrefixCache.read
    counts: list[int] = []

    def count(self: PrefixCache, ids: Sequence[int], keep: int = 1) -> tuple[Any, int]:
        logits, fresh = read(self, ids, keep)
        counts.append(fresh)
        return logits, fresh

    reader = ModelReader("tersely-tiny-small")
    thinking = "".join(f"A={n}+2={n + 2}.\nSo I get {n + 2}.\n\n" for n in range(10, 30))
    texts = [("How many?", thinking[:size]) for size in (len(thinking), 100, 300, 100)]
    alone = [ModelReader("tersely-tiny-small").read([text])[0] for text in texts]
    assert len(set(alone)) == 3
    monkeypatch.setattr(PrefixCache, "read", count)
    monkeypatch.setattr("tersely.controller.engines.transformers.model_runner._PREFILL", 50)
    assert ModelReader("tersely-tiny-small").read(texts) == alone
    longest = len(reader.codec.encode(texts[0][1]))
    assert longest < sum(counts) < longest + 200  # the prompt, three openings and their answers


@pytest.mark.parametrize("name", ["127.0.0.1:9/v1", "http://127.0.0.1:9/v1"])
def test_a_reader_that_is_not_there_is_refused(name: str) -> None:
    from tersely.evaluation.replay.reader import ModelReader

    with pytest.raises(ModelError) as caught:
        ModelReader(name)
    assert "http://" in str(caught.value)


def test_a_model_whose_cache_cannot_be_cropped_reads_whole_texts() -> None:
    config = Mamba2Config(
        vocab_size=99, hidden_size=32, state_size=8, num_heads=4, head_dim=16, n_groups=1, num_hidden_layers=2
    )
    model = Mamba2ForCausalLM(config).eval()
    ids = list(range(1, 30))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -5:]
    cache = PrefixCache(model)
    for _ in range(2):
        logits, read = cache.read(ids, 5)
        assert read == len(ids) and torch.allclose(logits, expected, atol=1e-4)


def test_our_tokenizer_gives_back_any_text() -> None:
    tokenizer = PieceTokenizer()
    text = "Tabs\tand  spaces\r\n\n\nπ≈3.14159, _x_² \\frac{1}{2} 多言語 \x00\x85\u2028" + "a" * 99
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_a_model_s_tokenizer_is_loaded(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = get_model_path("tersely-tiny-small")
    assert load_tokenizer(folder)("1", add_special_tokens=False)["input_ids"]
    assert run_json(capsys, log, "--tokenizer", folder / "tokenizer.json")["sets"][0]["n"] == 5
    (tmp_path / "tokenizer.json").write_text("{}")
    with refused(OptionError, "invalid_tokenizer"):
        load_tokenizer(tmp_path)


def test_a_choice_is_right_by_its_label_and_by_its_text() -> None:
    question = "What is half of 3?\n(A) 1\n(B) 3/2\n(C) 6"
    row = RecordedOutput("1", question, "", "B", gold="3/2")
    with AnswerChecker() as checker:
        assert is_right(row, "B", checker) and is_right(row, "3/2", checker)
        assert not is_right(row, "A", checker) and not is_right(row, "", checker)
        assert not is_right(RecordedOutput("2", "What is B?", "", "B", gold="3/2"), "B", checker)


def test_a_reason_is_the_same_for_all_answers() -> None:
    close = Decision("convergence", "close", "3 derivations agree on the answer Yes", 8)
    assert Stop(close, 8, "", "yes", "yes").reason == "convergence: … derivations agree on the answer …"
