"""The tokenizer of the embedded pair: byte-level BPE with Qwen's splitting rule, single digits, ChatML markers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ...evaluation.agents.tasks import stream_tasks
from ...evaluation.tasks.problems import stream
from .responses import RESPONSES, respond
from .steps import TOOLS, Step, respond_to

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB, AGENT_VOCAB = 1024, 1536
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def build_tokenizer(problems: int = 3000, agent: bool = False) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the task family, and for an agent on steps with tools as well (deterministic)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = Random(0)
    texts: list[str] = []
    for problem in islice(stream("train", 0), problems):
        texts += [problem.problem, "\n/easy", "\n/normal", "\n/hard", "user\n", "assistant\n", "system\n", "tool\n"]
        texts += [respond(problem, mode, rng).text.replace("</think>", "") for mode in RESPONSES]
    if agent:
        for task in islice(stream_tasks("train", 0, ("lookup", "calculate", "collect")), problems // 2):
            step = Step(task, len(task.calls))
            texts += [message["content"] for message in step.messages]
            texts += [respond_to(Step(task, 0), "hard", rng).text.replace("</think>", ""), "Tools: " + " ".join(TOOLS)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=(AGENT_VOCAB if agent else VOCAB) - len(SPECIAL) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    template = "agent_template.jinja" if agent else "chat_template.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=Path(__file__).with_name(template).read_text(encoding="utf-8"),
    )
