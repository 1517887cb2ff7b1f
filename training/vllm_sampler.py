"""Sampling of rollouts with a vLLM in the same process, which gets the policy's weights before each batch.

Training treats completions as drawn from the policy, although vLLM's kernels round differently.
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

_RESERVED = frozenset(
    {
        *("model", "dtype", "seed", "logits_processors", "generation_config"),
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    }
)
"""What training sets itself, since vLLM gets the policy's weights in the policy's process."""


class VllmSampler:
    """Decodes instead of a transformers engine, with that engine's weights."""

    def __init__(self, policy: TransformersEngine, rows: int, options: Mapping[str, Any]) -> None:
        """Start vLLM for at most `rows` completions at a time; `options` are further arguments of `vllm.LLM`.

        Raises CapabilityError if vLLM is not installed, OptionError for an unknown argument.
        """
        prepare_environment(on_cpu=not torch.cuda.is_available())
        check_arguments(options)
        # The checkpoint's own generation config would truncate the sampling distribution.
        fixed = {"distributed_executor_backend": "uni", "generation_config": "vllm"}
        arguments = {"max_num_seqs": rows, **options, **fixed}
        length, dtype = arguments.pop("max_model_len", None), str(policy.model.dtype).removeprefix("torch.")
        with _keep_weights_unpacked():
            self.engine = load_vllm(policy.name, dtype, length, arguments)

    def generate(self, model: Any, requests: Sequence[Request], sampling: SamplingParams) -> list[Completion]:
        """Decode all requests with the model's current weights."""
        self.load_weights(model)
        return self.engine.generate(requests, sampling)

    def load_weights(self, model: Any) -> None:
        """Copy a model's weights into vLLM, with adapters merged in, and clear the prefix cache."""
        llm = self.engine.llm
        assert llm is not None
        executor: Any = llm.llm_engine.model_executor
        with torch.no_grad():
            executor.driver_worker.worker.model_runner.get_model().load_weights(read_weights(model))
        llm.reset_prefix_cache()


def read_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model by their names in the checkpoint, with adapters merged in."""
    tied = model.config.get_text_config(decoder=True).tie_word_embeddings
    for name, value in model.state_dict().items():
        if "lora_" in name or (tied and name == "lm_head.weight"):
            continue
        path, adapted, kind = name.partition(".base_layer.")
        if adapted and kind == "weight":
            layer = model.get_submodule(path)
            value = value + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters).to(value.dtype)
        yield f"{path}.{kind}" if adapted else name, value


def check_arguments(options: Mapping[str, Any]) -> None:
    """Refuse unknown arguments of vLLM; raises OptionError, or CapabilityError if vLLM is not installed."""
    try:
        from vllm import EngineArgs
    except ImportError:
        raise CapabilityError(
            "rollouts.engine is vllm, which is not installed; run `pip install 'tersely[vllm]'`, or use transformers"
        ) from None
    accepted = {field.name for field in fields(EngineArgs)} - _RESERVED
    if wrong := [name for name in options if name not in accepted]:
        raise unknown("argument for vllm.LLM in rollouts.vllm:", wrong[0], sorted(accepted))


@contextmanager
def _keep_weights_unpacked() -> Iterator[None]:
    """Keep vLLM from packing the weights of linear layers on CPUs, after which they could not be replaced."""
    from vllm.model_executor.layers import utils

    def use_plain_linear(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    before, utils.dispatch_cpu_unquantized_gemm = utils.dispatch_cpu_unquantized_gemm, use_plain_linear
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = before
