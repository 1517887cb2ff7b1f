"""Text to calibrate on: from a file, or written by the model that is to be quantized."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ...errors import OptionError

_TOGETHER = 32  # questions that are answered at a time
_HELD_OUT = 4  # of so many rows one is kept to measure on


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """What to calibrate and to measure on: rows of tokens from a file, or written by the model itself.

    questions: a file of those that it answers; without, it begins with a random token.
    """

    file: Path | None = None
    questions: Path | None = None
    rows: int = 40
    length: int = 512
    seed: int = 0

    def written(self) -> dict[str, Any]:
        """As JSON has it; what was begun before there were questions goes on."""
        made = asdict(self) | {"file": str(self.file or ""), "questions": str(self.questions)}
        if self.questions is None:
            del made["questions"]
        return made

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        if self.file is not None:
            return str(self.file)
        return f"its own answers to {self.questions}" if self.questions is not None else "what the model writes itself"

    def split(self, model: Any, tokenizer: Any, progress: Callable[[str], None]) -> dict[str, Tensor]:
        """Rows to calibrate on, and others to measure on; raises OptionError where there is too little."""
        rows = self._rows(model, tokenizer, progress)
        held_out = torch.arange(len(rows)) % _HELD_OUT == 1
        return {"calibrating": rows[~held_out], "measured": rows[held_out]}

    def _rows(self, model: Any, tokenizer: Any, progress: Callable[[str], None]) -> Tensor:
        if self.file is not None:
            return tokenize_rows(self.file, tokenizer, self.rows, self.length)
        if self.questions is not None:
            asked = read_questions(self.questions)
            Random(self.seed).shuffle(asked)
            progress("answering questions to calibrate on")
            return answered_by(model, tokenizer, asked, self.rows, self.length, self.seed)
        progress(f"writing {self.rows} texts to calibrate on")
        return written_by(model, self.rows, self.length, self.seed)


def tokenize_rows(file: Path, tokenizer: Any, count: int, length: int) -> Tensor:
    """Up to `count` rows of `length` tokens from a text file, or from all texts of a JSONL; int64 [rows, length].

    They are spread over the whole file. Raises OptionError if it cannot be read or is too short for two rows.
    """
    text = "\n\n".join(map(_strings, _lines(file))) if file.suffix == ".jsonl" else _read(file)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    found = len(ids) // length
    if found < 2:
        raise OptionError(
            f"{file} has {len(ids)} tokens; accepted: at least {2 * length}, for two rows of {length}; give a longer "
            "file, or a smaller --length"
        )
    rows = ids[: found * length].view(found, length)
    return rows[torch.linspace(0, found - 1, min(count, found)).round().long()]


def read_questions(file: Path) -> list[str]:
    """The field `problem` of each line of a JSONL; raises OptionError."""
    made: list[str] = []
    for number, item in enumerate(_lines(file), start=1):
        problem = item.get("problem")
        if not isinstance(problem, str) or not problem.strip():
            raise OptionError(f"{file}, object {number}: 'problem' is {problem!r}; accepted: a text in every line")
        made.append(problem)
    return made


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL."""
    try:
        found = [json.loads(line) for line in _read(file).split("\n") if line.strip()]
    except ValueError as error:
        raise _unreadable(file, error) from None
    for item in found:
        if not isinstance(item, dict):
            raise _unreadable(file, f"a line is {type(item).__name__}, not an object")
    return found


def _unreadable(file: Path, reason: object) -> OptionError:
    return OptionError(f"{file} cannot be read: {reason}; accepted: a text in UTF-8, or a JSONL of objects")


def _strings(item: dict[str, Any]) -> str:
    return "\n".join(value for value in item.values() if isinstance(value, str))


@torch.inference_mode()
def written_by(model: Any, count: int, length: int, seed: int) -> Tensor:
    """Rows that a model samples itself, each from a random first token; int64 [count, length].

    Nothing else is needed then, and it is what a reasoning model reads most: its own text.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ids = torch.randint(vocabulary, (count, 1))
        cache: Any = None
        for _ in range(length - 1):
            out = model(input_ids=ids[:, -1:] if cache is not None else ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids = torch.cat((ids, _drawn(out.logits[:, -1])), dim=1)
    return ids


def _drawn(scores: Tensor) -> Tensor:
    """A token for each row, by its chances; int64 [rows, 1] from scores [rows, vocabulary].

    One random number a row: `multinomial` takes one for every token of the vocabulary, longer on a CPU than the layers.
    """
    upto = scores.float().softmax(dim=-1).cumsum(dim=-1)
    wanted = torch.rand(len(scores), 1, device=scores.device) * upto[:, -1:]
    return torch.searchsorted(upto, wanted, right=True).clamp(max=scores.shape[1] - 1)


@torch.inference_mode()
def answered_by(model: Any, tokenizer: Any, questions: Sequence[str], count: int, length: int, seed: int) -> Tensor:
    """Up to `count` rows of `length` tokens of conversations in which a model answers questions; int64 [rows, length].

    That is what a chat model reads when it is used: its template, and in it its own answers. They are sampled at the
    model's own temperature until there are enough; of what is longer than `length` tokens it is the beginning.
    Raises OptionError for a tokenizer without a template, and if there is too little for two rows.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError("the tokenizer has no chat template, so questions cannot be asked; give a text (--calib)")
    ids: list[int] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        asked, wanted = 0, count * length
        while len(ids) < wanted and asked < len(questions):
            # No more at a time than is wanted yet: the longest answer of them decides how long it takes.
            more = _TOGETHER if not ids else min(_TOGETHER, ceil((wanted - len(ids)) * asked / len(ids)))
            ids += _conversations(model, tokenizer, questions[asked : asked + more], length)
            asked += more
    found = min(count, len(ids) // length)
    if found < 2:
        raise OptionError(
            f"{len(questions)} questions and their answers are {len(ids)} tokens; accepted: at least {2 * length}, for "
            f"two rows of {length}; ask more of them, or give a smaller --length"
        )
    return torch.tensor(ids[: found * length]).view(found, length)


def _conversations(model: Any, tokenizer: Any, questions: Sequence[str], most: int) -> list[int]:
    """Questions as the chat template has them and sampled answers, one after the other."""
    asked = [render_question(tokenizer, question) for question in questions]
    width = max(map(len, asked))
    prompts = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in asked])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in asked])
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id or ()
    ends = [ends] if isinstance(ends, int) else list(ends)
    written = model.generate(
        prompts.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=most,
        logits_processor=[partial(_one_left, model.generation_config.temperature or 1.0)],
        do_sample=False,
        repetition_penalty=1.0,
        num_return_sequences=1,
        eos_token_id=ends or None,
        pad_token_id=min(ends, default=0),
    )
    made: list[int] = []
    for prompt, answer in zip(asked, written[:, width:].tolist(), strict=True):
        whole = next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))
        made += [*prompt, *answer[:whole]]
    return made


def _one_left(temperature: float, ids: Tensor, scores: Tensor) -> Tensor:
    """Scores that leave nothing to choose but the token that was drawn."""
    return torch.full_like(scores, -torch.inf).scatter_(1, _drawn(scores / temperature), 0.0)


def render_question(tokenizer: Any, question: str) -> list[int]:
    """Tokens of a question as the chat template has it, up to where the answer begins; raises OptionError."""
    from jinja2 import TemplateError

    try:
        made: list[int] = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        return made
    except TemplateError as error:
        raise OptionError(
            f"the chat template refuses a question of the user alone: {error}; accepted: one that takes it, or a text "
            "(--calib)"
        ) from None
