"""Verdicts of a language model: one prefill for all questions that wait, yes or no read off the next token.

As TrimR's verifier (arXiv 2505.17155), which generates nothing; its prompts and the calibration of its yes and no are
not published, so the prompts are ours and P(yes) is renormalised over the two.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import CapabilityError
from ..pending_questions import format_error
from ..verification import AnswerStated, Question, VerdictFuture

_YES, _NO = ("Yes", " Yes", "yes", " yes", "YES"), ("No", " No", "no", " no", "NO")
_EXISTS = """Question:
{question}

The end of a piece of reasoning about it:
{ending}

Does this reasoning state an answer to the question? Reply with Yes or No only."""
_SAME = """Question:
{question}

The ends of two pieces of reasoning about it:
1. {first}
2. {second}

Do both come to the same answer? Reply with Yes or No only."""


class LLMVerifier:
    """Asks the model of a transformers engine in a thread of its own; implements `Verifier`.

    engine: also the one that decodes, whose weights are then shared. patience: seconds until a verdict no longer
    counts. least: the share of the next token that yes and no must have more than, or the reply is garbage.
    most: questions of one forward. Raises CapabilityError for an engine without a model of this process, or a tokenizer
    in which yes and no begin alike.
    """

    def __init__(self, engine: Any, *, patience: float = 10.0, least: float = 0.1, most: int = 16) -> None:
        model, self.tokenizer = getattr(engine, "model", None), engine.tokenizer
        if model is None:
            raise CapabilityError(f"engine {engine.name!r} has no model in this process; give a transformers engine")
        self.model = clone_sharing_weights(model)
        self.patience, self.least, self.most = patience, least, most
        self._ids = reply_ids(self.tokenizer)
        self._queue: queue.SimpleQueue[tuple[list[int], VerdictFuture] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tersely verifier", daemon=True)
        self._thread.start()

    def submit(self, question: Question) -> VerdictFuture:
        """See `Verifier.submit`."""
        if not self._thread.is_alive():
            return VerdictFuture().fail("the verifier has stopped")
        ids = encode_question(self.tokenizer, question)
        ticket = VerdictFuture(len(ids), self.patience)
        self._queue.put((ids, ticket))
        return ticket

    def close(self) -> None:
        """See `Verifier.close`."""
        self._queue.put(None)
        self._thread.join(self.patience)

    def _work(self) -> None:
        while batch := self._waiting():
            self._judge(batch)

    def _waiting(self) -> list[tuple[list[int], VerdictFuture]]:
        """The next questions, at least one; none at the end."""
        batch: list[tuple[list[int], VerdictFuture]] = []
        while not batch or (len(batch) < self.most and not self._queue.empty()):
            item = self._queue.get()
            if item is None:
                for _, ticket in batch:
                    ticket.fail("the verifier was closed")
                return []
            if item[1].done:
                item[1].tokens = 0  # too late: not read
            else:
                batch.append(item)
        return batch

    def _judge(self, batch: list[tuple[list[int], VerdictFuture]]) -> None:
        try:
            chances = next_token_probs(self.model, [ids for ids, _ in batch], self._ids)
        except Exception as error:  # whatever is wrong with the model is no matter of the rows that are decoded
            for _, ticket in batch:
                ticket.fail(format_error(error))
            return
        for (_, ticket), (yes, no) in zip(batch, chances, strict=True):
            if yes + no > self.least:
                ticket.settle(yes / (yes + no))
            else:
                ticket.fail(f"garbage: yes and no have {yes + no:.3f} of the next token")


def clone_sharing_weights(model: Any) -> Any:
    """The same weights in modules of their own, so that hooks on the model that decodes see nothing of our forwards."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def reply_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """First tokens of the spellings of yes and of no, without bare spaces and those that both may begin with."""
    yes, no = ({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words} for words in (_YES, _NO))
    yes, no = ({i for i in ids if tokenizer.decode([i]).strip()} for ids in (yes - no, no - yes))
    if not yes or not no:
        raise CapabilityError("yes and no begin with the same token in this tokenizer; use another verifier")
    return sorted(yes), sorted(no)


def encode_question(tokenizer: Any, question: Question) -> list[int]:
    """The prompt of a question."""
    if isinstance(question, AnswerStated):
        text = _EXISTS.format(question=question.question, ending=question.ending)
    else:
        text = _SAME.format(question=question.question, first=question.first, second=question.second)
    return encode_chat(tokenizer, text)


def encode_chat(tokenizer: Any, text: str) -> list[int]:
    """A prompt with this message, by the chat template where there is one, without thinking."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": text}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        text = tokenizer.apply_chat_template(messages, **options)
    else:
        text = f"{text}\nReply:"
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def next_token_probs(
    model: Any, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> list[tuple[float, ...]]:
    """Probabilities that the token after each prompt begins each of the replies: one forward, padded on the right."""
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=model.device)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    last = torch.tensor([length - 1 for length in lengths], device=model.device)
    logits = model(ids, attention_mask=mask.long().to(model.device), logits_to_keep=last, use_cache=False).logits
    chances = logits.diagonal(dim1=0, dim2=1).T.float().softmax(-1)  # row i at the end of prompt i
    return list(zip(*(chances[:, list(reply)].sum(-1).tolist() for reply in replies), strict=True))
