"""NoWait (arXiv 2506.08343): think without the words by which models reflect, whose tokens are banned.

The words are those of the paper. As there, all variants of a word in the vocabulary are banned (" Wait", "WAIT",
".wait"), and no longer word that contains one ("Ohio"), which the authors left out by hand. What differs: the ban holds
from the second token of the thinking to its end, where theirs holds for the answer as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .....errors import CapabilityError
from ....policies.base import BOUND
from ....text.tokenizer_adapter import get_adapter
from ....types import BindContext, Capability, ForwardModifier, SequenceModifier
from ..hooks import ModifierHook, StepHook

WORDS = (
    "wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check", "double-check", "oh", "maybe",
    "verify", "other", "again", "now", "ah", "any",
)  # fmt: skip
_AROUND = re.compile(r"^[\W_]+|[\W_]+$")


def find_variants(tokenizer: Any, words: Iterable[str]) -> tuple[int, ...]:
    """The ids of tokens that are one of these words in any case, with any signs and white space around it."""
    wanted, codec = {word.lower() for word in words}, get_adapter(tokenizer)
    ids = sorted(set(tokenizer.get_vocab().values()))
    return tuple(token for token in ids if _AROUND.sub("", codec.decode([token])).lower() in wanted)


@dataclass(frozen=True, slots=True)
class NoWait(ForwardModifier):
    """Ban the tokens of some words while the model thinks."""

    name: ClassVar[str] = "nowait"
    words: tuple[str, ...] = WORDS
    tokens: tuple[int, ...] = field(default=(), repr=False, metadata=BOUND)

    def bind(self, context: BindContext) -> Self:
        """Raises CapabilityError where logits cannot be changed, and where no token is one of the words."""
        engine = context.engine
        if engine is None or Capability.FORWARD_MODIFIERS not in engine.capabilities:
            name = "recorded output" if engine is None else f"engine {engine.name!r}"
            raise CapabilityError(
                f"'nowait' bans tokens while the model writes, which {name} does not allow; use the transformers "
                "engine, or the server's own bad_words or logit_bias",
                code="cannot_ban_tokens",
            )
        tokens = find_variants(engine.tokenizer, self.words)
        if not tokens:
            raise CapabilityError(
                f"no token of {engine.name!r} is one of the words {', '.join(self.words)}; accepted: words that are "
                "single tokens",
                code="no_such_tokens",
            )
        return replace(self, tokens=tokens)

    def describe(self) -> tuple[str, str]:
        return "ban", f"{len(self.tokens)} tokens are not written while it thinks"

    def attach(self, boundary: Callable[[], str | None]) -> SequenceModifier:
        return SequenceModifier(self, lambda: boundary() is not None)

    @contextmanager
    def install(self, model: Any, sequences: Sequence[SequenceModifier | None]) -> Iterator[StepHook]:
        hook = _BanHook(self.tokens, sequences)
        with model.register_forward_hook(hook.after):
            yield hook


class _BanHook(ModifierHook):
    def __init__(self, tokens: Sequence[int], sequences: Sequence[SequenceModifier | None]) -> None:
        super().__init__(sequences)
        self._tokens = list(tokens)
        self._banned: Tensor | None = None  # [vocabulary]

    def after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Lower logits [sequences, positions, vocabulary] of banned tokens to the least, finite for the entropies."""
        if not any(active := self.find_active()):
            return
        logits: Tensor = output.logits
        if self._banned is None:
            self._banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            self._banned[self._tokens] = True
        rows = torch.tensor(active, device=logits.device)[:, None, None]
        output.logits = logits.masked_fill(rows & self._banned, torch.finfo(logits.dtype).min)
