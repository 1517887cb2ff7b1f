"""Our kernel for int4 checkpoints of other methods in vLLM."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tersely.errors import OptionError
from tersely.kernels.quantization.int4 import SWITCH
from tersely.kernels.w4a8 import compiled
from tersely.models import get_model_path

from ..support.mapped import HAS_HUGE_PAGES, is_in_huge_pages
from ..support.refusals import refused
from ..support.vllm_engine import quick_start
from .test_int4_conversion import dense, random_int4, rounded, words_of

SMALL = get_model_path("tersely-tiny-small")
PROMPTS = ("Kai has 9 shells. Kai drops 4 shells.", "The train has 12 seats.", "Kai makes 3 times the shells.")
OURS, THEIRS = "TerselyInt4LinearKernel", "CPUWNA16LinearKernel"
DISABLED = "VLLM_DISABLED_KERNELS"
pytestmark = pytest.mark.vllm
needs_compiler = pytest.mark.skipif(not compiled(), reason="not compiled")


@pytest.fixture(scope="module")
def kernel() -> Any:
    """The module that registers the kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own imports warn
        pytest.importorskip("vllm")
        return import_module("tersely.kernels.quantization.vllm_int4")


def test_invalid_arguments_are_refused(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.scalar_type import scalar_types

    told, announced = list[str](), list[str]()
    monkeypatch.setattr(kernel._log, "warning_once", lambda text, *parts: told.append(text % parts))
    monkeypatch.setattr(kernel._log, "info_once", lambda text, *parts: announced.append(text % parts))

    def reason(inputs: int = 256, outputs: int = 64, **more: Any) -> str:
        given = {"weight_type": scalar_types.uint4b8, "act_type": torch.bfloat16, "group_size": 128} | more
        shape = (inputs, outputs)
        config = kernel.MPLinearLayerConfig(shape, shape, zero_points=given.pop("zero_points", False), **given)
        can, why = kernel.TerselyInt4LinearKernel.can_implement(config)
        assert can == (why is None)
        return why or ""

    asymmetric = {"weight_type": scalar_types.uint4, "zero_points": True}
    for accepted in (
        {},
        {"outputs": 16},
        {"group_size": -1, "inputs": 40},
        {"group_size": 96, "inputs": 192},
        asymmetric,
    ):
        assert reason(**accepted) == "" and not told
    assert "int4 layers get 8-bit activations" in announced[0]
    assert reason(outputs=72) == "72 outputs; accepted: multiples of 16"
    assert "left to vLLM: 72 outputs" in told[0] and SWITCH in told[0]
    assert "accepted: multiples of 8 up to 65536" in reason(inputs=1 << 17)
    assert "multiples of 8" in reason(inputs=132, group_size=-1)
    assert "groups of 16 of 256 inputs; accepted: multiples of 32" in reason(group_size=16)
    assert "groups of 128 of 320 inputs" in reason(inputs=320)
    assert "uint4b8 with zeros" in reason(zero_points=True)
    assert "uint4 without zeros" in reason(weight_type=scalar_types.uint4)
    assert "uint8b128" in reason(weight_type=scalar_types.uint8b128)
    assert "torch.float64" in reason(act_type=torch.float64)
    monkeypatch.setattr(kernel.MPLinearLayerConfig, "has_g_idx", True, raising=False)
    assert "act-order" in reason()
    monkeypatch.setattr(kernel.current_platform, "is_cpu", lambda: False, raising=False)
    assert "not run on a CPU" in reason()


def parameter(data: Tensor, **dimensions: int) -> nn.Parameter:
    """A parameter that knows its dimensions, as vLLM's do."""
    made = nn.Parameter(data, requires_grad=False)
    vars(made).update(dimensions)
    return made


@pytest.mark.parametrize("layout", ["compressed-tensors", "GPTQ", "AWQ"])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "asymmetric"])
def test_layers_of_each_method(kernel: Any, monkeypatch: pytest.MonkeyPatch, layout: str, zeros: bool) -> None:
    from vllm.scalar_type import scalar_types

    codes, scale, zero = random_int4(48, 320, 64, zeros)
    layer, by_output = nn.Module(), layout == "compressed-tensors"
    words, scales = (words_of(codes, 1), scale) if by_output else (words_of(codes.T, 0), scale.T.contiguous())
    layer.register_parameter("w", parameter(words, input_dim=int(by_output), output_dim=int(not by_output)))
    layer.register_parameter("s", parameter(scales, input_dim=int(by_output), output_dim=int(not by_output)))
    packed = (
        parameter(words_of(zero.T, 1), output_dim=1) if layout == "GPTQ" else parameter(words_of(zero, 0), output_dim=0)
    )
    layer.register_parameter("z", packed)  # ignored without zeros
    kind = scalar_types.uint4 if zeros else scalar_types.uint4b8
    config = kernel.MPLinearLayerConfig((320, 48), (320, 48), kind, torch.bfloat16, 64, zeros)
    ours = kernel.TerselyInt4LinearKernel(config, "w", "s", "z")
    told: list[str] = []
    monkeypatch.setattr(kernel._log, "warning", lambda text, *parts: told.append(text % parts))
    monkeypatch.setattr(kernel, "WARN_ABOVE", 0.01 if zeros else 0.1)
    ours.process_weights_after_loading(layer)
    assert any("changes the weights of a layer by " in line for line in told) == zeros
    assert set(dict(layer.named_parameters())) == {"w", "s", "tersely_groups"}
    assert all(is_in_huge_pages(one) == HAS_HUGE_PAGES for one in layer.parameters())
    x, bias = torch.randn(2, 5, 320), torch.randn(48)
    expected = x @ dense(codes, scale, zero).T + bias
    out = ours.apply_weights(layer, x.bfloat16(), bias.bfloat16())
    assert out.shape == (2, 5, 48) and out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 0.06 * expected.norm()


@needs_compiler
def test_the_kernel_is_opt_in(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    from tersely.kernels.quantization.vllm import register

    place = kernel.PlatformEnum.CPU
    before = list(kernel._POSSIBLE_KERNELS[place])
    monkeypatch.setitem(kernel._POSSIBLE_KERNELS, place, list(before))
    monkeypatch.setenv(DISABLED, "SomeKernel")
    for value in ("", "0"):
        monkeypatch.setenv(SWITCH, value)
        register()
        assert kernel._POSSIBLE_KERNELS[place] == before and os.environ[DISABLED] == "SomeKernel"
    monkeypatch.setenv(SWITCH, "yes")
    with refused(OptionError, "unknown_name"):
        register()
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr(kernel, "compiled", lambda: False)
    register()
    assert kernel._POSSIBLE_KERNELS[place] == before
    monkeypatch.undo()
    monkeypatch.setitem(kernel._POSSIBLE_KERNELS, place, list(before))
    monkeypatch.setenv(DISABLED, "SomeKernel")
    monkeypatch.setenv(SWITCH, "1")
    for _ in range(2):  # vLLM may load plug-ins more than once
        register()
        assert kernel._POSSIBLE_KERNELS[place] == [kernel.TerselyInt4LinearKernel, *before]
        assert os.environ[DISABLED] == "SomeKernel,tersely-int4"
    assert DISABLED in envs.compile_factors(), "compiled models with and without the kernel are taken for each other"


def compressed(name: str, codes: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    """A layer in the format of compressed-tensors."""
    return {
        f"{name}.weight_packed": words_of(codes, 1),
        f"{name}.weight_scale": scale.bfloat16(),
        f"{name}.weight_shape": torch.tensor(codes.shape),
    }


def gptq(name: str, codes: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    """A layer in the format of GPTQ, with zeros one lower."""
    return {
        f"{name}.qweight": words_of(codes.T, 0),
        f"{name}.scales": scale.T.contiguous().half(),
        f"{name}.qzeros": words_of(zero.T - 1, 1),
        f"{name}.g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // (codes.shape[1] // scale.shape[1]),
    }


def awq(name: str, codes: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    """A layer in the format of AWQ."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        f"{name}.qweight": words_of(codes.T, 1, order),
        f"{name}.scales": scale.T.contiguous().half(),
        f"{name}.qzeros": words_of(zero.T, 1, order),
    }


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "all": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
        }
    },
    "ignore": ["lm_head"],
}
Writer = Callable[[str, Tensor, Tensor, Tensor], dict[str, Tensor]]
FORMATS: dict[str, tuple[Writer, dict[str, Any]]] = {
    "compressed": (compressed, COMPRESSED),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}),
}


def checkpoint(folder: Path, name: str) -> None:
    """The small embedded model in one of the formats, with the same weights in each of them."""
    write, config = FORMATS[name]
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for key, value in load_file(SMALL / "model.safetensors").items():
        if not key.endswith("proj.weight"):
            tensors[key] = value
            continue
        codes, scale, zero = rounded(value, 32, False)
        codes = codes.clamp(1, 14)
        if name == "awq":  # the only one with zeros: codes that go along with them mean the same
            shift = torch.randint(-1, 2, zero.shape, generator=generator, dtype=torch.int8)
            codes = (codes.to(torch.int8) + shift.repeat_interleave(32, dim=1)).to(torch.uint8)
            zero = (zero.to(torch.int8) + shift).to(torch.uint8)
        tensors |= write(key.removesuffix(".weight"), codes, scale, zero)
    folder.mkdir()
    for file in SMALL.iterdir():
        if file.suffix == ".json" and file.name != "config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    described = json.loads((SMALL / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def said(folder: Path, kernel_name: str) -> list[list[int]]:
    """Output of vLLM with a checkpoint; asserts the kernel of its layers."""
    with quick_start():
        from vllm import LLM, SamplingParams

        llm = LLM(
            str(folder),
            dtype="bfloat16",
            max_model_len=128,
            num_gpu_blocks_override=64,
            enforce_eager=True,
            distributed_executor_backend="uni",
            gpu_memory_utilization=0.2,
            disable_log_stats=True,
        )
    executor: Any = llm.llm_engine.model_executor
    modules = executor.driver_worker.worker.model_runner.model.modules()
    owners: list[Any] = [getattr(m, "scheme", None) or getattr(m, "quant_method", None) for m in modules]
    assert {type(owner.kernel).__name__ for owner in owners if hasattr(owner, "kernel")} == {kernel_name}
    sampling = SamplingParams(temperature=0, max_tokens=24, min_tokens=24)
    return [list(out.outputs[0].token_ids) for out in llm.generate(list(PROMPTS), sampling, use_tqdm=False)]


@needs_compiler
@pytest.mark.parametrize("names", [["compressed"], pytest.param(list(FORMATS), marks=pytest.mark.attack)], ids=len)
def test_vllm_output_is_close_to_its_own_kernel(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        checkpoint(tmp_path / name, name)
    theirs = said(tmp_path / "compressed", THEIRS)
    kernels = list(kernel._POSSIBLE_KERNELS[kernel.PlatformEnum.CPU])
    monkeypatch.setitem(kernel._POSSIBLE_KERNELS, kernel.PlatformEnum.CPU, kernels)
    monkeypatch.setenv(DISABLED, "")
    monkeypatch.setenv(SWITCH, "1")
    (plugin,) = entry_points(group="vllm.general_plugins", name="tersely_w4a8")
    plugin.load()()
    ours = {name: said(tmp_path / name, OURS) for name in names}
    assert all(one == ours["compressed"] for one in ours.values()), (
        "the same weights, so the same sums of whole numbers"
    )
    same = (np.array(ours["compressed"]) == np.array(theirs)).mean()
    assert same >= 0.6, f"{same:.0%} of the tokens: {ours['compressed']}, {theirs}"
