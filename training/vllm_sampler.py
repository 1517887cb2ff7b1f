"""A vLLM in this process that writes the completions of a training, given the policy's weights before each batch.

On GPUs that is several times as fast as decoding on transformers. What is learnt counts a completion as drawn from the
policy; what another engine's kernels make of the same weights differs from it by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..controller.engines.transformers.engine import TransformersEngine
from ..controller.types import Completion, Request, SamplingParams
from ..controller.vllm.engine import load_vllm, prepare_environment
from ..errors import CapabilityError, unknown


class VllmSampler:
    """Writes in the place of an engine on transformers, with that one's weights.

    rows: most completions at a time. options: further arguments of `vllm.LLM`, such as gpu_memory_utilization. Raises
    CapabilityError where there is no vLLM, OptionError for an argument that it does not know.
    """

    def __init__(self, policy: TransformersEngine, rows: int, options: Mapping[str, Any]) -> None:
        prepare_environment(on_cpu=not torch.cuda.is_available())
        check_arguments(options)
        # The checkpoint's own generation config would cut what is sampled.
        ours = {"distributed_executor_backend": "uni", "generation_config": "vllm"}
        given = {"max_num_seqs": rows, **options, **ours}
        length, kind = given.pop("max_model_len", None), str(policy.model.dtype).removeprefix("torch.")
        with _weights_kept():
            self.engine = load_vllm(policy.name, kind, length, given)

    def generate(self, model: Any, requests: Sequence[Request], sampling: SamplingParams) -> list[Completion]:
        """Decode all requests with the weights that the model has now."""
        self.take(model)
        return self.engine.generate(requests, sampling)

    def take(self, model: Any) -> None:
        """Copy a model's weights, adapters merged in, to where vLLM keeps its own; forget what others had read."""
        llm = self.engine.llm
        assert llm is not None
        executor: Any = llm.llm_engine.model_executor
        with torch.no_grad():
            executor.driver_worker.worker.model_runner.get_model().load_weights(read_weights(model))
        llm.reset_prefix_cache()


def read_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names as in the checkpoint and weights of a model; those of adapters are added to what they adapt."""
    tied = model.config.get_text_config(decoder=True).tie_word_embeddings
    for name, value in model.state_dict().items():
        if "lora_" in name or (tied and name == "lm_head.weight"):
            continue
        place, based, kind = name.partition(".base_layer.")
        if based and kind == "weight":
            layer = model.get_submodule(place)
            value = value + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters).to(value.dtype)
        yield f"{place}.{kind}" if based else name, value


def check_arguments(options: Mapping[str, Any]) -> None:
    """Refuse arguments that vLLM does not know; raises OptionError, CapabilityError where there is no vLLM."""
    try:
        from vllm import EngineArgs
    except ImportError:
        raise CapabilityError(
            "rollouts.engine is vllm, which is not installed; pip install 'tersely[vllm]', or use transformers"
        ) from None
    known = {field.name for field in fields(EngineArgs)}
    if wrong := [name for name in options if name not in known]:
        raise unknown("argument of vllm.LLM in rollouts.vllm:", wrong[0], sorted(known))


@contextmanager
def _weights_kept() -> Iterator[None]:
    """Let vLLM keep the weights of linear layers as they are on CPUs, where it would pack them once and for all."""
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    before, utils.dispatch_cpu_unquantized_gemm = utils.dispatch_cpu_unquantized_gemm, plain
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = before
