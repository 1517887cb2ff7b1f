"""What tests of trials share: a policy that asks after each thought, and text fed to a controller by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

import tersely
from tersely.controller.budgets import Budget
from tersely.controller.controller import Controller
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.policies.base import Close, Inject, Policy, PolicyView, Trial, TrialAnswer, Wait, Watching
from tersely.controller.text.markers import Markers
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.trace import GenerationResult
from tersely.controller.types import KEEP, Capability, Directive, SamplingParams, Signals, State, StepInfo

from .word_tokenizer import WordTokenizer

GREEDY = SamplingParams(temperature=0)
MARKERS = Markers("<think>", "</think>")
PROBLEMS = ["Set a to 6 + 4. What is a?", "Compute 3 + 6.", "Compute 9 - 4 + 2."]
CLOSE, INJECT = Close("asked enough", phrase=""), Inject("Once more.", "asked enough")


@dataclass(frozen=True)
class Asking(Policy):
    """Asks after each thought and keeps what it hears, a list a row; `then` it acts once, and asks no more."""

    name: ClassVar[str] = "asking"
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LOGIT_SIGNALS, Capability.KV_ROLLBACK})
    then: Close | Inject | Trial | None = None
    asks: bool = True
    heard: list[list[tuple[int, TrialAnswer | None]]] = field(default_factory=list)

    def watch(self, view: PolicyView) -> Watching:
        mine: list[tuple[int, TrialAnswer | None]] = []
        self.heard.append(mine)
        while True:
            yield Wait(at=view.tokens + 1, boundary="thought")
            end = view.tokens
            if self.asks:
                answer = yield Trial()
                mine.append((end, answer))
            if self.then is not None:
                yield self.then
                return


def ask(
    engine: TransformersEngine, *policies: Any, prompts: Sequence[str] = PROBLEMS, **options: Any
) -> list[GenerationResult]:
    options = {"temperature": 0, "max_new_tokens": 256, **options}
    made: list[GenerationResult] = tersely.generate(engine, prompts=prompts, policies=policies, **options)
    return made


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> list[GenerationResult]:
    return ask(engine)


def no_state(layer: int) -> State:
    raise AssertionError


class Row:
    """Feeds text to a controller as an engine would, and keeps the output; `said` are its directives."""

    def __init__(self, *policies: Any, markers: Markers = MARKERS, tokenizer: Any = None, **options: Any) -> None:
        self.codec = TokenizerAdapter(tokenizer or WordTokenizer())
        budget = options.pop("budget", Budget("normal", 500))
        self.controller = Controller(policies, self.codec, markers, budget, **options)
        self.out: list[int] = []
        self.said: list[Directive] = []

    def feed(self, text: str, chance: float = 0.5) -> str:
        for token in self.codec.encode(text):
            directive = self.controller.observe(token, StepInfo(Signals(0.1, chance, chance), no_state))
            self.out = [*self.out, token][: len(self.out) + 1 - directive.retract] + list(directive.force)
            if directive is not KEEP:
                self.said.append(directive)
        return self.codec.decode(self.out)
