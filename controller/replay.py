"""Replay recorded output through policies offline: what would they have decided?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import CapabilityError
from .budgets import Budget
from .controller import Controller
from .policies.base import Policy
from .text.markers import Markers
from .text.tokenizer_adapter import get_adapter
from .trace import Decision
from .trials import AnswerTrial
from .types import BindContext, Capability, Prompt, StepInfo
from .verification import Verifier


def replay(
    token_ids: Sequence[int],
    policies: Sequence[Policy],
    tokenizer: Any,
    markers: Markers,
    budget: Budget,
    *,
    opened: bool = True,
    prompt: Prompt = "",
    prompt_tokens: int = 0,
    verifier: Verifier | None = None,
    steps: Sequence[StepInfo] | None = None,
    until_close: bool = False,
    answer_trial: AnswerTrial | None = None,
) -> tuple[Decision, ...]:
    """The decisions that policies would have made on a recorded output; nothing is changed (shadow mode).

    For the arguments see `Controller`; verdicts are waited for, so that replays are reproducible. `steps` is what the
    engine knew about the step of each token; a policy that needs it and lacks it is a CapabilityError. `until_close`
    ends the replay where a policy first closes the thinking, since nothing after it would have been written.
    `answer_trial` answers the policies' trials, which have no reply otherwise.
    """
    policies = bind_for_replay(policies, answer_trial is not None)
    needs_steps = {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES}
    if steps is None and (unfit := [policy.name for policy in policies if policy.requires & needs_steps]):
        raise CapabilityError(
            f"policy {unfit[0]!r} reads signals or hidden states, which token ids do not have; pass the recorded steps"
        )
    controller = Controller(
        policies,
        get_adapter(tokenizer),
        markers,
        budget,
        opened=opened,
        shadow=True,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        verifier=verifier,
        answer_trial=answer_trial,
    )
    for index, token in enumerate(token_ids):
        controller.observe(token, steps[index] if steps is not None else None)
        controller.questions.wait()
        if until_close and controller.decisions and controller.decisions[-1].action == "close":
            break
    return tuple(controller.decisions)


def bind_for_replay(policies: Sequence[Policy], trials: bool = False, probes: str | None = None) -> tuple[Policy, ...]:
    """Bind policies without an engine; raises CapabilityError or ProbeError for a policy that needs one."""
    return tuple(policy.bind(BindContext(None, probes, trials)) for policy in policies)
