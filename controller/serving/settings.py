"""A server's settings and socket, what its efforts mean in tokens, and what a request resolves to."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import OptionError, check_known
from ..budgets import (
    ANSWER_RESERVE,
    OPENAI_EFFORTS,
    STRATEGIES,
    TIERS,
    UNLIMITED,
    Budget,
    Strategy,
    canonical_effort,
    fit_budget,
)
from ..options import GenerationOptions
from ..trace import Decision, Usage

EFFORT_CAPS: Mapping[str, int] = {"none": 0, "minimal": 128}
"""Most thinking tokens of OpenAI efforts that do not grow with the output tokens, as the tiers' guards do."""
OPENAI_NAMES = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_TIERS = ("easy", "normal", "hard")
EFFORT_NAMES = (*OPENAI_NAMES, "auto", *_TIERS)
MIN_THINKING = 32
"""With fewer thinking tokens the model does not think at all, since closing the thinking takes about a dozen."""
METRICS_ACCESS = ("key", "open", "off")  # who may read /metrics: clients with the key, everybody, or no client
UPSTREAM_KEY = "TERSELY_UPSTREAM_KEY"  # the variable with the key for upstream servers that name none
LOCAL = ("127.0.0.1", "localhost", "::1")  # names of a server that only this machine can reach


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What requests may take."""

    batch: int = 32  # rows decoded at once
    waiting: int = 256  # requests in the queue
    batch_wait: float = 0.01  # seconds to wait for further requests before a batch starts
    timeout: float = 600.0  # seconds from a request's arrival to its last token
    prompt: int | None = None  # prompt tokens; None allows what the model's context holds
    body: int = 4 << 20  # bytes of a request body
    body_seconds: float = 30.0  # for a body to arrive
    held: int = 256 << 20  # bytes of all bodies that are being answered


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a served model can do."""

    thinks: bool = True
    policies: bool = True  # its thinking can be ended from here; else it is behind a chat endpoint
    budgets: bool = True  # its thinking can be limited to a number of tokens
    tools: bool = False  # its chat template accepts tools
    context: int | None = None

    def describe_control(self, control: str) -> str:
        """What a header of replies says of the control that a request is under; see `Billing`."""
        if not self.thinks:
            return "none"
        if self.policies:
            return "full" if control == "on" else control
        return "effort, budget" if self.budgets else "effort"


@dataclass(frozen=True, slots=True)
class Billing:
    """Whom a request is charged to, and what it is counted under."""

    model: str = ""
    key: str = ""  # the name of the client's key
    effort: str = ""
    preset: str = ""  # "policies" if they are listed one by one
    control: str = "on"  # or "shadow", or "off": nothing ends the thinking but a budget that must be kept
    input: float = 0.0  # price of a million prompt tokens
    output: float = 0.0  # price of a million other tokens

    def cost(self, usage: Usage) -> float:
        """What tokens cost; those that a helper or a verifier spent are charged as this model's."""
        read = usage.prompt + usage.recomputed + usage.helper_prompt
        return (read * self.input + (usage.prompt + usage.total - read) * self.output) / 1e6


UNBILLED = Billing()


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request with all its options decided."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    options: GenerationOptions  # `max_new_tokens` is at least 2, as an answer needs
    effort: str  # by the name that the client used
    max_tokens: int  # what the client wants, or else the usual number
    n: int = 1
    stops: tuple[str, ...] = ()
    include_trace: bool = True  # whether the reply lists the decisions
    notes: tuple[Decision, ...] = ()  # what the server decided before the engine was asked
    billing: Billing = UNBILLED
    prompt_field: str = "messages"  # the field of the request that holds the messages
    asked_tokens: int | None = None  # most tokens for a chat endpoint; None leaves that to its server
    has_effort: bool = True  # of the client or the configuration
    passed: Mapping[str, Any] = field(default_factory=dict)  # fields for the chat endpoint of a server


def openai_effort(effort: str) -> str:
    """The OpenAI name of an effort, under which its cap is listed."""
    return OPENAI_EFFORTS.get(effort, effort)


def parse_effort_caps(changes: Sequence[str]) -> dict[str, int]:
    """Read EFFORT=TOKENS pairs; raises OptionError. Returns the changed caps by OpenAI name."""
    caps = {}
    for text in changes:
        effort, _, tokens = text.partition("=")
        if not tokens.isdecimal():
            raise OptionError(f"--budget {text!r} not understood; accepted: EFFORT=TOKENS, as in medium=1500")
        name = openai_effort(effort)
        check_known("effort", name, OPENAI_NAMES[1:])
        caps[name] = int(tokens)
    return caps


def effort_budgets(caps: Mapping[str, int], effort: str, most: int | None = None) -> dict[str, Budget]:
    """The budget of each tier for a request of this effort, with the server's own caps where it has some.

    `most` is the ceiling of all.
    """
    names = {tier: openai_effort(tier) for tier in _TIERS}
    if (tier := canonical_effort(effort)) in names:
        names[tier] = openai_effort(effort)
    capped = {tier: caps[name] for tier, name in names.items() if name in caps}
    budgets = {**TIERS, **{tier: replace(TIERS[tier], thinking=cap, share=1.0) for tier, cap in capped.items()}}
    return limit_thinking(budgets, most)


def limit_thinking(strategy: Strategy, most: int | None) -> dict[str, Budget]:
    """The budgets of a strategy, each of at most `most` thinking tokens; None is no ceiling."""
    budgets = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    ceiling = UNLIMITED if most is None else most
    return {tier: replace(budget, thinking=min(budget.thinking, ceiling)) for tier, budget in budgets.items()}


def effort_caps(caps: Mapping[str, int], limit: int, most: int | None = None) -> dict[str, int]:
    """Most thinking tokens of each OpenAI effort within `limit` output tokens; `most` is the ceiling of all."""
    reserve = answer_reserve(limit, None)
    return {
        name: fit_budget(canonical_effort(name), limit, reserve, effort_budgets(caps, name, most)).thinking
        for name in OPENAI_NAMES
    }


def answer_reserve(limit: int, reserve: int | None) -> int | None:
    """Tokens of `limit` that are reserved for the answer, at most half; None is the usual number."""
    if reserve is None and limit > 2 * ANSWER_RESERVE:
        return None
    return min(reserve or ANSWER_RESERVE, max(1, limit // 2))


def served_model_name(model: str) -> str:
    """Local checkpoints are served under their folder's name, so that the path is not exposed."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address; raises OptionError if that is impossible."""
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, _, _, address = found[0]
            bound = stack.enter_context(socket.socket(family, kind))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except (OSError, UnicodeError) as error:
            raise bind_error(host, port, error) from None
        stack.pop_all()
    return bound


def bind_error(host: str, port: int, error: Exception) -> OptionError:
    """The error for an address that cannot be used."""
    if getattr(error, "errno", None) == errno.EADDRINUSE:
        message = f"port {port} on {host} is in use; choose another with --port, or 0 for any free port"
        return OptionError(message, code="port_in_use")
    reason = getattr(error, "strerror", error)
    return OptionError(
        f"cannot listen on {host!r}, port {port}: {reason}; choose others with --host and --port", code="cannot_listen"
    )


def base_url(host: str, port: int) -> str:
    """The URL for clients."""
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def exposure_warning(host: str, guarded: bool) -> str:
    """A line for servers that anyone may use, or ""; `guarded` ones ask for a key."""
    if host in LOCAL or guarded:
        return ""
    return "\nwarning: this address is public and unauthenticated; set --api-key"
