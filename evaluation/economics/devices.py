"""Devices by what bounds them, peak FLOP/s and bytes/s: from dated data sheets, or a short probe of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import OptionError, unknown

MEASURE = "measure"
_REPEATS = 7
_LARGEST = 512e6  # bytes read by the probe at most
_SMALLEST = 1e6  # below it the call itself is what gets timed


@dataclass(frozen=True, slots=True)
class Device:
    """A device; FLOP/s by the dtype computed in (dense, 16 bits accumulated in 32, float32 without TF32)."""

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float | None
    source: str

    def peak(self, compute: str) -> float:
        """FLOP/s in a dtype; raises OptionError if the device's are not known."""
        if compute not in self.flops:
            raise unknown(f"dtype on {self.name}", compute, self.flops)
        return self.flops[compute]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; the memory is in bytes."""
        return asdict(self)


def _sheet(name: str, single: float, half: float, bandwidth: float, memory: float, source: str) -> Device:
    """A device from TFLOP/s, GB/s and GB."""
    flops = {"float32": single * 1e12, "bfloat16": half * 1e12, "float16": half * 1e12}
    return Device(name, flops, bandwidth * 1e9, memory * 1e9, source)


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _sheet("A100", 19.5, 312, 2039, 80, "NVIDIA's data sheet of the A100 80GB SXM, 2021"),
        _sheet("H100", 67, 989, 3350, 80, "NVIDIA's data sheet of the H100 SXM, 2023, without sparsity"),
        _sheet("H200", 67, 989, 4800, 141, "NVIDIA's data sheet of the H200 SXM, 2023, without sparsity"),
        _sheet("RTX-4090", 82.6, 165.2, 1008, 24, "NVIDIA's Ada white paper, 2022, without sparsity"),
    )
}


def check_device(name: str) -> None:
    """Raise OptionError for a name that stands for no device."""
    if name != MEASURE and name not in DEVICES:
        raise unknown("device", name, [*DEVICES, MEASURE])


def get_device(name: str, compute: str, footprint: float) -> Device:
    """A device by name, or this machine measured for a dtype and for the bytes that a step will read."""
    check_device(name)
    return measured(compute, footprint) if name == MEASURE else DEVICES[name]


def measured(compute: str, footprint: float) -> Device:
    """This machine (its GPU, if it has one), probed for about a second with a matrix product and a matrix-vector one.

    The vector product reads `footprint` bytes (up to 512 MB), as a decoding step will, because a small model that stays
    in the processor's cache is read faster than memory. The best of a few repeats counts: other load only ever slows.
    """
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if place == "cuda" else 1024
    square = torch.ones(size, size, dtype=getattr(torch, compute), device=place)
    product = _fastest(lambda: square @ square, place)
    width = 4096
    rows = max(1, round(min(max(footprint, _SMALLEST), _LARGEST) / (4 * width)))
    table, vector = torch.ones(rows, width, device=place), torch.ones(width, device=place)
    reading = _fastest(lambda: torch.mv(table, vector), place)
    name = torch.cuda.get_device_name() if place == "cuda" else f"this CPU, {torch.get_num_threads()} thread(s)"
    source = f"measured, best of {_REPEATS}, reading {4 * rows * width / 1e6:.1f} MB"
    return Device(name, {compute: 2.0 * size**3 / product}, 4 * rows * width / reading, None, source)


def _fastest(call: Callable[[], object], place: str) -> float:
    """Seconds of the fastest call, after one that warms up."""
    import torch

    seconds = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        call()
        if place == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def given(tflops: float, gbytes: float, compute: str) -> Device:
    """A device by its TFLOP/s and GB/s."""
    return Device("as given", {compute: tflops * 1e12}, gbytes * 1e9, None, "given on the command line")


def check_given(tflops: float | None, gbytes: float | None) -> bool:
    """Whether a device is given by numbers; raises OptionError for one without the other, or none that is usable."""
    if tflops is None and gbytes is None:
        return False
    for name, value in (("--peak-tflops", tflops), ("--bandwidth-gbs", gbytes)):
        if value is None or not 0 < value < float("inf"):
            got = "is missing" if value is None else f"is {value}"
            raise OptionError(f"{name} {got}; accepted: both --peak-tflops and --bandwidth-gbs, above 0, or --device")
    return True
