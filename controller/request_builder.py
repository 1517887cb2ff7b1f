"""The rows of one call: from prompts and options to requests with their controllers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from ..errors import PromptError
from .budgets import Budget, fit_budget, tier_by_length
from .controller import Controller
from .effort import TierSelector, find_shared_prefix, render_tiers
from .options import GenerationOptions
from .policies.base import Policy
from .prompts import Prompt, RenderedPrompt, as_messages, render
from .trace import Decision
from .types import Request, RoutedPrompt, Watcher

if TYPE_CHECKING:
    from ..probes.tier_selector import TierProbe
    from .policies.research.shortcut import DepthShortcut
    from .policies.research.steer import Steer
    from .session import Session


@dataclass(slots=True)
class PreparedRequest:
    """One prompt on its way: rendered, with its budget, the controller that watches it if any, and the request.

    Where the tier is chosen while the prompt is read, all but the request are settled then. notes are decisions that
    no controller took.
    """

    rendered: RenderedPrompt
    budget: Budget
    controller: Controller | None
    request: Request
    notes: list[Decision] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Where the prompt leaves the model; see `RenderedPrompt`."""
        return self.rendered.state

    def left(self) -> list[Decision]:
        """Which tokens of the row left early, as a decision; nothing where none could."""
        leaving = self.request.leaving
        if leaving is None or self.controller is None:
            return []
        found, thought = leaving.shortcut, leaving.left + leaving.stayed
        reason = f"{leaving.left} of {thought} thinking tokens left after layer {found.layer} of {found.layers}"
        return [Decision("shortcut", "leave", reason, self.controller.position)]

    def unthought(self) -> list[Decision]:
        """That the model ended without having opened its thinking, as a decision; nothing where it did not."""
        if self.controller is None or self.controller.phase != "before":
            return []
        reason = f"the model answered without {self.controller.markers.open}, so there was no thinking to control"
        return [Decision("controller", "note", reason, self.controller.position)]

    def boundary(self) -> str | None:
        """What the latest token ended in the thinking; None where the row does not think."""
        return None if self.controller is None else self.controller.boundary


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Makes the rows of one call."""

    session: Session
    options: GenerationOptions
    policies: tuple[Policy, ...]
    signals: bool

    def row(self, prompt: Prompt, effort: str) -> PreparedRequest:
        """The row of a prompt under an effort; `auto` goes by the prompt's length."""
        tier, notes = effort, []
        if effort == "auto":
            tier = tier_by_length(str(as_messages(prompt)[-1]["content"]))
            reason = f"{tier}, by the prompt's length: there is no difficulty probe for this model"
            notes = [Decision("effort", "tier", reason, 0)]
        budget = self._budget(tier, self.options.max_new_tokens)
        rendered = render(self.session.engine.tokenizer, prompt, budget, self.session.markers, self.options.tools)
        limit = self._room(len(rendered.ids), budget)
        budget = self._budget(tier, limit)
        controller = self._controller(prompt, rendered, budget)
        request = self._request(rendered.ids, limit, controller, temperature=budget.temperature)
        return PreparedRequest(rendered, budget, controller, request, [*notes, *self._bent(controller)])

    def chosen(self, prompt: Prompt, probe: TierProbe) -> PreparedRequest:
        """The row of a prompt whose tier is chosen once its beginning is read."""
        session, options = self.session, self.options
        budgets = {tier: self._budget(tier, options.max_new_tokens) for tier in probe.tiers}
        known = render_tiers(session.engine.tokenizer, prompt, session.markers, budgets, options.tools)
        look, longest = find_shared_prefix(session.codec, prompt, known), max(len(r.ids) for r in known.values())
        limit = self._room(longest, budgets[probe.tiers[-1]])

        def settle(tier: str, reason: str) -> RoutedPrompt:
            row.rendered, row.budget = known[tier], self._budget(tier, limit)
            row.controller = self._controller(prompt, row.rendered, row.budget)
            row.notes = [Decision("effort", "tier", reason, 0), *self._bent(row.controller)]
            return RoutedPrompt(row.rendered.ids, row.controller, row.budget.temperature)

        request = self._request(look.ids, limit, None, TierSelector(probe, look, longest, settle))
        row = PreparedRequest(known[probe.tiers[-1]], budgets[probe.tiers[-1]], None, request)
        return row

    @property
    def steers(self) -> Steer | None:
        """The policy that adds to hidden states, if there is one."""
        return cast("Steer | None", next((p for p in self.policies if hasattr(p, "steering")), None))

    @property
    def shortens(self) -> DepthShortcut | None:
        """The policy that lets tokens leave early, if there is one."""
        return cast("DepthShortcut | None", next((p for p in self.policies if hasattr(p, "leaving")), None))

    def _bent(self, controller: Controller | None) -> list[Decision]:
        """What is done to the forward of a row that thinks."""
        if controller is None:
            return []
        told, shadow = [], self.options.shadow
        if (steers := self.steers) is not None:
            told.append(Decision(steers.name, "steer", steers.steers, 0, acted=not shadow))
        if self.shortens is not None and shadow:
            told.append(Decision(self.shortens.name, "leave", "no token leaves early in shadow mode", 0, acted=False))
        return told

    def _budget(self, tier: str, limit: int) -> Budget:
        return fit_budget(tier, limit, self.options.answer_reserve, self.options.strategy)

    def _room(self, prompt: int, budget: Budget) -> int:
        """Output tokens that fit beside so many of the prompt; raises PromptError if they leave none for an answer."""
        room, limit = self.session.engine.context_length, self.options.max_new_tokens
        if room is None or prompt + limit <= room:
            return limit
        if room - prompt <= budget.reserve:
            raise PromptError(
                f"the prompt has {prompt} tokens and the model's context {room}, which leaves no room "
                f"for an answer of {budget.reserve}; shorten the prompt"
            )
        return room - prompt

    def _controller(self, prompt: Prompt, rendered: RenderedPrompt, budget: Budget) -> Controller | None:
        if not self.policies or rendered.state == "answer":
            return None
        session = self.session
        return Controller(
            self.policies,
            session.codec,
            session.markers,
            budget,
            opened=rendered.state == "thinking",
            shadow=self.options.shadow,
            prompt_tokens=len(rendered.ids),
            verifier=session.verifier,
            helper=session.helper,
            prompt=prompt,
        )

    def _request(
        self,
        ids: tuple[int, ...],
        limit: int,
        watcher: Watcher | None,
        opening: TierSelector | None = None,
        temperature: float | None = None,
    ) -> Request:
        layers = {layer for policy in self.policies for layer in getattr(policy, "layers", ())}
        return Request(ids, limit, watcher, self.signals, tuple(sorted(layers)), opening, temperature)
