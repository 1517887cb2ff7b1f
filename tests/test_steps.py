"""Decoding steps foretold: from costs that are fitted to timed ones."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from tersely.cli.app import main
from tersely.controller.engines.transformers import load_engine
from tersely.errors import OptionError
from tersely.evaluation.economics import steps
from tersely.evaluation.economics.roofline import moved_bytes
from tersely.evaluation.economics.runtime import TimingError
from tersely.evaluation.economics.shape import load_shape
from tersely.evaluation.economics.steps import Timed, fit_steps, measure_steps, step_seconds

from .commands import refused

START, LAYER, BYTE = 0.002, 0.0005, 1e-10
SIZES = ((2, 1e7), (12, 2e7), (4, 3e8), (8, 1e8))


def timed(error: float = 0.0) -> list[Timed]:
    return [
        Timed(layers, moved, (START + LAYER * layers + BYTE * moved) * (1 + error * (-1) ** place))
        for place, (layers, moved) in enumerate(SIZES)
    ]


def test_costs_are_found_again() -> None:
    found = fit_steps(timed(), "float32", 4)
    assert (found.start, found.per_layer, found.per_byte) == pytest.approx((START, LAYER, BYTE))
    assert found.error == pytest.approx(0, abs=1e-9)
    shape = load_shape("tersely-tiny-large")
    bytes_moved = moved_bytes(shape, "float32", 4, 100)
    assert found.seconds(shape, 100) == pytest.approx(START + LAYER * len(shape.windows) + BYTE * bytes_moved)
    assert found.seconds(shape, 2000) > found.seconds(shape, 100), "the cache is read too"


def test_a_fit_that_is_off_says_by_how_much() -> None:
    assert 0.01 < fit_steps(timed(0.1), "float32", 1).error < 0.1
    assert min(fit_steps([*timed(0.1), Timed(30, 1e7, 1e-4)], "float32", 1).as_dict()[k] for k in ("start",)) >= 0


@pytest.mark.parametrize("few", [timed()[:2], [timed()[0]] * 5, [*timed()[:3], Timed(9, 1e7, 0.0)]])
def test_steps_that_tell_too_little_are_refused(few: list[Timed]) -> None:
    with pytest.raises(TimingError, match="needed: 3 or more that took time"):
        fit_steps(few, "float32", 1)


def test_a_step_is_timed_without_its_prefill() -> None:
    engine = load_engine("tersely-tiny-small")
    asked = [{"role": "user", "content": "Kai has 9 shells. Kai finds 3 shells. Count the shells."}]
    prompt = engine.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    ticks = count()
    # A clock that ticks once a reading: every generation takes one tick, so that nothing is left for the steps.
    assert step_seconds(engine, [prompt, prompt], lambda: float(next(ticks))) == 0
    with pytest.raises(TimingError, match="the model ended before"):
        step_seconds(engine, [engine.tokenizer("<think>\n\n</think>\n\nThe answer is \\boxed{12")["input_ids"]])


def test_the_command_foretells_on_real_random_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ((1, 64, 64, 64), (3, 64, 64, 64), (1, 64, 512, 4096), (2, 128, 512, 64))
    monkeypatch.setattr(steps, "MODELS", tiny)
    clock = count()
    monkeypatch.setattr(steps, "step_seconds", lambda engine, prompts, _: 1e-3 * (1 + next(clock)))
    assert main(["roofline", "--predict", "--json"]) == 0
    found: Any = json.loads(capsys.readouterr().out)["predicted"]
    assert found["seconds"] > 0 and found["dtype"] == "float32" and found["batch"] == 1
    assert main(["roofline", "--predict"]) == 0
    assert "a decoding step is foretold to take" in capsys.readouterr().out


def test_what_cannot_be_foretold_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave out --device" in refused(capsys, "roofline", "--predict", "--device", "H100")
    with pytest.raises(OptionError, match="int4 weights are not foretold"):
        measure_steps("int4")
