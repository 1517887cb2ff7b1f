"""Recording live traffic: what is answered is not touched, what is kept is a collection, and no prompt is in it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging

import tersely
from tersely.controller.budgets import TIERS
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.record import LiveRecorder, ThoughtRecord, mean_entropy
from tersely.controller.session import Session
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.text.markers import Markers
from tersely.controller.trace import GenerationResult, Usage
from tersely.controller.types import Capability
from tersely.errors import CapabilityError, OptionError
from tersely.io import WriteError
from tersely.probes.calibrate.data import read_boundaries
from tersely.probes.fingerprint import question_hash
from tersely.probes.records import UNKNOWN, RecordsError, RecordTable, read_records
from tersely.probes.rule import FEATURES
from tersely.probes.tier_selector import TierProbe, TierTable

from ...support.disk import files_no_longer_than
from ...support.planted_records import constant
from ...support.refusals import refused

PROMPTS = [
    "Tom has 3 shells. Tom finds 4 shells. How many shells does Tom have now?",
    "What is 7 * 6?",
    "Mia has 4 shells. Mia finds 3 more shells. How many shells does Mia have now?",
]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


def ask(engine: Any, prompts: Any = None, **options: Any) -> Any:
    known = {"temperature": 0, "max_new_tokens": 300, "preset": "off", **options}
    return tersely.generate(engine, prompts=PROMPTS if prompts is None else prompts, **known)


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> list[GenerationResult]:
    done: list[GenerationResult] = ask(engine)
    assert all(one.finish_reason == "stop" for one in done)
    return done


class Recorded:
    """One recorded call with the preset off, which many tests look at."""

    def __init__(self, folder: Path, engine: TransformersEngine) -> None:
        self.folder = folder
        self.done: list[GenerationResult] = ask(engine, record=str(folder))
        self.records = read_records(folder)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, engine: TransformersEngine) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded") / "live", engine)


def test_what_is_answered_is_not_touched(recorded: Recorded, plain: list[GenerationResult]) -> None:
    assert [(one.token_ids, one.usage, one.trace) for one in recorded.done] == [
        (one.token_ids, one.usage, one.trace) for one in plain
    ]


def test_what_is_kept_is_a_collection(recorded: Recorded, engine: TransformersEngine) -> None:
    records, codec = recorded.records, Session(engine).codec
    assert [records.size(table) for table in ("questions", "rollouts")] == [3, 3]
    assert records.plan["fingerprint"] == engine.fingerprint()
    assert (records.plan["tiers"], records.plan["task"]) == (list(TIERS), "live")
    assert records.plan["closing"] == len(codec.encode("</think>\n\n"))
    assert list(records.texts["hash"]) == [question_hash(prompt) for prompt in PROMPTS]
    assert records["questions.words"].tolist() == [len(prompt.split()) for prompt in PROMPTS]
    assert np.isnan(records["questions.state.-1"]).all()
    for row, one in enumerate(recorded.done):
        assert records["rollouts.thinking"][row] == one.usage.thinking
        assert records["rollouts.answer"][row] == one.usage.answer
        assert records["rollouts.entropy"][row] == pytest.approx(mean_entropy(one.signals))
        ends = records["boundaries.end"][records["boundaries.rollout"] == row].tolist()
        assert len(ends) > 1
        for end in ends:
            assert codec.decode(one.token_ids[:end]).endswith("\n\n")
        assert ends == sorted(ends) and ends[-1] < one.usage.thinking
    assert (records["rollouts.right"] == UNKNOWN).all()
    assert (records["boundaries.right"] == UNKNOWN).all()
    assert not records["boundaries.trial"].any()
    assert records["rollouts.finished"].all()
    assert (records["rollouts.tier"] == records.plan["tiers"].index("normal")).all()


def test_outcomes_are_by_agreement(recorded: Recorded) -> None:
    """After its last thought a model has mostly stated what it then answers; before its first it has not."""
    records = recorded.records
    made = read_boundaries(records, -1)
    assert made.final.all()
    assert made.now.tolist() == records["boundaries.same"].astype(bool).tolist()
    stated = records["boundaries.stated"] >= 0
    assert not records["boundaries.same"][~stated].any()
    last = np.flatnonzero(np.diff(made.rollout, append=99))
    assert made.now[last].mean() > 0.6


def test_states_are_those_the_boundary_was_sampled_from(recorded: Recorded, engine: TransformersEngine) -> None:
    records, session = recorded.records, Session(engine)
    for row, (prompt, one) in enumerate(zip(PROMPTS, recorded.done, strict=True)):
        ids = session.prepare([prompt], GenerationOptions())[0].request.prompt_ids
        with torch.no_grad():
            hidden = engine.model(torch.tensor([[*ids, *one.token_ids]]), output_hidden_states=True).hidden_states
        mine = records["boundaries.rollout"] == row
        truth = hidden[-1][0].numpy()[len(ids) + records["boundaries.end"][mine] - 2]
        np.testing.assert_allclose(records["boundaries.state.-1"][mine], truth, atol=5e-4)


def test_no_prompt_is_stored(engine: TransformersEngine, tmp_path: Path) -> None:
    secret = "Set zanzibar to 12 + 30. What is zanzibar?"
    (done,) = ask(
        engine,
        [[{"role": "system", "content": "Obey Quetzalcoatl."}, {"role": "user", "content": secret}]],
        record=tmp_path,
        effort="easy",
    )
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert read_records(tmp_path).texts["hash"] == [question_hash(secret)]
    assert read_records(tmp_path).texts["problem"] == [""]
    for word in (b"zanzibar", b"Quetzalcoatl", b"What is", done.answer.encode()):
        assert word not in content


def test_shadow_mode_records_beside_what_it_would_do(
    engine: TransformersEngine, plain: list[GenerationResult], recorded: Recorded, tmp_path: Path
) -> None:
    events: list[TextDeltaEvent] = []
    done = ask(engine, preset="balanced", shadow=True, record=tmp_path, on_event=events.append)
    assert [one.token_ids for one in done] == [one.token_ids for one in plain]
    assert any(one.trace for one in done)
    assert not any(decision.acted for one in done for decision in one.trace)
    found = read_records(tmp_path)
    for name, column in recorded.records.columns.items():
        np.testing.assert_allclose(found[name], column, atol=1e-4, err_msg=name)
    assert "".join(e.text for e in events if e.row == 1) == plain[1].thinking + plain[1].answer


def test_each_call_adds_a_part(engine: TransformersEngine, tmp_path: Path) -> None:
    for prompts in (PROMPTS[:2], PROMPTS[2], PROMPTS[1:2]):
        ask(engine, prompts, record=tmp_path, effort="easy")
    assert sorted(path.name for path in tmp_path.glob("part-*")) == [f"part-0000{n}.safetensors" for n in range(3)]
    records = read_records(tmp_path)
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[1]]
    assert records.texts["hash"] == [question_hash(prompt) for prompt in asked]
    assert records["rollouts.question"].tolist() == [0, 1, 2, 3]
    assert set(records["boundaries.rollout"].tolist()) == {0, 1, 2, 3}
    (tmp_path / "part-00001.safetensors").unlink()
    ask(engine, PROMPTS[0], record=tmp_path, effort="easy")
    assert (tmp_path / "part-00003.safetensors").exists(), "what was there stays"
    assert read_records(tmp_path).size("questions") == 4


def test_what_was_not_thought_is_not_kept(engine: TransformersEngine, tmp_path: Path) -> None:
    ask(engine, record=tmp_path, effort="none")
    with refused(RecordsError, "empty_collection"):
        read_records(tmp_path)


def test_tiers_that_are_chosen_are_told_apart(engine: TransformersEngine, tmp_path: Path) -> None:
    """Rows without thinking have no boundaries, and those of their neighbours stay theirs."""

    class Alternate(TierProbe):
        turn = 0

        def choose(self, state: Any, likeliest: bool = False) -> tuple[str, str]:
            Alternate.turn += 1
            return ("none", "easy")[Alternate.turn % 2], "in turn"

    table = TierTable(("none", "easy"), np.eye(2), np.ones((2, 2)))
    probe = Alternate(constant([0.5, 0.5], 128), ("none", "easy"), -1, table, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tersely.controller.session.load_tier_probe", lambda engine, folder: probe)
        done = ask(engine, record=tmp_path, effort="auto")
    assert [one.tier for one in done] == ["easy", "none", "easy"]
    records = read_records(tmp_path)
    assert records["rollouts.tier"].tolist() == [1, 0, 1]
    assert set(records["boundaries.rollout"].tolist()) == {0, 2}
    for row in (0, 2):
        ends = records["boundaries.end"][records["boundaries.rollout"] == row]
        assert ends.max() < done[row].usage.thinking


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"preset": "balanced"}, {"policies": ["budget"]}, {"preset": None, "policies": ["hint"]}]
)
def test_controlled_thinking_is_not_recorded(
    engine: TransformersEngine, tmp_path: Path, options: dict[str, Any]
) -> None:
    with refused(OptionError):
        ask(engine, record=tmp_path / "live", **options)
    assert not (tmp_path / "live").exists()


def test_another_models_folder_is_refused(engine: TransformersEngine, recorded: Recorded) -> None:
    other = copy.copy(engine)
    other._fingerprint = "ab" * 32
    with refused(RecordsError, "other_plan"):
        ask(other, record=recorded.folder)


def test_engines_without_hidden_states_cannot_record(engine: TransformersEngine, tmp_path: Path) -> None:
    blind = copy.copy(engine)
    blind.capabilities = engine.capabilities - {Capability.HIDDEN_STATES}
    with refused(CapabilityError):
        ask(blind, record=tmp_path)


def test_engines_that_cannot_take_tokens_back_can_record(engine: TransformersEngine, tmp_path: Path) -> None:
    blunt = copy.copy(engine)
    blunt.capabilities = engine.capabilities - {Capability.KV_ROLLBACK}
    ask(blunt, PROMPTS[:1], record=tmp_path, effort="easy")
    assert read_records(tmp_path).size("rollouts") == 1


def test_a_full_disk_leaves_what_was_there(engine: TransformersEngine, tmp_path: Path) -> None:
    ask(engine, PROMPTS[:1], record=tmp_path, effort="easy")
    before = sorted(path.name for path in tmp_path.iterdir())
    with files_no_longer_than(1000), refused(WriteError):
        ask(engine, PROMPTS[:1], record=tmp_path, effort="easy")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert read_records(tmp_path).size("rollouts") == 1


# -- what answers amount to ----------------------------------------------------------------------------------------


def told(recorder: LiveRecorder, answers: Sequence[str], stated: Sequence[Sequence[str | None]]) -> None:
    """Tell a recorder of rows that thought so and answered so."""
    begin = recorder.policy().begin
    row, done = np.zeros(len(FEATURES), np.float32), []
    for answer, said in zip(answers, stated, strict=True):
        tell = begin()
        for end, one in enumerate(said, 1):
            tell(ThoughtRecord(10 * end, row, one, {-1: np.ones(4, np.float32)}, None))
        done.append(GenerationResult(answer, "", answer, "stop", "normal", Usage(thinking=90, answer=9)))
    recorder.keep([f"prompt {i}" for i in range(len(done))], done, [True] * len(done))


def test_answers_are_equal_however_they_are_spelt(engine: TransformersEngine, tmp_path: Path) -> None:
    recorder = LiveRecorder(tmp_path, engine, Session(engine).codec, Markers("<think>", "</think>"))
    answers = ["The answer is \\boxed{1,000}.", "So \\boxed{5.0}", "It is 7, not 8, so 9", "No idea."]
    told(recorder, answers, [[None, "999", "1000"], ["5", "6"], ["9"], ["9"]])
    found: RecordTable = read_records(tmp_path)
    assert found["boundaries.same"].tolist() == [0, 0, 1, 1, 0, 1, 0]
    assert found["boundaries.stated"].tolist() == [UNKNOWN, 0, 1, 0, 1, 0, 0]
    assert found["boundaries.rollout"].tolist() == [0, 0, 0, 1, 1, 2, 3]
    told(recorder, answers[:1], [["1000"]])
    assert read_records(tmp_path)["boundaries.same"].tolist() == [0, 0, 1, 1, 0, 1, 0, 1]
