"""Control inside vLLM's workers: one class for both of its model runners.

vLLM is started with `logits_processors=["tersely.controller.vllm.logits_processor:TerselyLogitsProcessor"]`; a
request is
controlled by what `control` reads from it. What is uncontrolled is not touched, and a batch without controlled rows
costs one look into an empty dictionary. No error of ours ever leaves `apply`: it would end the engine with all that
runs on it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as RunnerV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as RunnerV2

from ...errors import CapabilityError
from ..trace import Decision
from . import hidden_states as tap
from . import trace_channel as traces
from .request_control import parse_control
from .step import ControlledRow, apply_step
from .token_history import TokenHistory
from .worker_context import WorkerContext

_PARKED = 256
"""Most requests that left the batch and may come back; they cannot be told from those that ended."""

tap.install()


class TerselyLogitsProcessor(RunnerV1, RunnerV2):  # type: ignore[misc]
    """Forces what the controllers of single requests decide.

    Made with (config, device, pinned) by model runner V1, and with (config, states of requests) by V2.
    """

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        if vllm_config.speculative_config is not None:
            raise CapabilityError(
                "tersely does not control speculative decoding inside vLLM; start it without a speculative_config"
            )
        self.worker = WorkerContext(vllm_config)
        self.rows: dict[int, ControlledRow] = {}  # by place in the batch (V1), or by slot (V2)
        self._parked: OrderedDict[int, ControlledRow] = OrderedDict()
        self._history = TokenHistory(runner[0]) if len(runner) == 1 else None
        self._begun: dict[int, Any] = {}
        self._copies: OrderedDict[str, int] = OrderedDict()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request whose control is wrong, before it is admitted; raises ValueError."""
        try:
            control = parse_control(sampling_params.extra_args, None)
        except CapabilityError as error:
            raise ValueError(str(error)) from None
        if control is not None and not control.driver and sampling_params.max_tokens is not None:
            control.budget("normal", sampling_params.max_tokens)

    def is_argmax_invariant(self) -> bool:
        """Forcing changes what is likeliest."""
        return False

    def _row(self, params: Any, prompt: list[int] | None, output: list[int]) -> ControlledRow | None:
        """The row of a request that is to be controlled; None where it is not, or that fails: it goes on alone."""
        tag, copy = self._numbered(params)
        try:
            driven = self.worker.driven(params.extra_args, prompt, params.max_tokens or 1 << 30)
        except Exception as error:  # it would end the engine
            reason = f"not controlled: {type(error).__name__}: {error}"
            traces.send_trace(tag, copy, [Decision("engine", "error", reason, 0)])
            return None
        return None if driven is None else ControlledRow(driven, output, params, tag, copy)

    def _numbered(self, params: Any) -> tuple[str, int]:
        """The tag of a request, and which of its samples this is: they come in their order, and share all they say."""
        tag = traces.request_tag(params.extra_args)
        if not tag:
            return "", 0
        copy = self._copies.pop(tag, -1) + 1
        self._copies[tag] = copy
        if len(self._copies) > _PARKED:
            self._copies.popitem(last=False)
        return tag, copy

    def _act(self, rows: dict[int, ControlledRow], logits: Tensor) -> None:
        apply_step(rows, logits)
        for place in [place for place, row in self.rows.items() if row.driven.done]:
            del self.rows[place]

    # Model runner V1: rows are places in a batch that changes, outputs are lists that grow.

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they come, go and change places."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._park(self.rows.pop(index, None))
        for index, params, prompt, output in batch_update.added:
            self._park(self.rows.pop(index, None))
            row = self._parked.pop(id(params), None) or self._row(params, prompt, output)
            if row is not None:
                row.output = output
                self.rows[index] = row
        for one, other, direction in batch_update.moved:
            first, second = self.rows.pop(one, None), self.rows.pop(other, None)
            if first is not None:
                self.rows[other] = first
            if direction == MoveDirectionality.SWAP and second is not None:
                self.rows[one] = second

    def _park(self, row: ControlledRow | None) -> None:
        """Keep a row that left the batch: it may only be paused."""
        if row is not None:
            self._parked[id(row.params)] = row  # which holds the parameters, so that no others get their id
            if len(self._parked) > _PARKED:
                self._parked.popitem(last=False)

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        """Force what is to come next, in place; logits [rows, vocabulary]."""
        if not self.rows:
            return logits
        if ctx is None:
            self._act(self.rows, logits)
            return logits
        assert self._history is not None
        self._history.land()
        slots = enumerate(ctx.idx_mapping_np.tolist())
        self._act({place: self.rows[slot] for place, slot in slots if slot in self.rows}, logits)
        return logits

    # Model runner V2: rows are slots, outputs are on the device.

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take note of a request that has taken a slot; whether it is to be controlled."""
        self.rows.pop(req_idx, None)
        self._begun.pop(req_idx, None)
        control = parse_control(sampling_params.extra_args, self.worker.default)
        if control is not None:
            self._begun[req_idx] = sampling_params
        return control is not None

    def apply_staged_writes(self) -> None:
        """Begin with new requests, whose tokens are there now, and to fetch what the step before has put out."""
        if self._history is None:
            return
        for slot, params in self._begun.items():
            row = self._row(params, *self._history.begin(slot))
            if row is not None:
                self.rows[slot] = row
        self._begun.clear()
        if self.rows:
            self._history.fetch(list(self.rows))
