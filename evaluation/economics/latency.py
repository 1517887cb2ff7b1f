"""Latency: idealized runtimes fitted to logged timings, and predicted decoding steps.

Idealized runtimes (arXiv 2305.02440) compare controllers on equal hardware without running each: queueing, a cold start
or other jobs are neither merit nor fault of a controller.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, model_validator
from scipy.optimize import nnls

from ...errors import OptionError, TerselyError
from ...models import get_model_path, load_config
from ...validation import FrozenModel, parse_json, read_lines
from ..stats import Array
from .flops import STORAGE

_COSTS = 3  # fitted costs, and thus the fewest timings
_TIMING_FORM = '{"prompt": ..., "output": ..., "seconds": ...} with an optional "cached"'
SAMPLE_LAYERS = (2, 6)  # layers of the two copies of a model that are timed
SAMPLE_TOKENS = (4, 20)  # tokens of the two generations whose difference is the time of the steps between them
_REPEATS = 5
_FIRST_ID = 100  # the ids below may include special tokens

Clock = Callable[[], float]


class TimingError(TerselyError, ValueError, code="invalid_timings"):
    """Timings cannot be read, or are too few to separate the costs."""


class Timing(FrozenModel):
    """One logged generation: tokens of its prompt (`cached` ones among them) and output, and its seconds."""

    prompt: NonNegativeInt
    output: NonNegativeInt
    seconds: NonNegativeFloat
    cached: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_cached(self) -> Self:
        if self.cached > self.prompt:
            raise ValueError(f"cached is {self.cached}; accepted: at most the {self.prompt} tokens of the prompt")
        return self


@dataclass(frozen=True, slots=True)
class RuntimeModel:
    """seconds = start + per_prompt * (prompt - cached) + per_output * (output - 1).

    The first output token is part of the prefill. `error` is the root mean square residual in seconds, and
    `relative_error` the mean absolute one as a share of the mean time; None without more timings than costs.
    """

    start: float
    per_prompt: float
    per_output: float
    timings: int
    error: float | None
    relative_error: float | None

    def predict(self, prompt: float, output: float) -> float:
        """Seconds of a generation that reads `prompt` tokens and decodes `output` ones."""
        return self.start + self.per_prompt * prompt + self.per_output * max(output - 1, 0)


def fit_runtime(timings: Iterable[Timing]) -> RuntimeModel:
    """Fit a runtime by non-negative least squares to the fastest of each length; raises TimingError if undetermined."""
    fastest: dict[tuple[int, int], float] = {}
    for timing in timings:
        key = (timing.prompt - timing.cached, max(timing.output - 1, 0))
        fastest[key] = min(timing.seconds, fastest.get(key, math.inf))
    design = np.array([[1.0, *key] for key in fastest]).reshape(-1, _COSTS)
    seconds = np.array(list(fastest.values()))
    scale = np.maximum(design.max(axis=0, initial=0.0), 1.0)  # columns of very different size lose precision
    _check_determined(design / scale)
    costs = nnls(design / scale, seconds)[0] / scale
    start, per_prompt, per_output = map(float, costs)
    residuals, degrees, mean = design @ costs - seconds, len(seconds) - _COSTS, float(seconds.mean())
    error = relative = None
    if degrees:
        error = math.sqrt(float(residuals @ residuals) / degrees)
        relative = float(np.abs(residuals).mean()) / mean if mean else 0.0
    return RuntimeModel(start, per_prompt, per_output, len(fastest), error, relative)


def _check_determined(design: Array) -> None:
    if len(design) < _COSTS:
        reason, code = f"got {len(design)} different pair(s) of prompt and output length", "too_few_timings"
    elif np.linalg.matrix_rank(design) < _COSTS:
        reason = f"prompt and output length do not vary independently in these {len(design)} timings"
        code = "dependent_timings"
    else:
        return
    message = f"{reason}; needed: {_COSTS} or more, some that differ in the prompt only and some in the output"
    raise TimingError(message, code=code)


def read_timings(path: Path) -> list[Timing]:
    """Read timings from a JSONL file; raises TimingError."""
    lines = read_lines(path, TimingError)
    if not (timings := [parse_json(Timing, line, source, TimingError) for source, line in lines]):
        raise TimingError(f"{path} holds no timings; accepted: one per line, {_TIMING_FORM}", code="too_few_timings")
    return timings


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """seconds = start + per_layer * layers, for a decoding step of `batch_size` sequences of `context` tokens."""

    seconds: float
    start: float
    per_layer: float
    layers: int
    batch_size: int
    context: int
    dtype: str


def predict_step(
    model: str, dtype: str, batch_size: int = 1, context: int = 64, clock: Clock = time.perf_counter
) -> StepPrediction:
    """Predict a decoding step of a model on this machine's transformers engine from its configuration alone.

    All layers of a model have the same size, so a step is a fixed part, which includes the head, and a part per layer.
    Both follow from timing two copies with few layers and random weights. Raises ModelError, and OptionError for a
    dtype that random weights cannot have.
    """
    if STORAGE[dtype].compute != dtype:
        message = f"steps with {dtype} weights cannot be predicted; accepted: float32, bfloat16, float16 (--dtype)"
        raise OptionError(message)
    _, config = load_config(model)
    layers = config.get_text_config(decoder=True).num_hidden_layers
    seconds = [_time_copy(config, dtype, min(n, layers), batch_size, context, clock) for n in SAMPLE_LAYERS]
    return extrapolate(seconds, layers, dtype, batch_size, context)


def extrapolate(seconds: Sequence[float], layers: int, dtype: str, batch_size: int, context: int) -> StepPrediction:
    """Extrapolate from the steps of the two copies, each with `SAMPLE_LAYERS` or all layers, to all layers."""
    few, more = (min(n, layers) for n in SAMPLE_LAYERS)
    per_layer = max(0.0, (seconds[1] - seconds[0]) / (more - few)) if more > few else seconds[1] / layers
    start = max(0.0, seconds[1] - per_layer * more)
    return StepPrediction(start + per_layer * layers, start, per_layer, layers, batch_size, context, dtype)


def time_step(engine: Any, prompts: Sequence[Sequence[int]], clock: Clock = time.perf_counter) -> float:
    """Time a decoding step after these prompts, without prefill; raises TimingError if the model ends too early."""
    from ...controller.types import Request, SamplingParams

    def time_fastest(tokens: int) -> float:
        best = float("inf")
        for _ in range(_REPEATS):
            began = clock()
            completions = engine.generate(
                [Request(tuple(prompt), tokens) for prompt in prompts], SamplingParams(temperature=0)
            )
            best = min(best, clock() - began)
            if any(len(completion.token_ids) < tokens for completion in completions):
                message = f"the model ended before {tokens} tokens; give prompts that need longer answers"
                raise TimingError(message, code="too_few_tokens")
        return best

    short, long = SAMPLE_TOKENS
    time_fastest(short)
    return (time_fastest(long) - time_fastest(short)) / (long - short)


def _time_copy(config: Any, dtype: str, layers: int, batch_size: int, context: int, clock: Clock) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ...controller.engines.transformers.engine import TransformersEngine

    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.num_hidden_layers, text.eos_token_id = layers, None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).to(device).eval()
    model.generation_config.eos_token_id = text.vocab_size  # never sampled; None would mean the tokenizer's
    tokenizer = AutoTokenizer.from_pretrained(get_model_path("tersely-tiny-small"))  # unused: prompts are ids
    engine = TransformersEngine(model, tokenizer, "random weights")
    ids = range(_FIRST_ID, _FIRST_ID + max(1, min(context, text.vocab_size - _FIRST_ID)))
    longest = (engine.context_length or context) - max(SAMPLE_TOKENS)
    length = max(1, min(context - sum(SAMPLE_TOKENS) // 2, longest))
    return time_step(engine, [[ids[i % len(ids)] for i in range(length)]] * batch_size, clock)
