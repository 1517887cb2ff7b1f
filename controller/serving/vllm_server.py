"""Starts vLLM's own OpenAI server with control inside it and in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence

from ...errors import CapabilityError, OptionError
from ..engines.checkpoints import resolve_checkpoint
from ..vllm.engine import PROCESSOR
from ..vllm.request_control import RequestControl
from ..vllm.trace_channel import PLACE
from .sockets import LOCAL, base_url, bind_socket, exposure_warning
from .vllm_middleware import SETTINGS_VARIABLE, ControlMiddleware

_MIDDLEWARE = f"{ControlMiddleware.__module__}.{ControlMiddleware.__qualname__}"
_REASONING_PARSERS = {
    "<think>": "qwen3",
    "[THINK]": "mistral",
    "<seed:think>": "seed_oss",
    "<|channel|>analysis<|message|>": "openai_gptoss",
}
"""vLLM's reasoning parser by opening marker."""


def run_vllm_server(
    model: str,
    name: str,
    host: str,
    port: int,
    *,
    default: RequestControl,
    caps: Mapping[str, int],
    max_body: int,
    api_key: str | None,
    flags: Sequence[str],
) -> None:
    """Serve until stopped; raises CapabilityError without vLLM, OptionError for a port in use or unknown flags.

    Args:
        default: The control of requests that say nothing.
        caps: Thinking tokens of efforts that differ from `EFFORT_CAPS`.
        flags: Further arguments of `vllm serve`.
    """
    checkpoint = resolve_checkpoint(model)
    with bind_socket(host, port) as bound:  # checks the port now; vLLM opens its own socket half a minute later
        port = bound.getsockname()[1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.entrypoints.cli.serve import ServeSubcommand
            from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
            from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise CapabilityError(f"serving with vLLM needs {error.name!r}; pip install 'tersely[vllm]'") from None
    own_flags = ["--model", checkpoint, "--served-model-name", name, "--host", host, "--port", str(port)]
    own_flags += ["--logits-processors", PROCESSOR, "--middleware", _MIDDLEWARE]
    own_flags += [] if api_key is None else ["--api-key", api_key]
    if not any(flag.startswith("--reasoning-parser") for flag in flags):
        own_flags += _reasoning_parser_flags(checkpoint)
    parser = make_arg_parser(FlexibleArgumentParser(prog="tersely serve --engine vllm"))
    try:
        arguments = parser.parse_args([*own_flags, *flags])
        validate_parsed_serve_args(arguments)
    except SystemExit as exit_:
        if exit_.code:
            raise OptionError(f"vLLM does not accept these flags: {' '.join(flags)}; see `vllm serve --help`") from None
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"vLLM does not accept these flags: {error}") from None
    hosts = list(LOCAL) if host in LOCAL and api_key is None else None
    settings = {"default": default.as_dict(), "caps": dict(caps), "max_body": max_body, "hosts": hosts}
    with tempfile.TemporaryDirectory(prefix="tersely-") as folder:
        os.environ[PLACE], os.environ[SETTINGS_VARIABLE] = folder, json.dumps(settings)
        ready = f"{name} will be served at {base_url(host, port)} once vLLM has started (Ctrl-C stops)"
        print(ready + exposure_warning(host, api_key), file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            ServeSubcommand.cmd(arguments)


def _reasoning_parser_flags(checkpoint: str) -> list[str]:
    """The flag without which vLLM does not split thinking from answer."""
    from transformers import AutoTokenizer

    from ..text.markers import find_markers

    markers = find_markers(AutoTokenizer.from_pretrained(checkpoint))
    parser = _REASONING_PARSERS.get(markers.open)
    return [] if parser is None else ["--reasoning-parser", parser]
