"""Control inside SGLang: a custom logit processor that shows each request's tokens to tersely's controller.

export PYTHONPATH=examples/integrations
python -m sglang.launch_server --model-path Qwen/Qwen3-4B --host 127.0.0.1 --enable-custom-logit-processor
python examples/integrations/sglang_processor.py  # what a request has to send

The server needs tersely installed, and this file on its path. Budgets, convergence and loops work. Policies that read
logits or hidden states, or decode trial answers, do not, nor does speculative decoding. A model that ends its turn in
the thinking ends the request. An error of ours leaves the request to the model.

With that option SGLang unpickles a field of each request, so whoever can send one can run code on the server: keep it
on 127.0.0.1 or behind the gateway.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from typing import Any

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from torch import Tensor

from tersely.controller.budgets import canonical_effort, tier_by_length
from tersely.controller.controller import Controller
from tersely.controller.prompts import thinking_state_after
from tersely.controller.replay import bind_for_replay
from tersely.controller.text.markers import find_markers
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.vllm.request_control import KEY, parse_control
from tersely.controller.vllm.request_controller import RequestController
from tersely.errors import CapabilityError

_LOG = logging.getLogger(__name__)
_STATE = "__tersely__"


class TerselyLogitProcessor(CustomLogitProcessor):  # type: ignore[misc]
    """Forces what controllers decide: `custom_params={"tersely": {"preset", "effort", "thinking_budget", ...}}`."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any] | None] | None = None) -> Tensor:
        """Write the tokens that must come next into logits [rows, vocabulary], in place."""
        for row, params in enumerate(custom_param_list or ()):
            token = None if not params or KEY not in params else _next_token(params)
            if token is not None:
                logits[row, :] = -math.inf
                logits[row, token] = 0.0
        return logits


def _next_token(params: dict[str, Any]) -> int | None:
    """The token that must come next in a request; its state is kept in the parameters, which are its own."""
    try:
        state = params.get(_STATE, "")
        if not isinstance(state, RequestOutput | None):  # not made yet, or sent by the client
            state = params[_STATE] = make_request(params["__req__"], params[KEY])
        token = None if state is None else state.next_token(params["__req__"])
        if state is not None and state.controller.done:
            params[_STATE] = None
        return token
    except Exception as error:  # it would end the server
        params[_STATE] = None
        _LOG.warning("a request goes on without control: %s: %s", type(error).__name__, error)
        return None


def make_request(req: Any, settings: Any) -> RequestOutput | None:
    """The state of a request; None where there is nothing to control. Raises an error of tersely for what cannot be."""
    given = settings if isinstance(settings, str) else json.dumps(settings)  # text may set what clients may set
    control = parse_control({KEY: given}, None)
    codec, markers = get_adapter(req.tokenizer), find_markers(req.tokenizer)
    prompt = list(req.origin_input_ids)
    state = thinking_state_after(codec.decode(prompt[-32:]), markers)
    if control is None or state == "answer":
        return None
    policies = bind_for_replay(control.make_policies())
    if unfit := [policy.name for policy in policies if policy.requires]:
        raise CapabilityError(f"policy {unfit[0]!r} needs what SGLang does not offer here")
    tier = canonical_effort(control.effort)
    budget = control.make_budget(
        tier_by_length(codec.decode(prompt)) if tier == "auto" else tier, req.sampling_params.max_new_tokens
    )
    opened, size = state == "thinking", len(prompt)
    controller = Controller(
        policies,
        codec,
        markers,
        budget,
        opened=opened,
        shadow=control.shadow,
        prompt=control.question,
        prompt_tokens=size,
    )
    extra = getattr(req.tokenizer, "additional_stop_token_ids", None)
    end = {req.tokenizer.eos_token_id, *(req.eos_token_ids or ()), *(extra or ())} - {None}
    return RequestOutput(RequestController(controller, sorted(end)), codec.added_tokens.get(markers.close))


class RequestOutput:
    """The output of a request as its controller reads it.

    SGLang's scheduler samples a token before it has stored the one before, so that the last token may be missing from
    `output_ids`. If we forced that one, it is known. If not, what is decided now comes one token later, and the
    controller is not shown the token in between, unless that ends the thinking or the turn.
    """

    def __init__(self, controller: RequestController, close: int | None) -> None:
        self.controller = controller
        self._ends = {*controller.end, close}
        self._begun = 0  # tokens that were there when SGLang read the request's prompt
        self._seen = 0  # tokens that were shown or left out
        self._shown: list[int] = []
        self._left_out = -1  # the place of a token that came between a decision and what it forces
        self._forced = (-1, -1)  # place and id of the token that was forced last

    def next_token(self, req: Any) -> int | None:
        """The token that must come next; None if any may."""
        if req.decode_batch_idx == 0:  # the prompt is read, perhaps again, with what there was of the output
            self._begun = len(req.output_ids)
        known, place = len(req.output_ids), self._begun + req.decode_batch_idx
        if place - known not in (0, 1) or self._seen > place:
            raise CapabilityError(f"token {place} is sampled with {known} there, after {self._seen} that were read")
        self._take(req.output_ids[self._seen :])
        if self._seen < place == self._forced[0] + 1:
            self._take(self._forced[1:])
        token = self.controller.read(self._shown)
        if token is not None:
            if self._seen < place:
                self._left_out = self._seen
            self._forced = place, token
        return token

    def _take(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            if self._seen != self._left_out or token in self._ends:
                self._shown.append(token)
            self._seen += 1


if __name__ == "__main__":
    from sglang_processor import TerselyLogitProcessor as Importable  # under the name by which the server finds it

    fields = {"custom_logit_processor": Importable.to_str(), "custom_params": {KEY: {"preset": "balanced"}}}
    print(json.dumps(fields))
