"""The command `tersely roofline`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ModelError, OptionError
from . import step_time
from .devices import MEASURE, Device, check_device, check_given, get_device, given
from .latency_fit import Runtime, fit, read_timings
from .model_shape import ModelShape, load_shape
from .roofline import STORAGE, Phase, Roofline, bounds, moved_bytes, read_storage


def roofline(
    model: Annotated[str, typer.Option(help="Name or folder of the model; only its config is read.")] = (
        "tersely-tiny-small"
    ),
    device: Annotated[str, typer.Option(help="A100, H100, H200, RTX-4090, or measure for this machine.")] = MEASURE,
    dtype: Annotated[str | None, typer.Option(help=f"Of the weights: {', '.join(STORAGE)}; else as saved.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")] = 1024,
    peak_tflops: Annotated[float | None, typer.Option(help="Peak TFLOP/s of a device of your own.")] = None,
    bandwidth_gbs: Annotated[float | None, typer.Option(help="Its memory bandwidth in GB/s.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(help="Price of the device; adds the least cost.")] = None,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Foretell a step of the transformers engine here, from copies of few layers."),
    ] = False,
    log: Annotated[Path | None, typer.Option(help="JSONL of {prompt, output, seconds}: adds the runtime fit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Tell what bounds a model on a device, and tokens/s at most when each step gives a sequence one token."""
    own = check_given(peak_tflops, bandwidth_gbs)
    check_device(device)
    if dtype is not None:
        read_storage(dtype)
    if usd_per_hour is not None and not 0 <= usd_per_hour < math.inf:
        raise OptionError(f"--usd-per-hour is {usd_per_hour}; accepted: a price of 0 or more")
    fitted = None if log is None else fit(read_timings(log))
    shape = load_shape(model)
    kept = _dtype(dtype, shape, model)
    if shape.longest is not None and context > shape.longest:
        raise OptionError(f"--context is {context}; accepted: at most {shape.longest}, the context of {model!r}")
    compute, moved = read_storage(kept).compute, moved_bytes(shape, kept, batch, context)
    if predict and (own or device != MEASURE):
        raise OptionError("--predict times models on this machine; leave out --device and the numbers of another")
    costs = step_time.predict(model, kept, batch, context) if predict else None
    place = given(peak_tflops or 0, bandwidth_gbs or 0, compute) if own else get_device(device, compute, moved)
    found = bounds(shape, place, kept, batch, context)
    setting = {"model": model, "parameters": shape.parameters, "dtype": kept, "batch": batch, "context": context}
    result = _as_json(setting, place, found, usd_per_hour, fitted)
    lines = _lines(setting, place, found, usd_per_hour, fitted)
    if costs is not None:
        result["predicted"] = costs.as_dict()
        lines.append(
            f"a decoding step is foretold to take {1e3 * costs.seconds:.3g} ms here ({1e3 * costs.start:.3g} and "
            f"{1e3 * costs.per_layer:.3g} a layer), {found.decode.seconds / costs.seconds:.0%} of it the bound"
        )
    typer.echo(json.dumps(result, indent=2) if as_json else "\n".join(lines))


def _dtype(wanted: str | None, shape: ModelShape, model: str) -> str:
    """The dtype asked for, or the one that the model is saved in."""
    if wanted is not None:
        return wanted
    if shape.dtype is None or shape.dtype not in STORAGE:
        saved = "names no dtype" if shape.dtype is None else f"names the dtype {shape.dtype}"
        raise ModelError(f"the configuration of {model!r} {saved}; give --dtype, one of {', '.join(STORAGE)}")
    return shape.dtype


def _phases(found: Roofline) -> dict[str, Phase]:
    return {"prefill": found.prefill, "decode": found.decode}


def _usd_per_million(phase: Phase, usd_per_hour: float) -> float:
    return usd_per_hour / 3600 / phase.tokens_per_second * 1e6


def _as_json(
    setting: dict[str, Any], device: Device, found: Roofline, usd_per_hour: float | None, fitted: Runtime | None
) -> dict[str, Any]:
    result = {**setting, "device": device.as_dict(), **found.as_dict()}
    if usd_per_hour is not None:
        result["usd_per_million"] = {name: _usd_per_million(p, usd_per_hour) for name, p in _phases(found).items()}
    if fitted is not None:
        result["runtime"] = fitted.as_dict()
    return result


def _lines(
    setting: dict[str, Any], device: Device, found: Roofline, usd_per_hour: float | None, fitted: Runtime | None
) -> list[str]:
    dtype, batch = setting["dtype"], setting["batch"]
    peak = device.peak(read_storage(dtype).compute) / 1e12
    lines = [
        f"{setting['model']}: {setting['parameters']:,} parameters in {dtype}, {_size(found.weight_bytes)}; "
        f"cache of {batch} x {setting['context']} tokens, {_size(found.cache_bytes)}",
        f"{device.name}: {peak:.4g} TFLOP/s, {device.bandwidth / 1e9:.4g} GB/s ({device.source})",
        "",
        f"{'phase':<8} {'GFLOP':>10} {'moved':>10} {'FLOP/byte':>10} {'bound by':>9} {'ms':>10} {'tokens/s <=':>12}",
    ]
    lines += [_row(name, phase) for name, phase in _phases(found).items()]
    lines += [
        "",
        f"the weights' part of decoding is bound by compute from a batch of {math.ceil(found.ridge_batch)} on",
    ]
    if found.fits is False:
        lines.append(f"it does not fit the device's {_size(device.memory or 0)}: these bounds are out of its reach")
    if usd_per_hour is not None:
        costs = [f"{name} {_usd_per_million(phase, usd_per_hour):.4g}" for name, phase in _phases(found).items()]
        lines.append(f"USD per million tokens at least: {', '.join(costs)}")
    return lines if fitted is None else [*lines, *_fit_lines(fitted, found, batch)]


def _row(name: str, phase: Phase) -> str:
    return (
        f"{name:<8} {phase.flops / 1e9:>10.4g} {_size(phase.bytes):>10} {phase.intensity:>10.3g} {phase.bound:>9} "
        f"{1e3 * phase.seconds:>10.3g} {phase.tokens_per_second:>12,.0f}"
    )


def _fit_lines(fitted: Runtime, found: Roofline, batch: int) -> list[str]:
    error = (
        "no timing left over to test it"
        if fitted.error is None or fitted.relative_error is None
        else f"off by {1e3 * fitted.error:.3g} ms (root mean square), {fitted.relative_error:.1%} on average"
    )
    lines = [
        f"fitted to {fitted.timings} timings: {1e3 * fitted.start:.3g} ms + {1e3 * fitted.per_prompt:.3g} ms a prompt "
        f"token + {1e3 * fitted.per_output:.3g} ms an output token; {error}"
    ]
    if batch == 1 and fitted.per_output:
        lines.append(f"decoding there runs at {found.decode.seconds / fitted.per_output:.0%} of this bound")
    return lines


def _size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f} B"
