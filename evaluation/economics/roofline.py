"""The roofline of a model on a device (arXiv 2402.16363): what bounds its two phases, and the most tokens per second.

Only weights and key-value cache are counted. Activations, launches and communication come on top, so an engine that
decodes one token per step cannot be faster. Prefill reads `context` tokens of each sequence; decoding is one step at
that length. A device is known by its data sheet, by a short measurement of this machine, or by the user's numbers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ...controller.options import flag
from ...errors import ModelError, OptionError, check_known
from ...io import render_text
from ..cli_utils import Json, format_table, takes
from .flops import STORAGE, ModelShape, get_storage, load_shape, prefill_flops, token_flops
from .latency import fit_runtime, predict_step, read_timings

MEASURE = "measure"  # the device name that stands for this machine
_REPEATS = 7
_MAX_READ, _MIN_READ = 512e6, 1e6  # bytes; below the minimum, the overhead of the call dominates


@dataclass(frozen=True, slots=True)
class Device:
    """A device by its two limits: FLOP/s by compute dtype, and bytes per second; `memory` is in bytes, if known.

    FLOP/s are dense, 16 bits accumulated in 32, float32 without TF32. `source` says where the numbers are from.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float | None
    source: str

    def peak(self, compute: str) -> float:
        """Return the FLOP/s in a dtype; raises OptionError if they are not known."""
        check_known(f"dtype on {self.name}", compute, self.flops)
        return self.flops[compute]


def _from_data_sheet(name: str, single: float, half: float, bandwidth: float, memory: float, source: str) -> Device:
    flops = {"float32": single * 1e12, "bfloat16": half * 1e12, "float16": half * 1e12}
    return Device(name, flops, bandwidth * 1e9, memory * 1e9, source)


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _from_data_sheet("A100", 19.5, 312, 2039, 80, "NVIDIA's data sheet of the A100 80GB SXM, 2021"),
        _from_data_sheet("H100", 67, 989, 3350, 80, "NVIDIA's data sheet of the H100 SXM, 2023, without sparsity"),
        _from_data_sheet("H200", 67, 989, 4800, 141, "NVIDIA's data sheet of the H200 SXM, 2023, without sparsity"),
        _from_data_sheet("RTX-4090", 82.6, 165.2, 1008, 24, "NVIDIA's Ada white paper, 2022, without sparsity"),
    )
}


def measure_device(compute: str, footprint: float) -> Device:
    """Measure this machine (its GPU, if it has one) for about a second.

    The compute limit is that of a matrix product. The bandwidth is that of a matrix-vector product which reads
    `footprint` bytes (up to 512 MB), as a decoding step does, because a small model that stays in the processor's cache
    is read faster than memory. The best of a few repeats counts, since other load can only slow them down.
    """
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if place == "cuda" else 1024
    square = torch.ones(size, size, dtype=getattr(torch, compute), device=place)
    product_seconds = _time_fastest(lambda: square @ square, place)
    width = 4096
    rows = max(1, round(min(max(footprint, _MIN_READ), _MAX_READ) / (4 * width)))
    table, vector = torch.ones(rows, width, device=place), torch.ones(width, device=place)
    reading_seconds = _time_fastest(lambda: torch.mv(table, vector), place)
    name = torch.cuda.get_device_name() if place == "cuda" else f"this CPU, {torch.get_num_threads()} thread(s)"
    source = f"measured, best of {_REPEATS}, reading {4 * rows * width / 1e6:.1f} MB"
    flops = {compute: 2.0 * size**3 / product_seconds}
    return Device(name, flops, 4 * rows * width / reading_seconds, None, source)


def _time_fastest(call: Callable[[], object], place: str) -> float:
    import torch

    seconds = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        call()
        if place == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def custom_device(tflops: float | None, gbytes: float | None, compute: str) -> Device | None:
    """Build a device from the user's TFLOP/s and GB/s, if given; raises OptionError if only one is usable."""
    if tflops is None and gbytes is None:
        return None
    for name, value in (("--peak-tflops", tflops), ("--bandwidth-gbs", gbytes)):
        if value is None or not 0 < value < float("inf"):
            got = "is missing" if value is None else f"is {value}"
            raise OptionError(f"{name} {got}; accepted: both --peak-tflops and --bandwidth-gbs, above 0, or --device")
    assert tflops is not None and gbytes is not None
    return Device("as given", {compute: tflops * 1e12}, gbytes * 1e9, None, "given on the command line")


@dataclass(frozen=True, slots=True)
class Phase:
    """The bound of prefill or decoding; `tokens_per_second` is for the whole batch."""

    flops: float
    bytes: float
    seconds: float
    bound: Literal["compute", "memory"]
    tokens_per_second: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True, slots=True)
class Roofline:
    """The bounds of both phases and the memory that they need; `fits` is None if the device's is not known.

    From the batch size `ridge_batch`, the weights' part of decoding is bound by compute, at any context.
    """

    prefill: Phase
    decode: Phase
    weight_bytes: float
    cache_bytes: float
    ridge_batch: float
    fits: bool | None


def cache_bytes(shape: ModelShape, dtype: str, batch_size: int, context: int) -> float:
    """Compute the bytes of the key-value cache, which is stored in the compute dtype."""
    return batch_size * shape.kv_cache_values(context) * STORAGE[get_storage(dtype).compute].bytes


def moved_bytes(shape: ModelShape, dtype: str, batch_size: int, context: int) -> float:
    """Compute the fewest bytes that a phase moves: the weights it uses, once for the whole batch, and the cache."""
    return shape.read * get_storage(dtype).bytes + cache_bytes(shape, dtype, batch_size, context)


def compute_roofline(shape: ModelShape, device: Device, dtype: str, batch_size: int, context: int) -> Roofline:
    """Compute the bounds for a batch of sequences of one length."""
    storage = get_storage(dtype)
    peak, moved = device.peak(storage.compute), moved_bytes(shape, dtype, batch_size, context)
    weights, cache = shape.parameters * storage.bytes, cache_bytes(shape, dtype, batch_size, context)
    balance = peak / device.bandwidth

    def phase(flops: float, tokens: int) -> Phase:
        seconds = max(flops / peak, moved / device.bandwidth)
        return Phase(flops, moved, seconds, "compute" if flops / moved > balance else "memory", tokens / seconds)

    return Roofline(
        prefill=phase(batch_size * prefill_flops(shape, context), batch_size * context),
        decode=phase(batch_size * token_flops(shape, context), batch_size),
        weight_bytes=weights,
        cache_bytes=cache,
        ridge_batch=balance * shape.read * storage.bytes / (2.0 * (shape.blocks + shape.head)),
        fits=None if device.memory is None else weights + cache <= device.memory,
    )


@dataclass(frozen=True, slots=True)
class RooflineOptions:
    """The options of `tersely roofline`."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name or folder of the model; only its config is read.")
    ] = "tersely-tiny-small"
    device: Annotated[str, flag("A100, H100, H200, RTX-4090, or measure for this machine.")] = MEASURE
    dtype: Annotated[str | None, flag(f"Dtype of the weights: {', '.join(STORAGE)}; by default as saved.")] = None
    batch_size: Annotated[int, flag("Sequences in a batch.", min=1)] = 1
    context: Annotated[int, flag("Tokens of each sequence.", min=1)] = 1024
    peak_tflops: Annotated[float | None, flag("Peak TFLOP/s of a custom device.")] = None
    bandwidth_gbs: Annotated[float | None, flag("Memory bandwidth of a custom device in GB/s.")] = None
    usd_per_hour: Annotated[float | None, flag("Price of the device; adds the lowest cost.")] = None
    predict: Annotated[bool, flag("Predict decode-step time here from shallow copies of the model.", "--predict")] = (
        False
    )
    log: Annotated[Path | None, flag("JSONL with {prompt, output, seconds} per line; adds a runtime fit.")] = None
    as_json: Json = False

    def check(self) -> None:
        """Raise OptionError for options that do not go together."""
        check_known("device", self.device, [*DEVICES, MEASURE])
        if self.usd_per_hour is not None and not 0 <= self.usd_per_hour < math.inf:
            raise OptionError(f"--usd-per-hour is {self.usd_per_hour}; accepted: a price of 0 or more")
        if self.predict and (self.device != MEASURE or self.peak_tflops is not None or self.bandwidth_gbs is not None):
            raise OptionError("--predict measures this machine; remove --device, --peak-tflops and --bandwidth-gbs")


@takes(RooflineOptions)
def roofline(options: RooflineOptions) -> None:
    """Show what bounds a model on a device, and the most tokens/s when each step gives a sequence one token."""
    options.check()
    model, batch_size, context = options.model, options.batch_size, options.context
    runtime = None if options.log is None else fit_runtime(read_timings(options.log))
    shape = load_shape(model)
    dtype = options.dtype or shape.dtype
    if dtype is None:
        raise ModelError(f"the configuration of {model!r} names no dtype; pass --dtype, one of {', '.join(STORAGE)}")
    compute = get_storage(dtype).compute
    if shape.max_context is not None and context > shape.max_context:
        raise OptionError(f"--context is {context}; accepted: at most {shape.max_context}, the context of {model!r}")
    device = custom_device(options.peak_tflops, options.bandwidth_gbs, compute)
    step = predict_step(model, dtype, batch_size, context) if options.predict else None
    if device is None and options.device == MEASURE:
        device = measure_device(compute, moved_bytes(shape, dtype, batch_size, context))
    device = device or DEVICES[options.device]
    bounds = compute_roofline(shape, device, dtype, batch_size, context)
    prices = None
    if options.usd_per_hour is not None:
        phases = (("prefill", bounds.prefill), ("decode", bounds.decode))
        prices = {name: options.usd_per_hour / 3600 / one.tokens_per_second * 1e6 for name, one in phases}
    optional = {
        "usd_per_million": prices,
        "runtime": None if runtime is None else asdict(runtime),
        "predicted": None if step is None else asdict(step),
    }
    result: dict[str, Any] = {
        "model": model,
        "parameters": shape.parameters,
        "dtype": dtype,
        "batch_size": batch_size,
        "context": context,
        "device": asdict(device),
        **asdict(bounds),
    }
    if options.as_json:
        given = {name: value for name, value in optional.items() if value is not None}
        typer.echo(json.dumps(result | given, indent=2))
    else:
        typer.echo(as_text(result | optional, device, bounds))


def as_text(result: Mapping[str, Any], device: Device, bounds: Roofline) -> str:
    """A result for the terminal."""
    rows = [
        (
            name,
            f"{phase.flops / 1e9:.4g}",
            _format_bytes(phase.bytes),
            f"{phase.intensity:.3g}",
            phase.bound,
            f"{1e3 * phase.seconds:.3g}",
            f"{phase.tokens_per_second:,.0f}",
        )
        for name, phase in (("prefill", bounds.prefill), ("decode", bounds.decode))
    ]
    table = format_table(("phase", "GFLOP", "moved", "FLOP/byte", "bound by", "ms", "tokens/s <="), rows)
    peak = device.peak(get_storage(result["dtype"]).compute) / 1e12
    template = Path(__file__).with_name("roofline.txt")
    return render_text(template, **result, table=table, peak=peak, bytes=_format_bytes)


def _format_bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f} B"
