"""The command `tersely serve`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import CapabilityError, OptionError
from ..budgets import canonical_effort
from ..options import GenerationOptions
from ..policies import make_policies
from ..text.markers import parse_markers
from ..tuned_config import load_config
from . import options as o
from .batch_worker import BatchWorker
from .effort_budgets import OURS, parse_effort_caps
from .loading import ReasoningMode, open_session, warm_up
from .metrics import Metrics
from .settings import ServerLimits, ServerSettings
from .sockets import LOCAL, base_url, bind_socket, exposure_warning

_DEFAULT, _LIMITS = GenerationOptions(), ServerLimits()


def serve(
    model: o.Model = "tersely-tiny-small",
    name: o.Name = None,
    host: o.Host = LOCAL[0],
    port: o.Port = 8000,
    api_key: o.ApiKey = None,
    effort: o.Effort = "normal",
    preset: o.Preset = "balanced",
    policy: o.Policies = None,
    config: o.Config = None,
    budget: o.Budgets = None,
    answer_reserve: o.AnswerReserve = None,
    probes: o.Probes = None,
    verifier: o.Verifier = None,
    helper: o.Helper = None,
    markers: o.Markers = None,
    think_prompt: o.ThinkPrompt = False,
    no_thinking: o.NoThinking = False,
    grouped_attention: o.Grouped = False,
    shadow_share: o.ShadowShare = 0.0,
    max_batch: o.Batch = _LIMITS.batch,
    max_waiting: o.Waiting = _LIMITS.waiting,
    max_tokens: o.MaxTokens = _LIMITS.tokens,
    max_prompt_tokens: o.MaxPrompt = None,
    max_body: o.MaxBody = _LIMITS.body,
    timeout: o.Timeout = _LIMITS.timeout,
    drain: o.Drain = 30.0,
) -> None:
    """Serve a model under control to any client of the OpenAI API; stop with Ctrl-C."""
    thinking = ReasoningMode(None if markers is None else parse_markers(markers), think_prompt, not no_thinking)
    if no_thinking and (markers is not None or think_prompt):
        raise OptionError("--no-thinking excludes --markers and --think-prompt; accepted: one of them")
    if api_key is not None and not api_key.strip():
        raise OptionError("the API key is empty; give one with --api-key or TERSELY_API_KEY, or none at all")
    defaults = _defaults(effort, preset, policy, config)
    settings = ServerSettings(
        model=name or served_model_name(model),
        defaults=replace(defaults, answer_reserve=answer_reserve, probes=probes, max_new_tokens=max_tokens),
        tuned=config is not None,
        caps=parse_effort_caps(caps_from(budget or ())),
        limits=ServerLimits(max_batch, max_waiting, _LIMITS.gather, timeout, max_tokens, max_prompt_tokens, max_body),
        api_key=api_key,
        shadow_share=shadow_share,
        hosts=LOCAL if host in LOCAL and api_key is None else None,
    )
    _run(settings, (model, grouped_attention), thinking, (verifier, helper), (host, port), drain)


def _defaults(effort: str, preset: str, policy: Sequence[str] | None, config: Path | None) -> GenerationOptions:
    """What holds where a request says nothing; raises OptionError for unknown names."""
    options = GenerationOptions(effort=effort, preset=preset, policies=tuple(policy) if policy else None)
    if config is not None:
        if options != _DEFAULT:
            raise OptionError("--config decides effort, preset and policies; leave out --effort, --preset and --policy")
        return replace(options, **load_config(config))
    canonical_effort(effort)
    make_policies(options.preset, options.policies)
    return options


def caps_from(given: Sequence[str]) -> dict[str, int]:
    """Effort -> tokens from EFFORT=TOKENS; our tiers go by the names whose caps they have."""
    caps = {}
    for text in given:
        effort, _, tokens = text.partition("=")
        if not tokens.isdecimal():
            raise OptionError(f"--budget {text!r} not understood; accepted: EFFORT=TOKENS, as in medium=1500")
        caps[OURS.get(effort, effort)] = int(tokens)
    return caps


def served_model_name(model: str) -> str:
    """A folder goes by its last part: where it lies is nobody's business."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _run(
    settings: ServerSettings,
    model: tuple[str, bool],
    thinking: ReasoningMode,
    others: tuple[str | None, str | None],
    address: tuple[str, int],
    drain: float,
) -> None:
    """Take the port, load the model, with grouped attention or not, and serve; others: verifier and helper."""
    try:
        from .app import create_app
        from .server import UvicornServer
        from .server import serve as serve_on
    except ImportError as error:
        raise CapabilityError(f"serving needs {error.name!r}; pip install 'tersely[serve]'") from None
    with bind_socket(*address) as bound:
        from ..engines.transformers.engine import load_engine

        metrics = Metrics()
        session = open_session(load_engine(model[0], grouped=model[1]), thinking, *others)
        warm_up(session, settings.defaults, thinking.thinks)
        worker = BatchWorker(session, settings.limits, metrics, thinking.thinks)
        host, port = bound.getsockname()[:2]
        ready = f"{settings.model} is served at {base_url(host, port)} (Ctrl-C stops)"
        ready += exposure_warning(address[0], settings.api_key)
        serve_on(UvicornServer(create_app(settings, worker, metrics), worker, drain, ready), bound)
