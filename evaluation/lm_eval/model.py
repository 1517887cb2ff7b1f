"""The lm-eval model `tersely`; importing this module needs lm-eval and registers the model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar, NoReturn, Self

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import sanitize_model_name
from tqdm import tqdm

from ...controller.engines.transformers.engine import load_engine
from ...controller.options import GenerationOptions, with_seed
from ...controller.session import Session
from ...controller.text.markers import resolve_markers
from ...controller.trace import GenerationResult
from ...controller.types import Prompt
from ...errors import CapabilityError, OptionError
from ..runner import batch_seed
from .requests import ModelArguments, TaskArguments, UsageLog, build_options


class Chat(str):
    """Chat messages as JSON text, which lm-eval can store; a plain `str` prompt is one user message."""


@register_model("tersely")
class TerselyLM(LM):
    """A reasoning model under control, for generative tasks; its arguments are those of `ModelArguments`."""

    shared_usage: ClassVar[UsageLog | None] = None
    """The usage log of the command; a model created without the command has its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = parsed = ModelArguments.parse(arguments)
        markers = resolve_markers(parsed.markers)
        self.usage = type(self).shared_usage or UsageLog()
        self.usage.open(sanitize_model_name(parsed.pretrained))
        engine = load_engine(parsed.pretrained, parsed.dtype, _resolve_device(parsed.device))
        self.session = Session(engine, markers, parsed.think_prompt)
        self._seed = torch.initial_seed()  # set by lm-eval just before

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Any = None) -> Self:
        """Create a model for lm-eval; --model_args overrides --batch_size and --device."""
        defaults = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**{**defaults, **arg_dict})

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's key for cached prompts; other models cannot use our messages."""
        return "tersely"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, for lm-eval's records; raises OptionError for a template by name."""
        if isinstance(chat_template, str):
            raise OptionError(f"--apply_chat_template is {chat_template!r}; accepted: the option without a value")
        return str(self.session.engine.tokenizer.chat_template) if chat_template else None

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> Chat:
        """Pass the messages on to the session; raises CapabilityError if the task starts the model's answer."""
        if not add_generation_prompt:
            raise CapabilityError(
                f"the task starts the answer (gen_prefix {chat_history[-1]['content']!r}), but a reasoning model "
                "thinks first; leave out --apply_chat_template, or use a task without gen_prefix",
                code="unsupported_gen_prefix",
            )
        return Chat(json.dumps(chat_history, ensure_ascii=False))

    def set_cache_hook(self, cache_hook: Any) -> NoReturn:
        """Not supported; raises CapabilityError."""
        raise CapabilityError(
            "--use_cache stores answers without their token counts, preset and effort; leave it out",
            code="unsupported_cache",
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer requests in batches with equal options, long prompts first; answers are in the order of requests."""
        parsed = [TaskArguments.parse(request.task_name, request.args[1]) for request in requests]
        options = [build_options(r.task_name, self.arguments, p) for r, p in zip(requests, parsed, strict=True)]
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for number, rows in enumerate(_batches(requests, options, self.arguments.batch_size)):
                seeded = with_seed(options[rows[0]], batch_seed("lm-eval", self._seed, number))
                results = self.session.run([_decode_prompt(requests[i].args[0]) for i in rows], seeded)
                for i, result in zip(rows, results, strict=True):
                    self.usage.add(requests[i].task_name, requests[i].doc_id, result)
                    answers[i] = self._format_answer(result, parsed[i])
                bar.update(len(rows))
        return answers

    def _format_answer(self, result: GenerationResult, arguments: TaskArguments) -> str:
        """The text for the task: the answer up to a stop string, preceded by the thinking if requested."""
        answer = arguments.truncate(result.answer)
        if not self.arguments.keep_thinking:
            return answer
        return result.text[: result.text.rindex(result.answer)] + answer

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Not supported; raises CapabilityError."""
        tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise CapabilityError(
            f"{tasks}: a model does not think when a task scores given texts (output_type multiple_choice, "
            "loglikelihood, loglikelihood_rolling); accepted: tasks with output_type generate_until; or run these with "
            "--model hf",
            code="unsupported_output_type",
        )

    loglikelihood_rolling = loglikelihood

    def get_model_info(self) -> dict[str, Any]:
        info = {
            "version": version("tersely"),
            **self.arguments.model_dump(include={"preset", "policies", "effort", "answer_reserve"}),
            "usage": self.usage.path and self.usage.path.name,
            "mean_tokens": self.usage.means(),
        }
        return {"tersely": info}


def _batches(requests: Sequence[Any], options: Sequence[GenerationOptions], size: int) -> Iterator[list[int]]:
    """Indices in batches with equal options, long prompts first, so that one that does not fit fails at once."""
    groups: dict[GenerationOptions, list[int]] = defaultdict(list)
    for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
        groups[options[i]].append(i)
    for rows in groups.values():
        yield from (rows[at : at + size] for at in range(0, len(rows), size))


def _decode_prompt(context: str) -> Prompt:
    return list(json.loads(context)) if isinstance(context, Chat) else context


def _resolve_device(name: str | None) -> str | None:
    """The device, or None for the default; lm-eval passes cuda:0 even if its user did not ask for it."""
    try:
        cuda = name is not None and torch.device(name).type == "cuda"
    except RuntimeError:
        raise OptionError(f"unknown device {name!r}; accepted: cpu, cuda, cuda:N or mps") from None
    return None if cuda and not torch.cuda.is_available() else name
