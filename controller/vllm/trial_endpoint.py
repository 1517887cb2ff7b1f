"""Trial answers for requests inside vLLM, which keeps every token: a completion of its own decodes each.

It has the prompt and the thinking so far, which vLLM's prefix cache knows, and what opens the trial. It is not
controlled itself, and nothing waits for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

from ...errors import CapabilityError, ModelError
from ..policies.base import TrialAnswer
from ..trials import TrialDecoder
from ..types import KEEP
from ..verifiers import EndpointCaller
from .request_control import KEY, RequestControl

SELF = "self"  # instead of a URL, for `tersely serve`: the server itself
SELF_KEY = "TERSELY_SELF_KEY"
"""The variable with a server's URL and the key by which it knows the trials of its own requests."""
_TIMEOUT, _STREAMS = 30.0, 64


def require_trials(control: RequestControl | None, available: bool) -> None:
    """Raise CapabilityError for policies that ask for trials where none can be answered."""
    if control is None or available or not (asking := control.asking()):
        return
    raise CapabilityError(
        f"policy {asking[0]!r} asks for trial answers, which another request has to decode; start the server with "
        f"--trials {SELF}, or name a vLLM server of the same model: additional_config={{'{KEY}': {{'trials': URL}}}}",
        code="missing_trials",
    )


def failed_trial(reason: str) -> Future[TrialAnswer]:
    """A trial that cannot be asked."""
    future: Future[TrialAnswer] = Future()
    future.set_exception(CapabilityError(reason))
    return future


def find_self_key(url: str) -> str | None:
    """The key for trials at this URL, if that is the server itself."""
    own, _, key = os.environ.get(SELF_KEY, "").partition(" ")
    return key if own == url else None


class TrialEndpoint(EndpointCaller):
    """A vLLM server of the same model."""

    key_variable = "TERSELY_TRIALS_KEY"

    def __init__(self, base_url: str, model: str | None) -> None:
        super().__init__(base_url, model, find_self_key(base_url), _TIMEOUT, _STREAMS)

    def submit(self, ids: Sequence[int], trial: TrialDecoder) -> Future[TrialAnswer]:
        """Decode a trial behind these tokens, which end with those that open it; never raises."""
        future: Future[TrialAnswer] = Future()
        self._start(self._decode(list(ids), trial, future), future)
        return future

    async def _decode(self, ids: list[int], trial: TrialDecoder, future: Future[TrialAnswer]) -> TrialAnswer:
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": trial.most,
            "temperature": 0.0,
            "logprobs": 1,
            "stream": True,
            "return_token_ids": True,
            "vllm_xargs": {KEY: "off"},
        }
        async with aclosing(self._client.stream_events("/completions", body)) as events:
            async for event in events:
                for token, probability in _read_tokens(event):
                    if trial.add(token, probability) is not KEEP:
                        return trial.answer()
                if future.cancelled():
                    break
        if trial.tokens == trial.forced:
            raise ModelError("the server wrote nothing for a trial", code="invalid_reply")
        return trial.answer()


def _read_tokens(event: Mapping[str, Any]) -> list[tuple[int, float]]:
    """The tokens of an event with their probabilities; raises ModelError for a malformed one."""
    try:
        choice = next(iter(event.get("choices") or ()), None)
        if choice is None or not choice.get("token_ids"):
            return []
        logs = choice["logprobs"]["token_logprobs"]
        return [(int(token), math.exp(log)) for token, log in zip(choice["token_ids"], logs, strict=True)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the reply to a trial is malformed: {error}", code="invalid_reply") from error
