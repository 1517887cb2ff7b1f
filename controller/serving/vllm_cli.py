"""The command `tersely serve --engine vllm`."""

from __future__ import annotations

import typer

from ...errors import OptionError
from . import options as o
from .cli import caps_from, served_model_name
from .settings import ServerLimits
from .sockets import LOCAL
from .vllm_translation import default_control

_LIMITS = ServerLimits()
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""What the command needs of click: flags that are not ours are vLLM's."""


def serve(
    context: typer.Context,
    model: o.Model = "tersely-tiny-small",
    name: o.Name = None,
    host: o.Host = LOCAL[0],
    port: o.Port = 8000,
    api_key: o.ApiKey = None,
    effort: o.Effort = "normal",
    preset: o.Preset = "balanced",
    policy: o.Policies = None,
    budget: o.Budgets = None,
    max_body: o.MaxBody = _LIMITS.body,
) -> None:
    """Serve a model with vLLM's own server, under control; flags that are not listed here are those of `vllm serve`."""
    if api_key is not None and not api_key.strip():
        raise OptionError("the API key is empty; give one with --api-key or TERSELY_API_KEY, or none at all")
    default = default_control(preset, policy, effort)
    caps = caps_from(budget or ())
    from .vllm_server import serve as serve_on

    serve_on(
        model,
        name or served_model_name(model),
        host,
        port,
        default=default,
        caps=caps,
        body=max_body,
        api_key=api_key,
        flags=context.args,
    )
