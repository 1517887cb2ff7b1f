"""A policy of your own: a generator that waits, looks and bids. This one allows a single re-check.

python examples/own_policy.py
"""

from dataclasses import dataclass
from typing import ClassVar

import tersely
from tersely.controller.policies.base import Close, Policy, PolicyView, Wait, Watching


@dataclass(frozen=True)
class OneRecheck(Policy):
    """Close the thinking at the end of the second reflective thought."""

    name: ClassVar[str] = "one-recheck"

    def watch(self, view: PolicyView) -> Watching:
        """See `Policy.watch`."""
        while sum(t.reflective for t in view.thinking.thoughts) < 2:
            yield Wait(at=view.tokens + 1, boundary="thought")
        yield Close("a second re-check begins", phrase="")


if __name__ == "__main__":
    question = "Compute (48 + 27) - 36."
    plain = tersely.generate("tersely-tiny-small", prompts=question, preset="off", seed=1)
    ours = tersely.generate("tersely-tiny-small", prompts=question, policies=["budget", OneRecheck()], seed=1)
    print(f"plain: {plain.answer} in {plain.usage.total} tokens; one re-check: {ours.answer} in {ours.usage.total}")
