"""A controller fed with text, as an engine would feed it with tokens."""

from __future__ import annotations

from typing import Any

from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller, ControllerState
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.trace import Decision
from tersely.controller.types import KEEP

from .word_tokenizer import WordTokenizer

MARKERS = Markers("<think>", "</think>")


class Fed:
    """One row under policies; `text` is what stands after what was fed so far, `forced` what of it was forced."""

    def __init__(self, *policies: Any, thinking: int = 500, tokenizer: Any = None, **options: Any) -> None:
        self.codec = TokenizerAdapter(tokenizer or WordTokenizer())
        self.controller = Controller(policies, self.codec, MARKERS, Budget("normal", thinking), **options)
        self.ids: list[int] = []
        self.forced: list[str] = []

    @property
    def text(self) -> str:
        return self.codec.decode(self.ids)

    @property
    def said(self) -> list[tuple[str, str]]:
        """Policy and action of each decision."""
        return [(d.policy, d.action) for d in self.controller.decisions]

    @property
    def last(self) -> Decision:
        return self.controller.decisions[-1]

    def feed(self, text: str) -> Fed:
        """Feed text to the end, or until the thinking is closed for the model."""
        for token in self.codec.encode(text):
            thinking = self.controller.state is not ControllerState.ANSWER
            directive = self.controller.observe(token)
            self.ids = [*self.ids, token][: len(self.ids) + 1 - directive.retract] + list(directive.force)
            if directive is not KEEP:
                self.forced.append(self.codec.decode(directive.force))
            if thinking and self.controller.state is ControllerState.ANSWER and directive is not KEEP:
                break
        return self
