"""What a decoding step will take here: two copies of a model, with few layers of random weights, timed and drawn out.

A roofline says what no step can beat. What a step takes is more, and differs with the sizes of layers; but all layers
of a model are of one size, so a step is a start, which the head is part of, and so much for each layer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import OptionError
from .latency_fit import TimingError
from .model_shape import load_config
from .roofline import STORAGE

FEW, MORE = 2, 6
"""Layers of the copies."""
TOKENS, REPEATS = (4, 20), 5
_FIRST = 100
"""The first id of prompts: below it there may be some that mean an end."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StepCosts:
    """seconds = start + per_layer * layers, of a decoding step of `batch` sequences of `context` tokens."""

    seconds: float
    start: float
    per_layer: float
    layers: int
    batch: int
    context: int
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def predict(model: str, dtype: str, batch: int = 1, context: int = 64, clock: Clock = time.perf_counter) -> StepCosts:
    """A decoding step of a model on this machine's transformers engine; only its configuration is read.

    Raises ModelError, and OptionError for weights of a dtype that random ones cannot be kept in.
    """
    if STORAGE[dtype].compute != dtype:
        raise OptionError(f"steps of {dtype} weights are not foretold; accepted: float32, bfloat16, float16 (--dtype)")
    config = load_config(model)
    layers = config.get_text_config(decoder=True).num_hidden_layers
    seconds = [_copied(config, dtype, min(count, layers), batch, context, clock) for count in (FEW, MORE)]
    return extrapolate(seconds, layers, dtype, batch, context)


def extrapolate(seconds: Sequence[float], layers: int, dtype: str, batch: int, context: int) -> StepCosts:
    """The step of all layers from those of `FEW` and of `MORE`, each at most as many as there are."""
    few, more = (min(count, layers) for count in (FEW, MORE))
    per_layer = max(0.0, (seconds[1] - seconds[0]) / (more - few)) if more > few else seconds[1] / layers
    start = max(0.0, seconds[1] - per_layer * more)
    return StepCosts(start + per_layer * layers, start, per_layer, layers, batch, context, dtype)


def step_seconds(engine: Any, prompts: Sequence[Sequence[int]], clock: Clock = time.perf_counter) -> float:
    """Seconds of a decoding step after these prompts, the fastest of some: prefill is taken off by two lengths.

    Raises TimingError where the model ends sooner.
    """
    from ...controller.types import Request, SamplingParams

    def fastest(tokens: int) -> float:
        best = float("inf")
        for _ in range(REPEATS):
            began = clock()
            done = engine.generate(
                [Request(tuple(prompt), tokens) for prompt in prompts], SamplingParams(temperature=0)
            )
            best = min(best, clock() - began)
            if any(len(one.token_ids) < tokens for one in done):
                raise TimingError(f"the model ended before {tokens} tokens; give prompts that it answers at length")
        return best

    short, long = TOKENS
    fastest(short)
    return (fastest(long) - fastest(short)) / (long - short)


def _copied(config: Any, dtype: str, layers: int, batch: int, context: int, clock: Clock) -> float:
    """The step of a copy with so many layers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ...controller.engines.transformers.engine import TransformersEngine
    from ...models import get_model_path

    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.num_hidden_layers, text.eos_token_id = layers, None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).to(device).eval()
    model.generation_config.eos_token_id = text.vocab_size  # that is never written; None would be the tokenizer's
    # Prompts are ids, so any tokenizer will do.
    engine = TransformersEngine(
        model, AutoTokenizer.from_pretrained(get_model_path("tersely-tiny-small")), "random weights"
    )
    ids = range(_FIRST, _FIRST + max(1, min(context, text.vocab_size - _FIRST)))
    longest = (engine.context_length or context) - max(TOKENS)
    prompt = [ids[place % len(ids)] for place in range(max(1, min(context - sum(TOKENS) // 2, longest)))]
    return step_seconds(engine, [prompt] * batch, clock)
