"""The command `tersely serve`, for the transformers server and for vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...errors import CapabilityError, OptionError, unknown
from ..api import resolve_helper, resolve_verifier
from ..engines.openai.engine import RemoteEngine
from ..options import GenerationOptions, load_config, make_options
from ..policies import make_policies
from ..session import Session
from ..text.markers import Markers, resolve_markers
from ..types import Engine
from .settings import (
    EFFORT_CAPS,
    LOCAL,
    METRICS_ACCESS,
    MIN_THINKING,
    ServerLimits,
    ServerSettings,
    base_url,
    bind_socket,
    exposure_warning,
    parse_effort_caps,
)

DEFAULT_MODEL = "tersely-tiny-small"
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of click that let vLLM's own options through."""
_DEFAULT, _LIMITS = GenerationOptions(), ServerLimits()
_UPSTREAM_REQUESTS = 256
NO_MARKERS = Markers("<think>", "</think>", "none")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="An embedded model, a folder or a hub name.")]
ModelOrUpstream = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=f"An embedded model, a folder or a hub name (default: {DEFAULT_MODEL}); with --upstream, that server's "
        "name for it (default: its only model).",
        show_default=False,
    ),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model; default: its own name.")]
Host = Annotated[str, typer.Option(help="Address to listen on; the default serves only this machine.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="TERSELY_API_KEY", show_envvar=True, show_default=False, help="Key that clients must send."),
]
Effort = Annotated[str, typer.Option(metavar="LEVEL", help="Effort of requests that name none.")]
Preset = Annotated[str, typer.Option(metavar="NAME", help="Preset of requests that name none.")]
PolicyNames = Annotated[
    list[str] | None, typer.Option("--policy", metavar="NAME", help="Replaces the preset; repeat for several.")
]
Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="EFFORT=TOKENS", help="Thinking tokens of an effort; repeat for several."),
]
MarkerPair = Annotated[
    str | None,
    typer.Option(
        "--markers", metavar="OPEN,CLOSE", help="How the model opens and closes its thinking; default: detected."
    ),
]
_DRAIN = 30.0
Drain = Annotated[
    float, typer.Option(min=0.0, metavar="SECONDS", help="Time for running requests to finish after Ctrl-C.")
]
MaxBody = Annotated[int, typer.Option(min=1024, metavar="BYTES", help="Largest request body.")]
MetricsAccess = Annotated[
    str, typer.Option("--metrics", metavar="WHO", help="Who may read /metrics: key, open (no key needed) or off.")
]

SpecialTokens = Annotated[
    bool, typer.Option("--special-tokens", help="Let texts of users and tools become special tokens.")
]


def serve(
    model: ModelOrUpstream = None,
    name: Name = None,
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Control a model of this server (vLLM, SGLang, llama.cpp) in place of MODEL."),
    ] = None,
    upstream_key: Annotated[
        str | None,
        typer.Option(
            envvar="TERSELY_UPSTREAM_KEY", show_envvar=True, show_default=False, help="Key for the upstream server."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Tokenizer of the upstream model: a folder or name.")
    ] = None,
    host: Host = LOCAL[0],
    port: Port = 8000,
    api_key: ApiKey = None,
    effort: Effort = "normal",
    preset: Preset = "balanced",
    policy: PolicyNames = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Result of `tersely tune`; replaces effort, preset and policies."),
    ] = None,
    budget: Budgets = None,
    max_thinking_tokens: Annotated[
        int | None, typer.Option(min=MIN_THINKING, help="Most thinking tokens of a reply, whatever clients ask for.")
    ] = None,
    answer_reserve: Annotated[
        int | None, typer.Option(min=1, help="Output tokens reserved for the answer; default: 64.")
    ] = None,
    probes: Annotated[
        str | None, typer.Option(metavar="DIR", help="Result of `tersely calibrate`; default: the built-in probes.")
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(metavar="NAME|URL", help="Model, or a server of one, that checks answers for policies."),
    ] = None,
    helper: Annotated[
        str | None, typer.Option(metavar="NAME", help="Larger model that policies can delegate to.")
    ] = None,
    markers: MarkerPair = None,
    think_prompt: Annotated[
        bool, typer.Option("--think-prompt", help="Make a model without markers think between <think> and </think>.")
    ] = False,
    no_thinking: Annotated[
        bool, typer.Option("--no-thinking", help="Serve a model that does not think, without control.")
    ] = False,
    grouped_attention: Annotated[
        bool, typer.Option("--grouped-attention", help="Faster on CPUs; rounds differently from transformers.")
    ] = False,
    shadow_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of requests answered in shadow mode, for the metrics.")
    ] = 0.0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Sequences decoded at once (default: {_LIMITS.batch}); with --upstream, requests that are open there "
            f"(default: {_UPSTREAM_REQUESTS}).",
        ),
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait in the queue.")] = _LIMITS.waiting,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Most output tokens of a reply.")] = _LIMITS.tokens,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt; default: what the model's context holds.")
    ] = None,
    max_body: MaxBody = _LIMITS.body,
    metrics: MetricsAccess = "key",
    log: Annotated[str, typer.Option(metavar="FORMAT", help="One line per request: text, json or off.")] = "text",
    special_tokens: SpecialTokens = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Longest time for a request, waiting included.")
    ] = _LIMITS.timeout,
    drain: Drain = _DRAIN,
) -> None:
    """Serve a model under control to clients of the OpenAI API; stop with Ctrl-C."""
    try:
        from .app import UvicornServer, create_app
        from .app import serve as run_server
        from .batch_worker import BatchWorker
        from .metrics import Metrics
        from .request_log import LOG_FORMATS
        from .upstream_worker import UpstreamWorker
    except ImportError as error:
        raise CapabilityError(f"serving needs {error.name!r}; pip install 'tersely[serve]'") from None
    _check_upstream(upstream, upstream_key, tokenizer, grouped_attention)
    parsed_markers = resolve_markers(markers)
    if no_thinking and (markers is not None or think_prompt):
        raise OptionError("--no-thinking excludes --markers and --think-prompt; accepted: one of them")
    _check_access(api_key, metrics)
    if log not in LOG_FORMATS:
        raise unknown("--log", log, LOG_FORMATS)
    defaults = _default_options(effort, preset, policy, config)
    if max_thinking_tokens is not None and shadow_share:
        raise OptionError("--max-thinking-tokens holds for every request, and --shadow-share changes nothing of some")
    settings = ServerSettings(
        model=name or (served_model_name(model or DEFAULT_MODEL) if upstream is None else model or ""),
        defaults=make_options(defaults, answer_reserve=answer_reserve, probes=probes, max_new_tokens=max_new_tokens),
        tuned=config is not None,
        caps={**EFFORT_CAPS, **parse_effort_caps(budget or ())},
        max_thinking=max_thinking_tokens,
        limits=ServerLimits(
            batch_size or (_LIMITS.batch if upstream is None else _UPSTREAM_REQUESTS),
            max_waiting,
            _LIMITS.batch_wait,
            timeout,
            max_new_tokens,
            max_prompt_tokens,
            max_body,
        ),
        api_key=api_key,
        shadow_share=shadow_share,
        hosts=LOCAL if host in LOCAL and api_key is None else None,
        metrics=metrics,
        log=log,
        special_tokens=special_tokens,
    )
    with bind_socket(host, port) as bound:
        if upstream is None:
            from ..engines.transformers.engine import load_engine

            engine: Engine = load_engine(model or DEFAULT_MODEL, grouped=grouped_attention)
        else:
            from ..engines.openai.client import OpenAIClient
            from ..engines.openai.completions import CompletionsBackend

            backend = CompletionsBackend(OpenAIClient(upstream, upstream_key or "", timeout), model, tokenizer)
            engine = RemoteEngine(backend)
            settings = replace(settings, model=settings.model or served_model_name(backend.model))
        session = Session(
            engine,
            NO_MARKERS if no_thinking else parsed_markers,
            think_prompt,
            verifier=resolve_verifier(verifier),
            helper=resolve_helper(helper),
        )
        first = {"effort": "normal", "preset": "off", "policies": None} if no_thinking else {}
        # A tiny prompt, so that what would fail for every request fails now.
        session.run(["1 + 1"], make_options(settings.defaults, max_new_tokens=2, answer_reserve=1, **first))
        address = base_url(*bound.getsockname()[:2])
        ready = f"{settings.model} is served at {address} (Ctrl-C stops){exposure_warning(host, api_key)}"
        counters = Metrics()
        kind = BatchWorker if upstream is None else UpstreamWorker
        worker = kind(session, settings.limits, counters, not no_thinking)
        run_server(UvicornServer(create_app(settings, worker, counters), worker, drain, ready), bound)


def serve_vllm(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    name: Name = None,
    host: Host = LOCAL[0],
    port: Port = 8000,
    api_key: ApiKey = None,
    effort: Effort = "normal",
    preset: Preset = "balanced",
    policy: PolicyNames = None,
    budget: Budgets = None,
    max_body: MaxBody = _LIMITS.body,
    metrics: MetricsAccess = "key",
    expose: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Another path of vLLM's to serve, without control; repeat for several."),
    ] = None,
    markers: MarkerPair = None,
    special_tokens: SpecialTokens = False,
    drain: Drain = _DRAIN,
) -> None:
    """Serve a model with vLLM's own server, under control; all other options are those of `vllm serve`."""
    from ..vllm.request_control import make_control

    _check_access(api_key, metrics)
    default = make_control(preset=preset, policies=policy or None, effort=effort)
    settings = {"default": default.as_dict(), "caps": parse_effort_caps(budget or ()), "max_body": max_body}
    settings |= {"metrics": metrics, "exposed": expose or [], "special_tokens": special_tokens}
    from .vllm_launcher import run_vllm_server

    flags = [f"--shutdown-timeout={drain:.0f}", *context.args]
    parsed_markers = resolve_markers(markers)
    run_vllm_server(model, name or served_model_name(model), host, port, api_key, settings, flags, parsed_markers)


def _check_upstream(url: str | None, key: str | None, tokenizer: str | None, grouped: bool) -> None:
    """Refuse options that go only with, or only without, a server behind this one."""
    if url is None and (tokenizer is not None or key is not None):
        raise OptionError("--tokenizer and --upstream-key belong to --upstream; add it, or leave them out")
    if url is not None and grouped:
        raise OptionError("--grouped-attention is for models of this process; leave it out with --upstream")


def served_model_name(model: str) -> str:
    """Local checkpoints are served under their folder's name, so that the path is not exposed."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _check_access(api_key: str | None, metrics: str) -> None:
    if metrics not in METRICS_ACCESS:
        raise unknown("--metrics", metrics, METRICS_ACCESS)
    if api_key is not None and not api_key.strip():
        raise OptionError("the API key is empty; set one with --api-key or TERSELY_API_KEY, or leave it out")


def _default_options(
    effort: str, preset: str, policies: Sequence[str] | None, config: Path | None
) -> GenerationOptions:
    """The options of requests that say nothing; raises OptionError for unknown names."""
    options = make_options(effort=effort, preset=preset, policies=policies or None)
    if config is not None:
        if options != _DEFAULT:
            raise OptionError("--config decides effort, preset and policies; leave out --effort, --preset and --policy")
        return make_options(options, **load_config(config))
    make_policies(options.preset, options.policies)
    return options
