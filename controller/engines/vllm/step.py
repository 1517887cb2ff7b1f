"""One step of a batch: hear what was put out, then write into the logits what must come next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....kernels.signals import logit_signals
from ..base import Seen, Signals, State
from . import tap, traces
from .driven import Driven

_CERTAIN = 1e9
"""A logit that leaves no doubt; what a grammar has forbidden stays forbidden."""


@dataclass(slots=True)
class Row:
    """A request under control: who drives it, its output so far, and what was seen in the latest step.

    signals: of all looked-at rows [rows, 4] and the place among them; hidden: likewise. offered: whether the end of the
    turn was likelier than the token in whose place it was put, and where that stands.
    """

    driven: Driven
    output: list[int]
    params: Any = None
    signals: tuple[list[list[float]], int] | None = None
    hidden: tuple[Tensor, int] | None = None
    offered: tuple[Tensor, int] | None = None
    told: int = 0


def act(rows: Mapping[int, Row], logits: Tensor) -> None:
    """Let rows, by their place in logits [all rows, vocabulary], read what was put out, and force what follows."""
    forced = {place: token for place, row in rows.items() if (token := _read(row)) is not None}
    if forced:
        _force(forced, logits)
    _look([(place, row) for place, row in rows.items() if row.driven.looks], logits)
    _offer(rows, logits)
    for row in rows.values():
        if row.driven.controller is not None:
            row.told = traces.tell(row.params.extra_args, row.driven.controller.decisions, row.told)


def _read(row: Row) -> int | None:
    driven = row.driven
    try:
        moved = row.offered is not None and len(row.output) > len(driven.forced) and _was_moved(row.offered)
        return driven.read(row.output, _seen(row) if driven.wants or driven.measured else None, moved)
    except Exception as error:  # a mistake of ours must not end the engine
        driven.fail(error)
        return None


def _was_moved(offered: tuple[Tensor, int]) -> bool:
    won, place = offered
    return bool(won[place])


def _seen(row: Row) -> Seen:
    """What the latest step knew of this row."""
    signals = None
    if row.signals is not None:
        entropy, top, margin = row.signals[0][row.signals[1]]
        signals = Signals(entropy, top, float("nan"), margin)
    hidden = row.hidden

    def state(layer: int) -> State:
        if hidden is None:
            raise LookupError("vLLM kept no hidden state of this step")
        found: State = hidden[0][hidden[1]].float().cpu().numpy()
        return found

    return Seen(signals, state)


def _force(forced: Mapping[int, int], logits: Tensor) -> None:
    places = torch.tensor([list(forced), list(forced.values())], device=logits.device)
    found = logits[places[0], places[1]]
    logits[places[0], places[1]] = torch.where(found == -torch.inf, found, _CERTAIN)


def _look(rows: list[tuple[int, Row]], logits: Tensor) -> None:
    """Keep what this step says about the tokens that come next."""
    if not rows:
        return
    everybody = len(rows) == len(logits)
    found = logit_signals(logits if everybody else logits[[place for place, _ in rows]])
    values = torch.stack((found.entropy, found.top, found.margin), dim=1).tolist()
    hidden = tap.kept(len(logits))
    for number, (place, row) in enumerate(rows):
        row.signals = (values, place if everybody else number)
        row.hidden = None if hidden is None else (hidden, place)


def _offer(rows: Mapping[int, Row], logits: Tensor) -> None:
    """Put the end of the turn, where the model may want it within its thinking, in place of a closing's first token.

    vLLM would end the request there, and there would be no answer.
    """
    offers = []
    for place, row in rows.items():
        row.offered = None
        if (first := row.driven.closing_start()) is not None:
            offers.append((place, first, row))
    if not offers:
        return
    end = list(offers[0][2].driven.end)
    where = torch.tensor([[place, first] for place, first, _ in offers], device=logits.device).T
    wanted = logits[where[0][:, None], torch.tensor(end, device=logits.device)].amax(dim=1)
    instead = logits[where[0], where[1]]
    won = wanted > instead
    logits[where[0], where[1]] = torch.maximum(wanted, instead)
    logits[where[0][:, None], torch.tensor(end, device=logits.device)] = -torch.inf
    for number, (_, _, row) in enumerate(offers):
        row.offered = (won, number)
