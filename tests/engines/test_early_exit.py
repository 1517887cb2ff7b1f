"""The depth shortcut while a model thinks: what leaves, what never does, what the trace says, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import TransformersEngine
from tersely.controller.engines.transformers.research.early_exit import DepthShortcut, LeavingSequence
from tersely.controller.options import GenerationOptions
from tersely.controller.probe_registry import ProbeError
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Capability
from tersely.errors import CapabilityError, OptionError
from tersely.evaluation.bench.arms import CheckError, check_unseen
from tersely.evaluation.tasks.questions import Question, hash_question
from tersely.probes.artifact import ArtifactError

from ..support.refusals import refused
from ..support.shortcuts import ALWAYS, NEVER, PROBLEMS, ask, shortcut, tokens
from ..support.shortcuts import engine as engine  # the fixture


@pytest.fixture(scope="module")
def off(engine: TransformersEngine) -> list[tuple[int, ...]]:
    return tokens(ask(engine))


def told(one: GenerationResult) -> tuple[int, int]:
    """How many thinking tokens left, of how many, as the trace has it."""
    (reason,) = (d.reason for d in one.trace if d.policy == "shortcut")
    words = reason.split()
    assert words[3:] == ["thinking", "tokens", "left", "after", "layer", "2", "of", "4"]
    return int(words[0]), int(words[2])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_without_exits_no_token_changes(engine: TransformersEngine, options: dict[str, Any]) -> None:
    none = ask(engine, DepthShortcut(shortcut=shortcut(engine), threshold=NEVER), **options)
    off = ask(engine, **options)
    # A controller closes a thinking in which the model ends its turn; elsewhere it is as if there were none.
    alone = [i for i, one in enumerate(none) if len(one.trace) == 1]
    assert alone
    assert [none[i].token_ids for i in alone] == [off[i].token_ids for i in alone]
    assert all(left == 0 and thought > 5 for left, thought in map(told, none))


def test_it_leaves_while_it_thinks_and_says_so(engine: TransformersEngine, off: list[tuple[int, ...]]) -> None:
    found = ask(engine, DepthShortcut(shortcut=shortcut(engine)))
    assert any(0 < left < thought for left, thought in map(told, found))
    every = ask(engine, DepthShortcut(shortcut=shortcut(engine), threshold=ALWAYS))
    assert tokens(every) != off
    for one in every:
        left, thought = told(one)
        # What ends the thinking is no thinking token, and what the controller closed it with is none of the model's.
        assert left == thought <= one.usage.thinking
    assert tokens(ask(engine)) == off, "nothing stays behind"


def test_only_thinking_tokens_may_leave(engine: TransformersEngine) -> None:
    session = Session(engine)
    options = GenerationOptions(preset="off", modifiers=(DepthShortcut(shortcut=shortcut(engine)),))
    (row,) = session.prepare(PROBLEMS[:1], options)
    (may,), watcher = row.request.modifiers, row.request.watcher
    assert isinstance(may, LeavingSequence) and watcher is not None
    assert not may.active(), "the prompt is read in full"
    seen = []
    for token in session.codec.encode("One.\n\nTwo is</think>\n\nThe answer is 2.\n\n"):
        watcher.observe(token)
        seen += [token] if may.active() else []
    assert session.codec.decode(seen) == "One.\n\nTwo is"


def test_rows_in_a_batch_are_what_they_are_alone(engine: TransformersEngine) -> None:
    """Mixed steps, rows that have ended, forced tokens in chunks: none of them changes who leaves."""
    modifier = DepthShortcut(shortcut=shortcut(engine, threshold=20.0))
    options = {"preset": "budget", "max_new_tokens": 80}
    together = ask(engine, modifier, **options)
    alone = [ask(engine, modifier, prompts=[problem], **options)[0] for problem in PROBLEMS]
    assert tokens(together) == tokens(alone)
    assert [told(one) for one in together] == [told(one) for one in alone]
    assert any(decision.policy == "budget" for one in together for decision in one.trace)


def test_shadow_and_no_thinking_leave_all_as_it_is(engine: TransformersEngine, off: list[tuple[int, ...]]) -> None:
    policy = DepthShortcut(shortcut=shortcut(engine), threshold=ALWAYS)
    made = ask(engine, policy, shadow=True)
    assert tokens(made) == off
    assert [(d.policy, d.action, d.acted) for d in made[0].trace] == [("shortcut", "modify", False)]
    none = ask(engine, policy, effort="none")
    assert tokens(none) == tokens(ask(engine, effort="none"))
    assert all(one.trace == () for one in none)


def test_what_does_not_belong_is_refused(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(ProbeError):
        ask(engine, DepthShortcut())
    other = {"name": "another", "fingerprint": "ab" * 32}
    with refused(ArtifactError):
        ask(engine, DepthShortcut(shortcut=shortcut(engine, base=other)))
    with refused(OptionError):
        ask(engine, DepthShortcut(shortcut=shortcut(engine, threshold=None)))
    with refused(OptionError):
        ask(engine, DepthShortcut(shortcut=shortcut(engine), threshold=float("nan")))
    with pytest.raises(TypeError):
        DepthShortcut().attach(lambda: "thought")
    monkeypatch.setattr(engine, "capabilities", engine.capabilities - {Capability.FORWARD_MODIFIERS})
    with refused(CapabilityError):
        ask(engine, DepthShortcut(shortcut=shortcut(engine)))


def test_a_benchmark_knows_what_it_was_learnt_from(engine: TransformersEngine) -> None:
    question = Question("q", "What is 2 + 2?", "4")
    found = shortcut(engine, provenance={"learned_from": [hash_question(question)]})
    resolved = Session(engine).resolve(GenerationOptions(modifiers=(DepthShortcut(shortcut=found),)))
    with refused(CheckError, "train_test_overlap"):
        check_unseen(resolved.modifiers, [question])
