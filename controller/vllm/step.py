"""One step of a batch: read the new tokens, then write into the logits what must come next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from ...errors import CapabilityError
from ...kernels.signals import logit_signals
from ..types import Signals, State, StepInfo
from .parent_watch import end_with_parent
from .request_controller import RequestController
from .trace_channel import send_trace

_CERTAIN = 1e9
"""The logit of a forced token; what a grammar has forbidden stays forbidden."""
_kept: list[Tensor] = []
"""What the logits layer was given last: hidden states [rows, width]."""


@dataclass(slots=True)
class ControlledRow:
    """A request under control, with its output so far; tag and copy identify its trace, see `trace_channel`."""

    controller: RequestController
    output: list[int]
    params: Any = None
    tag: str = ""
    copy: int = 0
    sent: int = 0  # decisions of the trace that were sent


def apply_step(rows: Mapping[int, ControlledRow], logits: Tensor) -> None:
    """Let rows, by their index in logits [all rows, vocabulary], read their output, and force what follows."""
    forced = {}
    for place, row in rows.items():
        try:
            token = row.controller.read(row.output)
        except Exception as error:  # an error of ours must not end the engine
            row.controller.fail(error)
            continue
        if token is not None:
            forced[place] = token
    if forced:
        places = torch.tensor([list(forced), list(forced.values())], device=logits.device)
        found = logits[places[0], places[1]]
        logits[places[0], places[1]] = torch.where(found == -torch.inf, found, _CERTAIN)
    _read_logits([(place, row) for place, row in rows.items() if row.controller.needs_step], logits)
    _swap_eos(rows, logits)
    for row in rows.values():
        controller = row.controller.controller
        if controller is not None and len(controller.decisions) > row.sent:
            row.sent = send_trace(row.tag, row.copy, controller.decisions, row.sent)


def _read_logits(rows: list[tuple[int, ControlledRow]], logits: Tensor) -> None:
    """Keep what this step says about the next tokens."""
    if not rows:
        return
    all_rows = len(rows) == len(logits)
    found = logit_signals(logits if all_rows else logits[[place for place, _ in rows]])
    values = torch.stack((found.entropy, found.top, found.margin), dim=1).tolist()
    hidden = _kept[0] if _kept and _kept[0].shape[0] == len(logits) else None  # none of other rows
    for number, (place, row) in enumerate(rows):
        entropy, top, margin = values[place if all_rows else number]
        signals = Signals(entropy, top, math.nan, margin)
        row.controller.next_step = partial(StepInfo, signals, partial(_state, hidden, place))


def _state(hidden: Tensor | None, place: int, layer: int) -> State:
    if hidden is None:
        raise CapabilityError("vLLM kept no hidden states in this step: another plug-in has replaced its logits layer")
    found: State = hidden[place].float().cpu().numpy()
    return found


def _swap_eos(rows: Mapping[int, ControlledRow], logits: Tensor) -> None:
    """Where the model may end its turn within its thinking, let the first token of a closing stand for that.

    vLLM would end the request there, without an answer. Where a grammar forbids that token, the end stays.
    """
    offers = []
    for place, row in rows.items():
        row.controller.swap = None
        if (first := row.controller.closing_start()) is not None:
            offers.append((place, first, row.controller))
    if not offers:
        return
    places, firsts, controllers = zip(*offers, strict=True)
    where, what, end = (torch.tensor(ids, device=logits.device) for ids in (places, firsts, controllers[0].end))
    ends = where[:, None], end
    wanted = logits[ends].amax(dim=1)
    instead = logits[where, what]
    allowed = instead > -torch.inf
    swapped = cache(((wanted > instead) & allowed).tolist)  # fetched from the device when a later token is read
    logits[where, what] = torch.where(allowed, torch.maximum(wanted, instead), instead)
    logits[ends] = logits[ends].masked_fill(allowed[:, None], -torch.inf)
    for number, controller in enumerate(controllers):
        controller.swap = lambda number=number: swapped()[number]


class HiddenStateTap(LogitsProcessor):  # type: ignore[misc]
    """vLLM's logits layer, which also keeps a reference to what it was given: no copy, outside of compiled graphs."""

    def forward(self, lm_head: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """See the class it replaces."""
        _kept[:] = [hidden_states]
        # By name: a wrapper for LoRA calls this with itself, which is no instance of this class.
        logits: Tensor | None = LogitsProcessor.forward(self, lm_head, hidden_states, *args, **kwargs)
        return logits


def install_tap() -> None:
    """Replace the logits layer of models that are built from now on, unless another plug-in has done so.

    A plug-in of vLLM's, which loads it in all of its processes; those of a server also end with it from now on.
    """
    end_with_parent()
    if "LogitsProcessor" not in op_registry_oot:
        PluggableLayer.register_oot(name="LogitsProcessor")(HiddenStateTap)
