"""vLLM's own OpenAI server with control inside it and before it."""

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
from .vllm_middleware import VARIABLE

_MIDDLEWARE = f"{__package__}.vllm_middleware.Middleware"


def serve(
    model: str,
    name: str,
    host: str,
    port: int,
    *,
    default: RequestControl,
    caps: Mapping[str, int],
    body: int,
    api_key: str | None,
    flags: Sequence[str],
) -> None:
    """Serve until stopped; flags: further arguments of `vllm serve`.

    default, caps: see `vllm_translation.translate`; body: most bytes of a request. Raises CapabilityError where there
    is no vLLM, OptionError for a port in use or flags that vLLM does not know.
    """
    checkpoint = resolve_checkpoint(model)
    with bind_socket(host, port) as bound:  # vLLM opens its own, half a minute later
        port = bound.getsockname()[1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.entrypoints.cli.serve import ServeSubcommand
            from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
            from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise CapabilityError(f"serving with vLLM needs {error.name!r}; pip install 'tersely[vllm]'") from None
    told = ["--model", checkpoint, "--served-model-name", name, "--host", host, "--port", str(port)]
    told += ["--logits-processors", PROCESSOR, "--middleware", _MIDDLEWARE]
    told += [] if api_key is None else ["--api-key", api_key]
    told += [] if any(flag.startswith("--reasoning-parser") for flag in flags) else _parser(checkpoint)
    parser = make_arg_parser(FlexibleArgumentParser(prog="tersely serve --engine vllm"))
    try:
        arguments = parser.parse_args([*told, *flags])
        validate_parsed_serve_args(arguments)
    except SystemExit as ended:
        if ended.code:
            raise OptionError(f"vLLM does not take these flags: {' '.join(flags)}; see `vllm serve --help`") from None
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"vLLM does not take these flags: {error}") from None
    hosts = list(LOCAL) if host in LOCAL and api_key is None else None
    settings = {"default": default.as_dict(), "caps": dict(caps), "body": body, "hosts": hosts}
    with tempfile.TemporaryDirectory(prefix="tersely-") as folder:
        os.environ[PLACE], os.environ[VARIABLE] = folder, json.dumps(settings)
        ready = f"{name} will be served at {base_url(host, port)} once vLLM has started (Ctrl-C stops)"
        print(ready + exposure_warning(host, api_key), file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            ServeSubcommand.cmd(arguments)


_PARSERS = {
    "<think>": "qwen3",
    "[THINK]": "mistral",
    "<seed:think>": "seed_oss",
    "<|channel|>analysis<|message|>": "openai_gptoss",
}


def _parser(checkpoint: str) -> list[str]:
    """The reasoning parser for a model's markers, without which vLLM does not tell thinking from answer."""
    from transformers import AutoTokenizer

    from ..text.markers import find_markers

    found = find_markers(AutoTokenizer.from_pretrained(checkpoint))
    return ["--reasoning-parser", _PARSERS[found.open]] if found.open in _PARSERS else []
