"""`tersely calibrate` on recorded outputs: text probes, with and without a reader, and what replays make of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from tersely import generate
from tersely.cli.app import main
from tersely.controller.budgets import UNLIMITED, Budget
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies.base import Policy
from tersely.controller.policies.exits import Convergence
from tersely.controller.policies.readiness import AutoExit, Readiness, TextReadiness
from tersely.controller.probe_registry import ProbeError
from tersely.controller.reader import StateReader
from tersely.controller.replay import replay
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.types import BindContext
from tersely.controller.verification import AnswerFinal, NoVerdictError, Question, RuleVerifier, VerdictFuture
from tersely.controller.verifiers import EndpointVerifier, LLMVerifier
from tersely.errors import CapabilityError
from tersely.evaluation.calibrate import follow, read_logs
from tersely.evaluation.replay.formats import RecordedOutput
from tersely.evaluation.replay.logs import RecordedSet
from tersely.evaluation.replay.reader import PieceTokenizer
from tersely.evaluation.replay.run import MARKERS
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.probes.artifact import ArtifactError
from tersely.probes.calibrate.text import score
from tersely.probes.io import TEXT, TextProbe, load_text_probe
from tersely.probes.network import Network
from tersely.probes.rule import RULE, TEXT_FEATURES, combine

from ...support.commands import refused
from .test_replay import thinking

NAMES = ("Lea", "Kai", "Ted", "Mia", "Ian", "Zoe", "Max", "Eva")
READER = "tersely-tiny-small"


OTHER_READER = "tersely-tiny-large"


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


def read_report(probes: Path) -> Any:
    return json.loads((probes / TEXT / "probe.json").read_text())["metrics"]


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
    assert found["thinking_saved"] == pytest.approx(read_report(probes)["probe"]["saved"]), "as it was calibrated"
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


def test_where_nothing_is_certified_the_trace_says_so(lenient: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["calibrate", str(lenient[0]), "--out", str(tmp_path), "--alpha", "0.01"]) == 0
    bound, tokenizer = AutoExit(probes=str(tmp_path)).bind(BindContext(None)), PieceTokenizer()
    ids = tokenizer(thinking("12", "12", "12"))["input_ids"]
    question = "How many of the 33 shells does Lea still have after day 3?"
    (found,) = replay(ids, (bound,), tokenizer, MARKERS, Budget("normal", UNLIMITED), prompt=question)
    assert found.action == "note"
    assert "never stops" in found.reason


def test_a_log_of_wrong_outputs_can_be_learned_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log.jsonl", 200, "9 9 9 9")
    log.write_text(log.read_text().replace("\\boxed{12}", "\\boxed{9}"))
    report = run_json(capsys, "calibrate", log, "--out", tmp_path / "probes", "--alpha", "0.05")
    assert report["probe"]["harm"] == 0
    assert report["probe"]["saved"] > 0.5, "where the answer stays wrong, stopping does no harm"


@pytest.mark.parametrize("question", ["", "How many of the 33 shells does Lea still have after day 3?"])
def test_without_its_text_a_question_is_left_to_the_rule(lenient: tuple[Path, Path], question: str) -> None:
    bound, tokenizer = AutoExit(probes=str(lenient[1])).bind(BindContext(None)), PieceTokenizer()
    ids = tokenizer(thinking("12", "12", "12"))["input_ids"]
    found = replay(ids, (bound,), tokenizer, MARKERS, Budget("normal", UNLIMITED), prompt=question)
    assert ("not certified" in found[0].reason) == (question == "")


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
    assert Readiness(fallback=bound).provenance == bound.provenance
    assert AutoExit().bind(recorded) == Convergence(2)
    (tmp_path / "readiness").mkdir()
    (tmp_path / "readiness" / "probe.json").write_text("{}")
    for without in (str(tmp_path), str(tmp_path / "nowhere"), None):
        with pytest.raises(ProbeError):
            TextReadiness(probes=without).bind(recorded)
        if without is not None:
            with pytest.raises(ProbeError):
                AutoExit(probes=without).bind(recorded)
    with pytest.raises(TypeError):
        next(iter(TextReadiness().watch(None)))  # type: ignore[arg-type]


def test_scores_put_what_the_rule_supports_first() -> None:
    scores = combine([0.0, 1.0, 0.0, 1.0], [False, False, True, True])
    assert scores[0] < scores[1] < 0.5 == scores[2] < scores[3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{log}", "--layer", "3"), "--layer"),
        (("{log}", "--labels", "diffadapt"), "--labels"),
        (("{log}", "--curve", "curve.png"), "--curve"),
        (("{log}", "{folder}"), "is a folder"),
        (("{folder}", "--question-field", "asked"), "--question-field"),
        (("{folder}", "--reader", READER), "--reader"),
        (("{few}",), "accepted: 20 or more"),
        (("{silent}",), "no output has its question"),
        (("{log}", "--reader", "no/such/model"), "no/such/model"),
    ],
)
def test_what_is_refused(
    lenient: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Any, words: str
) -> None:
    few, silent = write_log(tmp_path / "few.jsonl", 30, "12 12"), tmp_path / "silent.jsonl"
    silent.write_text(lenient[0].read_text().replace('"problem"', '"other"'))
    given = [one.format(log=lenient[0], few=few, silent=silent, folder=tmp_path) for one in arguments]
    assert words in refused(capsys, "calibrate", *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_several_outputs_of_a_question_the_first_counts() -> None:
    first, again = (RecordedOutput("1", "How many?", thinking(*["12"] * n), "12", "12") for n in (1, 2))
    sets = [RecordedSet("a", [first, again], Counter()), RecordedSet("b", [again], Counter())]
    (found,) = read_logs(sets, PieceTokenizer(), None)
    assert len(found.stops) == 1


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
    assert main(["replay", str(log), "--probes", str(probes), "--reader", OTHER_READER]) == 2
    assert f"accepted: --reader {READER}" in capsys.readouterr().err
    (found,) = run_json(capsys, "replay", log, "--probes", probes, "--reader", READER, "--no-baselines")["sets"]
    assert found["thinking_saved"] == pytest.approx(read_report(probes)["probe"]["saved"]), "as it was calibrated"
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
    (stripped, _), (plain, _) = reader.read("How many?", [f"\n{texts[-1]}"]), one_by_one[-1]
    np.testing.assert_allclose(stripped, plain, rtol=1e-4, atol=1e-4)


def test_sequences_of_one_question_are_read_once_each() -> None:
    reader, text = StateReader(load_engine(READER)), "I have 3 shells. Then I find 4. So it is 7. "
    one, other = ["Then I find 4. " * n for n in (3, 6)], [text * n for n in (3, 6)]
    both = [
        reader.read("How many?", [texts[i]], number)[1] for i in (0, 1) for number, texts in enumerate((one, other))
    ]
    alone = [StateReader(reader.engine).read("How many?", [texts[1]])[1] for texts in (one, other)]
    assert sum(both) <= sum(alone) + 4


class Short:
    """A reader of four states, whose context ends with the third value of a thinking."""

    width = 4

    def read(self, question: str, texts: Sequence[str]) -> tuple[Any, int]:
        if texts[-1].count("So the answer is") > 3:
            raise NoVerdictError("too long")
        return np.ones((len(texts), self.width), np.float32), 0


@pytest.mark.parametrize("said", ["12 12 12 9 12 12", ""])
def test_beyond_the_readers_context_only_the_rule_counts(said: str) -> None:
    output = RecordedOutput("1", "How many?", thinking(*said.split()), "12", "12")
    with AnswerChecker() as checker:
        found = follow(output, PieceTokenizer(), checker, Short())  # type: ignore[arg-type]
    read = np.isfinite(found.rows).all(axis=1)
    assert found.rows.shape == (len(found.stops), len(TEXT_FEATURES) + Short.width)
    assert read.sum() == min(3, len(said.split()))
    assert found.supported[~read].all()
    if said:
        shapes = (13, 13, (13, 1), 1, (1, 2), 2, (), 2)
        network = Network(*(np.ones(shape, np.float32) for shape in shapes))
        np.testing.assert_array_equal(score([found], network).score[~read], RULE)


class Silent:
    """A verifier without verdicts, which counts how often it is asked."""

    timeout: float | None = None
    asked = 0

    def submit(self, question: Question) -> VerdictFuture:
        self.asked += 1
        future = VerdictFuture()
        future.set_exception(NoVerdictError("none"))
        return future

    def close(self) -> None:
        pass


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_without_a_verdict_nothing_ends_that_the_rule_does_not_end(read: tuple[Path, Path], threshold: float) -> None:
    probe = load_text_probe(read[1] / TEXT)
    probe = replace(probe, certificate=replace(probe.certificate, threshold=threshold))
    question = "How many of the 33 shells does Lea still have after day 1?"
    tokenizer = PieceTokenizer()
    ids = get_adapter(tokenizer).encode(thinking("9", "12", "12", "12"))

    def stop(policy: Policy, verifier: Silent | None = None) -> list[int]:
        made = replay(
            ids,
            (policy,),
            tokenizer,
            MARKERS,
            Budget("normal", UNLIMITED),
            prompt=question,
            verifier=verifier,
            until_close=True,
            answer_trial=lambda *_: None,  # type: ignore[arg-type,return-value]
        )
        return [one.position for one in made if one.action == "close"]

    (ruled,) = stop(Convergence())
    assert stop(TextReadiness(probe=probe)) == ([ruled] if threshold < RULE else [])
    assert stop(TextReadiness(agree=1, probe=probe)) == stop(TextReadiness(probe=probe)), "as it was certified"
    silent = Silent()
    assert stop(TextReadiness(probe=probe), silent) == ([ruled] if threshold < RULE else [])
    assert silent.asked == (2 if threshold < RULE else 4), "no verdict is needed on what the rule supports"


def test_only_the_probes_own_reader_gives_verdicts(read: tuple[Path, Path]) -> None:
    probe = load_text_probe(read[1] / TEXT)
    asked = AnswerFinal("How many?", "So 7.", (0.0,) * len(TEXT_FEATURES), probe)
    engine = load_engine(READER)
    verifier = RuleVerifier(LLMVerifier(engine, timeout=None))
    assert 0 <= verifier.submit(asked).result(60) <= 1
    verifier.close()
    assert verifier.submit(asked).exception(60) is not None
    assert RuleVerifier().submit(asked).exception(60) is not None
    blocked, release = LLMVerifier(engine, timeout=None), Event()
    blocked._pool.submit(release.wait)
    future, closing = blocked.submit(asked), Thread(target=blocked.close)
    closing.start()
    assert isinstance(future.exception(20), NoVerdictError)
    release.set()
    closing.join()
    server = EndpointVerifier("http://127.0.0.1:9/v1", "model")
    assert isinstance(server.submit(asked).exception(60), NoVerdictError)
    server.close()
    other = TextProbe(probe.network, probe.certificate, probe.known, base={"name": "other", "fingerprint": "0" * 64})
    wrong = LLMVerifier(engine, timeout=None)
    assert wrong.submit(AnswerFinal("How many?", "So 7.", asked.features, other)).exception(60) is not None
    wrong.close()


def test_a_live_question_of_another_kind_is_not_certified(lenient: tuple[Path, Path]) -> None:
    found = generate("tersely-tiny-small", "Compute (48 + 27) - 36.", probes=str(lenient[1]), max_new_tokens=200)
    notes = [one.reason for one in found.trace if one.policy == "text_readiness"]
    assert any("not certified" in reason for reason in notes)
