"""A small model as the reader of a replay: it gets question and thinking up to a stop, and says the answer."""

from __future__ import annotations

from collections.abc import Sequence

from ...controller.budgets import Budget
from ...controller.engines.transformers.engine import load_engine
from ...controller.prompts import render
from ...controller.text.markers import PROMPTED, find_markers
from ...controller.text.tokenizer_adapter import get_adapter
from ...controller.trial_answers import MAX_TRIAL_TOKENS, read_boxed, trial_opening
from ...controller.types import Request, SamplingParams
from ...errors import MarkerError

_BATCH = 8
_UNKNOWN = "What is the answer?"
"""In place of a question that the log does not have."""


class ModelReader:
    """Lets a model answer greedily after the thinking of another, in a box; implements `run.Reader`.

    Raises what `load_engine` does. Of thinking that does not fit into the context, the end is read.
    """

    def __init__(self, model: str) -> None:
        self.name, self.engine = model, load_engine(model, grouped=True)
        self.codec = get_adapter(self.engine.tokenizer)
        try:
            self.markers = find_markers(self.engine.tokenizer)
        except MarkerError:
            self.markers = PROMPTED

    def read(self, texts: Sequence[tuple[str, str]]) -> list[str]:
        """See `Reader.read`."""
        answers = {}
        order = sorted(range(len(texts)), key=lambda i: len(texts[i][1]))  # a batch is as long as its longest
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            requests = [Request(self._encode(*texts[row]), MAX_TRIAL_TOKENS) for row in rows]
            for row, done in zip(rows, self.engine.generate(requests, SamplingParams(temperature=0)), strict=True):
                answers[row] = read_boxed(self.codec.decode(done.token_ids))
        return [answers[row] for row in range(len(texts))]

    def _encode(self, question: str, thinking: str) -> tuple[int, ...]:
        markers, budget = self.markers, Budget("normal", 1)
        prompt = render(self.engine.tokenizer, question or _UNKNOWN, budget, markers)
        opening = "" if prompt.state == "thinking" else f"{markers.open}\n"
        start = (*prompt.ids, *self.codec.encode(opening))
        end = self.codec.encode(trial_opening(markers, thinking))
        ids = self.codec.encode(thinking)
        if (context := self.engine.context_length) is not None:
            room = context - len(start) - len(end) - MAX_TRIAL_TOKENS
            ids = ids[max(0, len(ids) - max(1, room)) :]
        return (*start, *ids, *end)
