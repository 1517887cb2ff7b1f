"""A small model as the reader of a replay: it gets question and thinking so far, and says the answer or tries one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...controller.budgets import Budget
from ...controller.engines.transformers.engine import load_engine
from ...controller.policies.base import Trial, TrialAnswer
from ...controller.prompts import render
from ...controller.text.markers import PROMPTED, find_markers
from ...controller.text.tokenizer_adapter import get_adapter
from ...controller.trial_answers import MAX_TRIAL_TOKENS, read_boxed, start_trial, trial_opening
from ...controller.types import Request, SamplingParams
from ...errors import MarkerError

_BATCH = 8
_GREEDY = SamplingParams(temperature=0)
_UNKNOWN = "What is the answer?"  # in place of a question that the log does not have


class ModelReader:
    """Lets a model answer greedily behind the thinking of another (or its end), in a box; implements `run.Reader`."""

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
            requests = [Request(self._encode_closed(*texts[row]), MAX_TRIAL_TOKENS) for row in rows]
            for row, done in zip(rows, self.engine.generate(requests, _GREEDY), strict=True):
                answers[row] = read_boxed(self.codec.decode(done.token_ids))
        return [answers[row] for row in range(len(texts))]

    def answer_trial(self, question: str, thinking: str, asked: Trial) -> TrialAnswer:
        """See `Reader.answer_trial`; its tokens are the model's own, and nothing is sampled."""
        forced, trial = start_trial(self.codec, self.markers, thinking, 1, replace(asked, sampled=False))
        ids = self._encode(question, thinking, forced, trial.most)
        (done,) = self.engine.generate([Request(ids, trial.most, signals=True)], _GREEDY)
        if not done.token_ids:
            return TrialAnswer("", 0.0, len(forced))
        for token, signals in zip(done.token_ids, done.signals, strict=True):
            if signals is not None and trial.add(token, signals.chosen, signals.entropy) is None:
                break
        return trial.answer()

    def _encode_closed(self, question: str, thinking: str) -> tuple[int, ...]:
        end = self.codec.encode(trial_opening(self.markers, thinking))
        return self._encode(question, thinking, end, MAX_TRIAL_TOKENS)

    def _encode(self, question: str, thinking: str, end: tuple[int, ...], most: int) -> tuple[int, ...]:
        """The prompt, as much of the thinking's end as fits with `most` tokens behind it, and `end`."""
        markers, budget = self.markers, Budget("normal", 1)
        prompt = render(self.engine.tokenizer, question or _UNKNOWN, budget, markers)
        opening = "" if prompt.state == "thinking" else f"{markers.open}\n"
        start = (*prompt.ids, *self.codec.encode(opening))
        ids = self.codec.encode(thinking)
        if (context := self.engine.context_length) is not None:
            room = context - len(start) - len(end) - most
            ids = ids[max(0, len(ids) - max(1, room)) :]
        return (*start, *ids, *end)
