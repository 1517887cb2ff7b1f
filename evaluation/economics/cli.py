"""The command `tersely roofline`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ModelError, OptionError, unknown
from .flops import load_shape
from .latency import RuntimeModel, StepPrediction, fit_runtime, predict_step, read_timings
from .roofline import (
    DEVICES,
    MEASURE,
    STORAGE,
    Device,
    Roofline,
    compute_roofline,
    custom_device,
    get_storage,
    measure_device,
    moved_bytes,
)


def roofline(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name or folder of the model; only its config is read.")
    ] = "tersely-tiny-small",
    device: Annotated[str, typer.Option(help="A100, H100, H200, RTX-4090, or measure for this machine.")] = MEASURE,
    dtype: Annotated[
        str | None, typer.Option(help=f"Dtype of the weights: {', '.join(STORAGE)}; by default as saved.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")] = 1024,
    peak_tflops: Annotated[float | None, typer.Option(help="Peak TFLOP/s of a custom device.")] = None,
    bandwidth_gbs: Annotated[float | None, typer.Option(help="Memory bandwidth of a custom device in GB/s.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(help="Price of the device; adds the lowest cost.")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Predict decode-step time here from shallow copies of the model.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option(help="JSONL with {prompt, output, seconds} per line; adds a runtime fit.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show what bounds a model on a device, and the most tokens/s when each step gives a sequence one token."""
    if device != MEASURE and device not in DEVICES:
        raise unknown("device", device, [*DEVICES, MEASURE])
    if usd_per_hour is not None and not 0 <= usd_per_hour < math.inf:
        raise OptionError(f"--usd-per-hour is {usd_per_hour}; accepted: a price of 0 or more")
    if predict and (device != MEASURE or peak_tflops is not None or bandwidth_gbs is not None):
        raise OptionError("--predict measures this machine; remove --device, --peak-tflops and --bandwidth-gbs")
    runtime = None if log is None else fit_runtime(read_timings(log))
    shape = load_shape(model)
    dtype = dtype or shape.dtype
    if dtype is None:
        raise ModelError(f"the configuration of {model!r} names no dtype; pass --dtype, one of {', '.join(STORAGE)}")
    compute = get_storage(dtype).compute
    if shape.max_context is not None and context > shape.max_context:
        raise OptionError(f"--context is {context}; accepted: at most {shape.max_context}, the context of {model!r}")
    target = custom_device(peak_tflops, bandwidth_gbs, compute)
    step = predict_step(model, dtype, batch_size, context) if predict else None
    if target is None and device == MEASURE:
        target = measure_device(compute, moved_bytes(shape, dtype, batch_size, context))
    target = target or DEVICES[device]
    bounds = compute_roofline(shape, target, dtype, batch_size, context)
    result: dict[str, Any] = {
        "model": model,
        "parameters": shape.parameters,
        "dtype": dtype,
        "batch_size": batch_size,
        "context": context,
        "device": asdict(target),
        **asdict(bounds),
    }
    if usd_per_hour is not None:
        result["usd_per_million"] = {
            name: usd_per_hour / 3600 / phase.tokens_per_second * 1e6
            for name, phase in (("prefill", bounds.prefill), ("decode", bounds.decode))
        }
    if runtime is not None:
        result["runtime"] = asdict(runtime)
    if step is not None:
        result["predicted"] = asdict(step)
    typer.echo(json.dumps(result, indent=2) if as_json else _format(result, target, bounds, runtime, step))


def _format(
    result: dict[str, Any], device: Device, bounds: Roofline, runtime: RuntimeModel | None, step: StepPrediction | None
) -> str:
    """Format a result for the terminal."""
    batch_size, dtype = result["batch_size"], result["dtype"]
    peak = device.peak(get_storage(dtype).compute) / 1e12
    lines = [
        f"{result['model']}: {result['parameters']:,} parameters in {dtype}, {_format_bytes(bounds.weight_bytes)}; "
        f"cache of {batch_size} x {result['context']} tokens, {_format_bytes(bounds.cache_bytes)}",
        f"{device.name}: {peak:.4g} TFLOP/s, {device.bandwidth / 1e9:.4g} GB/s ({device.source})",
        "",
        f"{'phase':<8} {'GFLOP':>10} {'moved':>10} {'FLOP/byte':>10} {'bound by':>9} {'ms':>10} {'tokens/s <=':>12}",
    ]
    for name, phase in (("prefill", bounds.prefill), ("decode", bounds.decode)):
        lines.append(
            f"{name:<8} {phase.flops / 1e9:>10.4g} {_format_bytes(phase.bytes):>10} {phase.intensity:>10.3g} "
            f"{phase.bound:>9} {1e3 * phase.seconds:>10.3g} {phase.tokens_per_second:>12,.0f}"
        )
    lines += ["", f"the weights' part of decoding is compute-bound from batch size {math.ceil(bounds.ridge_batch)}"]
    if bounds.fits is False:
        lines.append(f"weights and cache do not fit the device's {_format_bytes(device.memory or 0)}")
    if "usd_per_million" in result:
        costs = ", ".join(f"{name} {usd:.4g}" for name, usd in result["usd_per_million"].items())
        lines.append(f"USD per million tokens, at least: {costs}")
    if runtime is not None:
        error = "no timing left to test it"
        if runtime.error is not None and runtime.relative_error is not None:
            error = f"off by {1e3 * runtime.error:.3g} ms (root mean square), {runtime.relative_error:.1%} on average"
        lines.append(
            f"fitted to {runtime.timings} timings: {1e3 * runtime.start:.3g} ms + {1e3 * runtime.per_prompt:.3g} ms "
            f"per prompt token + {1e3 * runtime.per_output:.3g} ms per output token; {error}"
        )
        if batch_size == 1 and runtime.per_output:
            share = bounds.decode.seconds / runtime.per_output
            lines.append(f"the logged decoding runs at {share:.0%} of this bound")
    if step is not None:
        lines.append(
            f"predicted decode step here: {1e3 * step.seconds:.3g} ms ({1e3 * step.start:.3g} + "
            f"{1e3 * step.per_layer:.3g} per layer), {bounds.decode.seconds / step.seconds:.0%} of the bound"
        )
    return "\n".join(lines)


def _format_bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f} B"
