"""An engine whose output is text written by a function of the prompt, with a chat template for tools."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from transformers import AutoTokenizer

from tersely.controller.types import KEEP, Capability, Completion, Request, SamplingParams, State, TokenSink
from tersely.models import get_model_path

TEMPLATE = """
{%- if tools -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' -}}{%- endif -%}
{{- '<tools>' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\n</tools>\nA call is written as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' -}}
{%- elif message.role != 'system' or not tools -%}
{{- '<|im_start|>' + message.role + '\n' + message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n' -}}{%- endif -%}
"""


@cache
def tokenizer() -> Any:
    """The tokenizer of the embedded models."""
    return AutoTokenizer.from_pretrained(get_model_path("tersely-tiny-small"))


@cache
def tool_tokenizer() -> Any:
    """The embedded tokenizer with a chat template for tools, like Qwen's."""
    copied = copy.deepcopy(tokenizer())
    copied.chat_template = TEMPLATE
    return copied


class TextEngine:
    """Writes what `write(prompt)` returns, token by token; prompt and output are text."""

    name = "text"
    capabilities = frozenset({Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RAGGED_BATCH})
    hidden_layers: tuple[int, ...] | None = None
    context_length: int | None = None

    def __init__(self, write: Callable[[str], str], tokenizer: Any = None) -> None:
        self.write, self.tokenizer = write, tokenizer or tool_tokenizer()
        self.prompts: list[str] = []
        self.requests: list[Request] = []
        self.batches: list[int] = []

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        self.batches.append(len(requests))
        return [self._one(row, request, sink) for row, request in enumerate(requests)]

    def _one(self, row: int, request: Request, sink: TokenSink | None) -> Completion:
        prompt = self.tokenizer.decode(request.prompt_ids)
        self.prompts.append(prompt)
        self.requests.append(request)
        out: list[int] = []
        for token in self.tokenizer.encode(self.write(prompt))[: request.max_new_tokens]:
            directive = request.watcher.observe(token) if request.watcher else KEEP
            out.append(token)
            if sink is not None:
                sink(row, (token,), False)
            if directive.stop:
                return Completion(tuple(out), (False,) * len(out), "stopped")
        return Completion(tuple(out), (False,) * len(out), "stop")

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> list[State]:
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        return None

    def close(self) -> None:
        pass


def format_call(name: str, /, **arguments: Any) -> str:
    """A tool call as a model of the template writes it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"
