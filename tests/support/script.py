"""A watcher that does what a test wrote down."""

from __future__ import annotations

from tersely.controller.types import KEEP, Directive, StepInfo


class Script:
    """Gives directives after given numbers of sampled tokens, `t3=...` after the third, and keeps the tokens."""

    def __init__(self, **directives: Directive) -> None:
        self.at = {int(key.removeprefix("t")): value for key, value in directives.items()}
        self.seen: list[int] = []

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        self.seen.append(token)
        return self.at.get(len(self.seen), KEEP)
