"""The signals operation: every implementation against the float64 reference, including edge cases."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tersely.errors import OptionError
from tersely.kernels import native, signals
from tersely.kernels.native import library, share_rows
from tersely.kernels.signals import in_c, in_torch, logit_signals, reference

from ..support.refusals import refused

NAMES = ("entropy", "top", "margin", "log_total")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 17, 63, 64, 65, 2047, 2048, 2049, 4113, 50257)
BEST = native.library().tersely_level() if native.library() else -1  # type: ignore[union-attr]
LEVELS: dict[str, Callable[[Tensor], Tensor]] = {
    name: lambda logits, level=level: in_c(logits, level)  # type: ignore[misc]
    for level, name in enumerate(("any", "avx2", "avx512"))
    if level <= BEST
}
IMPLEMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {"torch": in_torch, **LEVELS}
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def rows_of(columns: int) -> Tensor:
    """Rows of all kinds, float32 [rows, columns]."""
    generator = torch.Generator().manual_seed(columns)

    def noise(scale: float) -> Tensor:
        return torch.randn(columns, generator=generator) * scale

    at = torch.randint(columns, (), generator=generator)
    peaked, masked, single, tied, floor = (noise(3) for _ in range(5))
    peaked[at] = 30
    masked[torch.rand(columns, generator=generator) < 0.7] = -torch.inf
    single[:] = -torch.inf
    masked[at] = single[at] = 1
    tied[at] = tied[0] = tied[-1] = 20
    floor[1:] = torch.finfo(torch.float16).min  # a mask that is finite
    rows = [noise(1), noise(10), peaked, masked, single, tied, floor, noise(1e4), torch.zeros(columns)]
    # The maximum of one rises from block to block, that of the other is there at once.
    rows += [noise(5).sort().values, noise(5).sort(descending=True).values]
    return torch.stack(rows).clamp_(max=6e4)


def assert_right(found: Tensor, logits: Tensor) -> None:
    """Assert closeness to the reference: entropy and log-sum-exp within 1e-5 nats, probabilities relatively."""
    expected = reference(logits)
    assert found.dtype == torch.float32
    for name, got in zip(NAMES, found, strict=True):
        relative = {"top": 1e-5, "margin": 1e-5, "log_total": 2e-7}.get(name, 0.0)
        absolute = {"top": 1e-9, "margin": 1e-7}.get(name, 1e-5)
        np.testing.assert_allclose(got, getattr(expected, name), relative, absolute, err_msg=name)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Empty caches, before and after the test."""
    caches = (native.torch_only, native.library, signals._implementation)
    for cache in caches:
        cache.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_reference_by_hand() -> None:
    found = reference(torch.tensor([0.5, 0.25, 0.25, 0]).log()[None] + 3)
    values = [getattr(found, name).item() for name in NAMES]
    assert values == pytest.approx([1.5 * torch.log(torch.tensor(2.0)).item(), 0.5, 0.25, 3.0])


def test_the_library_is_built() -> None:
    if not shutil.which("cc") and not shutil.which("gcc"):
        pytest.skip("no C compiler, so the operations run in torch here")
    assert library(), "the C sources did not compile: see `pip install -v -e .`"
    assert signals._implementation("cpu") is in_c


def test_every_c_file_is_built() -> None:
    root = Path(__file__).resolve().parents[2]
    (extension,) = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    files = {str(path.relative_to(root)) for path in (root / "kernels" / "csrc").iterdir()}
    assert {*extension["sources"], *extension["depends"]} == files


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(implementation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for columns in SIZES:
        logits = rows_of(columns).to(dtype)
        assert_right(implementation(logits), logits)


@each
def test_a_large_vocabulary(implementation: Callable[[Tensor], Tensor]) -> None:
    logits = rows_of(151_936)
    assert_right(implementation(logits), logits)


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_results(implementation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    single = torch.full((1, 5000), -torch.inf, dtype=dtype)
    single[0, 4321] = 7
    assert implementation(single).squeeze().tolist() == [0, 1, 1, 7]
    assert implementation(torch.zeros(1, 4096, dtype=dtype))[1:3].squeeze().tolist() == [1 / 4096, 0]
    assert implementation(torch.full((1, 1), -3.0, dtype=dtype)).squeeze().tolist() == [0, 1, 1, -3]


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [0, 1500, 2100, 4999])
def test_rows_without_a_distribution(implementation: Callable[[Tensor], Tensor], dtype: torch.dtype, at: int) -> None:
    logits = torch.linspace(-200, 200, 5000).repeat(5, 1)
    logits[1, at], logits[2, at], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, torch.arange(5000) != at] = -torch.inf
    found = implementation(logits.to(dtype))
    assert found[:, 1:4].isnan().all()
    assert_right(found[:, [0, 4]], logits[[0, 4]].to(dtype))


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(implementation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    inside = torch.randn(6, 1003).to(dtype)
    # What lies around the rows would spoil them.
    padded = torch.full((13, 1100), torch.nan, dtype=dtype)
    padded[1::2, 7:1010] = inside
    across = torch.full((1003, 12), torch.nan, dtype=dtype)
    across[:, ::2] = inside.T
    views = [padded[1::2, 7:1010], across.T[::2], inside[:1].expand(4, -1), inside[:, :1], inside[2:3]]
    for view in views:
        assert_right(implementation(view), view)


@each
def test_no_rows(implementation: Callable[[Tensor], Tensor]) -> None:
    assert implementation(torch.empty(0, 151_936)).shape == (4, 0)


def test_the_public_function() -> None:
    logits = torch.randn(3, 1000).requires_grad_()
    found = logit_signals(logits)
    assert_right(torch.stack([getattr(found, name) for name in NAMES]), logits)
    assert not found.entropy.requires_grad
    chances = (logits.detach() - found.log_total[:, None]).exp()
    assert chances.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert logit_signals(torch.empty(0, 5)).margin.shape == (0,)


@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(5),
        torch.zeros(1, 2, 5),
        torch.zeros(2, 0),
        torch.zeros(2, 5, dtype=torch.int64),
        torch.zeros(2, 5, dtype=torch.float64),
    ],
    ids=lambda logits: f"{logits.dtype}{list(logits.shape)}",
)
def test_invalid_arguments_are_refused(logits: Tensor) -> None:
    with pytest.raises(OptionError):
        logit_signals(logits)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_rows(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    met, seen = threading.Barrier(threads, timeout=20), []

    def work(start: int, stop: int) -> None:
        met.wait()  # passes only if the parts run at the same time
        seen.append((start, stop))

    logits = torch.randn(7, 1 << 19)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # vLLM in this process blocks set_num_threads
    share_rows(work, *logits.shape)
    shared = logit_signals(logits)
    assert len(seen) == threads
    assert sorted(row for start, stop in seen for row in range(start, stop)) == list(range(7))
    assert_right(torch.stack([getattr(shared, name) for name in NAMES]), logits)


def test_small_work_stays_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    share_rows(lambda start, stop: seen.append((start, stop)), 32, 1000)
    assert seen == [(0, 32)]


def test_errors_in_other_threads_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(start: int, stop: int) -> None:
        if start:
            raise OSError("no")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(OSError):  # noqa: PT011
        share_rows(work, 2, 1 << 20)


def test_the_environment_can_select_torch(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("TERSELY_KERNELS", "torch")
    assert library() is None
    assert signals._implementation("cpu") is signals._implementation("cuda") is in_torch


def test_invalid_environment_values_are_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("TERSELY_KERNELS", "tourch")
    with refused(OptionError, "unknown_name"):
        logit_signals(torch.zeros(1, 2))


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_fallback_to_torch_without_the_library(
    fresh: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    if content:
        (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(content)
    fresh.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert library() is None
    assert signals._implementation("cpu") is in_torch
    assert logit_signals(torch.zeros(1, 4)).top.tolist() == [0.25]


def test_libraries_of_other_versions_are_ignored(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(native, "ABI", -1)
    assert library() is None


def test_the_folder_imports_nothing() -> None:
    code = "import sys, tersely.kernels; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def in_other_process(code: str, folder: Path, **environment: str) -> None:
    """Run Python in a process of its own, where Triton is to be imported: it reads its environment but once."""
    if not importlib.util.find_spec("triton"):
        pytest.skip("Triton is not installed")
    own = os.environ | {"TRITON_CACHE_DIR": str(folder / "cache")} | environment
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_triton_equals_the_reference(tmp_path: Path) -> None:
    spoilt = torch.zeros(4, 4500)
    spoilt[0, 4400], spoilt[1, 0], spoilt[2] = torch.nan, torch.inf, -torch.inf
    cases = [rows_of(columns).to(dtype) for columns in (1, 2, 17, 4097, 9001) for dtype in DTYPES]
    cases += [spoilt, torch.randn(40, 6).T, torch.randn(4, 50)[::2, 3:40], torch.empty(0, 5)]
    torch.save(cases, tmp_path / "cases")
    code = """
import sys, torch
from tersely.kernels.signals_triton import in_triton
cases = torch.load(f"{sys.argv[1]}/cases")
torch.save([in_triton(case) for case in cases], f"{sys.argv[1]}/found")
"""
    in_other_process(code, tmp_path, TRITON_INTERPRET="1")
    for case, found in zip(cases, torch.load(tmp_path / "found"), strict=True):
        assert_right(found, case)
        for other in IMPLEMENTATIONS.values():
            np.testing.assert_allclose(found, other(case), rtol=1e-5, atol=1e-5)


def test_triton_compiles_for_gpus(tmp_path: Path) -> None:
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tersely.kernels.signals_triton import _pass
types = {"out": "*fp32", "rows": "i32", "columns": "i32", "stride": "i64", "block": "constexpr"}
for kind, capability in (("fp32", 80), ("bf16", 90), ("fp16", 90)):
    source = ASTSource(fn=_pass, signature={"logits": f"*{kind}"} | types, constexprs={"block": 4096})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
"""
    in_other_process(code, tmp_path)
