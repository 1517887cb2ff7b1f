"""What reads recorded text: a tokenizer, and a small model that says or tries the answer after the thinking so far."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...controller.budgets import Budget
from ...controller.policies.base import Trial, TrialAnswer
from ...controller.prompts import render
from ...controller.text.markers import PROMPTED, find_markers
from ...controller.text.tokenizer_adapter import get_adapter
from ...controller.trials import MAX_TRIAL_TOKENS, read_boxed, start_trial, trial_opening
from ...controller.types import Request, SamplingParams
from ...errors import MarkerError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PIECE = re.compile(r"\n+| ?[^\W\d_]{1,16}|\d{1,3}| ?[^\w\s]{1,3}|[^\S\n]+|_+| |.", re.DOTALL)


class PieceTokenizer:
    """Splits a text into pieces of about four characters, much as models' tokenizers do, for the controller."""

    name = "pieces"
    eos_token_id: int | None = None
    chat_template = None

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pieces: list[str] = []

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        ids = []
        for piece in _PIECE.findall(text):
            if (known := self._ids.get(piece)) is None:
                known = self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
            ids.append(known)
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(self._pieces[token] for token in ids)


def load_tokenizer(source: Path | None) -> PieceTokenizer | PreTrainedTokenizerFast:
    """The tokenizer of a `tokenizer.json`, or of the folder that holds one; None for our own. Raises OptionError."""
    if source is None:
        return PieceTokenizer()
    file = source / "tokenizer.json" if source.is_dir() else source
    if not file.is_file():
        raise OptionError(
            f"--tokenizer {source}: file {file} not found; accepted: a tokenizer.json, or a folder with one",
            code="no_such_file",
        )
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:  # the tokenizers library raises bare ones
        raise OptionError(
            f"--tokenizer {file} cannot be loaded: {error}; accepted: a tokenizer.json of the tokenizers library",
            code="invalid_tokenizer",
        ) from None


_BATCH = 8
_GREEDY = SamplingParams(temperature=0)
_UNKNOWN = "What is the answer?"  # in place of a question that the log does not have


class ModelReader:
    """Lets a model answer greedily behind the thinking of another (or its end), in a box, and answer trials."""

    def __init__(self, model: str) -> None:
        from ...controller.engines.transformers.engine import load_engine

        self.name, self.engine = model, load_engine(model, grouped=True)
        self.codec = get_adapter(self.engine.tokenizer)
        try:
            self.markers = find_markers(self.engine.tokenizer)
        except MarkerError:
            self.markers = PROMPTED

    def read(self, texts: Sequence[tuple[str, str]]) -> list[str]:
        """The answer to each (question, thinking so far), in order; "" for none."""
        answers, most = {}, MAX_TRIAL_TOKENS
        order = sorted(range(len(texts)), key=lambda i: len(texts[i][1]))  # a batch is as long as its longest
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            ends = [self.codec.encode(trial_opening(self.markers, texts[row][1])) for row in rows]
            prompts = [self._encode(*texts[row], end, most) for row, end in zip(rows, ends, strict=True)]
            requests = [Request(prompt, most) for prompt in prompts]
            for row, done in zip(rows, self.engine.generate(requests, _GREEDY), strict=True):
                answers[row] = read_boxed(self.codec.decode(done.token_ids))
        return [answers[row] for row in range(len(texts))]

    def answer_trial(self, question: str, thinking: str, asked: Trial) -> TrialAnswer:
        """The reply to a trial after the thinking so far; its tokens are the model's own, and nothing is sampled."""
        forced, trial = start_trial(self.codec, self.markers, thinking, 1, replace(asked, sampled=False))
        ids = self._encode(question, thinking, forced, trial.most)
        (done,) = self.engine.generate([Request(ids, trial.most, signals=True)], _GREEDY)
        if not done.token_ids:
            return TrialAnswer("", 0.0, len(forced))
        for token, signals in zip(done.token_ids, done.signals, strict=True):
            if signals is not None and trial.add(token, signals.chosen, signals.entropy) is None:
                break
        return trial.answer()

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
