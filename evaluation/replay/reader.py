"""What reads recorded text: a tokenizer, and a small model that says or tries the answer after the thinking so far."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...controller.budgets import Budget
from ...controller.policies.base import Trial, TrialAnswer
from ...controller.prompts import render
from ...controller.text.markers import PROMPTED, find_markers
from ...controller.text.tokenizer_adapter import get_adapter
from ...controller.trials import TrialDecoder, start_trial
from ...controller.types import Capability, Engine, Request, SamplingParams, Signals
from ...controller.verification import RuleVerifier
from ...errors import MarkerError, ModelError, OptionError
from ...models import list_end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ...controller.engines.transformers.model_runner import PrefixCache

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


_BATCH = 16
_GREEDY = SamplingParams(temperature=0)
_UNKNOWN = "What is the answer?"  # in place of a question that the log does not have


class ModelReader:
    """Lets a model answer greedily behind the thinking of another (or its end), in a box, and answer trials.

    `model` is a name or folder for transformers, or the URL of a server with a completions endpoint. In this process,
    penalties of the model's own settings do not count, which a server may apply, and it is the policies' `verifier`.
    """

    def __init__(self, model: str) -> None:
        from ...controller.verifiers import LLMVerifier

        self.name = model
        self.engine, self._cache = _load(model)
        self.codec = get_adapter(self.engine.tokenizer)
        self.verifier = None if self._cache is None else RuleVerifier(LLMVerifier(self.engine, timeout=None))
        try:
            self.markers = find_markers(self.engine.tokenizer)
        except MarkerError:
            self.markers = PROMPTED

    def read(self, texts: Sequence[tuple[str, str]]) -> list[str]:
        """The answer to each (question, thinking so far), in order; "" for none."""
        order = sorted(set(texts))  # texts that begin alike follow each other
        trials = [self._start(question, thinking, Trial()) for question, thinking in order]
        answers = dict(zip(order, self._answer(trials), strict=True))
        return [answers[text].answer for text in texts]

    def answer_trial(self, question: str, thinking: str, asked: Trial) -> TrialAnswer:
        """The reply to a trial after the thinking so far; its tokens are the model's own, and nothing is sampled."""
        (answer,) = self._answer([self._start(question, thinking, replace(asked, sampled=False))])
        return answer

    def _start(self, question: str, thinking: str, asked: Trial) -> tuple[tuple[int, ...], TrialDecoder]:
        forced, trial = start_trial(self.codec, self.markers, thinking, 1, asked)
        return self._encode(question, thinking, forced, trial.most), trial

    def _answer(self, trials: Sequence[tuple[tuple[int, ...], TrialDecoder]]) -> list[TrialAnswer]:
        if self._cache is not None:
            configured = self._cache.model.generation_config.eos_token_id
            ends = list_end_tokens(self.engine.tokenizer, configured)
            return [_read_reply(trial, _decode(self._cache, ids, ends)) for ids, trial in trials]
        answers = []
        for start in range(0, len(trials), _BATCH):
            batch = trials[start : start + _BATCH]
            requests = [Request(ids, trial.most, signals=True) for ids, trial in batch]
            for (_, trial), done in zip(batch, self.engine.generate(requests, _GREEDY), strict=True):
                answers.append(_read_reply(trial, zip(done.token_ids, done.signals, strict=True)))
        return answers

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


def _load(model: str) -> tuple[Engine, PrefixCache | None]:
    if "://" in model:
        from ...controller.engines.openai.completions import connect

        return connect(model), None  # the server has a prefix cache of its own
    from ...controller.engines.transformers.engine import load_engine, reading_dtype
    from ...controller.engines.transformers.model_runner import PrefixCache

    try:
        engine = load_engine(model, reading_dtype(), grouped=True)
    except ModelError as error:
        raise ModelError(f"--reader: {error}, or the URL of a server, http://host:port/v1", code=error.code) from None
    return engine, PrefixCache(engine.model) if Capability.KV_ROLLBACK in engine.capabilities else None


def _decode(cache: PrefixCache, ids: Sequence[int], ends: Sequence[int]) -> Iterator[tuple[int, Signals]]:
    """The likeliest tokens behind these ids with their signals, up to the end of the turn, which is left out."""
    from ...controller.engines.transformers.hooks import compute_signals

    text = list(ids)
    while True:
        logits, _ = cache.read(text)
        token = logits.argmax(-1)
        if int(token) in ends:
            return
        text.append(int(token))
        yield text[-1], compute_signals(logits, token)[0]


def _read_reply(trial: TrialDecoder, reply: Iterable[tuple[int, Signals | None]]) -> TrialAnswer:
    """The answer of a trial, given the tokens that the model writes, as far as it needs them."""
    for token, signals in reply:
        if signals is not None and trial.add(token, signals.chosen, signals.entropy) is None:
            break
    return trial.answer() if trial.tokens > trial.forced else TrialAnswer("", 0.0, trial.forced)
