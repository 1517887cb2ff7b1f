"""A backend over vLLM's AsyncLLM in this process: the same loop without HTTP between; closing a stream aborts it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any

from ....errors import CapabilityError, ModelError, OptionError
from ...types import SamplingParams, Signals
from ..checkpoints import resolve_checkpoint
from .backend import Chunk, StreamError, parse_signals
from .engine import RemoteEngine
from .tokenizer_loading import load_tokenizer

if TYPE_CHECKING:
    from vllm import AsyncLLMEngine

_SIGNALS = 2  # log probabilities beside that of the sampled token


def load_async_llm(model: Any, tokenizer: Any = None, **options: Any) -> RemoteEngine:
    """An engine on vLLM in this process, which starts another for the model: call it under `__name__ == "__main__"`.

    model: a name or folder, started with further `options` of vLLM's AsyncEngineArgs; or an AsyncLLM that no event loop
    has used yet, which belongs to the engine from then on. tokenizer: see `connect`.
    Raises CapabilityError without vLLM, OptionError, ModelError.
    """
    if not isinstance(model, str):
        if options:
            raise OptionError(f"options {', '.join(options)} came with a vLLM that is started already; leave them out")
        if getattr(model, "output_handler", None) is not None:
            raise OptionError("this AsyncLLM works in an event loop already; give one that was made outside of any")
        name = str(model.model_config.model)
        return RemoteEngine(AsyncLLMBackend(name, lambda: model, tokenizer))
    return RemoteEngine(AsyncLLMBackend(model, lambda: _start(model, options), tokenizer))


class AsyncLLMBackend:
    """Writes through the AsyncLLM that `start` returns, which is called in the loop; implements `Backend`."""

    chances = True

    def __init__(self, name: str, start: Callable[[], AsyncLLMEngine], tokenizer: Any = None) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.context_length: int | None = None
        self._start = start
        self._llm: Any = None
        self._defaults: dict[str, Any] = {}
        self._numbers = count()

    async def open(self) -> None:
        """See `Backend.open`."""
        self.tokenizer = load_tokenizer(self.tokenizer, (self.name,))
        self._llm = self._start()
        self.context_length = self._llm.model_config.max_model_len
        self._defaults = self._llm.model_config.get_diff_sampling_param()

    async def stream(
        self, ids: Sequence[int], limit: int, sampling: SamplingParams, signals: bool
    ) -> AsyncGenerator[Chunk, None]:
        """See `Backend.stream`."""
        from vllm.exceptions import VLLMClientError, VLLMServerError

        prompt = {"prompt_token_ids": list(ids)}
        outputs = self._llm.generate(prompt, self._params(limit, sampling, signals), f"tersely-{next(self._numbers)}")
        try:
            async with aclosing(outputs) as made:
                async for done in made:
                    output = done.outputs[0]
                    reason = output.finish_reason
                    finish: Any = None if reason is None else "length" if reason == "length" else "stop"
                    yield Chunk(tuple(output.token_ids), _signals(output), finish)
                    if finish is not None:
                        return
        except VLLMClientError as error:
            raise ModelError(f"vLLM refuses the request: {error}") from error
        except VLLMServerError as error:
            raise StreamError(str(error)) from error
        raise StreamError("the stream ended before the text did")

    async def close(self) -> None:
        """See `Backend.close`."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    def _params(self, limit: int, sampling: SamplingParams, signals: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams.from_optional(
            **{
                **self._defaults,
                **sampling.asked(),
                "max_tokens": limit,
                "logprobs": _SIGNALS if signals else None,
                "detokenize": False,
                "output_kind": RequestOutputKind.DELTA,
            }
        )


def _signals(output: Any) -> tuple[Signals, ...]:
    """The signals of an output's tokens; it has a dictionary of a few likely tokens and the sampled one for each."""
    found = []
    for token, known in zip(output.token_ids, output.logprobs or (), strict=False):
        likeliest = sorted((one.logprob for one in known.values()), reverse=True)
        found.append(parse_signals(known[token].logprob, likeliest))
    return tuple(found)


def _start(model: str, options: dict[str, Any]) -> AsyncLLMEngine:
    try:
        from vllm import AsyncEngineArgs, AsyncLLMEngine
    except ImportError:
        raise CapabilityError("vLLM is not installed; install it, or connect to a server") from None
    place = resolve_checkpoint(model)
    try:
        return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=place, **options))
    except TypeError as error:
        raise OptionError(f"vLLM takes other options: {error}") from error
    except Exception as error:  # whatever keeps an engine process from starting
        raise ModelError(f"vLLM cannot be started on {model!r}: {error}; see its log") from error
