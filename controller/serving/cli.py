"""The command `tersely serve`, for the transformers server and for vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ...errors import CapabilityError, OptionError, TerselyError, check_known
from ...validation import format_validation_error
from ..api import resolve_helper, resolve_verifier
from ..options import MAX_OUTPUT_TOKENS
from ..text.markers import resolve_markers
from .config import Rules, ServerConfig, Upstream
from .settings import (
    LOCAL,
    METRICS_ACCESS,
    MIN_THINKING,
    ServerLimits,
    base_url,
    bind_socket,
    exposure_warning,
    parse_effort_caps,
    served_model_name,
)

DEFAULT_MODEL = "tersely-tiny-small"
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of click that let vLLM's own options through."""
_LIMITS = ServerLimits()
_UPSTREAM_REQUESTS = 256

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
Effort = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="Effort of requests that name none; default: normal.", show_default=False),
]
Preset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Preset of requests that name none; default: balanced.", show_default=False),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Defaults, ceilings, keys, upstreams, as in docs/GATEWAY.md (TOML or YAML); SIGHUP reloads.",
    ),
]
MaxThinking = Annotated[
    int | None, typer.Option(min=MIN_THINKING, help="Most thinking tokens of a reply, whatever clients ask for.")
]
Reserve = Annotated[int | None, typer.Option(min=1, help="Output tokens reserved for the answer; default: 64.")]
ShadowShare = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Share of requests answered in shadow mode, for the metrics; default: 0."),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=2, help=f"Most output tokens of a reply; default: {MAX_OUTPUT_TOKENS}.")
]
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
    config: ConfigFile = None,
    effort: Effort = None,
    preset: Preset = None,
    policy: PolicyNames = None,
    tuned: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Result of `tersely tune`; replaces effort, preset and policies."),
    ] = None,
    budget: Budgets = None,
    max_thinking_tokens: MaxThinking = None,
    answer_reserve: Reserve = None,
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
    shadow_share: ShadowShare = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Sequences decoded at once (default: {_LIMITS.batch}); with --upstream, requests that are open there "
            f"(default: {_UPSTREAM_REQUESTS}).",
        ),
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait in the queue.")] = _LIMITS.waiting,
    max_new_tokens: MaxNewTokens = None,
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
        from .auth_middleware import LOG_FORMATS, hash_key
        from .gateway import Thinking, check_rules, load_worker, open_upstreams
        from .metrics import Metrics
        from .rules import LiveConfig, ServerSettings
    except ImportError as error:
        raise CapabilityError(f"serving needs {error.name!r}; pip install 'tersely[serve]'") from None
    if no_thinking and (markers is not None or think_prompt):
        raise OptionError("--no-thinking excludes --markers and --think-prompt; accepted: one of them")
    _check_access(api_key, metrics)
    check_known("--log", log, LOG_FORMATS)
    changes = make_changes(
        effort, preset, policy, tuned, budget, max_thinking_tokens, answer_reserve, max_new_tokens, shadow_share
    )
    live = LiveConfig(changes, config, probes, api_key and hash_key(api_key))
    parsed_markers = resolve_markers(markers)
    upstreams = _choose_upstreams(live.config, model, name, upstream, tokenizer, markers, upstream_key)
    if upstreams and grouped_attention:
        raise OptionError("--grouped-attention is for models of this process; leave it out with upstream servers")
    if not upstreams and (tokenizer is not None or upstream_key is not None):
        raise OptionError("--tokenizer and --upstream-key belong to --upstream; add it, or leave them out")
    rows = batch_size or (_UPSTREAM_REQUESTS if upstreams else _LIMITS.batch)
    limits = ServerLimits(rows, max_waiting, timeout=timeout, prompt=max_prompt_tokens, body=max_body)
    hosts = LOCAL if host in LOCAL and not live.keys else None
    settings = ServerSettings(live, limits, hosts, special_tokens, log, metrics)
    thinking = Thinking(parsed_markers, think_prompt, no_thinking, resolve_verifier(verifier), resolve_helper(helper))
    counters = Metrics()
    with bind_socket(host, port) as bound:
        if upstreams:
            workers = open_upstreams(upstreams, live.folder, thinking, limits, counters, upstream_key)
        else:
            worker = load_worker(model or DEFAULT_MODEL, grouped_attention, thinking, limits, counters)
            workers = {name or served_model_name(model or DEFAULT_MODEL): worker}
        check_rules(live, workers)
        live.check = lambda other: check_rules(other, workers)
        address = base_url(*bound.getsockname()[:2])
        names, are = ", ".join(workers), "is" if len(workers) == 1 else "are"
        ready = f"{names} {are} served at {address} (Ctrl-C stops){exposure_warning(host, bool(live.keys))}"
        app = create_app(settings, workers, counters)
        reload = None if config is None else live.reload
        run_server(UvicornServer(app, workers.values(), drain, ready, reload), bound)


def serve_vllm(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    name: Name = None,
    host: Host = LOCAL[0],
    port: Port = 8000,
    api_key: ApiKey = None,
    config: ConfigFile = None,
    effort: Effort = None,
    preset: Preset = None,
    policy: PolicyNames = None,
    budget: Budgets = None,
    max_thinking_tokens: MaxThinking = None,
    answer_reserve: Reserve = None,
    max_new_tokens: MaxNewTokens = None,
    shadow_share: ShadowShare = None,
    vllm_config: Annotated[
        str | None, typer.Option("--vllm-config", metavar="FILE", help="What `vllm serve` knows as --config.")
    ] = None,
    max_body: MaxBody = _LIMITS.body,
    metrics: MetricsAccess = "key",
    expose: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Another path of vLLM's to serve, without control; repeat for several."),
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(metavar="URL", help="Server of a model that checks answers for policies.")
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(metavar="URL|self", help="vLLM server of the same model that decodes trial answers for policies."),
    ] = None,
    markers: MarkerPair = None,
    special_tokens: SpecialTokens = False,
    drain: Drain = _DRAIN,
) -> None:
    """Serve a model with vLLM's own server, under control; all other options are those of `vllm serve`."""
    from .vllm_launcher import run_vllm_server

    _check_access(api_key, metrics)
    changes = make_changes(
        effort, preset, policy, None, budget, max_thinking_tokens, answer_reserve, max_new_tokens, shadow_share
    )
    settings: dict[str, Any] = {"config": config and str(config.resolve()), "changes": changes.model_dump()}
    settings |= {"max_body": max_body, "metrics": metrics, "exposed": expose or [], "special_tokens": special_tokens}
    flags = [f"--shutdown-timeout={drain:.0f}", *(["--config", vllm_config] if vllm_config else []), *context.args]
    run_vllm_server(
        model,
        name or served_model_name(model),
        host,
        port,
        api_key,
        settings,
        flags,
        resolve_markers(markers),
        verifier,
        trials,
    )


def make_changes(
    effort: str | None,
    preset: str | None,
    policies: Sequence[str] | None,
    tuned: Path | None,
    budgets: Sequence[str] | None,
    max_thinking: int | None,
    reserve: int | None,
    max_tokens: int | None,
    shadow_share: float | None,
) -> Rules:
    """What the options of a command say, as a layer over the file; raises OptionError."""
    if tuned is not None and (effort, preset, policies or None) != (None, None, None):
        raise OptionError("--tuned decides effort, preset and policies; leave out --effort, --preset and --policy")
    defaults = {
        "effort": effort,
        "preset": None if policies else preset,
        "policies": list(policies) if policies else None,
        "tuned": tuned and str(tuned.resolve()),
        "answer_reserve": reserve,
        "budgets": parse_effort_caps(budgets) if budgets else None,
    }
    ceilings = {"thinking_tokens": max_thinking, "max_tokens": max_tokens}
    try:
        return Rules.model_validate({"shadow_share": shadow_share, "defaults": defaults, "ceilings": ceilings})
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        raise cause if isinstance(cause, TerselyError) else OptionError(format_validation_error(error)) from None


def _choose_upstreams(
    config: ServerConfig,
    model: str | None,
    name: str | None,
    url: str | None,
    tokenizer: str | None,
    markers: str | None,
    key: str | None,
) -> list[Upstream]:
    """The upstream servers of a file, or of the options; raises OptionError where both have some."""
    if config.upstreams:
        given = {"MODEL": model, "--name": name, "--upstream": url, "--tokenizer": tokenizer, "--markers": markers}
        if extra := [option for option, value in {**given, "--upstream-key": key}.items() if value is not None]:
            raise OptionError(f"the file names upstreams, so leave out {', '.join(extra)}")
        return config.upstreams
    if url is None:
        return []
    models = None if model is None and name is None else {name or model or "": model or ""}
    return [Upstream(url=url, models=models, tokenizer=tokenizer, markers=markers)]


def _check_access(api_key: str | None, metrics: str) -> None:
    check_known("--metrics", metrics, METRICS_ACCESS)
    if api_key is not None and not api_key.strip():
        raise OptionError("the API key is empty; set one with --api-key or TERSELY_API_KEY, or leave it out")
