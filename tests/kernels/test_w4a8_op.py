"""The W4A8 layer: every implementation against the float64 reference, including edge cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tersely.kernels.w4a8 import MARGIN, in_torch, quantize_rows, reference, w4a8_linear
from tersely.kernels.w4a8_layout import DEEPEST, pack, pack_bytes, pack_planes, preview, unpack

from ..support.vectors import AMX, BEST, FOUND, LEVELS, count_emulated, use_vectors


def in_vectors(level: int) -> Callable[..., Tensor]:
    """The compiled layer with specific vector instructions, possibly emulated."""

    def layer(*tensors: Tensor) -> Tensor:
        with use_vectors(level):
            return w4a8_linear(*tensors)

    return layer


COMPILED = {name: in_vectors(level) for name, level in LEVELS.items()}
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"torch": in_torch, **COMPILED}
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
# Outputs and inputs around whole tiles, lines and groups.
SHAPES = ((1, 1), (3, 5), (16, 128), (17, 129), (31, 64), (33, 260), (48, 896), (970, 128), (5, 1100))


@dataclass
class Layer:
    """The arguments after the activations."""

    weight: Tensor
    groups: Tensor | None
    channel_scale: Tensor
    input_scale: Tensor | None = None
    bias: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, name) for name in ("weight", "groups", "channel_scale", "input_scale", "bias"))


Size = int | str | None
sizes = pytest.mark.parametrize("size", [32, None, "planes"])


def random_layer(outputs: int, inputs: int, size: Size, extras: bool = False) -> Layer:
    """A layer with all allowed codes; size None means 8-bit weights, "planes" 8-bit weights in planes."""
    generator = torch.Generator().manual_seed(outputs * 10_007 + inputs)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    scale = torch.rand(outputs, generator=generator) + 0.1
    more = (torch.rand(inputs, generator=generator) + 0.5, torch.randn(outputs, generator=generator))
    rest = more if extras else (None, None)
    if size is None:
        return Layer(pack_bytes(draw(-127, 127, outputs, inputs)), None, scale, *rest)
    if size == "planes":
        # Results of random rows spread by a few margins, so that some tiles are worked out by both halves.
        scale *= 4 * MARGIN / (127 * inputs**0.5)
        return Layer(pack_planes(draw(-127, 127, outputs, inputs)), None, scale, *rest)
    assert isinstance(size, int)
    count = -(-inputs // size)
    fine, zero = draw(1, 127, outputs, count), draw(0, 15, outputs, count)
    fine[::2] = fine[::2] % 9 + 1  # few codes are left to the large ones
    codes = draw(0, 15, outputs, inputs)
    zeros, most = (t.repeat_interleave(size, 1)[:, :inputs] for t in (zero, 127 // fine))
    codes = torch.minimum(torch.maximum(codes, zeros - most), zeros + most)
    return Layer(*pack(codes, fine, zero, size), scale, *rest)


def assert_right(found: Tensor, x: Tensor, layer: Layer) -> None:
    """Assert equality with the reference up to the rounding of the dtype."""
    expected = reference(x, *layer.tensors())  # type: ignore[arg-type]
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    floor = torch.finfo(x.dtype).tiny * CLOSE[x.dtype]  # below the normal numbers all steps are as wide
    if layer.bias is not None:
        # Where the bias takes most of a sum away, what is left is as exact as the sum was.
        floor += CLOSE[torch.float32] * layer.bias.abs().max().item() * 8
    np.testing.assert_allclose(found.double(), expected, rtol=CLOSE[x.dtype] * 1.01, atol=floor)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_reference_by_hand() -> None:
    weight, groups = pack(torch.tensor([[3, 9], [0, 15]]), torch.tensor([[2], [5]]), torch.tensor([[4], [8]]), 32)
    assert unpack(weight, groups)[:2, :2].tolist() == [[-2, 10], [-40, 35]]
    # 127 and 64 are what 8 bits make of 1 and 0.5.
    found = reference(torch.tensor([[1, 0.5]]), weight, groups, torch.tensor([0.5, 1]), None, torch.tensor([1.0, 0.0]))
    unit = 1 / 127
    assert found[0].tolist() == pytest.approx([(-254 + 640) * 0.5 * unit + 1, (-40 * 127 + 35 * 64) * unit])


def test_the_layout_byte_by_byte() -> None:
    codes = torch.randint(0, 16, (20, 64))
    fine, zero = torch.randint(1, 9, (20, 2)), torch.randint(0, 16, (20, 2))
    weight, groups = pack(codes, fine, zero, 32)
    assert weight.shape == (2, 8, 64)
    assert groups.shape == (2, 2, 2, 16)
    for n, k in ((0, 0), (3, 6), (15, 63), (16, 9), (19, 60)):
        byte = int(weight[n // 16, k // 8, 4 * (n % 16) + k % 4])
        assert (byte >> 4 if k % 8 > 3 else byte & 15) == codes[n, k]
        assert groups[n // 16, k // 32, :, n % 16].tolist() == [fine[n, k // 32], zero[n, k // 32]]
    whole = torch.randint(-127, 128, (20, 6))
    bytes_of = pack_bytes(whole)
    assert bytes_of.shape == (2, 2, 64)
    assert bytes_of[1, 1, 4 * 3 + 1] == whole[19, 5] + 128
    assert torch.equal(unpack(bytes_of, None)[:20, :6], whole.to(torch.int8))


def test_planes_byte_by_byte() -> None:
    whole = torch.randint(-127, 128, (20, 13))
    planes = pack_planes(whole)
    assert planes.shape == (2, 2, 2, 64)
    for n, k in ((0, 0), (3, 6), (16, 9), (19, 12)):
        high, low = planes[:, n // 16, k // 8, 4 * (n % 16) + k % 4].tolist()
        shift = 4 if k % 8 > 3 else 0
        assert 16 * (high >> shift & 15) + (low >> shift & 15) == whole[n, k] + 128
    assert torch.equal(unpack(planes, None)[:20, :13], whole.to(torch.int8))
    assert (preview(planes)[:20, :13] / 2 - whole).abs().max() <= 7.5


@each
def test_planes_equal_bytes_where_results_are_high(implementation: Callable[..., Tensor]) -> None:
    layer, x = random_layer(970, 260, "planes"), torch.randn(5, 260)
    found = implementation(x, *layer.tensors())
    whole = reference(x, pack_bytes(unpack(layer.weight, None)[:970, :260]), None, layer.channel_scale)
    exact = (found - whole).abs() < 1e-4
    high = whole >= whole.amax(1, keepdim=True) - MARGIN / 2
    assert exact[high].all()
    assert 0.05 < exact.float().mean() < 0.8, "others are seen by high halves"
    assert torch.equal(found.argmax(1), whole.argmax(1))


@each
def test_outputs_of_scale_zero_are_ignored_for_the_maximum(implementation: Callable[..., Tensor]) -> None:
    layer, x = random_layer(970, 260, "planes"), torch.randn(5, 260)
    layer.channel_scale[-64:] = 0  # what fills up a vocabulary, highest where all others are below 0
    layer.bias = torch.full((970,), -100.0)
    layer.bias[-64:] = 0
    found = implementation(x, *layer.tensors())
    assert_right(found, x, layer)
    weight = pack_bytes(unpack(layer.weight, None)[:970, :260])
    whole = reference(x, weight, None, layer.channel_scale, None, layer.bias)[:, :-64]
    assert ((found[:, :-64] - whole).abs() < 1e-4)[whole >= whole.amax(1, keepdim=True) - MARGIN / 2].all()


@each
def test_rows_without_a_maximum(implementation: Callable[..., Tensor]) -> None:
    layer, x = random_layer(40, 60, "planes"), torch.randn(2, 60)
    layer.bias = torch.full((40,), -torch.inf)
    assert (implementation(x, *layer.tensors()) == -torch.inf).all()
    layer.channel_scale[:] = 0
    assert (implementation(x, *layer.tensors()) == -torch.inf).all()


@each
@pytest.mark.parametrize("size", [32, 64, 128, None, "planes"])
def test_equals_the_reference(implementation: Callable[..., Tensor], size: Size) -> None:
    for outputs, inputs in SHAPES:
        plain = random_layer(outputs, inputs, size)
        whole = random_layer(outputs, inputs, size, extras=True)
        for rows in (1, 2, 3, 4, 5, 8, 9, 15, 33, 77):
            x = torch.randn(rows, inputs)
            for layer in (plain, whole):
                assert_right(implementation(x, *layer.tensors()), x, layer)


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [64, None, "planes"])
def test_dtypes(implementation: Callable[..., Tensor], dtype: torch.dtype, size: Size) -> None:
    layer = random_layer(40, 200, size, extras=True)
    assert layer.bias is not None
    layer.bias = layer.bias.to(dtype)
    for rows in (1, 7, 8):
        x = torch.randn(rows, 200).to(dtype)
        found = implementation(x, *layer.tensors())
        assert_right(found, x, layer)


@pytest.mark.parametrize("size", [32, 128, None, "planes"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_implementations_agree_bit_for_bit(size: Size, dtype: torch.dtype) -> None:
    for outputs, inputs in SHAPES:
        layer = random_layer(outputs, inputs, size)
        layer.input_scale = torch.rand(inputs) + 0.5
        layer.bias = torch.randn(outputs)
        x = (torch.randn(21, inputs) * torch.logspace(-20, 4, 21)[:, None]).to(dtype)
        expected = in_torch(x, *layer.tensors())  # type: ignore[arg-type]
        for name, implementation in COMPILED.items():
            assert torch.equal(implementation(x, *layer.tensors()), expected), (name, outputs, inputs)


@each
def test_the_largest_sums(implementation: Callable[..., Tensor]) -> None:
    high = torch.full((2, DEEPEST), 15)
    one = torch.ones(2, DEEPEST // 128, dtype=torch.int64)
    four = Layer(*pack(high, one * 8, one * 0, 128), torch.ones(2))
    eight = Layer(pack_bytes(torch.tensor([[127], [-127]]).expand(2, DEEPEST)), None, torch.ones(2))
    lowest = Layer(pack_planes(torch.tensor([[127], [-127]]).expand(2, DEEPEST)), None, torch.full((2,), 1e-3))
    x = torch.ones(2, DEEPEST)
    x[1] = -1
    for layer in (four, eight, lowest):
        assert_right(implementation(x, *layer.tensors()), x, layer)


@each
@sizes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_rows(implementation: Callable[..., Tensor], size: Size, dtype: torch.dtype) -> None:
    layer = random_layer(20, 100, size)
    least, most = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    x = torch.randn(10, 100).to(dtype)
    x[0], x[1], x[2, 1:], x[3] = 0, least / 2, 0, x[3].sign() * least
    x[4], x[5, 99] = x[4].sign() * most, most
    x[6, 99], x[7, 0], x[8] = torch.nan, torch.inf, -torch.inf
    with np.errstate(over="ignore"):
        found = implementation(x, *layer.tensors())
    assert found[6:9].isnan().all()
    assert not found[[0, 1, 2, 3, 5, 9]].isnan().any()
    assert (found[0] == 0).all()
    assert_right(found[[0, 1, 2, 3, 9]], x[[0, 1, 2, 3, 9]], layer)


@each
@sizes
def test_extreme_scales(implementation: Callable[..., Tensor], size: Size) -> None:
    layer = random_layer(20, 100, size)
    layer.channel_scale[:4] = torch.tensor([0, 1e-30, 1e30, -2.0])
    layer.input_scale = torch.logspace(-12, 12, 100)
    x = torch.randn(5, 100) / layer.input_scale
    assert_right(implementation(x, *layer.tensors()), x, layer)


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(implementation: Callable[..., Tensor], dtype: torch.dtype) -> None:
    layer, inside = random_layer(20, 103, 32), torch.randn(6, 103).to(dtype)
    # What lies around the rows would spoil them.
    padded = torch.full((13, 150), torch.nan, dtype=dtype)
    padded[1::2, 7:110] = inside
    across = torch.full((103, 12), torch.nan, dtype=dtype)
    across[:, ::2] = inside.T
    for view in (padded[1::2, 7:110], across.T[::2], inside[:1].expand(4, -1), inside[2:3]):
        assert_right(implementation(view, *layer.tensors()), view, layer)


@each
@sizes
def test_no_rows(implementation: Callable[..., Tensor], size: Size) -> None:
    layer = random_layer(20, 100, size)
    assert implementation(torch.empty(0, 100), *layer.tensors()).shape == (0, 20)


def test_no_out_of_bounds_writes_with_strides() -> None:
    layer = random_layer(21, 70, 32)
    for implementation in COMPILED.values():
        x = torch.randn(3, 70)
        before = [t.clone() for t in (x, layer.weight, layer.channel_scale)]
        first = implementation(x, *layer.tensors())
        kept = first.clone()
        implementation(torch.randn(9, 70), *layer.tensors())
        assert torch.equal(first, kept)
        assert all(torch.equal(a, b) for a, b in zip(before, (x, layer.weight, layer.channel_scale), strict=True))


@pytest.mark.skipif(BEST == AMX or "amx" not in LEVELS, reason="real AMX, which counts nothing, or no emulator for it")
@sizes
def test_amx_is_used_for_many_rows(size: Size) -> None:
    assert FOUND is not None
    with use_vectors(AMX):
        assert FOUND.tersely_w4a8_amx_agrees() == 1
    layer = random_layer(33, 260, size)
    for rows, by_amx in ((4, False), (5, True), (33, True)):
        before = count_emulated()
        COMPILED["amx"](torch.randn(rows, 260), *layer.tensors())
        assert (count_emulated() > before) is by_amx


def test_the_public_function() -> None:
    layer = random_layer(20, 100, 64, extras=True)
    x = torch.randn(2, 3, 100, requires_grad=True)
    found = w4a8_linear(x, *layer.tensors())  # type: ignore[arg-type]
    assert found.shape == (2, 3, 20)
    assert not found.requires_grad
    assert_right(found.flatten(0, 1), x.detach().flatten(0, 1), layer)
    alone = w4a8_linear(x[0, 0], *layer.tensors())  # type: ignore[arg-type]
    assert torch.equal(alone, found[0, 0])


@pytest.mark.parametrize("size", [128, None, "planes"])
def test_rows_are_independent(size: Size) -> None:
    layer = random_layer(50, 300, size)
    x = torch.randn(11, 300)
    together = w4a8_linear(x, *layer.tensors())  # type: ignore[arg-type]
    for row in range(11):
        assert torch.equal(w4a8_linear(x[row : row + 1], *layer.tensors())[0], together[row])  # type: ignore[arg-type]


def test_activations_round_to_even() -> None:
    x8, scale = quantize_rows(torch.tensor([[127, 0.5, 1.5, -2.5, 0.0]]))
    assert x8.tolist() == [[127, 0, 2, -2, 0]]
    assert scale.tolist() == [1.0]


@each
def test_nan_in_16_bits(implementation: Callable[..., Tensor]) -> None:
    layer = random_layer(20, 40, 32)
    # All bits of the fraction: rounding by itself would carry into the sign, and come to a zero.
    layer.bias = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32).repeat(10)
    for dtype in DTYPES[1:]:
        assert implementation(torch.randn(3, 40).to(dtype), *layer.tensors()).isnan().all()


@each
def test_results_round_to_even(implementation: Callable[..., Tensor]) -> None:
    layer = Layer(pack_bytes(torch.tensor([[2, 3], [2, 5], [-2, -3]])), None, torch.ones(3))
    x = torch.tensor([[127, 1]], dtype=torch.bfloat16)
    # 257, 259 and -257 lie in the middle of what bfloat16 has.
    assert implementation(x, *layer.tensors()).tolist() == [[256, 260, -256]]


@each
def test_float16_limits(implementation: Callable[..., Tensor]) -> None:
    steps = torch.arange(-(2**25), 2**25, 4099, dtype=torch.float64).float()
    ties = torch.tensor([2049.0, 2051.0, -2049.0, 65519.0, 65520.0, -65520.0, 2.0**-25, 3 * 2.0**-25, -(2.0**-26)])
    wanted = torch.cat((ties, *(steps * 2.0**power for power in (-40, -37, -25, -9))))
    layer = Layer(pack_bytes(torch.zeros(len(wanted), 4)), None, torch.ones(len(wanted)), bias=wanted)
    found = implementation(torch.ones(1, 4, dtype=torch.float16), *layer.tensors())
    assert torch.equal(found[0], wanted.half())
