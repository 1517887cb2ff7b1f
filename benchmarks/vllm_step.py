"""Milliseconds of our Python in one step of vLLM's V2 runner, in this thread's time, without a model.

Many rows, each after a long thinking. What vLLM calls is called here, on buffers like its own and on the CPU: the
tokens of the previous step are fetched, rows that are due read them, and what must come next is written into logits.
The text is that of `control_cost.py`, where half of the paragraphs may state an answer and all are scanned for
formulas, or that of a recording, as `tersely replay` reads it. No answer ends it. The arm `probe` is the preset
`balanced` with the probe of the model, on random hidden states and with a threshold that no score reaches. `kernel` is
the part of the mean that computes signals of logits, which GPUs do in a kernel that nothing waits for.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from control_cost import MARKERS, write_thinking
from measuring import make_parser, print_figures
from vllm import SamplingParams

from tersely.controller.text.tokenizer_adapter import TokenizerAdapter, get_adapter
from tersely.controller.types import Signals, StepInfo
from tersely.controller.vllm import request_controller
from tersely.controller.vllm import step as worker_step
from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor
from tersely.evaluation.replay.formats import Fields
from tersely.evaluation.replay.logs import load_set
from tersely.evaluation.replay.reader import load_tokenizer
from tersely.kernels.signals import logit_signals
from tersely.models import get_model_path

FOLDER = str(get_model_path("tersely-tiny-small"))
WIDTH, VOCABULARY = 128, 32_768
ARMS: dict[str, dict[str, Any]] = {
    "careful": {"policies": {"budget": {}, "repetition": {}, "convergence": {"agree": 1_000}}},
    "probe": {"policies": {"budget": {}, "repetition": {}, "readiness": {"threshold": 2.0}}},
}
"""What stands for a preset, with limits that are never reached."""


class Buffers:
    """Token buffers as the V2 runner keeps them."""

    def __init__(self, slots: int, length: int) -> None:
        self.device = torch.device("cpu")
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(slots, length, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))
        self.prefill_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))
        self.total_len = SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32))


def make_config() -> Any:
    """What a processor reads of vLLM's configuration."""
    from transformers import AutoConfig, GenerationConfig

    model = SimpleNamespace(
        model=FOLDER,
        tokenizer=FOLDER,
        tokenizer_revision=None,
        trust_remote_code=False,
        served_model_name=None,
        hf_text_config=AutoConfig.from_pretrained(FOLDER),
        try_get_generation_config=GenerationConfig.from_pretrained(FOLDER).to_diff_dict,
    )
    return SimpleNamespace(model_config=model, speculative_config=None, additional_config={})


def read_recording(codec: TokenizerAdapter, file: Path, tokens: int) -> list[int]:
    """Token ids of so much recorded thinking, one output after the other."""
    ids: list[int] = []
    for row in load_set(file, file.name, Fields(), None).rows:
        ids += codec.encode(row.thinking + "\n\n")
        if len(ids) >= tokens:
            return ids[:tokens]
    raise SystemExit(f"{file} has {len(ids)} tokens of thinking; accepted: at least {tokens}, or a smaller --length")


def time_steps(
    preset: str, tokenizer: Path | None, rows: int, length: int, steps: int, recording: Path | None = None
) -> dict[str, float]:
    """The mean, the median and the 99th percentile of steps, in milliseconds."""
    processor_buffers = Buffers(rows, length + steps + 200)
    processor = TerselyLogitsProcessor(make_config(), processor_buffers)
    codec = get_adapter(load_tokenizer(tokenizer))
    vocabulary = VOCABULARY if tokenizer is None else codec.vocabulary
    processor.worker.__dict__.update(tokenizer=codec.tokenizer, markers=MARKERS, end=(vocabulary - 1,))
    opening = codec.encode("\n\n<think>\n")
    tokens = length + steps + 64
    written = write_thinking(codec, tokens) if recording is None else read_recording(codec, recording, tokens)
    ids = torch.tensor(written, dtype=torch.int32)
    control = ARMS.get(preset, {"preset": preset}) | {"thinking_budget": 4 * (length + steps)}
    kernel = time_signals()
    states = torch.randn(rows, WIDTH)
    request_controller._NO_STEP = StepInfo(Signals(0.5, 0.8, 0.8, 0.6), lambda layer: states[0].numpy())
    params = SamplingParams(max_tokens=16 * (length + steps), extra_args={"tersely": control})
    for row in range(rows):  # rows are at different places of the text
        known = length - row % 64
        processor_buffers.all_token_ids.gpu[row, : len(opening)] = torch.tensor(opening, dtype=torch.int32)
        processor_buffers.all_token_ids.gpu[row, len(opening) : len(opening) + length + steps] = ids[: length + steps]
        processor_buffers.prompt_len.np[row] = len(opening)
        processor_buffers.prefill_len.np[row] = len(opening) + known
        processor_buffers.total_len.gpu[row] = len(opening) + known
        processor.add_request(row, params)
    logits = torch.zeros(rows, vocabulary)
    context: Any = SimpleNamespace(idx_mapping_np=np.arange(rows, dtype=np.int32))
    taken = []
    for _ in range(steps):
        worker_step._kept[:] = [states]
        begin = time.thread_time()
        processor.apply_staged_writes()
        processor.apply(logits, context)
        taken.append(1e3 * (time.thread_time() - begin))
        processor_buffers.total_len.gpu += 1
    assert len(processor.table.rows) == rows, "rows have ended"
    notes = {decision.reason for row in processor.table.rows.values() for decision in row.controller.decisions}
    assert not notes, f"not every policy is at work: {notes}"
    settled = np.sort(taken[steps // 4 :])  # the first step reads whole outputs
    return {
        f"{preset}_mean_ms": round(float(settled.mean()), 3),
        f"{preset}_median_ms": round(float(settled[len(settled) // 2]), 3),
        f"{preset}_p99_ms": round(float(settled[int(0.99 * len(settled))]), 3),
        f"{preset}_kernel_ms": round(1e3 * sum(kernel) / steps, 3),
    }


def time_signals() -> list[float]:
    """Seconds of each call that computes signals from now on, in this thread's time."""
    taken: list[float] = []

    def compute(logits: torch.Tensor) -> Any:
        begin = time.thread_time()
        found = logit_signals(logits)
        taken.append(time.thread_time() - begin)
        return found

    vars(worker_step)["logit_signals"] = compute
    return taken


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--presets", default="budget,careful,probe", help="default: %(default)s")
    parser.add_argument(
        "--tokenizer", type=Path, help="a tokenizer.json or its folder; by default a simple one of ours"
    )
    parser.add_argument("--recording", type=Path, metavar="FILE", help="recorded outputs to take the text from")
    parser.add_argument("--rows", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=16_000, help="tokens before the steps (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, float] = {}
    for preset in options.presets.split(","):
        result |= time_steps(preset, options.tokenizer, options.rows, options.length, options.steps, options.recording)
    print_figures(result, options.json)


if __name__ == "__main__":
    main()
