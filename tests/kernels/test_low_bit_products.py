"""Low-bit integer products: every implementation equals the reference, for all widths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tersely.errors import OptionError
from tersely.kernels import native
from tersely.kernels.research import bit_planes, lut_gemv
from tersely.kernels.research.bit_planes import BitPlanes, bit_plane_linear
from tersely.kernels.research.lut_gemv import LutWeight, lut_linear

from ..support.refusals import refused

FOUND = native.library()
BEST = {
    "lut": FOUND.tersely_lut_level() if FOUND is not None and hasattr(FOUND, "tersely_lut_level") else -1,
    "planes": FOUND.tersely_planes_level() if FOUND is not None and hasattr(FOUND, "tersely_planes_level") else -1,
}
LEVELS = ("any", "avx2", "avx512")
# Outputs and inputs around whole tiles, chunks and lines, and past what 16 bits hold.
SHAPES = ((1, 1), (3, 5), (31, 16), (32, 63), (33, 64), (65, 240), (40, 515), (7, 1100))
Rows = Callable[..., Tensor]


def implementations(name: str, reference: Rows, in_c: Rows) -> dict[str, Rows]:
    levels = {word: level for level, word in enumerate(LEVELS) if level <= BEST[name]}
    return {"torch": reference} | {
        word: lambda *given, level=level: in_c(*given, level=level)  # type: ignore[misc]
        for word, level in levels.items()
    }


LUT = implementations("lut", lut_gemv.reference, lut_gemv.in_c)
PLANES = implementations("planes", bit_planes.reference, bit_planes.in_c)
each_lut = pytest.mark.parametrize("implementation", LUT.values(), ids=LUT)
each_planes = pytest.mark.parametrize("implementation", PLANES.values(), ids=PLANES)
LUT_BITS = pytest.mark.parametrize("bits", lut_gemv.BITS)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Empty caches, before and after the test."""
    caches = [native.torch_only, native.library]
    for cache in caches:
        cache.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def draw(bits: int, *shape: int) -> Tensor:
    return torch.randint(1 << bits, shape, dtype=torch.uint8)


def activations(*shape: int) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def worth(codes: Tensor, bits: int) -> Tensor:
    """The odd integer that a code represents."""
    return 2 * codes.long() - (1 << bits) + 1


def views(inside: Tensor, spoilt: int) -> list[Tensor]:
    """The same rows with various strides, surrounded by other values."""
    rows, columns = inside.shape
    padded = torch.full((2 * rows + 1, columns + 9), spoilt, dtype=inside.dtype)
    padded[1::2, 7:-2] = inside
    across = torch.full((columns, 2 * rows), spoilt, dtype=inside.dtype)
    across[:, ::2] = inside.T
    return [padded[1::2, 7:-2], across.T[::2], inside[:1].expand(4, -1), inside[2:3]]


def multiply_without(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both products, for which calling one of their implementations would be an error."""
    for module in (lut_gemv, bit_planes):
        monkeypatch.setattr(module, implementation, None)
    assert lut_linear(activations(1, 8), lut_gemv.pack(draw(2, 3, 8), 2)).shape == (1, 3)
    assert bit_plane_linear(draw(2, 1, 8), 2, bit_planes.pack(draw(2, 3, 8), 2)).shape == (1, 3)


def test_the_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if FOUND is None:
        pytest.skip("no C compiler, so the operations run in torch here")
    assert min(BEST.values()) >= 0, "the shelf's C is not in the library: see `pip install -v -e .`"
    multiply_without("reference", monkeypatch)


def test_research_is_imported_by_nothing_else() -> None:
    shelf = Path(lut_gemv.__file__).parent
    homes = "controller evaluation kernels probes tersely training".split()
    files = [file for home in homes for file in (shelf.parents[1] / home).rglob("*.py") if file.parent != shelf]
    assert len(files) > 50
    wrong = re.compile(r"^\s*(from|import)\b.*\bshelf\b", re.MULTILINE)
    assert [file for file in files if wrong.search(file.read_text(encoding="utf-8"))] == []


@pytest.mark.usefixtures("fresh")
def test_fallback_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSELY_KERNELS", "torch")
    multiply_without("in_c", monkeypatch)


def test_tables_by_hand() -> None:
    weight = lut_gemv.pack(torch.tensor([[0, 1, 2, 3, 1], [3, 3, 3, 3, 0]]), 2)  # -3 -1 1 3 -1 and 3 3 3 3 -3
    assert weight.lines.shape == (1, 1, 2, 64)
    # Low bits 0 1 0 1, high bits 0 0 1 1: the last one is taken, so the others are turned round.
    assert weight.lines[0, 0, :, 0].tolist() == [(0b1101 | 0b0001 << 4), 0b1011]
    assert weight.lines[0, 0, :, 2].tolist() == [0b1000, 0b1000]
    assert lut_gemv.unpack(weight).tolist() == [[-3, -1, 1, 3, -1], [3, 3, 3, 3, -3]]
    found = lut_linear(torch.tensor([[10, 20, 30, 40, 5]], dtype=torch.int8), weight)
    assert found.tolist() == [[-30 - 20 + 30 + 120 - 5, 300 - 15]]


@LUT_BITS
def test_tables_are_packed_and_unpacked(bits: int) -> None:
    for outputs, inputs in SHAPES:
        codes = draw(bits, outputs, inputs)
        assert torch.equal(lut_gemv.unpack(lut_gemv.pack(codes, bits)).long(), worth(codes, bits))
        assert torch.equal(lut_gemv.pack(codes.T.long().contiguous().T, bits).lines, lut_gemv.pack(codes, bits).lines)


@each_lut
@LUT_BITS
def test_tables_equal_the_reference(implementation: Rows, bits: int) -> None:
    for outputs, inputs in SHAPES:
        codes = draw(bits, outputs, inputs)
        weight = lut_gemv.pack(codes, bits)
        for rows in (0, 1, 3):
            x = activations(rows, inputs)
            found = implementation(x, weight)
            assert found.dtype == torch.int32 and found.shape == (rows, outputs)
            assert torch.equal(found, lut_gemv.reference(x, weight))
            assert torch.equal(found.long(), x.long() @ worth(codes, bits).T)


@each_lut
@LUT_BITS
def test_the_largest_sums_of_tables(implementation: Rows, bits: int) -> None:
    ends = torch.tensor([0, (1 << bits) - 1])
    for inputs in (240, 241, 1023, 4864):
        weight = lut_gemv.pack(ends[:, None].expand(2, inputs), bits)
        most = ((1 << bits) - 1) * inputs
        x = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, inputs)
        assert implementation(x, weight).tolist() == [[128 * most, -128 * most], [-127 * most, 127 * most]]


def test_the_deepest_tables() -> None:
    inputs = lut_gemv.DEEPEST
    shape = (1, inputs // 16, 4, 64)
    weight = LutWeight(torch.full(shape, 0x88, dtype=torch.uint8), 1, inputs)  # codes of 15, as above
    x = torch.full((1, inputs), -128, dtype=torch.int8)
    assert {f(x, weight).item() for name, f in LUT.items() if name != "torch"} <= {-128 * 15 * inputs}


@each_lut
def test_strides_of_tables(implementation: Rows) -> None:
    weight = lut_gemv.pack(draw(3, 40, 103), 3)
    for view in views(activations(6, 103), 127):
        assert torch.equal(implementation(view, weight), lut_gemv.reference(view.contiguous(), weight))


def test_codes_with_a_zero_follow_from_symmetric_ones() -> None:
    codes, zero, x = draw(4, 40, 100), 5, activations(2, 100)
    doubled = lut_linear(x, lut_gemv.pack(codes, 4)) + (15 - 2 * zero) * x.sum(dim=1, dtype=torch.int32)[:, None]
    assert torch.equal(doubled.long(), 2 * (x.long() @ (codes.long() - zero).T))


def test_planes_by_hand() -> None:
    weight = bit_planes.pack(torch.tensor([[0, 5, 7], [7, 7, 2]]), 3)  # -7 3 7 and 7 7 -3
    assert weight.words.shape == (2, 3, 8)
    assert weight.words[0, :, 0].tolist() == [0b110, 0b100, 0b110]
    assert bit_planes.unpack(weight).tolist() == [[-7, 3, 7], [7, 7, -3]]
    found = bit_plane_linear(torch.tensor([[1, 0, 1]], dtype=torch.uint8), 1, weight)
    assert found.tolist() == [[-7 - 3 + 7, 7 - 7 - 3]]


@pytest.mark.skipif(BEST["planes"] < 0, reason="nothing is compiled")
def test_c_and_torch_pack_planes_alike() -> None:
    for bits in (1, 5, 8):
        for inputs in (1, 63, 64, 65, 511, 512, 513):
            codes = draw(bits, 3, inputs)
            expected = bit_planes.pack(codes, bits)
            assert torch.equal(bit_planes.unpack(expected).long(), worth(codes, bits))
            found = torch.full_like(expected.words, -1)
            given = (codes.data_ptr(), 3, inputs, inputs, bits, found.data_ptr(), found.shape[2])
            seen = FOUND.tersely_planes_pack(*given)  # type: ignore[union-attr]
            assert torch.equal(found, expected.words)
            assert not seen >> bits


@each_planes
@pytest.mark.parametrize("bits", bit_planes.BITS)
def test_planes_equal_the_reference(implementation: Rows, bits: int) -> None:
    for at, (outputs, inputs) in enumerate(SHAPES):
        for width in {1, 8, 1 + at}:
            weights = draw(width, outputs, inputs)
            weight = bit_planes.pack(weights, width)
            codes = draw(bits, at % 3, inputs)
            found = implementation(codes, bits, weight)
            assert found.dtype == torch.int32 and found.shape == (at % 3, outputs)
            assert torch.equal(found, bit_planes.reference(codes, bits, weight))
            assert torch.equal(found.long(), worth(codes, bits) @ worth(weights, width).T)


@each_planes
def test_the_largest_sums_of_planes(implementation: Rows) -> None:
    for bits, width, inputs in ((8, 8, 33_025), (8, 1, 70_001), (3, 5, 4864), (1, 1, 513)):
        most = ((1 << bits) - 1) * ((1 << width) - 1) * inputs
        ends = [torch.tensor([[0], [(1 << n) - 1]], dtype=torch.uint8).expand(2, inputs) for n in (bits, width)]
        found = implementation(ends[0], bits, bit_planes.pack(ends[1], width))
        assert found.tolist() == [[most, -most], [-most, most]]


@each_planes
def test_strides_of_planes(implementation: Rows) -> None:
    weight = bit_planes.pack(draw(5, 40, 103), 5)
    for view in views(draw(3, 6, 103), 255):
        assert torch.equal(implementation(view, 3, weight), bit_planes.reference(view.contiguous(), 3, weight))


def test_the_public_functions_take_any_leading_shape() -> None:
    lut, planes = lut_gemv.pack(draw(2, 20, 50), 2), bit_planes.pack(draw(3, 20, 50), 3)
    x, codes = activations(2, 3, 50), draw(7, 2, 3, 50)
    for found, again, alone in (
        (lut_linear(x, lut), lut_gemv.reference(x.flatten(0, 1), lut), lut_linear(x[0, 0], lut)),
        (
            bit_plane_linear(codes, 7, planes),
            bit_planes.reference(codes.flatten(0, 1), 7, planes),
            bit_plane_linear(codes[0, 0], 7, planes),
        ),
    ):
        assert torch.equal(found.flatten(0, 1), again)
        assert torch.equal(alone, found[0, 0])
    assert lut_linear(x[:0], lut).shape == bit_plane_linear(codes[:0], 7, planes).shape == (0, 3, 20)


def test_threads_share_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    weights, x, codes = draw(4, 1000, 1000), activations(4, 1000), draw(3, 4, 1000)
    lut, planes = lut_gemv.pack(weights, 4), bit_planes.pack(weights, 4)
    assert torch.equal(lut_linear(x, lut), lut_gemv.reference(x, lut))
    assert torch.equal(bit_plane_linear(codes, 3, planes), bit_planes.reference(codes, 3, planes))


@pytest.mark.parametrize(
    "call",
    [
        lambda: lut_gemv.pack(draw(2, 3, 5), 5),
        lambda: lut_gemv.pack(draw(2, 3, 5) + 1, 2),
        lambda: lut_gemv.pack(torch.zeros(3, 5), 2),
        lambda: lut_gemv.pack(draw(2, 5), 2),
        lambda: lut_gemv.pack(draw(2, 0, 5), 2),
        lambda: LutWeight(torch.zeros(1, 1, 2, 32, dtype=torch.uint8), 3, 5),
        lambda: LutWeight(torch.zeros(1, 1, 2, 64, dtype=torch.uint8), 33, 5),
        lambda: LutWeight(torch.zeros(1, 1, 2, 64), 3, 5),
        lambda: LutWeight(draw(8, 1, 1, 64, 2).mT, 3, 5),
        lambda: lut_linear(draw(2, 1, 50), lut_gemv.pack(draw(2, 3, 50), 2)),
        lambda: lut_linear(activations(1, 49), lut_gemv.pack(draw(2, 3, 50), 2)),
        lambda: lut_linear(activations(50).to("meta"), lut_gemv.pack(draw(2, 3, 50), 2)),
        lambda: bit_planes.pack(draw(2, 3, 5), 0),
        lambda: bit_planes.pack(draw(3, 3, 99).long() - 1, 2),
        lambda: bit_planes.pack(torch.zeros(3, 5), 2),
        lambda: bit_planes.pack(draw(2, 5, 0), 2),
        lambda: BitPlanes(torch.zeros(1, 2, 1, dtype=torch.int64), 64),
        lambda: BitPlanes(torch.zeros(1, 9, 8, dtype=torch.int64), 64),
        lambda: bit_plane_linear(draw(2, 1, 50), 9, bit_planes.pack(draw(2, 3, 50), 2)),
        lambda: bit_plane_linear(draw(2, 1, 9).long(), 2, bit_planes.pack(draw(2, 3, 9), 2)),
        lambda: bit_plane_linear(draw(2, 1, 49), 2, bit_planes.pack(draw(2, 3, 50), 2)),
        lambda: bit_plane_linear(draw(3, 1, 99), 2, bit_planes.pack(draw(2, 3, 99), 2)),
        lambda: bit_plane_linear(draw(8, 1, 33_026), 8, bit_planes.pack(draw(8, 1, 33_026), 8)),
    ],
    ids=range(23),
)
def test_invalid_arguments_are_refused(call: Callable[[], object]) -> None:
    with refused(OptionError):
        call()


@each_planes
def test_codes_with_too_many_bits_are_refused(implementation: Rows) -> None:
    weight, codes = bit_planes.pack(draw(2, 3, 99), 2), draw(3, 2, 99) & 3
    codes[1, 98] = 4
    with pytest.raises(OptionError):
        implementation(codes, 2, weight)
