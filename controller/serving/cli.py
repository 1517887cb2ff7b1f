"""The command `tersely serve`, for the transformers server and for vLLM's."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ...errors import CapabilityError, OptionError, check_known
from ..api import resolve_helper, resolve_verifier
from ..options import MAX_OUTPUT_TOKENS, as_option_error, flag, takes
from ..text.markers import resolve_markers
from .config import Rules, ServerConfig, Upstream
from .settings import (
    LOCAL,
    METRICS_ACCESS,
    MIN_THINKING,
    UPSTREAM_KEY,
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


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which model the transformers server serves, its own or that of another server."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"An embedded model, a folder or a hub name (default: {DEFAULT_MODEL}); with --upstream, that "
            "server's name for it (default: its only model).",
            show_default=False,
        ),
    ] = None
    upstream: Annotated[
        str | None, flag("Control a model of this server (vLLM, SGLang, llama.cpp) in place of MODEL.", metavar="URL")
    ] = None
    upstream_key: Annotated[
        str | None,
        flag("Key for the upstream server.", envvar=UPSTREAM_KEY, show_envvar=True, show_default=False),
    ] = None
    tokenizer: Annotated[str | None, flag("Tokenizer of the upstream model: a folder or name.", metavar="NAME")] = None


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What both servers of `tersely serve` can be given."""

    name: Annotated[str | None, flag("What clients call the model; default: its own name.", metavar="NAME")] = None
    host: Annotated[str, flag("Address to listen on; the default serves only this machine.")] = LOCAL[0]
    port: Annotated[int, flag("Port to listen on; 0 takes any free one.", min=0, max=65535)] = 8000
    api_key: Annotated[
        str | None, flag("Key that clients must send.", envvar="TERSELY_API_KEY", show_envvar=True, show_default=False)
    ] = None
    config: Annotated[
        Path | None,
        flag(
            "Defaults, ceilings, keys, upstreams, as in docs/GATEWAY.md (TOML or YAML); SIGHUP reloads.", metavar="FILE"
        ),
    ] = None
    effort: Annotated[
        str | None, flag("Effort of requests that name none; default: normal.", metavar="LEVEL", show_default=False)
    ] = None
    preset: Annotated[
        str | None, flag("Preset of requests that name none; default: balanced.", metavar="NAME", show_default=False)
    ] = None
    policy: Annotated[
        list[str] | None, flag("Replaces the preset; repeat for several.", "--policy", metavar="NAME")
    ] = None
    budget: Annotated[
        list[str] | None, flag("Thinking tokens of an effort; repeat for several.", "--budget", metavar="EFFORT=TOKENS")
    ] = None
    max_thinking_tokens: Annotated[
        int | None, flag("Most thinking tokens of a reply, whatever clients ask for.", min=MIN_THINKING)
    ] = None
    answer_reserve: Annotated[int | None, flag("Output tokens for the answer; default: a 16th, 64 to 1024.", min=1)] = (
        None
    )
    shadow_share: Annotated[
        float | None, flag("Share of requests answered in shadow mode, for the metrics; default: 0.", min=0.0, max=1.0)
    ] = None
    max_new_tokens: Annotated[
        int | None, flag(f"Most output tokens of a reply; default: {MAX_OUTPUT_TOKENS}.", min=2)
    ] = None
    max_body: Annotated[int, flag("Largest request body.", min=1024, metavar="BYTES")] = _LIMITS.body
    metrics: Annotated[
        str, flag("Who may read /metrics: key, open (no key needed) or off.", "--metrics", metavar="WHO")
    ] = "key"
    markers: Annotated[
        str | None,
        flag("How the model opens and closes its thinking; default: detected.", "--markers", metavar="OPEN,CLOSE"),
    ] = None
    special_tokens: Annotated[bool, flag("Let texts of users and tools become special tokens.", "--special-tokens")] = (
        False
    )
    drain: Annotated[float, flag("Time for running requests to finish after Ctrl-C.", min=0.0, metavar="SECONDS")] = (
        30.0
    )

    def check_access(self) -> None:
        """Raise OptionError for an empty key, or for who is not known."""
        check_known("--metrics", self.metrics, METRICS_ACCESS)
        if self.api_key is not None and not self.api_key.strip():
            raise OptionError("the API key is empty; set one with --api-key or TERSELY_API_KEY, or leave it out")

    def make_changes(self, tuned: Path | None = None) -> Rules:
        """What the options say, as a layer over the file; raises OptionError."""
        if tuned is not None and (self.effort, self.preset, self.policy or None) != (None, None, None):
            raise OptionError("--tuned decides effort, preset and policies; leave out --effort, --preset and --policy")
        defaults = {
            "effort": self.effort,
            "preset": None if self.policy else self.preset,
            "policies": self.policy or None,
            "tuned": tuned and str(tuned.resolve()),
            "answer_reserve": self.answer_reserve,
            "budgets": parse_effort_caps(self.budget) if self.budget else None,
        }
        ceilings = {"thinking_tokens": self.max_thinking_tokens, "max_tokens": self.max_new_tokens}
        try:
            return Rules.model_validate({"shadow_share": self.shadow_share, "defaults": defaults, "ceilings": ceilings})
        except ValidationError as error:
            raise as_option_error(error) from None


@dataclass(frozen=True, kw_only=True)
class GatewayOptions(ServeOptions, SourceOptions):
    """What the transformers server can be given in addition, which also serves models of other servers."""

    tuned: Annotated[
        Path | None, flag("Result of `tersely tune`; replaces effort, preset and policies.", metavar="FILE")
    ] = None
    probes: Annotated[
        str | None, flag("Result of `tersely calibrate`; default: the built-in probes.", metavar="DIR")
    ] = None
    verifier: Annotated[
        str | None, flag("Model, or a server of one, that checks answers for policies.", metavar="NAME|URL")
    ] = None
    helper: Annotated[str | None, flag("Larger model that policies can delegate to.", metavar="NAME")] = None
    think_prompt: Annotated[
        bool, flag("Make a model without markers think between <think> and </think>.", "--think-prompt")
    ] = False
    no_thinking: Annotated[bool, flag("Serve a model that does not think, without control.", "--no-thinking")] = False
    grouped_attention: Annotated[
        bool, flag("Faster on CPUs; rounds differently from transformers.", "--grouped-attention")
    ] = False
    batch_size: Annotated[
        int | None,
        flag(
            f"Sequences decoded at once (default: {_LIMITS.batch}); with --upstream, requests that are open there "
            f"(default: {_UPSTREAM_REQUESTS}).",
            min=1,
        ),
    ] = None
    max_waiting: Annotated[int, flag("Requests that may wait in the queue.", min=1)] = _LIMITS.waiting
    max_prompt_tokens: Annotated[
        int | None, flag("Longest prompt; default: what the model's context holds.", min=1)
    ] = None
    log: Annotated[str, flag("One line per request: text, json or off.", metavar="FORMAT")] = "text"
    record: Annotated[
        Path | None,
        flag("Append questions and replies without control to FILE, for `tersely replay`.", metavar="FILE"),
    ] = None
    timeout: Annotated[float, flag("Longest time for a request, waiting included.", min=0.1, metavar="SECONDS")] = (
        _LIMITS.timeout
    )

    def choose_upstreams(self, config: ServerConfig) -> list[Upstream]:
        """The upstream servers of a file, or of the options; raises OptionError where both have some."""
        options = ("name", "upstream", "tokenizer", "markers", "upstream_key")
        given = {"MODEL": self.model, **{f"--{name.replace('_', '-')}": getattr(self, name) for name in options}}
        if config.upstreams:
            if extra := [option for option, value in given.items() if value is not None]:
                raise OptionError(f"the file names upstreams, so leave out {', '.join(extra)}")
            return config.upstreams
        if self.upstream is None:
            return []
        unnamed = self.model is None and self.name is None
        models = None if unnamed else {self.name or self.model or "": self.model or ""}
        return [Upstream(url=self.upstream, models=models, tokenizer=self.tokenizer, markers=self.markers)]


@takes(GatewayOptions)
def serve(given: GatewayOptions) -> None:
    """Serve a model under control to clients of the OpenAI API; stop with Ctrl-C."""
    try:
        from .app import UvicornServer, create_app
        from .app import serve as run_server
        from .auth_middleware import LOG_FORMATS, LineHandler, hash_key
        from .gateway import Thinking, check_rules, load_worker, open_upstreams
        from .metrics import Metrics
        from .replies import ReplyRecorder
        from .rules import LiveConfig, ServerSettings
    except ImportError as error:
        raise CapabilityError(f"serving needs {error.name!r}; pip install 'tersely[serve]'") from None
    key = given.api_key
    if given.no_thinking and (given.markers is not None or given.think_prompt):
        raise OptionError("--no-thinking excludes --markers and --think-prompt; accepted: one of them")
    given.check_access()
    check_known("--log", given.log, LOG_FORMATS)
    live = LiveConfig(given.make_changes(given.tuned), given.config, given.probes, key and hash_key(key))
    markers = resolve_markers(given.markers)
    upstreams = given.choose_upstreams(live.config)
    if upstreams and given.grouped_attention:
        raise OptionError("--grouped-attention is for models of this process; leave it out with upstream servers")
    if not upstreams and (given.tokenizer is not None or given.upstream_key is not None):
        raise OptionError("--tokenizer and --upstream-key belong to --upstream; add it, or leave them out")
    rows = given.batch_size or (_UPSTREAM_REQUESTS if upstreams else _LIMITS.batch)
    limits = ServerLimits(
        rows, given.max_waiting, timeout=given.timeout, prompt=given.max_prompt_tokens, body=given.max_body
    )
    hosts = LOCAL if given.host in LOCAL and not live.keys else None
    recorder = None if given.record is None else ReplyRecorder(given.record)
    settings = ServerSettings(live, limits, hosts, given.special_tokens, recorder, given.log, given.metrics)
    verifier, helper = resolve_verifier(given.verifier), resolve_helper(given.helper)
    thinking = Thinking(markers, given.think_prompt, given.no_thinking, verifier, helper)
    counters = Metrics()
    with bind_socket(given.host, given.port) as bound:
        if upstreams:
            workers = open_upstreams(upstreams, live.folder, thinking, limits, counters, given.upstream_key)
        else:
            model = given.model or DEFAULT_MODEL
            worker = load_worker(model, given.grouped_attention, thinking, limits, counters)
            workers = {given.name or served_model_name(model): worker}
        check_rules(live, workers)
        live.check = lambda other: check_rules(other, workers)
        address = base_url(*bound.getsockname()[:2])
        names, are = ", ".join(workers), "is" if len(workers) == 1 else "are"
        ready = f"{names} {are} served at {address} (Ctrl-C stops){exposure_warning(given.host, bool(live.keys))}"
        app = create_app(settings, workers, counters)
        logging.basicConfig(handlers=[LineHandler(given.log)])
        logging.getLogger("tersely").setLevel(logging.INFO)
        reload = None if given.config is None else live.reload
        run_server(UvicornServer(app, workers.values(), given.drain, ready, reload), bound)


@dataclass(frozen=True, kw_only=True)
class VllmOptions(ServeOptions):
    """What vLLM's server can be given in addition; `context` has vLLM's own options."""

    context: typer.Context
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An embedded model, a folder or a hub name.")] = (
        DEFAULT_MODEL
    )
    vllm_config: Annotated[
        str | None, flag("What `vllm serve` knows as --config.", "--vllm-config", metavar="FILE")
    ] = None
    expose: Annotated[
        list[str] | None, flag("Another path of vLLM's to serve, without control; repeat for several.", metavar="PATH")
    ] = None
    verifier: Annotated[str | None, flag("Server of a model that checks answers for policies.", metavar="URL")] = None
    trials: Annotated[
        str | None, flag("vLLM server of the same model that decodes trial answers for policies.", metavar="URL|self")
    ] = None


@takes(VllmOptions)
def serve_vllm(given: VllmOptions) -> None:
    """Serve a model with vLLM's own server, under control; all other options are those of `vllm serve`."""
    from .vllm_launcher import run_vllm_server

    given.check_access()
    others = {one.name for one in fields(GatewayOptions)} - {one.name for one in fields(VllmOptions)} - {"tokenizer"}
    flags = [flag.partition("=")[0] for flag in given.context.args]
    if wrong := [flag for flag in flags if flag.removeprefix("--").replace("-", "_") in others]:
        raise OptionError(f"{', '.join(wrong)}: not with --engine vllm; leave out one of them")
    settings: dict[str, Any] = {"config": given.config and str(given.config.resolve())}
    settings |= {"changes": given.make_changes().model_dump(), "max_body": given.max_body, "metrics": given.metrics}
    settings |= {"exposed": given.expose or [], "special_tokens": given.special_tokens}
    own = ["--config", given.vllm_config] if given.vllm_config else []
    run_vllm_server(
        given.model,
        given.name or served_model_name(given.model),
        given.host,
        given.port,
        given.api_key,
        settings,
        [f"--shutdown-timeout={given.drain:.0f}", *own, *given.context.args],
        resolve_markers(given.markers),
        given.verifier,
        given.trials,
    )
