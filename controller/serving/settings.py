"""What a server is told when it starts: what it serves, what it allows, what it does where a request does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..options import GenerationOptions
from .effort_budgets import CAPS


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a request may take.

    batch: rows decoded at once. waiting: requests that wait their turn. gather, timeout: seconds, of waiting for
    company and of a whole request. tokens: most output tokens of a row. prompt: most prompt tokens, None as many as the
    model holds. body: bytes.
    """

    batch: int = 32
    waiting: int = 256
    gather: float = 0.01
    timeout: float = 600.0
    tokens: int = 32768
    prompt: int | None = None
    body: int = 4 << 20


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server answers.

    model: the name it is served under. defaults: what holds where a request says nothing; tuned: they are those of a
    configuration, whose budgets hold for requests that name no effort. caps: thinking tokens by effort. shadow_share:
    of the requests, answered untouched to see what would have been done. hosts: by which names a server that has no key
    and listens to its own machine may be called.
    """

    model: str
    defaults: GenerationOptions = field(default_factory=GenerationOptions)
    tuned: bool = False
    caps: Mapping[str, int] = field(default_factory=lambda: dict(CAPS))
    limits: ServerLimits = field(default_factory=ServerLimits)
    api_key: str | None = field(default=None, repr=False)
    shadow_share: float = 0.0
    hosts: tuple[str, ...] | None = None
