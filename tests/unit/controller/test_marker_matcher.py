"""Noticing markers among tokens: whatever they end in, and however tokens part them."""

from __future__ import annotations

import pytest

from tersely.cli.app import main
from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.text.markers import MarkerMatcher, Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter

MARKERS = ("</think>", "[/THINK]", "<|end|>", "Answer", "Final answer:", "終わり", "思考。", "~~", "done\n")


@pytest.fixture(scope="module")
def codec() -> TokenizerAdapter:
    return TokenizerAdapter(load_engine("tersely-tiny-small").tokenizer)


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("behind", [" and then more: 5", "\n\n7", "s", "", "。"])
def test_a_marker_is_complete_once(codec: TokenizerAdapter, marker: str, behind: str) -> None:
    spotter, ids = (
        MarkerMatcher(codec, marker),
        codec.encode(f"Say so, an answer (終) [THINK] |> or no answer. {marker}{behind}"),
    )
    found = [i for i, token in enumerate(ids) if spotter.completes(token)]
    assert found == [next(i for i in range(len(ids)) if marker in codec.decode(ids[: i + 1]))]
    size = spotter.size(ids[: found[0] + 1])
    assert marker in codec.decode(ids[found[0] + 1 - size : found[0] + 1])
    assert size == 1 or marker not in codec.decode(ids[found[0] + 2 - size : found[0] + 1])


def test_markers_may_be_words(codec: TokenizerAdapter) -> None:
    controller = Controller([], codec, Markers("Reasoning", "Answer"), Budget("easy", thinking=100), opened=False)
    phases = []
    for part in ("Well.\n", "Reasoning: 2 and 3 are 5.\n", "Answer: 5"):
        for token in codec.encode(part):
            controller.observe(token)
        phases.append(controller.state.value)
    assert phases == ["before", "thinking", "answer"]
    assert "2 and 3 are 5" in controller.thinking.text and "Answer" not in controller.thinking.text


@pytest.mark.parametrize("preset", ["balanced", "off"])
def test_markers_that_a_model_does_not_write_are_spoken_of(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "run",
        "What is 2 + 3?",
        "--model",
        "tersely-tiny-small",
        "--markers",
        "Reasoning,Answer",
        "--no-compare",
    ]
    assert main([*command, "--preset", preset, "--effort", "normal", "--no-compare"]) == 0
    said = "controller: the model answered without Reasoning, so there was no thinking to control"
    assert (said in capsys.readouterr().out) == (preset == "balanced")
