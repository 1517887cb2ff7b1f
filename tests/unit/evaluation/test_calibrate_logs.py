"""`tersely calibrate` on recorded outputs: text probes, with and without a reader, and what replays make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely import generate
from tersely.cli.app import main
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies.exits import Convergence
from tersely.controller.policies.readiness import AutoExit, TextReadiness
from tersely.controller.probe_registry import ProbeError
from tersely.controller.reader import StateReader
from tersely.controller.types import BindContext
from tersely.controller.verification import AnswerFinal, RuleVerifier
from tersely.controller.verifiers import LLMVerifier
from tersely.errors import CapabilityError
from tersely.probes.artifact import ArtifactError
from tersely.probes.text_probe import TEXT, TEXT_FEATURES, TextProbe, combine, load_text_probe

from ...support.commands import refused
from .test_replay import thinking

NAMES = ("Lea", "Kai", "Ted", "Mia", "Ian", "Zoe", "Max", "Eva")
READER = "tersely-tiny-small"


def write_log(path: Path, n: int, *first: str) -> Path:
    """Outputs whose right answer is 12, and whose first statements are these; each question has other words."""
    rows = []
    for i in range(n):
        said = first[i % len(first)].split()
        question = f"How many of the {20 + i} shells does {NAMES[i % 8]} still have after day {i // 8}?"
        rows.append({"problem": question, "thinking": thinking(*said), "answer_text": "\\boxed{12}", "gold": "12"})
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log whose first answers are all right, and the probes learned from it."""
    folder = tmp_path_factory.mktemp("lenient")
    log = write_log(folder / "log.jsonl", 200, "12 12 12 12", "12 12 12")
    assert main(["calibrate", str(log), "--out", str(folder / "probes"), "--alpha", "0.05"]) == 0
    return log, folder / "probes"


def test_the_first_answer_ends_the_thinking_where_it_is_always_right(
    lenient: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    log, probes = lenient
    probe = load_text_probe(probes / TEXT)
    assert probe.certificate.threshold is not None
    assert probe.certificate.threshold < 0.5, "more lenient than the rule"
    assert probe.certificate.harms == 0
    (ruled,) = run_json(capsys, "replay", log, "--no-baselines")["sets"]
    (found,) = run_json(capsys, "replay", log, "--probes", probes, "--no-baselines")["sets"]
    assert found["thinking_saved"] > ruled["thinking_saved"] + 0.1
    assert found["lost"] == 0
    assert found["n"] == 200 - len(probe.learned_from), "what it learned from is no test"
    assert all("text_readiness" in reason for reason in found["stops"])


def test_the_exit_is_stricter_than_the_rule_where_that_loses_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "log.jsonl", 240, "9 9 12", "12 12 12")
    report = run_json(capsys, "calibrate", log, "--out", tmp_path / "probes", "--alpha", "0.05")
    assert report["convergence"]["harm"] > 0.3
    assert report["probe"]["harm"] <= 0.05
    (found,) = run_json(capsys, "replay", log, "--probes", tmp_path / "probes", "--no-baselines")["sets"]
    assert found["lost"] <= 0.05


def test_other_questions_are_left_to_the_rule(lenient: tuple[Path, Path]) -> None:
    probe = load_text_probe(lenient[1] / TEXT)
    assert probe.known.find_difference("Which theorem of measure theory was proved by Radon and Nikodym?")
    assert probe.known.find_difference("How many of the 33 shells does Lea still have after day 3?") is None


def test_what_balanced_takes(lenient: tuple[Path, Path], tmp_path: Path) -> None:
    folder, recorded = str(lenient[1]), BindContext(None)
    bound = AutoExit(probes=folder).bind(recorded)
    assert isinstance(bound, TextReadiness)
    assert bound.bind(recorded) == bound
    assert bound.provenance == load_text_probe(lenient[1] / TEXT).learned_from
    assert AutoExit().bind(recorded) == Convergence(2)
    with pytest.raises(ProbeError):
        TextReadiness(probes=str(tmp_path)).bind(recorded)
    with pytest.raises(TypeError):
        next(iter(TextReadiness().watch(None)))  # type: ignore[arg-type]


def test_scores_put_what_the_rule_supports_first() -> None:
    scores = combine([0.0, 1.0, 0.0, 1.0], [False, False, True, True])
    assert scores[0] < scores[1] < 0.5 == scores[2] < scores[3]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("{log}", "--layer", "3"), "invalid_option"),
        (("{log}", "--curve", "curve.png"), "invalid_option"),
        (("{log}", "{folder}"), "invalid_option"),
        (("{few}",), "too_few_questions"),
        (("{log}", "--reader", "no/such/model"), "unknown_model"),
    ],
)
def test_what_is_refused(
    lenient: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Any, code: str
) -> None:
    few = write_log(tmp_path / "few.jsonl", 30, "12 12")
    given = [one.format(log=lenient[0], few=few, folder=tmp_path) for one in arguments]
    refused(capsys, "calibrate", *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_probe_is_refused(lenient: tuple[Path, Path], tmp_path: Path) -> None:
    facts = (lenient[1] / TEXT / "probe.json").read_text()
    (tmp_path / TEXT).mkdir()
    (tmp_path / TEXT / "probe.json").write_text(facts.replace("any model", "my model"))
    (tmp_path / TEXT / "probe.safetensors").write_bytes((lenient[1] / TEXT / "probe.safetensors").read_bytes())
    with pytest.raises(ArtifactError):
        AutoExit(probes=str(tmp_path)).bind(BindContext(None))


# -- with a reader -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("read")
    log = write_log(folder / "log.jsonl", 120, "12 12 12", "9 12 12")
    arguments = ["--out", str(folder / "probes"), "--alpha", "0.2", "--reader", READER]
    assert main(["calibrate", str(log), *arguments]) == 0
    return log, folder / "probes"


def test_a_reader_reads_along_in_replays(read: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    log, probes = read
    probe = load_text_probe(probes / TEXT)
    assert probe.reads_states
    assert probe.base["name"] == READER
    refused(capsys, "replay", log, "--probes", probes)
    with pytest.raises(CapabilityError):
        AutoExit(probes=str(probes)).bind(BindContext(None))
    (found,) = run_json(capsys, "replay", log, "--probes", probes, "--reader", READER, "--no-baselines")["sets"]
    assert any("text_readiness" in reason for reason in found["stops"])


def test_states_are_the_same_at_once_and_one_by_one() -> None:
    engine = load_engine(READER)
    texts = ["I have 3 shells.", "I have 3 shells. Then I find 4.", "I have 3 shells. Then I find 4. So 7."]
    at_once, tokens = StateReader(engine).read("How many?", texts)
    reader = StateReader(engine)
    one_by_one = [reader.read("How many?", [text]) for text in texts]
    np.testing.assert_allclose(at_once, np.concatenate([states for states, _ in one_by_one]), rtol=1e-4, atol=1e-4)
    assert sum(read for _, read in one_by_one) <= tokens + 2 * len(texts), "what was read is not read again"
    whole = engine.hidden_states([engine.tokenizer("x")["input_ids"]], 1)[0]
    assert at_once.shape == (3, len(whole))


def test_only_the_probes_own_reader_gives_verdicts(read: tuple[Path, Path]) -> None:
    probe = load_text_probe(read[1] / TEXT)
    asked = AnswerFinal("How many?", "So 7.", (0.0,) * len(TEXT_FEATURES), probe)
    engine = load_engine(READER)
    verifier = RuleVerifier(LLMVerifier(engine, timeout=None))
    assert 0 <= verifier.submit(asked).result(60) <= 1
    verifier.close()
    assert verifier.submit(asked).exception(60) is not None
    assert RuleVerifier().submit(asked).exception(60) is not None
    other = TextProbe(probe.network, probe.certificate, probe.known, base={"name": "other", "fingerprint": "0" * 64})
    wrong = LLMVerifier(engine, timeout=None)
    assert wrong.submit(AnswerFinal("How many?", "So 7.", asked.features, other)).exception(60) is not None
    wrong.close()


def test_a_live_question_of_another_kind_is_not_certified(lenient: tuple[Path, Path]) -> None:
    found = generate("tersely-tiny-small", "Compute (48 + 27) - 36.", probes=str(lenient[1]), max_new_tokens=200)
    notes = [one.reason for one in found.trace if one.policy == "text_readiness"]
    assert any("not certified" in reason for reason in notes)
