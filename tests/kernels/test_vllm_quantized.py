"""Quantized checkpoints in a real vLLM."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from tersely.errors import ModelError
from tersely.kernels.quantization import Scheme, quantize_model
from tersely.kernels.w4a8_layout import PackedLayout, pack_bytes, pack_planes, unpack
from tersely.models import get_model_path

from ..support.mapped import HAS_HUGE_PAGES, is_in_huge_pages
from ..support.refusals import refused
from ..support.vllm_engine import quick_start

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = pytest.mark.vllm
SMALL = get_model_path("tersely-tiny-small")
PROMPTS = ("Kai has 9 shells. Kai drops 4 shells.", "The train has 12 seats.", "Kai makes 3 times the shells.")
LENGTH = 20


@pytest.fixture(scope="module")
def start() -> Callable[..., LLM]:
    """Start a vLLM that knows the method on a folder."""
    with quick_start():
        import vllm

        import_module("tersely.kernels.quantization.vllm")  # which registers the method

    def started(folder: Path, **options: Any) -> LLM:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 256,
            "num_gpu_blocks_override": 64,
            "distributed_executor_backend": "uni",
            "gpu_memory_utilization": 0.3,
            "disable_log_stats": True,
        }
        with quick_start():
            return vllm.LLM(str(folder), **(settings | options))

    return started


def sharing() -> Any:
    """A model of random weights whose query heads share keys, with biases as Qwen2 has them."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=970,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=0,
    )
    model: Any = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def written(scheme: Scheme, folder: Path, model: Any = None) -> tuple[Any, list[list[int]]]:
    """A quantized model, and its output in transformers."""
    model = model or AutoModelForCausalLM.from_pretrained(SMALL).eval()
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    quantize_model(model, torch.randint(900, (4, 64), generator=torch.Generator().manual_seed(0)), scheme)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    answers = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False)
        answers.append(out[0, ids.shape[1] :].tolist())
    return model, answers


def said_by(llm: LLM) -> list[list[int]]:
    """Output of vLLM for all prompts in one batch."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=LENGTH, min_tokens=LENGTH)
    return [list(out.outputs[0].token_ids) for out in llm.generate(list(PROMPTS), sampling, use_tqdm=False)]


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(Scheme(64, smooth=True), id="smooth", marks=pytest.mark.attack),
        pytest.param(Scheme(32, "int8"), id="int8 head", marks=pytest.mark.attack),
        pytest.param(Scheme(64, "int4", smooth=True), id="int4 head, smooth"),
        pytest.param(Scheme(64, "keep"), id="head kept", marks=pytest.mark.attack),
    ],
)
def test_vllm_output_equals_transformers(start: Callable[..., LLM], tmp_path: Path, scheme: Scheme) -> None:
    _, answers = written(scheme, tmp_path)
    llm = start(tmp_path)
    assert llm.llm_engine.vllm_config.model_config.quantization == "tersely_w4a8"
    assert said_by(llm) == answers


def bytes_of(model: nn.Module) -> list[torch.Tensor]:
    """The parameters of the fused layer."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype == torch.uint8]


@pytest.mark.parametrize("smooth", [pytest.param(False, marks=pytest.mark.attack), True])
def test_int8_keys_are_fused_with_int4_queries(start: Callable[..., LLM], tmp_path: Path, smooth: bool) -> None:
    model, answers = written(Scheme(64, smooth=smooth), tmp_path, sharing())
    assert model.config.quantization_config.scheme == Scheme(64, smooth=smooth, keys="int8")
    assert len({tuple(answer) for answer in answers}) == len(answers), "they depend on the prompts"
    llm = start(tmp_path, enforce_eager=not smooth)  # a compiled one suffices: compiling takes most of the time
    assert said_by(llm) == answers
    packed = [tensor for tensor in llm.apply_model(bytes_of)[0] if tensor.numel()]
    assert len(packed) > 3 and all(is_in_huge_pages(tensor) == HAS_HUGE_PAGES for tensor in packed)


def test_devices_load_their_share_of_queries_and_keys(start: Callable[..., LLM]) -> None:
    from tersely.kernels.quantization.vllm import _part_loader

    queries, keys = nn.Parameter(torch.zeros(4, 3)), torch.zeros(4, 3)  # of one of four devices; two heads are shared
    layer = SimpleNamespace(tp_rank=3, num_kv_head_replicas=2, keys_weight=keys)
    whole, load = torch.arange(48.0).view(16, 3), _part_loader(layer, "keys_weight", [32, 32])
    load(queries, whole, "q")
    load(queries, whole[:4], "k")
    load(queries, 100 + whole[:4], "v")
    assert torch.equal(queries.data, whole[12:]) and torch.equal(keys, torch.cat((whole[2:4], 100 + whole[2:4])))
    layer.num_kv_head_replicas = 1
    with refused(ModelError, "shape_mismatch"):
        load(queries, whole[:4], "k")
    layer.tp_rank, layer.keys_weight = 0, torch.zeros(6, 3)
    load = _part_loader(layer, "keys_weight", [64, 32])
    load(queries, whole[:4], "k")
    load(queries, whole[4:6], "v")
    assert torch.equal(layer.keys_weight, whole[:6]), "values may be fewer"
    scale = nn.Parameter(torch.zeros(3))
    _part_loader(layer, "keys_input_scale", [32, 32])(scale, torch.ones(3), "k")
    assert scale.data.tolist() == [1, 1, 1], "which all parts have in common"


@pytest.mark.parametrize("form", [PackedLayout.BYTES, PackedLayout.PLANES], ids=str)
def test_devices_load_their_share_of_a_head(start: Callable[..., LLM], form: PackedLayout) -> None:
    from tersely.kernels.quantization.vllm import _head_loader

    whole = torch.randint(-127, 128, (64, 24))
    packed = (pack_planes if form is PackedLayout.PLANES else pack_bytes)(whole)
    load = _head_loader(SimpleNamespace(shard_indices=SimpleNamespace(org_vocab_start_index=32)), form)
    part = nn.Parameter(torch.zeros(*packed.shape[:-3], 3, *packed.shape[-2:], dtype=torch.uint8), requires_grad=False)
    load(part, packed)
    assert torch.equal(unpack(part.data, None)[:32], whole[32:].to(torch.int8)), "what is padded stays as it was"
    assert not part.data[..., 2, :, :].any()


def test_layers_that_cannot_be_fused_are_refused(start: Callable[..., LLM]) -> None:
    from tersely.kernels.quantization.vllm import MixedQKVMethod, W4A8Method

    def create(inputs: int, parts: list[int], whole_inputs: int, outputs: int) -> None:
        W4A8Method(PackedLayout.GRAINS, Scheme(64)).create_weights(
            nn.Module(), inputs, parts, whole_inputs, outputs, torch.float32
        )

    with refused(ModelError, "fused_layers"):
        create(128, [64, 24, 24], 128, 112)
    with refused(ModelError, "fused_layers"):
        MixedQKVMethod(Scheme(64)).create_weights(nn.Module(), 128, [64, 24, 24], 128, 112, torch.float32)
    with refused(ModelError, "cannot_shard"):
        create(96, [64], 192, 64)
    with refused(ModelError, "cannot_shard"):
        create(128, [40], 128, 80)
