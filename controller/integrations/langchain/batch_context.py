"""The prompts of one `batch`, answered as one engine batch, while LangChain still handles each as a call of its own.

So callbacks, caching, limits and errors of each input stay LangChain's business.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from ...trace import GenerationResult

current_batch: ContextVar[BatchContext | None] = ContextVar("tersely_together", default=None)
"""The batch that the running calls belong to."""


class BatchContext:
    """Answers of one batch by key; made all at once when the first is taken.

    make() returns one for each key, None for one that has to be made alone.
    """

    def __init__(self, keys: Sequence[str], make: Callable[[], Sequence[GenerationResult | None]]) -> None:
        self._keys, self._make = keys, make
        self._lock = threading.Lock()
        self._made: defaultdict[str, deque[GenerationResult]] | None = None
        self._error: BaseException | None = None

    def take(self, key: str) -> GenerationResult | None:
        """The next answer of this key; None if there is none. Raises what making them raised."""
        if key not in self._keys:
            return None
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._made is None:
                self._made = self._answers()
            found = self._made[key]
            return found.popleft() if found else None

    def _answers(self) -> defaultdict[str, deque[GenerationResult]]:
        try:
            made = self._make()
        except BaseException as error:
            self._error = error
            raise
        answers: defaultdict[str, deque[GenerationResult]] = defaultdict(deque)
        for key, generation in zip(self._keys, made, strict=True):
            if generation is not None:
                answers[key].append(generation)
        return answers
