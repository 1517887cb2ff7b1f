"""Verdicts of a language model in this process or behind an endpoint, read off the token after the question.

TrimR's verifier (arXiv 2505.17155) generates nothing either, and decoding never waits for it. We found neither its
prompts nor its calibration, so the prompts are ours and P(yes) is normalized over yes and no.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, cast

import torch

from ..errors import CapabilityError, ModelError
from .engines.openai.client import OpenAIClient, RefusedError, choose_model
from .reader import StateReader, clone_sharing_weights
from .verification import AnswerFinal, AnswerStated, NoVerdictError, Question, VerdictFuture, settle

_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
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
    """Asks the model of a transformers engine, in a thread of its own; implements `Verifier`.

    The engine may be the one that decodes, whose weights are then shared. Verdicts count for `timeout` seconds; yes and
    no together must be more likely than `min_probability`, or the reply is not a verdict. Raises CapabilityError if the
    engine has no model in this process, or yes and no begin with the same token.
    """

    def __init__(
        self, engine: Any, *, timeout: float | None = 10.0, min_probability: float = 0.1, batch_size: int = 16
    ) -> None:
        model, self.tokenizer = getattr(engine, "model", None), engine.tokenizer
        if model is None:
            raise CapabilityError(
                f"engine {engine.name!r} has no model in this process; use a transformers engine", code="no_local_model"
            )
        self.model = clone_sharing_weights(model)
        self.timeout, self.min_probability, self.batch_size = timeout, min_probability, batch_size
        self._ids = reply_ids(self.tokenizer)
        self._waiting: deque[tuple[list[int], VerdictFuture]] = deque()
        self._pool = ThreadPoolExecutor(1, "tersely verifier")
        self._engine, self._reader = engine, cast("StateReader | None", None)

    def submit(self, question: Question) -> VerdictFuture:
        if isinstance(question, AnswerFinal):
            return self._submit_reading(question)
        ids = encode_chat(self.tokenizer, format_question(question))
        future = VerdictFuture(len(ids))
        self._waiting.append((ids, future))
        try:
            self._pool.submit(self._judge_waiting)
        except RuntimeError:  # it was closed
            self._give_up_waiting()
        return future

    def _submit_reading(self, question: AnswerFinal) -> VerdictFuture:
        future, closed = VerdictFuture(), NoVerdictError("the verifier was closed")

        def judge() -> None:
            try:
                self._reader = self._reader or StateReader(self._engine)
                if not future.done():  # cancelled before it was read
                    probability, future.tokens = self._reader.judge(question)
                    settle(future, probability)
            except BaseException as error:  # as above
                settle(future, error)

        try:
            self._pool.submit(judge).add_done_callback(lambda _: settle(future, closed))  # unless it is settled
        except RuntimeError:
            settle(future, closed)
        return future

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        while self._waiting:
            _, future = self._waiting.popleft()
            future.tokens = 0
            settle(future, NoVerdictError("the verifier was closed"))

    def _judge_waiting(self) -> None:
        """Judge questions that wait, at most a batch; it is called once for each, so later calls may find none."""
        batch: list[tuple[list[int], VerdictFuture]] = []
        while self._waiting and len(batch) < self.batch_size:
            ids, future = self._waiting.popleft()
            if future.done():
                future.tokens = 0  # cancelled before it was read
            else:
                batch.append((ids, future))
        if not batch:
            return
        try:
            probabilities = next_token_probs(self.model, [ids for ids, _ in batch], self._ids)
        except BaseException as error:  # a broken verifier must not disturb the sequences that are decoded
            for _, future in batch:
                settle(future, error)
            return
        for (_, future), (yes, no) in zip(batch, probabilities, strict=True):
            settle(future, weigh_reply(yes, no, self.min_probability))


_LOGPROBS = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
_FORMS: tuple[Mapping[str, Any], ...] = (
    {**_LOGPROBS, "chat_template_kwargs": {"enable_thinking": False}},
    _LOGPROBS,
    {"max_tokens": 8, "reasoning_effort": "none"},
    {"max_tokens": 8},
)
"""What a request has beyond the question, from best to least; a server refuses fields that it does not know."""


class EndpointCaller:
    """Asks an OpenAI-compatible server from a thread of its own; what was asked becomes futures.

    Args:
        model: its name there; None takes the server's only one.
        api_key: None takes it from the environment (`key_variable`), "" sends none.
        timeout: seconds after which a reply no longer counts.
        streams: most questions that are asked at the same time.
    """

    key_variable: ClassVar[str]

    def __init__(self, base_url: str, model: str | None, api_key: str | None, timeout: float, streams: int) -> None:
        self._client = OpenAIClient(base_url, api_key, timeout, self.key_variable)
        self.model, self.timeout = model, timeout
        self._slots = asyncio.Semaphore(streams)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"tersely {base_url}", daemon=True)
        self._thread.start()

    def _start(self, question: Coroutine[Any, Any, Any], future: Future[Any]) -> None:
        """Let a question settle a future."""
        if self._loop.is_closed():
            question.close()
            future.set_exception(NoVerdictError("the connection to the server was closed"))
        else:
            asyncio.run_coroutine_threadsafe(self._settle(question, future), self._loop)

    async def _settle(self, question: Coroutine[Any, Any, Any], future: Future[Any]) -> None:
        try:
            async with self._slots:
                if future.done():  # too late before it was asked
                    return
                self.model = self.model or (await choose_model(self._client, None)).name
                settle(future, await question)
        except asyncio.CancelledError:
            settle(future, NoVerdictError("the connection to the server was closed"))
        except Exception as error:  # a broken server must not disturb the sequences that are decoded
            settle(future, error)
        finally:
            question.close()

    def close(self) -> None:
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(self.timeout)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self.timeout)
            self._loop.close()

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()


class EndpointVerifier(EndpointCaller):
    """Asks a chat model behind an OpenAI-compatible server; implements `Verifier`. Takes what `EndpointCaller` does.

    The verdict is read off the 20 likeliest first tokens of the reply where the server reports them, which generates
    one token; otherwise the reply's first yes or no is the verdict. For `min_probability` see `LLMVerifier`.
    """

    key_variable = "TERSELY_VERIFIER_KEY"

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 10.0,
        min_probability: float = 0.1,
        streams: int = 16,
    ) -> None:
        super().__init__(base_url, model, api_key, timeout, streams)
        self.min_probability = min_probability
        self._forms = list(_FORMS)

    def submit(self, question: Question) -> VerdictFuture:
        future = VerdictFuture()
        self._start(self._answer(question, future), future)
        return future

    async def _answer(self, question: Question, future: VerdictFuture) -> float | Exception:
        reply = await self._ask(format_question(question))
        future.tokens = int((reply.get("usage") or {}).get("prompt_tokens") or 0)
        return read_verdict(reply, self.min_probability)

    async def _ask(self, text: str) -> dict[str, Any]:
        """The reply in the best form that the server takes."""
        question = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0.0}
        while True:
            form = self._forms[0]
            try:
                return await self._client.request("POST", "/chat/completions", {**question, **form})
            except RefusedError as error:
                if error.status not in (400, 422) or form is _FORMS[-1]:
                    raise
                if self._forms[0] is form:  # else another question has been refused meanwhile
                    self._forms.pop(0)


def read_verdict(reply: Mapping[str, Any], min_probability: float) -> float | Exception:
    """The verdict of a chat completion; raises ModelError for a malformed one."""
    try:
        choice = reply["choices"][0]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        if tokens and tokens[0]["top_logprobs"]:
            found = {"yes": 0.0, "no": 0.0}
            for one in tokens[0]["top_logprobs"]:
                if (word := one["token"].strip().lower()) in found:
                    found[word] += math.exp(one["logprob"])
            return weigh_reply(found["yes"], found["no"], min_probability)
        word_found = _VERDICT.search(choice["message"]["content"] or "")
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ModelError(f"the verifier's reply is malformed: {error}", code="invalid_reply") from error
    return NoVerdictError("the reply has no yes or no") if word_found is None else float(word_found[1].lower() == "yes")


def weigh_reply(yes: float, no: float, min_probability: float) -> float | Exception:
    """P(yes) of yes and no, or why they give none."""
    if yes + no > min_probability:
        return yes / (yes + no)
    return NoVerdictError(f"yes and no have {yes + no:.3f} of the next token's probability")


def reply_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The first tokens of the spellings of yes and of no, without bare spaces and shared ones."""
    yes, no = ({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words} for words in (_YES, _NO))
    yes, no = ({i for i in ids if tokenizer.decode([i]).strip()} for ids in (yes - no, no - yes))
    if not yes or not no:
        raise CapabilityError(
            "yes and no begin with the same token in this tokenizer; use another verifier", code="same_reply_tokens"
        )
    return sorted(yes), sorted(no)


def format_question(question: Question) -> str:
    """The text that asks a question; raises NoVerdictError for one that only a reader can answer."""
    if isinstance(question, AnswerFinal):
        raise NoVerdictError("the text probe needs its reader as the verifier, in this process")
    if isinstance(question, AnswerStated):
        return _EXISTS.format(question=question.question, ending=question.ending)
    return _SAME.format(question=question.question, first=question.first, second=question.second)


def encode_chat(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a chat with this message and no thinking; a plain prompt without a chat template."""
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
    """Probability that the token after each prompt begins each of the replies: one forward pass, padded right."""
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=model.device)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    last = torch.tensor([length - 1 for length in lengths], device=model.device)
    logits = model(ids, attention_mask=mask.long().to(model.device), logits_to_keep=last, use_cache=False).logits
    probabilities = logits.diagonal(dim1=0, dim2=1).T.float().softmax(-1)  # row i at the end of prompt i
    return list(zip(*(probabilities[:, list(reply)].sum(-1).tolist() for reply in replies), strict=True))
