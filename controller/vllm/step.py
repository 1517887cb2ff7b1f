"""One step of a batch: hear what was put out, then write into the logits what must come next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import CapabilityError
from ...kernels.signals import logit_signals
from ..types import Signals, State, StepInfo
from . import hidden_states as tap
from . import trace_channel as traces
from .request_controller import EosSwap, RequestController

_CERTAIN = 1e9
"""A logit that leaves no doubt; what a grammar has forbidden stays forbidden."""


@dataclass(slots=True)
class ControlledRow:
    """A request under control: who drives it, and its output so far.

    tag, copy: what its trace goes by, see `traces`; told: how much of that was sent.
    """

    driven: RequestController
    output: list[int]
    params: Any = None
    tag: str = ""
    copy: int = 0
    told: int = 0


def apply_step(rows: Mapping[int, ControlledRow], logits: Tensor) -> None:
    """Let rows, by their place in logits [all rows, vocabulary], read what was put out, and force what follows."""
    forced = {place: token for place, row in rows.items() if (token := _read(row)) is not None}
    if forced:
        _force(forced, logits)
    _look([(place, row) for place, row in rows.items() if row.driven.looks], logits)
    _offer(rows, logits)
    for row in rows.values():
        if row.driven.controller is not None and len(row.driven.controller.decisions) > row.told:
            row.told = traces.send_trace(row.tag, row.copy, row.driven.controller.decisions, row.told)


def _read(row: ControlledRow) -> int | None:
    try:
        return row.driven.read(row.output)
    except Exception as error:  # a mistake of ours must not end the engine
        row.driven.fail(error)
        return None


def _force(forced: Mapping[int, int], logits: Tensor) -> None:
    places = torch.tensor([list(forced), list(forced.values())], device=logits.device)
    found = logits[places[0], places[1]]
    logits[places[0], places[1]] = torch.where(found == -torch.inf, found, _CERTAIN)


def _look(rows: list[tuple[int, ControlledRow]], logits: Tensor) -> None:
    """Keep what this step says about the tokens that come next."""
    if not rows:
        return
    everybody = len(rows) == len(logits)
    found = logit_signals(logits if everybody else logits[[place for place, _ in rows]])
    values = torch.stack((found.entropy, found.top, found.margin), dim=1).tolist()
    hidden = tap.last_hidden_states(len(logits))
    for number, (place, row) in enumerate(rows):
        entropy, top, margin = values[place if everybody else number]
        signals = Signals(entropy, top, math.nan, margin)
        row.driven.ahead = partial(StepInfo, signals, partial(_state, hidden, place))


def _state(hidden: Tensor | None, place: int, layer: int) -> State:
    if hidden is None:
        raise CapabilityError("vLLM kept no hidden states in this step: something else has replaced its logits layer")
    found: State = hidden[place].float().cpu().numpy()
    return found


def _offer(rows: Mapping[int, ControlledRow], logits: Tensor) -> None:
    """Put the end of the turn, where the model may want it within its thinking, in place of a closing's first token.

    vLLM would end the request there, and there would be no answer. Where a grammar forbids that token, the end stays.
    """
    places, firsts, offers = [], [], []
    for place, row in rows.items():
        driven = row.driven
        driven.offer = None
        if (first := driven.closing_start()) is not None:
            places.append(place)
            firsts.append(first)
            offers.append(driven)
    if not offers:
        return
    where, what, end = (torch.tensor(ids, device=logits.device) for ids in (places, firsts, offers[0].end))
    ends = where[:, None], end
    wanted = logits[ends].amax(dim=1)
    instead = logits[where, what]
    allowed = instead > -torch.inf
    moved = EosSwap((wanted > instead) & allowed)
    logits[where, what] = torch.where(allowed, torch.maximum(wanted, instead), instead)
    logits[ends] = logits[ends].masked_fill(allowed[:, None], -torch.inf)
    for number, driven in enumerate(offers):
        driven.offer = moved, number
