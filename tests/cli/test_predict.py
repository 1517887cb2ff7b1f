"""Decode steps predicted from copies of a model with few layers."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from tersely.cli.app import main
from tersely.controller.engines.transformers.engine import load_engine
from tersely.errors import OptionError
from tersely.evaluation.economics import latency
from tersely.evaluation.economics.flops import load_shape
from tersely.evaluation.economics.latency import TimingError, extrapolate, predict_step, time_step

from ..support import commands


@pytest.mark.parametrize(
    ("seconds", "layers", "start", "per_layer"),
    [
        ((0.005, 0.009), 30, 0.003, 0.001),
        ((0.005, 0.007), 4, 0.003, 0.001),  # the larger copy is the model
        ((0.004, 0.004), 2, 0.0, 0.002),  # both are
        ((0.006, 0.005), 30, 0.005, 0.0),  # noise does not make a negative cost
        ((0.001, 0.009), 30, 0.0, 0.002),
    ],
)
def test_extrapolation_to_all_layers(seconds: tuple[float, float], layers: int, start: float, per_layer: float) -> None:
    found = extrapolate(seconds, layers, "float32", 1, 64)
    assert (found.start, found.per_layer) == pytest.approx((start, per_layer), abs=1e-9)
    assert found.seconds == pytest.approx(start + per_layer * layers, abs=1e-9)


def test_a_step_is_timed_without_its_prefill() -> None:
    engine = load_engine("tersely-tiny-small")
    asked = [{"role": "user", "content": "Kai has 9 shells. Kai finds 3 shells. Count the shells."}]
    prompt = engine.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    ticks = count()
    # A clock that ticks once a reading: every generation takes one tick, so that nothing is left for the steps.
    assert time_step(engine, [prompt, prompt], lambda: float(next(ticks))) == 0
    with pytest.raises(TimingError) as caught:
        time_step(engine, [engine.tokenizer("<think>\n\n</think>\n\nThe answer is \\boxed{12")["input_ids"]])
    assert caught.value.code == "too_few_tokens"


def test_copies_are_the_model_with_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[int, int, int, str]] = []

    def time_it(engine: Any, prompts: Any, clock: Any) -> float:
        model = engine.model
        timed.append((len(model.model.layers), model.config.hidden_size, len(prompts), str(model.dtype)))
        assert len({tuple(p) for p in prompts}) == 1 and len(prompts[0]) == 88
        assert max(prompts[0]) < model.config.vocab_size and load_shape("tersely-tiny-large").parameters > 1e5
        return 0.001 * len(model.model.layers)

    monkeypatch.setattr(latency, "time_step", time_it)
    found = predict_step("tersely-tiny-large", "bfloat16", batch_size=3, context=100)
    width = load_engine("tersely-tiny-large").model.config.hidden_size
    layers = len(load_shape("tersely-tiny-large").windows)
    assert timed == [(n, width, 3, "torch.bfloat16") for n in (2, min(6, layers))]
    assert found.seconds == pytest.approx(0.001 * layers) and (found.batch_size, found.context) == (3, 100)


def test_command_predicts_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", "--predict", "--json", "--context", "32"]) == 0
    found: Any = json.loads(capsys.readouterr().out)["predicted"]
    assert found["seconds"] > 0 and found["dtype"] == "float32" and found["batch_size"] == 1
    assert main(["roofline", "--predict", "--context", "32"]) == 0
    assert "predicted decode step" in capsys.readouterr().out


def test_steps_that_cannot_be_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--device" in commands.refused(capsys, "roofline", "--predict", "--device", "H100")
    with pytest.raises(OptionError):
        predict_step("tersely-tiny-small", "int4")
