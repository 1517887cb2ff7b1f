"""Effort auto on the embedded model: the probe's tier is taken, and what follows is what that tier gives by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging

import tersely
from tersely.cli.app import main
from tersely.controller import probe_registry as probing
from tersely.controller.budgets import fit_budget
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.probe_registry import ProbeError
from tersely.controller.prompts import RenderedPrompt, render
from tersely.controller.request_builder import find_prefix
from tersely.controller.session import Session
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.trace import GenerationResult
from tersely.controller.types import Capability
from tersely.errors import CapabilityError, OptionError, PromptError, TerselyError
from tersely.probes import io as probe_io
from tersely.probes.artifact import ABOUT, NUMBERS, ArtifactError
from tersely.probes.io import load_tier_probe, save_tier_probe
from tersely.probes.network import Network
from tersely.probes.tier_selector import TierProbe, TierTable

from ...support import commands
from ...support.planted_records import constant, linear
from ...support.refusals import refused
from ...support.scripted import ScriptedEngine

SHELLS = "Tom has 3 shells. Tom finds 4 shells. How many shells does Tom have now?"
STEPS = "Set a to 5 + 4. Set b to a - 7. What is b?"
NAMES = ("none", "easy", "normal", "hard")
WIDTH, MOST = 128, 260


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


@pytest.fixture
def _unreleased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is released for this model."""
    monkeypatch.setattr(probing, "find_pretrained", lambda fingerprint, kind: None)


def ask(engine: Any, prompts: Any = SHELLS, **options: Any) -> Any:
    return tersely.generate(
        engine, prompts=prompts, **{"temperature": 0, "max_new_tokens": MOST, "preset": "off", **options}
    )


def tier_probe(network: Network, names: Sequence[str] = NAMES, layer: int = -1) -> TierProbe:
    """A probe that chooses the tier of the likeliest class."""
    table = TierTable(tuple(names), np.eye(len(names)), np.ones((len(names), len(names))))
    return TierProbe(network, tuple(names), layer, table, 0.0)


def store(folder: Path, engine: Any, probe: TierProbe, **base: str) -> str:
    """A folder as `tersely calibrate` leaves it, with a difficulty probe of this engine's model."""
    known = {"name": engine.name, "fingerprint": engine.fingerprint(), **base}
    save_tier_probe(probe, folder / "difficulty", known, {}, {})
    return str(folder)


def always(folder: Path, engine: Any, tier: str, **base: str) -> str:
    """A probe that is 0.7 sure of one tier."""
    return store(folder, engine, tier_probe(constant([0.7 if name == tier else 0.1 for name in NAMES], WIDTH)), **base)


def prefix_of(engine: TransformersEngine, prompt: str, tiers: Sequence[str] = NAMES) -> tuple[int, ...]:
    session = Session(engine)
    renderings = {tier: render(engine.tokenizer, prompt, fit_budget(tier, MOST), session.markers) for tier in tiers}
    return find_prefix(session.codec, prompt, renderings)


def telling_apart(engine: TransformersEngine, one: str, other: str, names: tuple[str, str], layer: int) -> TierProbe:
    """A probe that looks at one direction of the state: `names[0]` for the first prompt, `names[1]` for the other."""
    states = []
    for prompt in (one, other):
        with torch.no_grad():
            hidden = engine.model(
                torch.tensor([prefix_of(engine, prompt, names)]), output_hidden_states=True
            ).hidden_states
        states.append(hidden[layer][0, -1].numpy().astype(np.float64))
    direction = (states[0] - states[1]) / np.linalg.norm(states[0] - states[1])
    # Standardised inputs are clipped, which large states of inner layers would feel.
    network = linear(np.stack([direction, -direction], axis=1) / 100, [0.0, 0.0])
    middle = np.float32((states[0] + states[1]) / 2)
    moved = Network(**{**network.arrays(), "mean": middle, "gain": np.full(WIDTH, 0.05, np.float32)})  # type: ignore[arg-type]
    sharp = Network(**{**moved.arrays(), "temperature": np.float32(1e-4)})  # type: ignore[arg-type]
    return tier_probe(sharp, names, layer)


def alike(chosen: GenerationResult, named: GenerationResult) -> bool:
    """Whether an answer is the one that was asked for by name, but for what says how its tier was found."""
    usage = replace(chosen.usage, recomputed=0)
    return (chosen.token_ids, usage, chosen.tier, chosen.trace[1:], chosen.finish_reason) == (
        named.token_ids,
        named.usage,
        named.tier,
        named.trace,
        named.finish_reason,
    )


@pytest.mark.parametrize("tier", NAMES)
def test_the_tier_is_the_probes_and_the_answer_that_of_the_tier(
    engine: TransformersEngine, tmp_path: Path, tier: str
) -> None:
    chosen = ask(engine, effort="auto", probes=always(tmp_path, engine, tier))
    (decision,) = chosen.trace
    assert (decision.policy, decision.action, decision.position, decision.acted) == ("effort", "tier", 0, True)
    chances = ", ".join(f"{name} {0.7 if name == tier else 0.1:.2f}" for name in NAMES)
    assert decision.reason == f"{tier}, by the difficulty probe ({chances})"
    assert chosen.tier == tier
    named = ask(engine, effort=tier)
    assert alike(chosen, named)
    session = Session(engine)
    prompt = session.prepare([SHELLS], GenerationOptions(effort=tier))[0].rendered.ids
    assert chosen.usage.prompt == len(prompt)
    assert chosen.usage.recomputed == len(prefix_of(engine, SHELLS)) < len(prompt)


@pytest.mark.slow
def test_a_batch_goes_different_ways(engine: TransformersEngine, tmp_path: Path) -> None:
    probe = telling_apart(engine, SHELLS, STEPS, ("none", "normal"), layer=2)
    probes = store(tmp_path, engine, probe)
    prompts = [STEPS, SHELLS, STEPS]
    done = ask(engine, prompts, effort="auto", probes=probes)
    assert [one.tier for one in done] == ["normal", "none", "normal"]
    assert len({one.usage.prompt for one in done}) == 2
    for prompt, one in zip(prompts, done, strict=True):
        assert alike(one, ask(engine, prompt, effort=one.tier))
        assert one.trace[0].reason.startswith(f"{one.tier}, by the difficulty probe (")


def test_policies_work_within_the_budget_of_the_chosen_tier(engine: TransformersEngine, tmp_path: Path) -> None:
    options = {"preset": "budget", "max_new_tokens": 96}
    chosen = ask(engine, STEPS, effort="auto", probes=always(tmp_path, engine, "normal"), **options)
    assert alike(chosen, ask(engine, STEPS, effort="normal", **options))
    assert [d.policy for d in chosen.trace] == ["effort", "budget"]
    assert chosen.usage.thinking <= 32
    assert chosen.answer


def test_events_tell_parts_by_the_chosen_tier(engine: TransformersEngine, tmp_path: Path) -> None:
    probes = store(tmp_path, engine, telling_apart(engine, SHELLS, STEPS, ("none", "easy"), -1))
    events: list[TextDeltaEvent] = []
    done = ask(engine, [SHELLS, STEPS], effort="auto", probes=probes, preset="budget", on_event=events.append)
    assert [one.tier for one in done] == ["none", "easy"]
    for row, one in enumerate(done):
        told = [event for event in events if event.row == row]
        assert "".join(event.text for event in told if event.channel == "thinking") == one.thinking
        assert "".join(event.text for event in told if event.channel == "answer") == one.answer
    assert {event.channel for event in events if event.row == 0} == {"answer"}
    assert {event.channel for event in events if event.row == 1} == {"thinking", "answer"}


def test_shadow_and_messages_change_nothing_of_the_choice(engine: TransformersEngine, tmp_path: Path) -> None:
    probes = always(tmp_path, engine, "easy")
    plain = ask(engine, effort="auto", probes=probes)
    messages = [{"role": "user", "content": SHELLS}]
    for other in (
        ask(engine, effort="auto", probes=probes, preset="budget", shadow=True),
        ask(engine, messages, effort="auto", probes=probes),
    ):
        assert (other.token_ids, other.tier, other.trace[0]) == (plain.token_ids, "easy", plain.trace[0])


@pytest.mark.usefixtures("_unreleased")
@pytest.mark.parametrize(("prompt", "tier"), [("What is 7 * 6?", "easy"), (SHELLS, "normal")])
def test_without_a_probe_the_length_decides_and_the_trace_says_so(
    engine: TransformersEngine, prompt: str, tier: str
) -> None:
    chosen = ask(engine, prompt, effort="auto")
    (decision,) = chosen.trace
    assert decision.reason == f"{tier}, by the prompt's length: this model has no difficulty probe"
    assert alike(chosen, ask(engine, prompt, effort=tier))


def test_an_engine_that_cannot_tell_its_model_goes_by_the_length(tmp_path: Path) -> None:
    engine: Any = ScriptedEngine(lambda number: [number])
    chosen = ask(engine, "What is 7?", effort="auto")
    assert "by the prompt's length" in chosen.trace[0].reason
    folder = always(tmp_path, engine, "easy", fingerprint="ab" * 32)
    with pytest.raises(ArtifactError):
        ask(engine, "What is 7?", effort="auto", probes=folder)


def test_no_tier_is_chosen_where_one_is_named(engine: TransformersEngine, tmp_path: Path) -> None:
    done = ask(engine, effort="easy", probes=always(tmp_path, engine, "hard"))
    assert (done.tier, done.trace) == ("easy", ())


@pytest.fixture
def _shelf(engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with one released probe, for this very model."""
    always(tmp_path / "some-model", engine, "hard")
    always(tmp_path / "another", engine, "none", fingerprint="ab" * 32)
    monkeypatch.setattr(probe_io, "_PRETRAINED", tmp_path)
    probe_io._list_pretrained.cache_clear()
    yield
    probe_io._list_pretrained.cache_clear()


@pytest.mark.usefixtures("_shelf")
def test_what_is_released_is_found_by_the_model(engine: TransformersEngine) -> None:
    assert ask(engine, effort="auto").tier == "hard"
    other = copy.copy(engine)
    other._fingerprint = "cd" * 32
    assert "by the prompt's length" in ask(other, effort="auto").trace[0].reason


# -- what is refused -----------------------------------------------------------------------------------------------


def test_probes_of_another_model_are_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    folder = always(tmp_path, engine, "easy", name="some-model", fingerprint="ab" * 32)
    with refused(ArtifactError, "wrong_model"):
        ask(engine, effort="auto", probes=folder)


@pytest.mark.parametrize("name", [ABOUT, NUMBERS])
def test_probes_that_were_changed_are_refused(engine: TransformersEngine, tmp_path: Path, name: str) -> None:
    path = Path(always(tmp_path, engine, "easy")) / "difficulty" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        ask(engine, effort="auto", probes=tmp_path)


def test_a_folder_without_the_probe_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    with refused(ProbeError):
        ask(engine, effort="auto", probes=tmp_path)
    (tmp_path / "difficulty").mkdir()
    with refused(ArtifactError, "unreadable_artifact"):
        ask(engine, effort="auto", probes=tmp_path)


def test_an_engine_without_hidden_states_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    blind = copy.copy(engine)
    blind.capabilities = engine.capabilities - {Capability.HIDDEN_STATES}
    with refused(CapabilityError):
        ask(blind, effort="auto", probes=always(tmp_path, engine, "easy"))


def test_a_layer_that_the_model_lacks_is_refused(engine: TransformersEngine, tmp_path: Path) -> None:
    probe = tier_probe(constant([0.7, 0.1, 0.1, 0.1], WIDTH), layer=9)
    with refused(OptionError):
        ask(engine, effort="auto", probes=store(tmp_path, engine, probe))


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"max_new_tokens": 64}, OptionError, None),
        ({"max_new_tokens": 0}, OptionError, None),
        ({"answer_reserve": 0}, OptionError, None),
        ({"prompts": "  "}, PromptError, None),
        ({"prompts": "word " * 1500}, PromptError, None),
        ({"strategy": "tier"}, OptionError, "unknown_name"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_anything_is_read(
    engine: TransformersEngine, tmp_path: Path, options: dict[str, Any], error: type[TerselyError], code: str | None
) -> None:
    with refused(error, code):
        ask(engine, effort="auto", probes=always(tmp_path, engine, "hard"), **options)


def test_a_long_prompt_leaves_what_room_there_is(engine: TransformersEngine, tmp_path: Path) -> None:
    """Whichever tier is chosen, prompt and answer stay within the context."""
    short = copy.copy(engine)
    short.context_length = 150
    options = {"preset": "budget", "max_new_tokens": 500}
    for tier in ("none", "normal"):
        done = ask(short, STEPS, effort="auto", probes=always(tmp_path / tier, engine, tier), **options)
        assert done.tier == tier
        assert done.usage.prompt + len(done.token_ids) <= 150
        assert done.answer


# -- the parts -----------------------------------------------------------------------------------------------------


def test_the_prefix_is_what_all_tiers_share(engine: TransformersEngine) -> None:
    def prefix(*prompts: tuple[int, ...]) -> tuple[int, ...]:
        tiers = {tier: RenderedPrompt(ids, "", "thinking") for tier, ids in zip(NAMES, prompts, strict=False)}
        return find_prefix(Session(engine).codec, "", tiers)

    assert prefix((1, 2, 3, 4), (1, 2, 5)) == (1, 2)
    assert prefix((1, 2, 3), (1, 2, 3, 4)) == (1, 2), "one id of each is left out"
    assert prefix((1, 2, 3)) == (1, 2)
    assert prefix((4, 2), (1, 2)) == ()


def test_the_question_is_within_the_prefix(engine: TransformersEngine) -> None:
    assert SHELLS in engine.tokenizer.decode(prefix_of(engine, SHELLS))


EFFORT_FIRST = (
    "{%- set effort = 'none' if enable_thinking is defined and not enable_thinking else reasoning_effort -%}"
    "<|im_start|>system\n/{{ effort }}<|im_end|>\n<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n{%- if effort == 'none' -%}\n</think>\n\n{%- endif -%}"
)


def test_where_tiers_part_before_the_question_a_prompt_is_read_for_the_choice_alone(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    tokenizer = deepcopy(engine.tokenizer)
    tokenizer.chat_template = EFFORT_FIRST
    other = TransformersEngine(engine.model, tokenizer, name=engine.name)
    prefixes = [prefix_of(other, prompt, ("none", "normal")) for prompt in (STEPS, SHELLS)]
    for ids, prompt in zip(prefixes, (STEPS, SHELLS), strict=True):
        assert prompt in tokenizer.decode(ids)
    probes = store(tmp_path, other, telling_apart(other, SHELLS, STEPS, ("none", "normal"), -1))
    done = ask(other, [STEPS, SHELLS], effort="auto", probes=probes)
    assert [one.tier for one in done] == ["normal", "none"]
    for prompt, prefix, one in zip((STEPS, SHELLS), prefixes, done, strict=True):
        named = ask(other, prompt, effort=one.tier)
        assert one.token_ids == named.token_ids and one.usage.prompt == named.usage.prompt
        assert one.usage.recomputed == len(prefix)


def test_what_is_saved_is_what_chooses(engine: TransformersEngine, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = TierTable(("easy", "hard"), rng.random((3, 2)), rng.uniform(10, 500, (3, 2)))
    probe = TierProbe(linear(rng.normal(size=(WIDTH, 3)), np.zeros(3)), ("a", "b", "c"), 2, table, 1e-3)
    save_tier_probe(
        probe, tmp_path, {"name": "m", "fingerprint": "ab" * 32}, {"learned_from": ["h"], "task": "t"}, {"auroc": 0.5}
    )
    found = load_tier_probe(tmp_path, "ab" * 32)
    assert (found.layer, found.price, found.tiers, found.learned_from) == (2, 1e-3, ("easy", "hard"), {"h"})
    states = rng.normal(size=(50, WIDTH)).astype(np.float32)
    assert [found.choose(s) for s in states] == [probe.choose(s) for s in states]
    assert {found.choose(s)[0] for s in states} == {"easy", "hard"}


@pytest.mark.slow
def test_on_the_command_line(engine: TransformersEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = always(tmp_path, engine, "none")
    words = ["run", SHELLS, "--model", "tersely-tiny-small", "--effort", "auto", "--json", "--no-compare"]
    assert main([*words, "--probes", folder]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tier"] == "none"
    assert found["decisions"][0]["reason"].startswith("none, by the difficulty probe (none 0.70, ")
    assert "nowhere" in commands.refused(capsys, *words, "--probes", tmp_path / "nowhere")
