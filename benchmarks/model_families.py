"""Reasoning models by family, and what tersely makes of each: `python benchmarks/model_families.py` prints the table.

Of a chat template only the end of the prompt is here, written by us, with the switches that it knows; the special
tokens are those that matter. Nothing of a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tersely.controller.budgets import Budget
from tersely.controller.prompts import render, thinking_state_after
from tersely.controller.serving.vllm_launcher import BY_MODEL_TYPE, choose_reasoning_parser
from tersely.controller.text.markers import Markers, find_markers
from tersely.errors import TerselyError

THINK = ("<think>", "</think>")
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
PARSERS = {"qwen3", "deepseek_r1", "deepseek_v3", "granite_thinking_parser", *BY_MODEL_TYPE.values()}
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


@dataclass(frozen=True)
class Family:
    """One family: `switches` are arguments of its template, with or without a system prompt, that change the state."""

    name: str
    model_type: str
    added: tuple[str, ...]
    template: str  # what follows the messages
    switches: tuple[Mapping[str, Any], ...] = ()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer of bytes with the family's special tokens and template."""
        alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        plain = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        plain.add_special_tokens([AddedToken(text, normalized=False) for text in self.added])
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + self.template
        return PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=template)

    def prompt(self, switch: Mapping[str, Any]) -> str:
        """The prompt of a question, rendered as vLLM does."""
        options = dict(switch)
        system = options.pop("system", None)
        messages = [{"role": "system", "content": system}, *QUESTION] if system else QUESTION
        template = ImmutableSandboxedEnvironment().from_string(self.tokenizer().chat_template)
        return template.render(messages=messages, add_generation_prompt=True, **options)


def switch(off: str, opened: str = "", test: str = "enable_thinking is false") -> str:
    """A template's end that writes one text where thinking is off and another one elsewhere."""
    return "{% if " + test + " %}" + off + "{% else %}" + opened + "{% endif %}"


CHAT = "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
NO_THINK = {"system": "/no_think"}
HEARS = "messages[0].role == 'system' and '/no_think' in messages[0].content"
FAMILIES = (
    Family("Qwen3", "qwen3", THINK, CHAT + switch(EMPTY), (OFF,)),
    Family("Qwen3-Thinking", "qwen3_moe", THINK, CHAT + "<think>\n"),
    Family("Qwen3.5", "qwen3_5", THINK, CHAT + switch(EMPTY, "<think>\n"), (OFF,)),
    Family("QwQ", "qwen2", THINK, CHAT + "<think>\n"),
    Family("DeepSeek-R1", "deepseek_v3", THINK, "<｜Assistant｜><think>\n"),
    Family("DeepSeek-R1-Distill-Qwen", "qwen2", THINK, "<｜Assistant｜><think>\n"),
    Family("DeepSeek-R1-Distill-Llama", "llama", THINK, "<｜Assistant｜><think>\n"),
    Family(
        "DeepSeek-V3.1",
        "deepseek_v3",
        THINK,
        "<｜Assistant｜>" + switch("</think>", "<think>", "not thinking"),
        ({"thinking": True},),
    ),
    Family("GLM-4.5", "glm4_moe", THINK, "<|assistant|>" + switch("\n<think></think>"), (OFF,)),
    Family("GLM-4.7", "glm4_moe", THINK, "<|assistant|>" + switch("</think>", "<think>"), (OFF,)),
    Family("gpt-oss", "gpt_oss", HARMONY, "{# reasoning_effort #}<|start|>assistant"),
    Family(
        "Gemma 4",
        "gemma4",
        ("<|channel>", "<channel|>"),
        "<|turn>model\n" + switch("<|channel>thought\n<channel|>", "", "not enable_thinking"),
        (ON,),
    ),
    Family("Magistral, tokenizer mode hf", "mistral3", ("[TOOL_CALLS]", "[THINK]", "[/THINK]"), "[/INST]"),
    Family("MiniMax-M2", "minimax_m2", THINK, "]~b]ai\n<think>\n"),
    Family(
        "MiniMax-M3",
        "minimax_m3",
        ("<mm:think>", "</mm:think>"),
        "]~b]ai\n" + switch("<mm:think>", "", "thinking_mode == 'enabled'"),
        ({"thinking_mode": "enabled"},),
    ),
    Family("Kimi-K2-Thinking", "kimi_k2", THINK, "<|im_assistant|>assistant<|im_middle|>"),
    Family("Phi-4-reasoning", "phi3", THINK, "<|im_start|>assistant<|im_sep|>"),
    Family("Nemotron Nano v2", "nemotron_h", (), CHAT + switch("<think></think>", "<think>\n", HEARS), (NO_THINK,)),
    Family("Nemotron 3 Nano", "nemotron_h", THINK, CHAT + switch("<think></think>", "<think>\n"), (OFF,)),
    Family(
        "Llama-Nemotron Super v1.5",
        "nemotron-nas",
        (),
        "{% set enable_thinking = true %}" + CHAT + switch(EMPTY, "", HEARS),
        (NO_THINK,),
    ),
    Family("Granite 3.3", "granite", (), "{% if thinking %}<think></think> <response>{% endif %}" + CHAT),
    Family(
        "Command A Reasoning",
        "cohere2",
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        "<|CHATBOT_TOKEN|><|START_THINKING|>" + switch("<|END_THINKING|>", "", "reasoning is false"),
        ({"reasoning": False},),
    ),
    Family("Hunyuan-A13B", "hunyuan_v1_moe", (), "<|extra_0|>" + switch("<think>\n\n</think>\n"), (OFF,)),
    Family("Seed-OSS", "seed_oss", ("<seed:think>", "</seed:think>"), "<seed:bos>assistant\n"),
    Family("EXAONE 4", "exaone4", THINK, "[|assistant|]\n" + switch(EMPTY, "<think>\n", "not enable_thinking"), (ON,)),
    Family("EXAONE Deep", "exaone", (), "{# </thought> #}[|assistant|]<thought>\n"),
    Family("Olmo 3 Think", "olmo3", (), "{# </think> #}" + CHAT + "<think>"),
    Family("Step-3.5", "step3p5", THINK, "{# reasoning_effort #}" + CHAT + "<think>\n"),
    Family("ERNIE-4.5-Thinking", "ernie4_5_moe", THINK, CHAT + "<think>\n"),
    Family("SmolLM3", "smollm3", (), CHAT + switch(EMPTY, "", f"enable_thinking is false or {HEARS}"), (OFF, NO_THINK)),
    Family("Llama 3.3 Instruct", "llama", (), "<|start_header_id|>assistant<|end_header_id|>\n\n"),
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What tersely makes of a family."""

    markers: Markers
    states: tuple[tuple[Mapping[str, Any], str], ...]  # of the prompt: without a switch, then with each
    none: str  # who ends the thinking where the effort is "none"
    effort: str  # what a template gets
    parser: str | None


def examine(family: Family) -> Facts:
    """Apply what runs before a model is loaded; raises TerselyError for a model that is refused."""
    tokenizer = family.tokenizer()
    markers = find_markers(tokenizer)
    states = tuple((given, thinking_state_after(family.prompt(given), markers)) for given in ({}, *family.switches))
    closed = render(tokenizer, QUESTION, Budget("none", 0), markers)
    assert closed.state == "answer", "thinking that is off must have ended"
    by_template = thinking_state_after(family.prompt(OFF), markers) == "answer"
    parser = choose_reasoning_parser(
        family.model_type, str(tokenizer.chat_template), markers.open, PARSERS, states[0][1] != "answer"
    )
    effort = "`reasoning_effort`" if "reasoning_effort" in str(tokenizer.chat_template) else "an instruction"
    return Facts(markers, states, "template" if by_template else "tersely", effort, parser)


def name_switch(given: Mapping[str, Any]) -> str:
    """A switch in words."""
    ((key, value),) = given.items()
    return f"`{value}` in the system prompt" if key == "system" else f"`{key}={value}`"


def make_row(family: Family) -> str:
    """A family's row of the table."""
    try:
        facts = examine(family)
    except TerselyError as error:
        return f"| {family.name} | `{family.model_type}` | refused: `{error.code}` | | | | |"
    words = {"thinking": "opened", "before": "the model opens", "answer": "off"}
    first, *rest = facts.states
    prompt = "; ".join([words[first[1]], *(f"{name_switch(given)}: {words[state]}" for given, state in rest)])
    pair = f"`{facts.markers.open}` `{facts.markers.close}`".replace("|", "\\|")
    marked = f"{pair}, {facts.markers.source}"
    parser = f"`{facts.parser}`" if facts.parser else "none"
    cells = (family.name, f"`{family.model_type}`", marked, prompt, facts.effort, facts.none, parser)
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| family | model type | markers, found in | thinking after the prompt | effort | `none` by | parser |",
    "|---|---|---|---|---|---|---|",
)


def make_table() -> str:
    """The table of all families."""
    return "\n".join([*HEAD, *map(make_row, FAMILIES)])


if __name__ == "__main__":
    print(make_table())
