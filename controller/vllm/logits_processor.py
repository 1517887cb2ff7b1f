"""Control inside vLLM's workers: one class for both of its model runners.

vLLM is started with `logits_processors=["tersely.controller.vllm.logits_processor:TerselyLogitsProcessor"]`; a request
is controlled as `request_control` reads from it. Uncontrolled requests are not touched, and a batch without controlled
ones costs one dictionary lookup. No error of ours leaves `apply`, as it would end the engine with all its requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as RunnerV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as RunnerV2

from ...errors import CapabilityError
from ..trace import Decision
from .request_control import parse_control, speculation_error
from .request_controller import WorkerContext
from .step import ControlledRow, apply_step, install_tap
from .trace_channel import request_tag, send_trace

_PARKED = 256
"""Most requests that left the batch and may come back; they look like those that ended."""

install_tap()


class TerselyLogitsProcessor(RunnerV1, RunnerV2):  # type: ignore[misc]
    """Forces what the controllers of single requests decide.

    Model runner V1 constructs it with (config, device, pinned), V2 with (config, states of requests).
    """

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        if vllm_config.speculative_config is not None:
            raise speculation_error()
        self.worker = WorkerContext(vllm_config)
        self.worker.check()
        self.rows: dict[int, ControlledRow] = {}  # by index in the batch (V1), or by slot (V2)
        self._parked: OrderedDict[int, ControlledRow] = OrderedDict()
        self._history = TokenHistory(runner[0]) if len(runner) == 1 else None
        self._begun: dict[int, Any] = {}
        self._copies: OrderedDict[str, int] = OrderedDict()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request whose control is invalid, before it is admitted; raises ValueError."""
        try:
            control = parse_control(sampling_params.extra_args, None)
        except CapabilityError as error:
            raise ValueError(str(error)) from None
        if control is not None and not control.driver and sampling_params.max_tokens is not None:
            control.make_budget("normal", sampling_params.max_tokens)

    def is_argmax_invariant(self) -> bool:
        """Forcing changes the most likely token."""
        return False

    def _row(self, params: Any, prompt: list[int] | None, output: list[int]) -> ControlledRow | None:
        """The row of a controlled request; None if it has no control or its control fails: it then runs without."""
        tag, copy = request_tag(params.extra_args), 0
        if tag:  # samples of one prompt come in order and share their parameters
            copy = self._copies.pop(tag, -1) + 1
            self._copies[tag] = copy
            if len(self._copies) > _PARKED:
                self._copies.popitem(last=False)
        try:
            controller = self.worker.make_controller(params.extra_args, prompt, params.max_tokens or 1 << 30)
        except Exception as error:  # it would end the engine
            reason = f"not controlled: {type(error).__name__}: {error}"
            send_trace(tag, copy, [Decision("engine", "error", reason, 0)])
            return None
        return None if controller is None else ControlledRow(controller, output, params, tag, copy)

    def _act(self, rows: dict[int, ControlledRow], logits: Tensor) -> None:
        apply_step(rows, logits)
        for place in [place for place, row in self.rows.items() if row.controller.done]:
            del self.rows[place]

    # Model runner V1: rows are indices in a batch that changes, outputs are lists that grow.

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they come, go and move."""
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
        """Keep a row that left the batch, as it may only be preempted."""
        if row is not None:
            self._parked[id(row.params)] = row  # which holds the parameters, so that no others get their id
            if len(self._parked) > _PARKED:
                self._parked.popitem(last=False)

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        """Force the next tokens, in place; logits [rows, vocabulary]."""
        if not self.rows:
            return logits
        if ctx is None:
            self._act(self.rows, logits)
            return logits
        assert self._history is not None
        self._history.collect()
        slots = enumerate(ctx.idx_mapping_np.tolist())
        self._act({place: self.rows[slot] for place, slot in slots if slot in self.rows}, logits)
        return logits

    # Model runner V2: rows are slots, outputs are on the device.

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Register a request that has taken a slot; return whether it is controlled."""
        self.rows.pop(req_idx, None)
        self._begun.pop(req_idx, None)
        control = parse_control(sampling_params.extra_args, self.worker.default)
        if control is not None:
            self._begun[req_idx] = sampling_params
        return control is not None

    def apply_staged_writes(self) -> None:
        """Start new requests, whose tokens are there now, and start to fetch the tokens of the previous step."""
        if self._history is None:
            return
        for slot, params in self._begun.items():
            row = self._row(params, *self._history.begin(slot))
            if row is not None:
                self.rows[slot] = row
        self._begun.clear()
        if self.rows:
            self._history.fetch(list(self.rows))


class TokenHistory:
    """Prompts and outputs of slots under the V2 runner, which keeps them on the device.

    The tokens of the previous step are copied while the forward pass runs, so that the device never waits. `states` is
    vLLM's `LogitsProcRequestState`.
    """

    def __init__(self, states: Any) -> None:
        self.states = states
        self._outputs: dict[int, list[int]] = {}
        self._slots: list[int] = []
        self._copied: Tensor | None = None
        self._there: Any = None
        on_gpu = torch.device(states.device).type == "cuda"
        self._stream = torch.cuda.Stream(states.device) if on_gpu else None

    def begin(self, slot: int) -> tuple[list[int], list[int]]:
        """The prompt of a new slot, and its output so far: a list that grows from now on."""
        prompt = int(self.states.prompt_len.np[slot])
        known = self.states.all_token_ids.gpu[slot, : int(self.states.prefill_len.np[slot])].tolist()
        self._outputs[slot] = known[prompt:]
        return known[:prompt], self._outputs[slot]

    def fetch(self, slots: Sequence[int]) -> None:
        """Start to fetch the latest token of these slots."""
        self._slots = list(slots)
        if self._stream is None:
            self._copied = self._latest()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.states.device))
        with torch.cuda.stream(self._stream):
            self._copied = self._latest().to("cpu", non_blocking=True)
            self._there = self._stream.record_event()

    def _latest(self) -> Tensor:
        """Length and last token of each slot, [slots, 2]."""
        slots = torch.tensor(self._slots, device=self.states.device)
        lengths = self.states.total_len.gpu[slots].long()
        return torch.stack((lengths, self.states.all_token_ids.gpu[slots, lengths - 1].long()), dim=1)

    def collect(self) -> None:
        """Append what was fetched: at most one token per slot, where one has been sampled."""
        if self._copied is None:
            return
        if self._there is not None:
            self._there.synchronize()
        for slot, (length, token) in zip(self._slots, self._copied.tolist(), strict=True):
            output = self._outputs[slot]
            if length > int(self.states.prompt_len.np[slot]) + len(output):
                output.append(token)
        self._copied = None
