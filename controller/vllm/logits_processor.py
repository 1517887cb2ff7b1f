"""Control inside vLLM's workers: one class for both of its model runners.

vLLM is started with `logits_processors=["tersely.controller.vllm.logits_processor:TerselyLogitsProcessor"]`; a request
is controlled as `request_control` reads from it. Uncontrolled requests are not touched, and a batch without controlled
ones costs one dictionary lookup. No error of ours leaves `apply`, as it would end the engine with all its requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as RunnerV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as RunnerV2

from ...errors import CapabilityError
from ...kernels.signals import logit_signals
from ..trace import Decision
from .engine_options import check_speculation
from .processes import request_tag, send_trace
from .request_control import parse_control
from .row_table import ControlledRow, RowTable
from .step import DraftStep, apply_step, install_tap
from .token_history import TokenHistory
from .worker_context import WorkerContext

_PARKED = 256  # most requests that left the batch and may come back; they look like those that ended

_IN_FLIGHT = 8  # most steps whose tokens vLLM drops of a request that it preempts: those that were under way
_UNSEEN = 8  # steps after which the tokens of a row that was in none of them are fetched no more

install_tap()


class TerselyLogitsProcessor(RunnerV1, RunnerV2):  # type: ignore[misc]
    """Forces what the controllers of single requests decide.

    Model runner V1 constructs it with (config, device, pinned), V2 with (config, states of requests).
    """

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        drafts = check_speculation(vllm_config, on_v2=len(runner) == 1)
        self.worker = WorkerContext(vllm_config, drafts)
        self.worker.check()
        self.table = RowTable(self.worker.classify, drafts)
        self._in_flight = _IN_FLIGHT * (1 + drafts)
        self._parked: list[ControlledRow] = []  # those that left the batch, the latest last
        self._copies: OrderedDict[str, int] = OrderedDict()
        self._slots: dict[int, int] = {}  # of indices in the batch (V1)
        self._history = TokenHistory(runner[0], drafts) if len(runner) == 1 else None
        self._drafts: DraftStep | None = None
        if drafts:
            kinds = self.table.all_kinds(vllm_config.model_config.get_vocab_size())
            self._drafts = DraftStep(kinds, drafts, runner[0].max_num_reqs, runner[0].device)
        if self._history is not None and self._history.on_gpu:  # compile the kernel now, not in the first request
            logit_signals(torch.zeros(2, vllm_config.model_config.get_vocab_size(), device=runner[0].device))
        self._begun: dict[int, Any] = {}  # parameters of requests whose tokens have not come yet (V2)
        self._step = 0
        self._done = 0  # rows of logits of the present step that were given already

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

    def _row(
        self, params: Any, prompt: list[int] | None, output: list[int], left: Iterable[int]
    ) -> ControlledRow | None:
        """The row of a controlled request; None if it has no control or its control fails: it then runs without.

        `left` are slots whose rows are in the batch no more. One of these, or one that is parked, may be this request's
        before it was preempted.
        """
        old = self._find(params, prompt, output, left)
        if old is not None and (old.controller.done or len(old.output) <= len(output) or _is_driver(params)):
            old.output = output
            return None if old.controller.done else old
        tag = request_tag(params.extra_args)
        copy = self._number(tag) if old is None else old.copy
        try:
            controller = self.worker.make_controller(params.extra_args, prompt, params.max_tokens or 1 << 30)
        except Exception as error:  # it would end the engine
            reason = f"not controlled: {type(error).__name__}: {error}"
            send_trace(tag, copy, [Decision("engine", "error", reason, 0)])
            return None
        if controller is None:
            return None
        if old is not None:  # vLLM has dropped tokens that it had read
            controller.replay(old.controller, len(output))
        return ControlledRow(controller, output, params, prompt or [], tag, copy, 0 if old is None else old.sent)

    def _find(
        self, params: Any, prompt: list[int] | None, output: list[int], left: Iterable[int]
    ) -> ControlledRow | None:
        """Remove and return the row of a request that comes back: same settings and prompt, and outputs that agree."""
        best, found, place = -1, None, None
        for slot, row in [*((None, row) for row in self._parked), *((slot, self.table.rows[slot]) for slot in left)]:
            if slot is not None:
                self.table.flush(slot)
            shared = min(len(row.output), len(output))
            agrees = len(row.output) - len(output) <= self._in_flight and (output or len(row.output) <= 1)
            agrees = agrees and _same(row.params, params) and row.prompt == (prompt or [])
            if agrees and shared > best and row.output[:shared] == output[:shared]:
                best, found, place = shared, row, slot
        if place is not None:
            self.table.pop(place)
        elif found is not None:
            self._parked = [row for row in self._parked if row is not found]
        return found

    def _number(self, tag: str) -> int:
        """The number of one more sample of a prompt: they come in order and share their parameters."""
        if not tag:
            return 0
        copy = self._copies[tag] = self._copies.pop(tag, -1) + 1
        if len(self._copies) > _PARKED:
            self._copies.popitem(last=False)
        return copy

    def _park(self, row: ControlledRow | None) -> None:
        """Keep a row that left the batch, as it may only be preempted."""
        if row is not None:
            row.output = list(row.output)  # vLLM may go on with its own
            self._parked = [*self._parked[1 - _PARKED :], row]

    def _drop_finished(self) -> None:
        """Put rows aside for which nothing is left to do; they may still come back."""
        for slot in tuple(self.table.finished):
            self._park(self.table.pop(slot))

    # Model runner V1: rows have slots of ours, as their indices in the batch change; outputs are lists that grow.

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they come, go and move."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._leave(index)
        for index, params, prompt, output in batch_update.added:
            self._leave(index)
            row = self._row(params, prompt, output, ())
            if row is not None:
                row.output = output
                free = next(slot for slot in count(1) if slot not in self.table.rows)  # 0 is that of other rows
                self.table.put(free, row)
                self._slots[index] = free
        for one, other, direction in batch_update.moved:
            first, second = self._slots.pop(one, None), self._slots.pop(other, None)
            if first is not None:
                self._slots[other] = first
            if direction == MoveDirectionality.SWAP and second is not None:
                self._slots[one] = second

    def _leave(self, index: int) -> None:
        slot = self._slots.pop(index, None)
        if slot is not None:
            self._park(self.table.pop(slot))

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        """Force the next tokens, in place; logits [rows, vocabulary]."""
        if ctx is None:
            if self._slots:
                self.table.read(self._slots.values())
                slots = np.zeros(len(logits), dtype=np.int64)
                slots[list(self._slots)] = list(self._slots.values())
                apply_step(self.table, slots, logits, self.worker.end)
                self._slots = {index: slot for index, slot in self._slots.items() if slot not in self.table.finished}
                self._drop_finished()
            return logits
        if self.table.rows or self._begun:
            self._collect()
            slots = np.asarray(ctx.idx_mapping_np, dtype=np.int64)
            self.table.reserve(int(slots.max(initial=0)) + 1)
            self.table.seen[slots] = self._step
            if len(logits) == len(slots):
                apply_step(self.table, slots, logits, self.worker.end)
            elif self._drafts is not None and not self.table.rows.keys().isdisjoint(map(int, slots)):
                self._drafts.apply(self.table, ctx, logits, self.worker.end, self._done)
            self._done += len(logits)
        return logits

    # Model runner V2: rows are slots, outputs are on the device, and nothing tells that a request has left.

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Register a request that has taken a slot; return whether it is controlled."""
        self._collect()  # of a step that had no logits: the slot was another request's then
        self._park(self.table.pop(req_idx))
        self._begun.pop(req_idx, None)
        control = parse_control(sampling_params.extra_args, self.worker.default)
        if control is not None:
            self._begun[req_idx] = sampling_params
        return control is not None

    def apply_staged_writes(self) -> None:
        """Start to fetch the tokens of the previous step, and those of new requests, which are there now."""
        if self._history is not None and (self.table.rows or self._begun):
            self._collect()  # of a step that had no logits
            self._step, self._done = self._step + 1, 0
            slots = np.fromiter(self.table.rows, dtype=np.int64, count=len(self.table.rows))
            self._history.fetch(slots[self.table.seen[slots] >= self._step - _UNSEEN], list(self._begun))

    def _collect(self) -> None:
        """Show rows the tokens that were fetched, and start requests that have begun."""
        assert self._history is not None
        fetched = self._history.collect()
        if fetched is None:
            return
        self.table.land(fetched.slots, fetched.lengths, fetched.tokens)
        for slot, (prompt, output) in fetched.begun.items():
            left = [other for other in self.table.rows if self.table.seen[other] < self._step - 1]
            row = self._row(self._begun.pop(slot), prompt, output, left)
            if row is not None:
                self.table.put(slot, row, self._step)
        self._drop_finished()


def _is_driver(params: Any) -> bool:
    control = parse_control(params.extra_args, None)
    return control is not None and bool(control.driver)


def _same(one: Any, other: Any) -> bool:
    """Whether two sets of parameters may be those of the same request."""
    return one is other or (one.extra_args == other.extra_args and one.max_tokens == other.max_tokens)
