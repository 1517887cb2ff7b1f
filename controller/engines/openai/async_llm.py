"""A backend on vLLM's AsyncLLM in this process: the same loop without HTTP; closing a stream aborts its request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any

from ....errors import CapabilityError, ModelError, OptionError
from ....models import resolve_checkpoint
from ...types import SamplingParams, Signals
from . import Chunk, StreamError, load_tokenizer, signals_from_logprobs
from .engine import RemoteEngine

if TYPE_CHECKING:
    from vllm import AsyncLLMEngine


def load_async_llm(model: Any, tokenizer: Any = None, **options: Any) -> RemoteEngine:
    """An engine on vLLM in this process. vLLM starts a process of its own: call it under `__name__ == "__main__"`.

    Raises CapabilityError without vLLM, OptionError or ModelError where it does not take an option or cannot start.

    Args:
        model: a name or folder, started with `options` of vLLM's AsyncEngineArgs; or an AsyncLLM that no event loop has
            used yet, which the engine then owns.
        tokenizer: see `connect`.
    """
    if isinstance(model, str):
        return RemoteEngine(AsyncLLMBackend(model, lambda: _start_vllm(model, options), tokenizer))
    if options:
        raise OptionError(f"this AsyncLLM is already running; leave out the options {', '.join(options)}")
    if getattr(model, "output_handler", None) is not None:
        raise OptionError("this AsyncLLM already runs in an event loop; pass one that was created outside of any")
    name = str(model.model_config.model)
    return RemoteEngine(AsyncLLMBackend(name, lambda: model, tokenizer))


class AsyncLLMBackend:
    """Generates with the AsyncLLM that `start` returns in the engine's loop; implements `CompletionBackend`."""

    has_logprobs = True

    def __init__(self, name: str, start: Callable[[], AsyncLLMEngine], tokenizer: Any = None) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.context_length: int | None = None
        self._start = start
        self._llm: Any = None
        self._defaults: dict[str, Any] = {}
        self._numbers = count()

    async def open(self) -> None:
        self.tokenizer = load_tokenizer(self.tokenizer, (self.name,))
        self._llm = self._start()
        self.context_length = self._llm.model_config.max_model_len
        self._defaults = self._llm.model_config.get_diff_sampling_param()

    async def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, logprobs: int
    ) -> AsyncGenerator[Chunk, None]:
        from vllm.exceptions import VLLMClientError, VLLMServerError

        prompt = {"prompt_token_ids": list(ids)}
        params = self._make_params(limit, sampling, logprobs)
        try:
            async with aclosing(self._llm.generate(prompt, params, f"tersely-{next(self._numbers)}")) as outputs:
                async for request_output in outputs:
                    output = request_output.outputs[0]
                    reason = output.finish_reason
                    finish: Any = None if reason is None else "length" if reason == "length" else "stop"
                    yield Chunk(tuple(output.token_ids), _read_signals(output), finish)
                    if finish is not None:
                        return
        except VLLMClientError as error:
            raise ModelError(f"vLLM refuses the request: {error}", code="request_refused") from error
        except VLLMServerError as error:
            raise StreamError(str(error)) from error
        raise StreamError("the stream ended before the text did")

    async def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    def _make_params(self, limit: int, sampling: SamplingParams, logprobs: int) -> Any:
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        return VllmSamplingParams.from_optional(
            **{
                **self._defaults,
                **sampling.as_dict(),
                "max_tokens": limit,
                "logprobs": logprobs or None,
                "detokenize": False,
                "output_kind": RequestOutputKind.DELTA,
            }
        )


def _read_signals(output: Any) -> tuple[Signals, ...]:
    """The signals of an output's tokens, each of which has log-probabilities of a few likely tokens and its own."""
    signals = []
    for token, logprobs in zip(output.token_ids, output.logprobs or (), strict=False):
        most_likely = sorted((entry.logprob for entry in logprobs.values()), reverse=True)
        signals.append(signals_from_logprobs(logprobs[token].logprob, most_likely))
    return tuple(signals)


def _start_vllm(model: str, options: dict[str, Any]) -> AsyncLLMEngine:
    try:
        from vllm import AsyncEngineArgs, AsyncLLMEngine
    except ImportError:
        raise CapabilityError(
            "vLLM is not installed; install it, or connect to a server", code="missing_dependency"
        ) from None
    path = resolve_checkpoint(model)
    try:
        return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=path, **options))
    except TypeError as error:
        raise OptionError(f"vLLM does not take these options: {error}") from error
    except Exception as error:  # anything that keeps the engine process from starting
        raise ModelError(f"vLLM cannot start {model!r}: {error}; see its log", code="engine_failed") from error
