"""A second layer with 8-bit weights on the same inputs, in one call."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tersely.errors import OptionError
from tersely.kernels.w4a8 import MARGIN, w4a8_linear, w4a8_op
from tersely.kernels.w4a8_layout import choose_layout

from ..support.refusals import refused
from ..support.vectors import BEST, FOUND, LEVELS, use_vectors
from .test_w4a8_op import DTYPES, Layer, Size, assert_right, each, random_layer


def pair(outputs: int, others: int, inputs: int, size: Size = 32) -> tuple[Layer, Layer]:
    """A layer with all optional tensors, and one with 8-bit weights on the same inputs."""
    layer, other = (random_layer(count, inputs, bits, extras=True) for count, bits in ((outputs, size), (others, None)))
    other.input_scale = layer.input_scale
    return layer, other


def given(layer: Layer, other: Layer) -> tuple[Tensor | None, ...]:
    assert layer.bias is not None and other.bias is not None
    *weights, _ = layer.tensors()
    return *weights, torch.cat((layer.bias, other.bias)), other.weight, other.channel_scale


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize(("outputs", "others", "inputs"), [(16, 16, 128), (21, 5, 70), (896, 256, 896), (5, 33, 1100)])
def test_each_layer_equals_a_separate_call(
    implementation: Callable[..., Tensor], dtype: torch.dtype, rows: int, outputs: int, others: int, inputs: int
) -> None:
    layer, other = pair(outputs, others, inputs)
    x = torch.randn(rows, inputs).to(dtype)
    found = implementation(x, *given(layer, other))
    assert found.shape == (rows, outputs + others) and found.is_contiguous()
    assert_right(found[:, :outputs], x, layer)
    assert_right(found[:, outputs:], x, other)


@each
def test_without_bias_and_in_other_layouts(implementation: Callable[..., Tensor]) -> None:
    x = torch.randn(2, 100)
    sizes: tuple[Size, ...] = (64, None, "planes")
    for size in sizes:
        layer, other = random_layer(40, 100, size), random_layer(7, 100, None)
        found = implementation(x, *layer.tensors(), other.weight, other.channel_scale)
        assert_right(found[:, :40], x, layer)
        assert_right(found[:, 40:], x, other)
        assert implementation(x[:0], *layer.tensors(), other.weight, other.channel_scale).shape == (0, 47)


@each
def test_bias_dtypes_and_rows_with_nan(implementation: Callable[..., Tensor]) -> None:
    layer, other = pair(21, 53, 103)
    x = torch.randn(4, 103)
    x[1], x[2, 5], x[3, 7] = 0, torch.nan, -torch.inf
    for kind, dtype in product(DTYPES, DTYPES):
        assert layer.bias is not None and other.bias is not None
        layer.bias, other.bias = layer.bias.to(kind), other.bias.to(kind)
        found = implementation(x.to(dtype), *given(layer, other))
        assert_right(found[:, :21], x.to(dtype), layer)
        assert_right(found[:, 21:], x.to(dtype), other)
        assert found[2:].isnan().all() and not found[:2].isnan().any()


@each
def test_the_second_layer_may_be_in_planes(implementation: Callable[..., Tensor]) -> None:
    layer, other = random_layer(40, 100, "planes"), random_layer(300, 100, "planes")
    x = torch.randn(9, 100)
    found = implementation(x, *layer.tensors(), other.weight, other.channel_scale)
    assert_right(found[:, :40], x, layer)
    assert_right(found[:, 40:], x, other)


class InC(ctypes.Structure):
    """`w4a8_layer` of csrc/w4a8.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "groups", "channel_scale", "input_scale", "bias")),
        *((name, ctypes.c_int64) for name in "form bias_kind columns outputs lines group_count level".split()),
        ("margin", ctypes.c_float),
        ("next", ctypes.c_void_p),
    )


def in_c(layer: Layer, level: int, next_layer: InC | None = None) -> InC:
    weight, groups = layer.weight, layer.groups
    return InC(
        *(None if t is None else t.data_ptr() for t in layer.tensors()),
        form=choose_layout(weight, groups),
        columns=70,
        outputs=len(layer.channel_scale),
        lines=weight.shape[-2],
        group_count=1 if groups is None else groups.shape[1],
        level=level,
        margin=MARGIN,
        next=None if next_layer is None else ctypes.addressof(next_layer),
    )


@pytest.mark.skipif(BEST < 0, reason="not compiled")
@pytest.mark.parametrize("size", [32, None, "planes"])
def test_no_out_of_bounds_writes(size: Size) -> None:
    assert FOUND is not None
    layer, other = pair(21, 5, 70, size)
    expected = torch.cat([alone(layer, 21), alone(other, 5)], dim=1)
    for level, rows, (kind, dtype) in product(LEVELS.values(), (1, 3, 8), enumerate(DTYPES)):
        second = in_c(other, level)
        first, x = in_c(layer, level, second), torch.ones(rows, 70, dtype=dtype)
        room, out = guarded(FOUND.tersely_w4a8_room(ctypes.byref(first), rows)), guarded(rows * 26, dtype)
        numbers = (x.data_ptr(), kind, rows, 70, out[64:].data_ptr(), room[64:].data_ptr(), 0, 1)
        with use_vectors(level):
            FOUND.tersely_w4a8_run(ctypes.byref(first), *map(ctypes.c_int64, numbers))
        for whole in (room, out):
            assert (whole[:64] == 7).all() and (whole[-64:] == 7).all()
        torch.testing.assert_close(out[64:-64].view(rows, 26), expected.to(dtype).expand(rows, 26))


@pytest.mark.skipif(BEST < 0, reason="not compiled")
@pytest.mark.parametrize("size", [32, None, "planes"])
@pytest.mark.parametrize("rows", [1, 8, 33])
def test_no_out_of_bounds_reads(size: Size, rows: int) -> None:
    assert FOUND is not None
    layer, x, out = random_layer(40, 70, size), torch.ones(rows, 70), torch.empty(rows, 40)
    for level in LEVELS.values():
        given = in_c(layer, level)
        wall, room = before_a_wall(FOUND.tersely_w4a8_room(ctypes.byref(given), rows))
        numbers = (x.data_ptr(), 0, rows, 70, out.data_ptr(), room, 0, 1)
        with use_vectors(level):
            FOUND.tersely_w4a8_run(ctypes.byref(given), *map(ctypes.c_int64, numbers))  # a fault ends the process
        assert_right(out, x, layer)
        del wall


def before_a_wall(size: int) -> tuple[mmap.mmap, int]:
    """Memory followed by an inaccessible page, and its address."""
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + whole
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(mmap.PAGESIZE), 0)
    return memory, wall - size


def alone(layer: Layer, outputs: int) -> Tensor:
    return w4a8_linear(torch.ones(1, 70), *layer.tensors()).view(1, outputs)  # type: ignore[arg-type]


def guarded(size: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.full((size + 128,), 7, dtype=dtype)


@each
@pytest.mark.parametrize(
    ("at", "tensor"),
    [
        (4, torch.ones(20)),
        (4, torch.ones(27, 1)),
        (4, torch.tensor(1.0)),
        (5, torch.zeros(1, 12, 64, dtype=torch.uint8)),
        (5, None),
        (6, torch.ones(20)),
        (6, None),
    ],
    ids=range(7),
)
def test_invalid_second_layers_are_refused(
    implementation: Callable[..., Tensor], at: int, tensor: Tensor | None
) -> None:
    tensors = [*given(*pair(20, 7, 90))]
    tensors[at] = tensor
    with refused(OptionError):
        implementation(torch.ones(1, 90), *tensors)


@pytest.mark.skipif(BEST < 0, reason="not compiled")
def test_threads_share_the_tiles_of_both() -> None:
    layer, other = pair(16, 1500, 2048, 128)
    x, before = torch.randn(5, 2048), torch.get_num_threads()
    expected = w4a8_linear(x, *given(layer, other))  # type: ignore[arg-type]
    try:
        torch.set_num_threads(3)
        assert torch.equal(w4a8_linear(x, *given(layer, other)), expected)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)


def test_the_op_and_its_shape() -> None:
    (layer, other), x = pair(20, 7, 90), torch.randn(2, 3, 90)
    tensors = given(layer, other)
    found = w4a8_linear(x, *tensors)  # type: ignore[arg-type]
    assert found.shape == (2, 3, 27)
    assert torch.equal(found, w4a8_op(x, *tensors))
    torch.library.opcheck(w4a8_op, (x, *tensors), test_utils=("test_schema", "test_faketensor"))
    with FakeTensorMode() as mode, pytest.raises(OptionError):
        w4a8_op(*(None if t is None else mode.from_tensor(t) for t in (x, *tensors[:-1])))
