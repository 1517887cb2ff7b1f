"""Calibration: text from a file or from the model itself, and statistics of a model on text.

The statistics are inputs of its layers, perplexity, and KL divergence from the unquantized model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from math import ceil, exp
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from pydantic import AliasChoices, BaseModel, Field, RootModel, StringConstraints
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...errors import OptionError
from ...validation import parse_json, read_lines, read_text

_ANSWERED = 32  # questions answered at once
_HELD_OUT = 4  # one in so many rows is held out for measuring
_BATCH = 8  # rows of text per forward pass
_STRIPE = 512  # inputs whose products with later inputs are computed at once
_TOP_TOKENS = 64  # tokens per position whose probabilities are stored; the rest count as one


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Where the text for calibration and measuring comes from: a file, or else the model itself."""

    file: Path | None = None  # a text file, or a JSONL
    questions: Path | None = None
    """A JSONL of questions for the model to answer; without any text, it continues a random token."""
    rows: int = 40
    length: int = 512  # tokens per row
    seed: int = 0

    @property
    def source(self) -> str:
        if self.file is not None:
            return str(self.file)
        return f"its own answers to {self.questions}" if self.questions is not None else "text written by the model"

    def split(self, model: Any, tokenizer: Any, progress: Callable[[str], None]) -> dict[str, Tensor]:
        """Rows for calibration, and others for measuring; raises OptionError if there is too little text."""
        if self.file is not None:
            rows = tokenize_rows(self.file, tokenizer, self.rows, self.length)
        elif self.questions is not None:
            questions = read_questions(self.questions)
            Random(self.seed).shuffle(questions)
            progress("answering questions to calibrate on")
            rows = sample_answers(model, tokenizer, questions, self.rows, self.length, self.seed)
        else:
            progress(f"writing {self.rows} texts to calibrate on")
            rows = sample_texts(model, self.rows, self.length, self.seed)
        held_out = torch.arange(len(rows)) % _HELD_OUT == 1
        return {"calibrating": rows[~held_out], "measured": rows[held_out]}


class _Question(BaseModel):
    problem: Annotated[str, StringConstraints(pattern=r"\S")] = Field(
        validation_alias=AliasChoices("problem", "question")
    )


def tokenize_rows(file: Path, tokenizer: Any, count: int, length: int) -> Tensor:
    """Up to `count` rows of `length` tokens, evenly spread over a text file or all strings of a JSONL.

    Returns int64 [rows, length]; raises OptionError if the file cannot be read, or is too short for two rows.
    """
    text = read_text(file, OptionError)
    if file.suffix == ".jsonl":
        parsed = (
            parse_json(RootModel[dict[str, Any]], line, at, OptionError).root
            for at, line in read_lines(file, OptionError)
        )
        text = "\n\n".join("\n".join(v for v in values.values() if isinstance(v, str)) for values in parsed)
    rows = _split_rows(tokenizer(text, verbose=False)["input_ids"], length, str(file))
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


def read_questions(file: Path) -> list[str]:
    """Read the field `problem` or `question` of each line of a JSONL; raises OptionError."""
    return [parse_json(_Question, line, at, OptionError).problem for at, line in read_lines(file, OptionError)]


def _split_rows(ids: Sequence[int], length: int, source: str) -> Tensor:
    """All rows of `length` tokens, int64 [rows, length]; raises OptionError if there are less than two."""
    available = len(ids) // length
    if available < 2:
        raise OptionError(
            f"{source}: {len(ids)} tokens; accepted: at least {2 * length}, two rows of {length}; give more text, or "
            "a smaller --length",
            code="too_little_text",
        )
    return torch.tensor(ids[: available * length], dtype=torch.int64).view(available, length)


@torch.inference_mode()
def sample_texts(model: Any, count: int, length: int, seed: int) -> Tensor:
    """Sample rows from a model, each from a random first token; int64 [count, length]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = torch.randint(model.get_input_embeddings().num_embeddings, (count, 1))
        return _generate(model, first.tolist(), length - 1, ends=())[1]


@torch.inference_mode()
def sample_answers(model: Any, tokenizer: Any, questions: Sequence[str], count: int, length: int, seed: int) -> Tensor:
    """Up to `count` rows of `length` tokens of conversations in which a model answers questions; int64 [rows, length].

    Answers are sampled at the model's own temperature until there are enough, and cut off after `length` tokens. Raises
    OptionError if the tokenizer has no chat template, or if there is too little text for two rows.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            "the tokenizer has no chat template, so questions cannot be asked; give a text (--calib)",
            code="no_chat_template",
        )
    ids: list[int] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        done, needed = 0, count * length
        while len(ids) < needed and done < len(questions):
            # No larger batches than needed: the longest answer of a batch determines its duration.
            size = _ANSWERED if not ids else min(_ANSWERED, ceil((needed - len(ids)) * done / len(ids)))
            ids += _sample_conversations(model, tokenizer, questions[done : done + size], length)
            done += size
    return _split_rows(ids, length, f"{len(questions)} questions with answers")[:count]


def _sample_conversations(model: Any, tokenizer: Any, questions: Sequence[str], max_new_tokens: int) -> list[int]:
    """Questions in the chat template followed by sampled answers, concatenated."""
    rendered = [render_question(tokenizer, question) for question in questions]
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id or ()
    ends = [ends] if isinstance(ends, int) else list(ends)
    width, output = _generate(model, rendered, max_new_tokens, ends, model.generation_config.temperature or 1.0)
    ids: list[int] = []
    for prompt, answer in zip(rendered, output[:, width:].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
        ids += [*prompt, *answer[:end]]
    return ids


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: Sequence[int], temperature: float = 1.0
) -> tuple[int, Tensor]:
    """The width of the prompts, padded on the left, and the prompts with what the model samples after them."""
    rows = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    ids, mask = (
        pad_sequence(list(part), batch_first=True, padding_side="left") for part in (rows, map(torch.ones_like, rows))
    )
    output: Tensor = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        logits_processor=[partial(_mask_all_but_drawn, temperature)],
        do_sample=False,
        repetition_penalty=1.0,
        num_return_sequences=1,
        eos_token_id=list(ends) or None,
        pad_token_id=min(ends, default=0),
    )
    return ids.shape[1], output


def _mask_all_but_drawn(temperature: float, ids: Tensor, scores: Tensor) -> Tensor:
    """Draw a token for each row of scores [rows, vocabulary] and mask all others; `multinomial` is slower on CPUs."""
    cumulative = (scores / temperature).float().softmax(dim=-1).cumsum(dim=-1)
    target = torch.rand(len(scores), 1, device=scores.device) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=scores.shape[1] - 1)
    return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def render_question(tokenizer: Any, question: str) -> list[int]:
    """Tokens of a question in the chat template, up to the start of the answer; raises OptionError."""
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        return ids
    except TemplateError as error:
        raise OptionError(
            f"the chat template rejects a single user message: {error}; accepted: a template that allows it, or a text "
            "(--calib)",
            code="chat_template_failed",
        ) from None


class Inputs:
    """Statistics of the inputs of one layer, in which every token has the same weight, whatever its norm.

    `gram` are sums of products of all inputs, [inputs, inputs], if `full`, or else within groups, [groups, size, size].
    """

    def __init__(self, inputs: int, size: int, *, full: bool = False) -> None:
        self.size, self.full = size, full
        self.gram = torch.zeros(inputs, inputs) if full else torch.zeros(-(-inputs // size), size, size)
        self.highest = torch.zeros(inputs)  # the largest magnitude of each input

    def add(self, x: Tensor) -> None:
        """Add activations [..., inputs]."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(rows):
            return
        self.highest = torch.maximum(self.highest, rows.abs().amax(dim=0).cpu())
        rows = F.normalize(rows, dim=1)
        if self.full:
            for start in range(0, len(self.gram), _STRIPE):  # the upper triangle; `finish` mirrors it
                stripe = rows[:, start : start + _STRIPE]
                self.gram[start : start + _STRIPE, start:] += (stripe.T @ rows[:, start:]).cpu()
        else:
            rows = F.pad(rows, (0, -rows.shape[1] % self.size)).unflatten(1, (-1, self.size))
            self.gram += torch.einsum("tgi,tgj->gij", rows, rows).cpu()

    def finish(self) -> None:
        """Call after the last `add`, before `gram` is used."""
        if self.full:
            self.gram = self.gram.triu() + self.gram.triu(1).T

    def scaled(self, scale: Tensor | None) -> Self:
        """The statistics of the inputs times `scale`."""
        if scale is None:
            return self
        result = copy(self)
        result.highest = self.highest * scale
        if not self.full:
            scale = F.pad(scale, (0, -len(scale) % self.size)).unflatten(0, (-1, self.size))
        result.gram = self.gram * scale[..., :, None] * scale[..., None, :]
        return result


@contextmanager
def capture_inputs(layers: dict[str, nn.Linear], size: int, *, full: bool = False) -> Iterator[dict[str, Inputs]]:
    """Collect the inputs of layers while the context lasts; size, full: see `Inputs`."""
    captured = {name: Inputs(layer.in_features, size, full=full) for name, layer in layers.items()}
    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda _, args, inputs=captured[name]: inputs.add(args[0]))
            stack.enter_context(hook)
        yield captured
    for inputs in captured.values():
        inputs.finish()


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Make plain linear layers on any CPU compute in float32: ten times faster on those without bfloat16 arithmetic."""

    def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.float()
        return F.linear(x.float(), layer.weight.float(), bias).to(x.dtype)

    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.device.type == "cpu"]
    for layer in layers:
        layer.forward = partial(multiply, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.inference_mode()
def iterate_logits(model: Any, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a model on token rows [rows, length]; yields logits [length - 1, vocabulary] and the next tokens."""
    with _in_float32(model):
        for part in rows.to(model.device).split(_BATCH):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            yield from zip(map(Tensor.float, logits), part[:, 1:], strict=True)


def perplexity(model: Any, rows: Tensor) -> float:
    """The perplexity of a model on token rows [rows, length], without the first token of each."""
    return exp(fmean(F.cross_entropy(logits, ids).item() for logits, ids in iterate_logits(model, rows)))


def cache_reference(model: Any, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Record a model's next-token distributions on token rows [rows, length], for `kl_to_reference`.

    Returns `tokens`, int32 [rows, length - 1, top], the likeliest ones, with their log-probabilities `chances` in
    float32; and a dictionary with the `perplexity`.
    """
    tokens, log_probs, losses = [], [], []
    for logits, ids in iterate_logits(model, rows):
        all_log_probs = logits.log_softmax(-1)
        top = all_log_probs.topk(min(_TOP_TOKENS, all_log_probs.shape[-1]))
        tokens.append(top.indices.int().cpu())
        log_probs.append(top.values.cpu())
        losses.append(F.nll_loss(all_log_probs, ids).item())
    return {"tokens": torch.stack(tokens), "chances": torch.stack(log_probs)}, {"perplexity": exp(fmean(losses))}


def kl_to_reference(model: Any, rows: Tensor, reference: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
    """KL divergence, in nats per token, of a model from `cache_reference` on the same rows, and its loss; by rows.

    All but the likeliest tokens count as one, so this is a close lower bound.
    """
    divergences, losses = [], []
    for (logits, ids), tokens, expected in zip(
        iterate_logits(model, rows), reference["tokens"], reference["chances"], strict=True
    ):
        all_log_probs = logits.log_softmax(-1)
        actual = all_log_probs.gather(1, tokens.long().to(all_log_probs.device)).cpu()
        top = (expected.exp() * (expected - actual)).sum(-1)
        rest, actual_rest = _log_rest(expected), _log_rest(actual)
        divergences.append((top + rest.exp() * (rest - actual_rest)).mean().item())
        losses.append(F.nll_loss(all_log_probs, ids).item())
    return divergences, losses


def _log_rest(log_probs: Tensor) -> Tensor:
    """The log-probability of all other tokens, given log-probabilities [positions, top]."""
    return torch.log((1 - log_probs.double().exp().sum(-1)).clamp(min=1e-9)).float()
