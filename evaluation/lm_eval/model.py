"""The model `tersely`: lm-eval's requests answered through a session, with the tokens counted.

Importing this needs lm-eval and registers the model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar, NoReturn

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import sanitize_model_name
from tqdm import tqdm

from ...controller.engines.transformers.engine import load_engine
from ...controller.options import GenerationOptions, with_seed
from ...controller.prompts import Message, Prompt
from ...controller.session import Session
from ...controller.trace import GenerationResult
from ...errors import CapabilityError, OptionError
from ..runner import batch_seed
from .arguments import ModelArguments, TaskArguments, build_options
from .usage import UsageLog


class Chat(str):
    """Messages as the JSON text that lm-eval keeps and logs; any other prompt is the text of one user message."""


@register_model("tersely")
class TerselyLM(LM):
    """A reasoning model under tersely's control, for tasks that generate.

    arguments: see `ModelArguments`. Raises OptionError, ModelError, MarkerError, WriteError.
    """

    shared: ClassVar[UsageLog | None] = None
    """The ledger of the command; a model made without it has one of its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = given = ModelArguments.of(arguments)
        markers = given.as_markers()
        self.ledger = type(self).shared or UsageLog()
        self.ledger.open(sanitize_model_name(given.pretrained))
        engine = load_engine(given.pretrained, given.dtype, _device(given.device))
        self.session = Session(engine, markers, given.think_prompt)
        self._seed = torch.initial_seed()  # lm-eval has just set it

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Any = None) -> TerselyLM:
        """Make one as lm-eval does; what --model_args says goes before --batch_size and --device."""
        beside = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**{**beside, **arg_dict})

    @property
    def tokenizer_name(self) -> str:
        """Part of the name under which lm-eval keeps prompts: messages are of use to no other model."""
        return "tersely"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, which lm-eval notes down; raises OptionError for a template by name."""
        if isinstance(chat_template, str):
            raise OptionError(f"--apply_chat_template {chat_template!r}: accepted: the option without a value")
        return str(self.session.engine.tokenizer.chat_template) if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> Chat:
        """Keep the messages for the session, which renders them for the tier.

        Raises CapabilityError where a task begins the model's answer, before which the model would have to think.
        """
        if not add_generation_prompt:
            raise CapabilityError(
                f"the task begins the answer (gen_prefix {chat_history[-1]['content']!r}), but a reasoning model "
                "thinks first; leave --apply_chat_template out, or take a task without gen_prefix"
            )
        return Chat(json.dumps(chat_history, ensure_ascii=False))

    def set_cache_hook(self, cache_hook: Any) -> NoReturn:
        """Refuse: raises CapabilityError."""
        raise CapabilityError(
            "--use_cache keeps answers without their tokens and under no preset or effort; leave it out"
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer requests in batches of like options, long prompts first; answers are in the order of the requests."""
        wanted = [TaskArguments.of(request.task_name, request.args[1]) for request in requests]
        options = [build_options(r.task_name, self.arguments, w) for r, w in zip(requests, wanted, strict=True)]
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for number, rows in enumerate(_batches(requests, options, self.arguments.batch_size)):
                seeded = with_seed(options[rows[0]], batch_seed("lm-eval", self._seed, number))
                done = self.session.run([_prompt(requests[i].args[0]) for i in rows], seeded)
                for i, made in zip(rows, done, strict=True):
                    self.ledger.add(requests[i].task_name, requests[i].doc_id, made)
                    answers[i] = self._scored(made, wanted[i])
                bar.update(len(rows))
        return answers

    def _scored(self, made: GenerationResult, wanted: TaskArguments) -> str:
        """What the task is given: the answer up to a stop string, after the thinking if that is to be kept."""
        answer = wanted.cut(made.answer)
        if not self.arguments.keep_thinking:
            return answer
        return made.text[: made.text.rindex(made.answer)] + answer

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refuse: raises CapabilityError."""
        _refuse(requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refuse: raises CapabilityError."""
        _refuse(requests)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval puts into the configuration in its results file."""
        told = {
            "version": version("tersely"),
            **self.arguments.model_dump(include={"preset", "policies", "effort", "answer_reserve"}),
            "usage": self.ledger.path and self.ledger.path.name,
            "mean_tokens": self.ledger.means(),
        }
        return {"tersely": told}


def _batches(requests: Sequence[Any], options: Sequence[GenerationOptions], size: int) -> Iterator[list[int]]:
    """Indices in batches of equal options, long prompts first: what does not fit fails at once."""
    groups: dict[GenerationOptions, list[int]] = defaultdict(list)
    for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
        groups[options[i]].append(i)
    for rows in groups.values():
        yield from (rows[at : at + size] for at in range(0, len(rows), size))


def _prompt(context: str) -> Prompt:
    return list(json.loads(context)) if isinstance(context, Chat) else context


def _device(name: str | None) -> str | None:
    """The device to load onto, or None for what there is: lm-eval asks for cuda:0 when its user has said nothing."""
    try:
        cuda = name is not None and torch.device(name).type == "cuda"
    except RuntimeError:
        raise OptionError(f"unknown device {name!r}; accepted: cpu, cuda, cuda:N or mps") from None
    return None if cuda and not torch.cuda.is_available() else name


def _refuse(requests: Sequence[Any]) -> NoReturn:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    raise CapabilityError(
        f"{tasks}: where a task scores given texts (output_type multiple_choice, loglikelihood, loglikelihood_rolling) "
        "the model does not think; accepted: tasks of output_type generate_until; or run these with --model hf"
    )
