"""The interface of the W4A8 layer: errors, threads, strides, torch features."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tersely.errors import OptionError
from tersely.kernels import native
from tersely.kernels.native import python_thread_team
from tersely.kernels.quantization import Scheme, W4A8Linear
from tersely.kernels.w4a8 import in_torch, w4a8_linear, w4a8_op
from tersely.kernels.w4a8_layout import DEEPEST, PackedLayout, check_layer, pack, pack_bytes

from ..support.refusals import refused
from ..support.vectors import BEST, FOUND
from .test_w4a8_op import DTYPES, Size, each, random_layer


def test_the_compiled_op_is_registered() -> None:
    if FOUND is None:
        pytest.skip("no C compiler, so the operations run in torch here")
    assert BEST >= 0, "csrc/w4a8_op.c is not in the library, or not for this torch: see `pip install -v -e .`"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(w4a8_op.name(), "CPU")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(w4a8_op.name(), "CUDA")


@each
@pytest.mark.parametrize(
    "changed",
    [
        {"weight": torch.zeros(2, 12, 64)},
        {"weight": torch.zeros(3, 12, 64, dtype=torch.uint8)},
        {"weight": torch.zeros(2, 12, 128, dtype=torch.uint8)[:, :, ::2]},
        {"groups": torch.zeros(2, 4, 2, 16, dtype=torch.uint8)},
        {"groups": torch.zeros(2, 0, 2, 16, dtype=torch.uint8)},
        {"channel_scale": torch.ones(40)},
        {"channel_scale": torch.ones(20, dtype=torch.bfloat16)},
        {"input_scale": torch.ones(96)},
        {"bias": torch.ones(20, dtype=torch.int64)},
        {"x": torch.ones(1, 97)},
        {"x": torch.ones(1, 64)},
        {"weight": torch.zeros(0, 12, 64, dtype=torch.uint8), "channel_scale": torch.ones(0)},
    ],
    ids=range(12),
)
def test_invalid_tensors_are_refused(implementation: Callable[..., Tensor], changed: dict[str, Tensor]) -> None:
    layer = random_layer(20, 90, 32)
    parts = {"x": torch.ones(1, 90), **vars(layer), **changed}
    with refused(OptionError):
        implementation(*parts.values())


@pytest.mark.skipif(BEST < 0, reason="not compiled")
def test_c_and_python_accept_the_same_shapes() -> None:
    taken, scale = 0, torch.ones(20)
    few = product((0, 1, 4, 8, 12, 16, 17, 20, 32), (None, 0, 1, 2, 3, 4, 5), range(1, 150))
    # So many groups that what is left over after the last one is less than an input each.
    many = ((132, 33, 1056), (136, 33, 1088), (136, 33, 1087), (528, 65, 4224), (2080, 129, 16640))
    for (lines, count, inputs), planes in product((*few, *many), (False, True)):
        groups = None if count is None else torch.ones(2, count, 2, 16, dtype=torch.uint8)
        weight, x = torch.zeros(*((2,) if planes else ()), 2, lines, 64, dtype=torch.uint8), torch.ones(1, inputs)
        try:
            check_layer(inputs, weight, groups, scale, None, None)
        except OptionError:
            with pytest.raises(RuntimeError):
                w4a8_op(x, weight, groups, scale)
        else:
            taken += 1
            assert w4a8_op(x, weight, groups, scale).shape == (1, 20)
    assert taken > 500


@each
def test_tensors_on_other_devices(implementation: Callable[..., Tensor]) -> None:
    layer, x = random_layer(20, 90, 32), torch.ones(2, 90)
    with refused(OptionError):
        implementation(x, layer.weight.to("meta"), layer.groups, layer.channel_scale)


@pytest.mark.parametrize("x", [torch.ones(3, 90, dtype=torch.float64), torch.tensor(1.0)], ids=str)
@each
def test_invalid_activations_are_refused(implementation: Callable[..., Tensor], x: Tensor) -> None:
    with pytest.raises(OptionError):
        implementation(x, *random_layer(20, 90, 32).tensors())


def test_layers_too_deep() -> None:
    weight = pack_bytes(torch.ones(1, DEEPEST + 4))
    with refused(OptionError):
        w4a8_linear(torch.ones(1, DEEPEST + 4), weight, None, torch.ones(1))


def test_pack_refuses_invalid_groups() -> None:
    codes, about = torch.zeros(4, 64), torch.ones(4, 2)
    with refused(OptionError):
        pack(codes, about, about, 48)
    with pytest.raises(OptionError):
        pack(codes, about, about, 64)


@pytest.mark.skipif(BEST < 0, reason="not compiled")
@pytest.mark.parametrize("size", [128, "planes"])
@pytest.mark.parametrize("team", [True, False], ids=["torch's threads", "our threads"])
def test_threads_share_rows_and_tiles(team: bool, size: Size) -> None:
    assert FOUND is not None
    used, ours = (
        ctypes.c_void_p.in_dll(FOUND, "tersely_w4a8_team"),
        ctypes.cast(python_thread_team, ctypes.c_void_p).value,
    )
    theirs = used.value
    if team and theirs == ours:
        pytest.skip("torch's OpenMP cannot be reached here")
    layer, before = random_layer(1000, 2048, size), torch.get_num_threads()
    # Other rows each time: where a thread does not wait for those that others quantize, it finds the last ones.
    numbers = torch.randn(20, 37, 2048)
    try:
        torch.set_num_threads(1)
        expected = [w4a8_linear(x, *layer.tensors()) for x in numbers]  # type: ignore[arg-type]
        used.value = theirs if team else ours
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            for x, right in zip(numbers, expected, strict=True):
                assert torch.equal(w4a8_linear(x, *layer.tensors()), right)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
        used.value = theirs


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_activations(implementation: Callable[..., Tensor], dtype: torch.dtype) -> None:
    layer, x = random_layer(20, 90, 32), torch.randn(3, 4, 90).to(dtype)
    expected = implementation(x, *layer.tensors())
    assert expected.shape == (3, 4, 20) and expected.is_contiguous()
    spread = torch.zeros(4, 91, 3, 2).to(dtype)
    spread[:, 1:, :, 1] = x.permute(1, 2, 0)
    lying = [
        x.transpose(0, 1).contiguous().transpose(0, 1),
        spread[:, 1:, :, 1].permute(2, 0, 1),
        torch.cat((x, x), dim=-1)[..., 90:],
        x[:, None].expand(3, 2, 4, 90)[:, 1],
    ]
    for same in lying:
        assert torch.equal(same, x) and torch.equal(implementation(same, *layer.tensors()), expected)
    for row in (x[0, 0], x[:1, :1], torch.cat((x, x), dim=-1)[0, :, :90][:1]):
        assert torch.equal(implementation(row, *layer.tensors()).flatten(), expected[0, 0])
    assert torch.equal(implementation(x[0, :1].expand(5, 90), *layer.tensors()), expected[0, :1].expand(5, 20))
    assert implementation(x[:0], *layer.tensors()).shape == (0, 4, 20)


@each
def test_tensors_are_released(implementation: Callable[..., Tensor]) -> None:
    layer, other = random_layer(20, 90, 32, extras=True), random_layer(7, 90, None)
    assert layer.bias is not None
    layer.bias = torch.cat((layer.bias, torch.zeros(7)))
    tensors = [torch.randn(2, 90), *layer.tensors(), other.weight, other.channel_scale]
    out = implementation(*tensors)
    with pytest.raises(OptionError):
        implementation(torch.ones(2, 64), *tensors[1:])
    held = [t._use_count() for t in (out, *tensors) if t is not None]  # type: ignore[attr-defined]
    assert held == [torch.zeros(1)._use_count()] * len(held)  # type: ignore[attr-defined]


def test_one_thread_suffices_if_no_other_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def submit(self, work: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(native, "_pool", Full)
    called = []
    native.parallel_for(lambda: called.append(1), 4)
    assert called == [1]


def test_threads_are_joined_after_an_exception() -> None:
    started, ended = threading.Barrier(2), threading.Event()

    def work() -> None:
        started.wait()
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        native.parallel_for(work, 2)
    assert ended.is_set()


def test_the_op_has_no_gradient_and_says_so() -> None:
    layer = random_layer(20, 90, 32)
    out = w4a8_op(torch.randn(2, 90, requires_grad=True), *layer.tensors())
    with pytest.raises(NotImplementedError):
        out.sum().backward()


def test_fake_tensors() -> None:
    layer, x = random_layer(20, 90, 32, extras=True), torch.randn(2, 3, 90, dtype=torch.bfloat16)
    with FakeTensorMode() as mode:
        fake = w4a8_op(mode.from_tensor(x), *(t if t is None else mode.from_tensor(t) for t in layer.tensors()))
    real = w4a8_op(x, *layer.tensors())
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
    assert torch.equal(real, w4a8_linear(x, *layer.tensors()))  # type: ignore[arg-type]


def test_autocast_changes_nothing() -> None:
    layer, x = random_layer(20, 900, 32), torch.randn(2, 900)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(in_torch(x, *layer.tensors()), w4a8_linear(x, *layer.tensors()))  # type: ignore[arg-type]


def run(code: str, kernels: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a subprocess with TERSELY_KERNELS set."""
    environment = {**os.environ, "TERSELY_KERNELS": kernels}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_can_select_torch() -> None:
    code = """
from tersely.kernels.w4a8 import *
from tersely.kernels.w4a8_layout import pack_bytes
assert not compiled() and not torch._C._dispatch_has_kernel_for_dispatch_key(w4a8_op.name(), "CPU")
layer = pack_bytes(torch.full((3, 8), 2)), None, torch.ones(3)
for way in (w4a8_linear, w4a8_op, in_torch):
    print(way(torch.full((2, 2, 8), 127.0), *layer).unique().tolist())
"""
    done = run(code, "torch")
    assert (done.returncode, done.stdout) == (0, "[2032.0]\n" * 3), done.stderr


def test_invalid_environment_values_are_refused_each_time() -> None:
    code = """
for _ in range(2):
    try:
        import tersely.kernels.w4a8
    except ValueError as error:
        print(error)
"""
    done = run(code, "fast")
    first, second = done.stdout.splitlines()
    assert first == second and "accepted: auto, torch" in first, done.stderr


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "scaled"])
def test_straight_through_gradients(extras: bool) -> None:
    torch.manual_seed(0)
    given = {name: value for name, value in asdict(random_layer(32, 64, 32, extras)).items() if value is not None}
    bias = torch.float32 if extras else None
    layer = W4A8Linear(64, 32, PackedLayout.GRAINS, bias, Scheme(32, smooth=extras))
    layer.load_state_dict(given, assign=True)
    x, wanted = torch.randn(2, 3, 64, requires_grad=True), torch.randn(2, 3, 32)
    out = layer(x)
    assert torch.equal(out, layer(x.detach())), "the layer gives what it gives without gradients"
    (out * wanted).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, wanted @ layer.dequantized())
    smooth = x.detach() @ layer.dequantized().T + (0.0 if layer.bias is None else layer.bias)
    assert (smooth - out).abs().max() < 0.02 * out.abs().max(), "which is near what its gradient is of"
