"""What a decoding step will take here: costs fitted to models of random weights, in the place of the one asked about.

A roofline says what no step can beat. What a step takes is more: a start, so much for each layer, whatever its size,
and the bytes it reads at the rate at which the kernels of this machine really read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...errors import OptionError
from .roofline import STORAGE, moved_bytes
from .runtime import TimingError
from .shape import Shape, shape_of

MODELS = (
    *((4, 128, 512, 2048), (12, 256, 1024, 4096)),
    *((4, 1024, 4096, 4096), (2, 512, 2048, 65536), (8, 768, 3072, 32768)),
)
"""Layers, width, inner width and vocabulary of the random models: small, deep, large layers, a large head, mixed."""
CONTEXT, TOKENS, REPEATS = 64, (4, 20), 3
_HEAD = 64
NEEDED = 3


@dataclass(frozen=True, slots=True)
class Timed:
    """A decoding step: of how many layers, the bytes it moves at least, and the seconds it took."""

    layers: int
    bytes: float
    seconds: float


@dataclass(frozen=True, slots=True)
class StepCosts:
    """seconds = start + per_layer * layers + per_byte * bytes; error: the mean absolute one of the fit, as a share."""

    start: float
    per_layer: float
    per_byte: float
    dtype: str
    batch: int
    error: float

    def seconds(self, shape: Shape, context: int) -> float:
        """A step of the batch, each row of which has read so many tokens."""
        moved = moved_bytes(shape, self.dtype, self.batch, context)
        return self.start + self.per_layer * len(shape.windows) + self.per_byte * moved

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def fit_steps(timed: Sequence[Timed], dtype: str, batch: int) -> StepCosts:
    """Costs by non-negative least squares of relative errors; raises TimingError for steps too few or too alike."""
    from scipy.optimize import nnls

    design = np.array([[1.0, one.layers, one.bytes] for one in timed]).reshape(-1, NEEDED)
    seconds = np.array([one.seconds for one in timed])
    scale = np.maximum(design.max(axis=0, initial=0.0), 1.0)
    if len(timed) < NEEDED or np.linalg.matrix_rank(design / scale) < NEEDED or not (seconds > 0).all():
        raise TimingError(
            f"{len(timed)} steps do not tell what a layer and a byte cost; needed: {NEEDED} or more that took time, "
            "and differ in layers and bytes"
        )
    costs = nnls(design / scale / seconds[:, None], np.ones(len(timed)))[0] / scale
    start, per_layer, per_byte = map(float, costs)
    error = float(np.abs(design @ costs / seconds - 1).mean())
    return StepCosts(start, per_layer, per_byte, dtype, batch, error)


def measure_steps(
    dtype: str,
    batch: int = 1,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
) -> StepCosts:
    """The costs on this machine's transformers engine, from about a minute of random models.

    Raises OptionError for a dtype that such a model cannot be kept in.
    """
    import torch

    if STORAGE[dtype].compute != dtype:
        raise OptionError(f"steps of {dtype} weights are not foretold; accepted: float32, bfloat16, float16 (--dtype)")
    timed = []
    for layers, width, inner, vocabulary in MODELS:
        config = _config(layers, width, inner, vocabulary, dtype)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            engine = _engine(config, dtype)
        prompts = [tuple(range(1, CONTEXT + 1))] * batch
        moved = moved_bytes(shape_of(config), dtype, batch, CONTEXT + sum(TOKENS) // 2)
        timed.append(Timed(layers, moved, step_seconds(engine, prompts, clock)))
        say(f"{layers} layers, {moved / 1e6:.0f} MB: {1e3 * timed[-1].seconds:.2f} ms a step")
    return fit_steps(timed, dtype, batch)


def step_seconds(
    engine: Any, prompts: Iterable[Sequence[int]], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of a decoding step after these prompts, the fastest of some: prefill is taken off by two lengths.

    Raises TimingError where the model ends sooner.
    """
    from ...controller.engines.base import Request, Sampling

    rows = [tuple(prompt) for prompt in prompts]

    def fastest(tokens: int) -> float:
        best = float("inf")
        for _ in range(REPEATS):
            began = clock()
            done = engine.generate([Request(row, tokens) for row in rows], Sampling(temperature=0))
            best = min(best, clock() - began)
            if any(len(one.token_ids) < tokens for one in done):
                raise TimingError(f"the model ended before {tokens} tokens; give prompts that it answers at length")
        return best

    short, long = TOKENS
    fastest(short)
    return (fastest(long) - fastest(short)) / (long - short)


def _config(layers: int, width: int, inner: int, vocabulary: int, dtype: str) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        dtype=dtype,
        eos_token_id=None,
    )


def _engine(config: Any, dtype: str) -> Any:
    """A model of random weights; its prompts are ids, so any tokenizer will do."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ...controller.engines.transformers import TransformersEngine
    from ...controller.pretrained import path_of

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_config(config).to(device, getattr(torch, dtype)).eval()
    return TransformersEngine(model, AutoTokenizer.from_pretrained(path_of("tersely-tiny-small")), "random weights")
