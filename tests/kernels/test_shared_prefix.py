"""Shared-prefix attention equals attention on the expanded cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersely.errors import OptionError
from tersely.kernels.research import shared_prefix
from tersely.kernels.research.shared_prefix import in_flash, in_torch, merge, shared_prefix_attention

from ..support.refusals import refused

Shape = tuple[int, int, int, int, int, int]  # rows, heads, kv_heads, prefix, suffix, dim
SHAPES: list[Shape] = [
    (3, 14, 2, 130, 33, 64),
    (1, 4, 4, 5, 1, 16),
    (2, 6, 1, 1, 9, 1),
    (5, 3, 3, 257, 70, 80),
    (9, 8, 2, 31, 7, 5),
]


def reference(
    query: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    suffix_keys: Tensor,
    suffix_values: Tensor,
    *,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The definition: torch's attention with a copy of the prefix in each row."""
    rows, heads = query.shape[:2]
    keys, values = (
        torch.cat([shared.expand(rows, *shared.shape), own], dim=2).repeat_interleave(heads // len(shared), dim=1)
        for shared, own in ((prefix_keys, suffix_keys), (prefix_values, suffix_values))
    )
    seen = None
    if lengths is not None:
        seen = (torch.arange(keys.shape[2]) < prefix_keys.shape[1] + lengths[:, None])[:, None, None]
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scale)


def parts(shape: Shape, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Tensor]:
    """A query and both parts of the cache; scale: of the query."""
    rows, heads, kv_heads, prefix, suffix, dim = shape
    generator = torch.Generator().manual_seed(sum(shape))
    shared, own = (kv_heads, prefix, dim), (rows, kv_heads, suffix, dim)
    made = [torch.randn(size, generator=generator) for size in ((rows, heads, 1, dim), shared, shared, own, own)]
    return [(made[0] * scale).to(dtype), *(part.to(dtype) for part in made[1:])]


def ragged(rows: int, suffix: int) -> Tensor:
    """Lengths from nothing to everything."""
    return torch.arange(rows) * suffix // max(1, rows - 1)


def assert_right(given: list[Tensor], lengths: Tensor | None = None) -> None:
    """Assert closeness to torch on the expanded cache, depending on the dtype."""
    found = shared_prefix_attention(*given, lengths=lengths)
    assert found.shape == given[0].shape and found.dtype == given[0].dtype
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, reference(*given, lengths=lengths), atol=1e-5, rtol=1e-5)
    truth = reference(*(part.double() for part in given), lengths=lengths)
    bound = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[found.dtype]
    torch.testing.assert_close(found.double(), truth, atol=bound, rtol=bound)


@pytest.fixture(params=[in_flash, in_torch], ids=["flash", "torch"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix, "_implementation", lambda device: request.param)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_equals_attention_on_the_expanded_cache(shape: Shape, dtype: torch.dtype) -> None:
    given = parts(shape, dtype)
    assert_right(given)
    assert_right(given, ragged(shape[0], shape[4]))
    assert_right(given, ragged(shape[0], shape[4]).int())


@pytest.mark.usefixtures("implementation")
def test_strides() -> None:
    given = parts((3, 6, 2, 12, 5, 16))
    for axes in ((0, 1), (1, 2), (0, 2)):
        turned = [part.transpose(*axes).contiguous().transpose(*axes) for part in given]
        assert_right(turned, torch.tensor([5, 0, 3]))
    apart = [torch.full((*part.shape[:-1], 32), torch.nan) for part in given]
    for wide, part in zip(apart, given, strict=True):
        wide[..., ::2] = part
    assert_right([wide[..., ::2] for wide in apart], torch.tensor([1, 5, 0]))
    one_row = [given[0][:1].expand_as(given[0]), *given[1:3], *(part[:1].expand_as(part) for part in given[3:])]
    assert_right(one_row)


@pytest.mark.usefixtures("implementation")
def test_empty_parts() -> None:
    assert shared_prefix_attention(*parts((0, 4, 2, 7, 3, 8))).shape == (0, 4, 1, 8)
    assert_right(parts((3, 4, 2, 0, 6, 8)))
    assert_right(parts((3, 4, 2, 0, 6, 8)), torch.tensor([1, 6, 3]))
    assert_right(parts((3, 4, 2, 6, 0, 8)))
    assert_right(parts((3, 4, 2, 6, 5, 8)), torch.zeros(3, dtype=torch.long))
    assert shared_prefix_attention(*parts((2, 4, 2, 0, 0, 8))).isnan().all()
    nothing = shared_prefix_attention(*parts((2, 4, 2, 0, 3, 8)), lengths=torch.tensor([0, 2]))
    assert nothing[0].isnan().all() and not nothing[1].isnan().any()


@pytest.mark.usefixtures("implementation")
def test_extreme_logits_overflow_nothing() -> None:
    for sign in (1.0, -1.0):
        given = parts((4, 6, 2, 9, 4, 16))
        given[0], given[1] = torch.full_like(given[0], 100.0), torch.full_like(given[1], 25.0 * sign)  # logits +-1e4
        given[3] = -given[3].sign().abs() * 25.0 * sign
        assert_right(given)
        assert_right(given, torch.tensor([0, 4, 1, 2]))
    assert_right(parts((4, 6, 2, 40, 20, 16), scale=1e4))
    tiny = parts((4, 6, 2, 40, 20, 16), scale=1e-30)
    torch.testing.assert_close(shared_prefix_attention(*tiny)[0, 0, 0], torch.cat([tiny[2][0], tiny[4][0, 0]]).mean(0))


def test_scale_and_no_gradients() -> None:
    given = parts((2, 4, 2, 9, 4, 16))
    found = shared_prefix_attention(given[0].requires_grad_(), *given[1:], scale=0.7)
    torch.testing.assert_close(found, reference(*given, scale=0.7).detach(), atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_merging_by_hand() -> None:
    outputs = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([[torch.nan, torch.nan]]))
    totals = (torch.tensor([1e4]) + torch.tensor(3.0).log(), torch.tensor([1e4]), torch.tensor([-torch.inf]))
    torch.testing.assert_close(merge(outputs, totals), torch.tensor([[0.75, 1.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {0: (3, 6, 2, 8)},
        {0: (3, 5, 1, 8)},
        {0: (2, 6, 1, 8)},
        {1: (2, 7, 9), 2: (2, 7, 9)},
        {2: (2, 6, 8)},
        {4: (3, 2, 5, 8)},
        {3: (3, 1, 4, 8), 4: (3, 1, 4, 8)},
        {1: (7, 8), 2: (7, 8)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[int, tuple[int, ...]]) -> None:
    given = parts((3, 6, 2, 7, 4, 8))
    for at, shape in change.items():
        given[at] = torch.zeros(shape)
    with refused(OptionError):
        shared_prefix_attention(*given)


def test_dtypes_and_lengths_that_do_not_fit_are_refused() -> None:
    given = parts((3, 6, 2, 7, 4, 8))
    with refused(OptionError):
        shared_prefix_attention(given[0].bfloat16(), *given[1:])
    with refused(OptionError):
        shared_prefix_attention(*(part.double() for part in given))
    for lengths in (torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.ones(3, dtype=torch.bool)):
        with refused(OptionError):
            shared_prefix_attention(*given, lengths=lengths)
    for number in (-1, 5):
        with refused(OptionError):
            shared_prefix_attention(*given, lengths=torch.tensor([1, 2, number]))
