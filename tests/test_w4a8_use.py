"""Low-bit linear layers around their arithmetic: what is refused, threads, what is remembered, how torch sees them."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tersely.errors import OptionError
from tersely.kernels import native, w4a8, w4a8_native
from tersely.kernels.quantization import Scheme, W4A8Linear
from tersely.kernels.w4a8 import in_torch, w4a8_linear, w4a8_op
from tersely.kernels.w4a8_layout import DEEPEST, Form, pack, pack_bytes
from tersely.kernels.w4a8_native import in_c

from .test_w4a8_op import BEST, FOUND, Size, assert_right, each, random_layer


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is looked up yet, and what the test finds is forgotten after it."""
    caches = (native.torch_only, native.library, w4a8._implementation, w4a8_native._native, w4a8_native._team)
    for cache in caches:
        cache.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_the_library_has_the_operation() -> None:
    if FOUND is None:
        pytest.skip("no C compiler, so the operations run in torch here")
    assert BEST >= 0, "csrc/w4a8.c is not in the library: see `pip install -v -e .`"
    assert w4a8._implementation("cpu") is in_c
    assert w4a8._implementation("cuda") is in_torch


@each
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(2, 12, 64)}, "weight torch.float32"),
        ({"weight": torch.zeros(3, 12, 64, dtype=torch.uint8)}, "weight torch.uint8 .3, 12, 64."),
        ({"weight": torch.zeros(2, 12, 128, dtype=torch.uint8)[:, :, ::2]}, "not contiguous"),
        ({"groups": torch.zeros(2, 4, 2, 16, dtype=torch.uint8)}, "groups"),
        ({"groups": torch.zeros(2, 0, 2, 16, dtype=torch.uint8)}, "groups"),
        ({"channel_scale": torch.ones(40)}, "40 outputs"),
        ({"channel_scale": torch.ones(20, dtype=torch.bfloat16)}, "channel_scale torch.bfloat16"),
        ({"input_scale": torch.ones(96)}, "input_scale"),
        ({"bias": torch.ones(20, dtype=torch.int64)}, "bias torch.int64"),
        ({"x": torch.ones(1, 97)}, "with padding"),
        ({"x": torch.ones(1, 64)}, "with padding"),
    ],
    ids=range(11),
)
def test_tensors_that_do_not_fit(
    implementation: Callable[..., Tensor], changed: dict[str, Tensor], message: str
) -> None:
    layer = random_layer(20, 90, 32)
    parts = {"x": torch.ones(1, 90), **vars(layer), **changed}
    with pytest.raises(OptionError, match=f"{message}.*accepted: tensors as `pack` makes them"):
        implementation(*parts.values())


@pytest.mark.parametrize("x", [torch.ones(3, 90, dtype=torch.float64), torch.tensor(1.0)], ids=str)
def test_activations_that_are_none(x: Tensor) -> None:
    with pytest.raises(OptionError, match="accepted: float32, bfloat16 or float16"):
        w4a8_linear(x, *random_layer(20, 90, 32).tensors())  # type: ignore[arg-type]


def test_layers_too_deep() -> None:
    weight = pack_bytes(torch.ones(1, DEEPEST + 4))
    with pytest.raises(OptionError, match="at most 65536"):
        w4a8_linear(torch.ones(1, DEEPEST + 4), weight, None, torch.ones(1))


def test_what_cannot_be_packed() -> None:
    codes, about = torch.zeros(4, 64), torch.ones(4, 2)
    with pytest.raises(OptionError, match="groups of 48 inputs; accepted: 32, 64, 128"):
        pack(codes, about, about, 48)
    with pytest.raises(OptionError, match="do not fit codes"):
        pack(codes, about, about, 64)


@pytest.mark.skipif(BEST < 0, reason="not compiled")
@pytest.mark.parametrize("size", [128, "planes"])
@pytest.mark.parametrize("team", [True, False], ids=["torch's threads", "our threads"])
def test_threads_share_the_tiles(fresh: pytest.MonkeyPatch, team: bool, size: Size) -> None:
    ours = ctypes.cast(w4a8_native._our_threads, ctypes.c_void_p)
    if not team:
        fresh.setattr(w4a8_native, "_team", lambda: ours)
    elif w4a8_native._team().value == ours.value:
        pytest.skip("torch's OpenMP cannot be reached here")
    layer, x, before = random_layer(1000, 2048, size), torch.randn(5, 2048), torch.get_num_threads()
    expected = in_c(x, *layer.tensors())  # type: ignore[arg-type]
    try:
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(in_c(x, *layer.tensors()), expected)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(BEST < 0, reason="not compiled")
def test_a_layer_is_known_only_as_it_is() -> None:
    layer, other, x = random_layer(20, 90, None, extras=True), random_layer(20, 91, None), torch.randn(2, 90)
    for _ in range(2):
        assert_right(in_c(x, *layer.tensors()), x, layer)  # type: ignore[arg-type]
    gc.collect()
    count = len(w4a8_native._known)
    layer.channel_scale = layer.channel_scale * 2  # another tensor
    assert_right(in_c(x, *layer.tensors()), x, layer)  # type: ignore[arg-type]
    layer.weight.data = other.weight  # the same one elsewhere
    assert_right(in_c(x, *layer.tensors()), x, layer)  # type: ignore[arg-type]
    layer.bias = None
    assert_right(in_c(x, *layer.tensors()), x, layer)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="channel_scale"):
        in_c(x, layer.weight, layer.groups, layer.channel_scale.double())
    assert len(w4a8_native._known) == count
    del layer
    gc.collect()
    assert len(w4a8_native._known) == count - 1


def test_where_no_thread_can_be_started_one_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def submit(self, work: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(native, "_pool", Full)
    called = []
    native.run_at_once(lambda: called.append(1), 4)
    assert called == [1]


def test_threads_are_waited_for_whatever_happens() -> None:
    started, ended = threading.Barrier(2), threading.Event()

    def work() -> None:
        started.wait()
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        native.run_at_once(work, 2)
    assert ended.is_set()


def test_the_op_has_no_gradient_and_says_so() -> None:
    layer = random_layer(20, 90, 32)
    out = w4a8_op(torch.randn(2, 90, requires_grad=True), *layer.tensors())
    with pytest.raises(NotImplementedError, match="W4A8Linear passes one through"):
        out.sum().backward()


def test_torch_knows_what_comes_out() -> None:
    layer, x = random_layer(20, 90, 32, extras=True), torch.randn(2, 3, 90, dtype=torch.bfloat16)
    with FakeTensorMode() as mode:
        fake = w4a8_op(mode.from_tensor(x), *(t if t is None else mode.from_tensor(t) for t in layer.tensors()))
    real = w4a8_op(x, *layer.tensors())
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
    assert torch.equal(real, w4a8_linear(x, *layer.tensors()))  # type: ignore[arg-type]


def test_the_environment_can_ask_for_torch(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("TERSELY_KERNELS", "torch")
    assert w4a8._implementation("cpu") is in_torch


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "scaled"])
def test_gradients_go_through_as_if_nothing_had_been_rounded(extras: bool) -> None:
    torch.manual_seed(0)
    given = {name: value for name, value in asdict(random_layer(32, 64, 32, extras)).items() if value is not None}
    bias = torch.float32 if extras else None
    layer = W4A8Linear(64, 32, Form.GRAINS, bias, Scheme(32, smooth=extras))
    layer.fill(given)
    x, wanted = torch.randn(2, 3, 64, requires_grad=True), torch.randn(2, 3, 32)
    out = layer(x)
    assert torch.equal(out, layer(x.detach())), "the layer gives what it gives without gradients"
    (out * wanted).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, wanted @ layer.dequantized())
    smooth = x.detach() @ layer.dequantized().T + (0.0 if layer.bias is None else layer.bias)
    assert (smooth - out).abs().max() < 0.02 * out.abs().max(), "which is near what its gradient is of"
