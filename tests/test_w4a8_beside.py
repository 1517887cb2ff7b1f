"""Two low-bit layers on the same inputs in one call: the outputs of one of 8 bits behind those of another."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tersely.errors import OptionError
from tersely.kernels.w4a8 import w4a8_linear, w4a8_op
from tersely.kernels.w4a8_native import _known, in_c

from .test_w4a8_op import BEST, DTYPES, LEVELS, Layer, Size, assert_right, each, random_layer


def pair(outputs: int, others: int, inputs: int, size: Size = 32) -> tuple[Layer, Layer]:
    """A layer with all extras, and one of 8 bits on the same inputs."""
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
def test_each_is_what_it_is_alone(
    implementation: Callable[..., Tensor], dtype: torch.dtype, rows: int, outputs: int, others: int, inputs: int
) -> None:
    layer, other = pair(outputs, others, inputs)
    x = torch.randn(rows, inputs).to(dtype)
    found = implementation(x, *given(layer, other))
    assert found.shape == (rows, outputs + others) and found.is_contiguous()
    assert_right(found[:, :outputs], x, layer)
    assert_right(found[:, outputs:], x, other)


@each
def test_without_bias_and_of_other_forms(implementation: Callable[..., Tensor]) -> None:
    x = torch.randn(2, 100)
    sizes: tuple[Size, ...] = (64, None, "planes")
    for size in sizes:
        layer, other = random_layer(40, 100, size), random_layer(7, 100, None)
        found = implementation(x, *layer.tensors(), other.weight, other.channel_scale)
        assert_right(found[:, :40], x, layer)
        assert_right(found[:, 40:], x, other)
        assert implementation(x[:0], *layer.tensors(), other.weight, other.channel_scale).shape == (0, 47)


@each
def test_biases_of_all_kinds_and_rows_of_no_numbers(implementation: Callable[..., Tensor]) -> None:
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
def test_planes_may_lie_beside(implementation: Callable[..., Tensor]) -> None:
    layer, other = random_layer(40, 100, "planes"), random_layer(300, 100, "planes")
    x = torch.randn(9, 100)
    found = implementation(x, *layer.tensors(), other.weight, other.channel_scale)
    assert_right(found[:, :40], x, layer)
    assert_right(found[:, 40:], x, other)


def test_nothing_is_written_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    real = torch.empty

    def guarded(*shape: int, dtype: torch.dtype) -> Tensor:
        if len(shape) == 1:
            return real(*shape, dtype=dtype)
        made.append(torch.full((math.prod(shape) + 128,), 7, dtype=dtype))
        return made[-1][64:-64].view(shape)

    layer, other = pair(21, 5, 70)
    monkeypatch.setattr(torch, "empty", guarded)
    for implementation, rows, dtype in product(LEVELS.values(), (1, 3), DTYPES[:2]):
        implementation(torch.randn(rows, 70, dtype=dtype), *given(layer, other))
    assert len(made) == 4 * len(LEVELS)
    assert all((whole[:64] == 7).all() and (whole[-64:] == 7).all() for whole in made)


@each
@pytest.mark.parametrize(
    ("at", "tensor", "says"),
    [
        (4, torch.ones(20), "bias .* accepted: tensors"),
        (4, torch.ones(27, 1), "bias .* accepted: tensors"),
        (4, torch.tensor(1.0), "bias .* accepted: tensors"),
        (5, torch.zeros(1, 12, 64, dtype=torch.uint8), "7 outputs got 48 inputs"),
        (5, None, "only one of beside"),
        (6, torch.ones(20), "20 outputs got weight"),
        (6, None, "only one of beside"),
    ],
    ids=range(7),
)
def test_what_does_not_fit(implementation: Callable[..., Tensor], at: int, tensor: Tensor | None, says: str) -> None:
    tensors = [*given(*pair(20, 7, 90))]
    tensors[at] = tensor
    with pytest.raises(OptionError, match=says):
        implementation(torch.ones(1, 90), *tensors)


@pytest.mark.skipif(BEST < 0, reason="not compiled")
def test_it_is_known_only_as_it_is() -> None:
    (layer, other), x = pair(20, 7, 90), torch.randn(2, 90)
    tensors = given(layer, other)
    for _ in range(2):
        assert_right(in_c(x, *tensors)[:, 20:], x, other)  # type: ignore[arg-type]
    kept = _known[id(layer.weight)]
    in_c(x, *tensors)  # type: ignore[arg-type]
    assert _known[id(layer.weight)] is kept
    other.channel_scale = other.channel_scale * 2
    assert_right(in_c(x, *given(layer, other))[:, 20:], x, other)  # type: ignore[arg-type]
    assert in_c(x, *layer.tensors()).shape == (2, 20)  # type: ignore[arg-type]


@pytest.mark.skipif(BEST < 0, reason="not compiled")
def test_threads_share_the_tiles_of_both() -> None:
    layer, other = pair(16, 1500, 2048, 128)
    x, before = torch.randn(5, 2048), torch.get_num_threads()
    expected = in_c(x, *given(layer, other))  # type: ignore[arg-type]
    try:
        torch.set_num_threads(3)
        assert torch.equal(in_c(x, *given(layer, other)), expected)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)


def test_the_op_and_its_shape() -> None:
    (layer, other), x = pair(20, 7, 90), torch.randn(2, 3, 90)
    tensors = given(layer, other)
    found = w4a8_linear(x, *tensors)  # type: ignore[arg-type]
    assert found.shape == (2, 3, 27)
    assert torch.equal(found, w4a8_op(x, *tensors))
    torch.library.opcheck(w4a8_op, (x, *tensors), test_utils=("test_schema", "test_faketensor"))
    with FakeTensorMode() as mode, pytest.raises(OptionError, match="only one of beside"):
        w4a8_op(*(None if t is None else mode.from_tensor(t) for t in (x, *tensors[:-1])))
