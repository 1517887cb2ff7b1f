"""Replaying recorded output through policies offline: how they are unit-tested, tuned and compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import CapabilityError
from .budgets import Budget
from .controller import Controller
from .policies import without_engine
from .policies.base import Policy
from .prompts import Prompt
from .text.markers import Markers
from .text.tokenizer_adapter import get_adapter
from .trace import Decision
from .types import StepInfo
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
    seen: Sequence[StepInfo] | None = None,
) -> tuple[Decision, ...]:
    """The decisions that policies would have taken on a recorded output; nothing is changed (shadow).

    prompt, prompt_tokens, verifier: see `Controller`; its verdicts are waited for, so that a replay gives the same
    each time. seen: of each token, what the engine saw. Raises CapabilityError for a policy that needs it and lacks it.
    """
    policies = without_engine(policies)
    if seen is None and (needy := [p.name for p in policies if p.needs & {"signals", "hidden"}]):
        raise CapabilityError(
            f"policy {needy[0]!r} reads signals or hidden states, which token ids do not hold; give what was seen"
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
    )
    for place, token in enumerate(token_ids):
        controller.observe(token, seen[place] if seen is not None else None)
        if controller.asked.open:
            controller.asked.wait()
    return tuple(controller.decisions)


class WordTokenizer:
    """A tiny reversible tokenizer (words, digits, white space, signs, `<think>` markers) for tests of policies."""

    eos_token_id: int | None = None

    chat_template = None
    _PIECES = re.compile(r"</?think>|\n\n|\w+|\s|[^\w\s]")

    def __init__(self) -> None:
        self.vocabulary: list[str] = ["<think>", "</think>"]
        self._ids = {"<think>": 0, "</think>": 1}

    def get_added_vocab(self) -> dict[str, int]:
        """The markers."""
        return {"<think>": 0, "</think>": 1}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """Ids of a text; new pieces join the vocabulary."""
        ids = []
        for piece in self._PIECES.findall(text):
            if piece not in self._ids:
                self._ids[piece] = len(self.vocabulary)
                self.vocabulary.append(piece)
            ids.append(self._ids[piece])
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Text of ids."""
        return "".join(self.vocabulary[i] for i in ids)
