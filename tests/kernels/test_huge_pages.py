"""Tensors in huge pages, and systems without them."""

from __future__ import annotations

import gc
import mmap
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tersely.kernels import w4a8_layout as pages

from ..support.mapped import is_in_huge_pages, needs_huge_pages

SIZES = [(3,), (), (0, 4), (5, 7, 2), (1 << 10, 64), (40 << 20,)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
def test_zeros_equal_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = pages.zeros(shape, dtype)
    assert torch.equal(made, torch.zeros(shape, dtype=dtype)) and made.dtype == dtype
    assert made.data_ptr() % 64 == 0 and made.is_contiguous()
    made += 1
    assert bool((made == 1).all()), "they can be written to"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No arena yet."""
    monkeypatch.setattr(pages, "_open", None)


@needs_huge_pages
def test_small_tensors_share_huge_pages(fresh: None) -> None:
    few, many = pages.zeros((100,), torch.uint8), pages.zeros((40 << 20,), torch.uint8)
    more = pages.zeros((100,), torch.uint8)
    assert all(map(is_in_huge_pages, (few, many, more)))
    assert more.data_ptr() - few.data_ptr() == 128, "on lines of their own"


def test_tensors_do_not_overlap(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(size: int) -> mmap.mmap:
        time.sleep(0.05)
        return mmap.mmap(-1, size)

    monkeypatch.setattr(pages, "_map", slowly)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: pages.zeros((1 + i * 37 % 4000,), torch.int64).fill_(i), range(400)))
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(made))
    places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in made)
    assert all(a + size <= b for (a, size), (b, _) in pairwise(places))
    assert places[-1][0] - places[0][0] < 64 << 20, "one room has place for all"


def test_copies_are_equal() -> None:
    given = torch.randn(30, 50, dtype=torch.bfloat16).T
    made = pages.to_huge_pages(given)
    assert torch.equal(made, given) and made.is_contiguous() and made.data_ptr() != given.data_ptr()
    elsewhere = torch.empty(3, device="meta")
    assert pages.to_huge_pages(elsewhere) is elsewhere
    with torch.device("meta"):
        assert pages.zeros((3,), torch.uint8).device.type == "meta"
        assert torch.equal(pages.to_huge_pages(given), given)


@pytest.mark.parametrize("size", [100, 40 << 20], ids=["small", "large"])
def test_memory_is_freed(fresh: None, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    rooms: list[weakref.ref[mmap.mmap]] = []

    def ask(size: int) -> mmap.mmap:
        made = mmap.mmap(-1, size)
        rooms.append(weakref.ref(made))
        return made

    monkeypatch.setattr(pages, "_map", ask)
    many: Tensor | None = pages.zeros((size,), torch.uint8)
    part = many[5:] if many is not None else None
    del many
    gc.collect()
    assert part is not None and rooms[0]() is not None, "a part of it is still used"
    del part
    gc.collect()
    assert rooms[0]() is None


@pytest.mark.parametrize("why", ["another system", "a kernel without them"])
def test_systems_without_huge_pages(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "another system":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 10_000, raising=False)  # which madvise refuses
    for shape in SIZES:
        assert torch.equal(pages.zeros(shape, torch.int32), torch.zeros(shape, dtype=torch.int32))
    given = torch.randn(7, 3)
    assert torch.equal(pages.to_huge_pages(given), given)


def test_fallback_to_torch_if_mapping_fails(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> mmap.mmap:
        raise OSError(12, f"cannot map {size} bytes")

    monkeypatch.setattr(pages, "_map", refuse)
    assert torch.equal(pages.zeros((5,), torch.uint8), torch.zeros(5, dtype=torch.uint8))
