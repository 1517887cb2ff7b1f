"""Decoding steps predicted and measured: copies of a model with few layers and random weights, then the model itself.

For each model, in the dtype of its file: predicted milliseconds of a step (`tersely roofline --predict`), measured by
the transformers engine on the embedded task's questions, their ratio, and the roofline's bound.

    python benchmarks/decode_prediction.py tersely-tiny-large MODEL ... --json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from measuring import CLOCKS, make_parser, print_figures

from tersely.controller.engines.transformers.engine import load_engine
from tersely.evaluation.economics.flops import load_shape
from tersely.evaluation.economics.latency import SAMPLE_TOKENS, predict_step, time_step
from tersely.evaluation.economics.roofline import compute_roofline, measure_device, moved_bytes
from tersely.evaluation.tasks.questions import load


def predict(model: str, batch: int, clock: Callable[[], float]) -> dict[str, Any]:
    """A model's step, predicted and measured."""
    shape = load_shape(model)
    engine, dtype = load_engine(model), shape.dtype or "float32"
    asked = [[{"role": "user", "content": question.problem}] for question in load("tiny", "test", batch, 0)]
    prompts = [engine.tokenizer.apply_chat_template(one, add_generation_prompt=True)["input_ids"] for one in asked]
    context = max(map(len, prompts)) + sum(SAMPLE_TOKENS) // 2
    before = time_step(engine, prompts, clock)
    expected = predict_step(model, dtype, batch, context, clock).seconds
    found = min(before, time_step(engine, prompts, clock))  # a machine's pace drifts; the copies came in between
    device = measure_device(dtype, moved_bytes(shape, dtype, batch, context))
    return {
        "dtype": dtype,
        "predicted_ms": 1e3 * expected,
        "measured_ms": 1e3 * found,
        "ratio": expected / found,
        "bound_ms": 1e3 * compute_roofline(shape, device, dtype, batch, context).decode.seconds,
    }


def main(argv: list[str] | None = None) -> None:
    """Predict, measure, print."""
    parser = make_parser(__doc__, clock="wall")
    parser.add_argument("models", nargs="+", help="names or folders")
    parser.add_argument("--batch", type=int, default=1, help="sequences at a time (default: %(default)s)")
    options = parser.parse_args(argv)
    found = {model: predict(model, options.batch, CLOCKS[options.clock]) for model in options.models}
    print_figures(found, options.json)


if __name__ == "__main__":
    main()
