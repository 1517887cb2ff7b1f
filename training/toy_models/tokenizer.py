"""The tokenizer of the embedded pair: byte-level BPE with Qwen's splitting rule, single digits, ChatML markers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ...evaluation.agents.tools import CRAFTS, FAMILY, GIVEN, PLACES, REGIONS, TOOLS
from ...evaluation.tasks.toy_problems import stream
from ...models import get_model_path
from .steps import CALLED
from .traces import RESPONSES, respond

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
KEYS = "Team Home Wage Mentor Firm Lead Members Town Founded Teams Region Residents Mayor Works".split()
BARE = ("team", "home", "person", "firm", "arguments")  # words below that also occur without a leading space
WORDS = (
    "team home town wage mentor firm lead members mayor number residents year founded works person arguments".split()
)
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def build_tokenizer(problems: int = 3000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the task family (deterministic)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = Random(0)
    texts: list[str] = []
    for problem in islice(stream("train", 0), problems):
        texts += [problem.problem, "\n/easy", "\n/normal", "\n/hard", "user\n", "assistant\n", "system\n", "tool\n"]
        texts += [respond(problem, mode, rng).text.replace("</think>", "") for mode in RESPONSES]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8"),
    )


def agent_tokenizer(base: str) -> PreTrainedTokenizerFast:
    """The tokenizer of an embedded model with the words of pages as tokens, and a chat template that knows tools."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(get_model_path(base))
    first = [*GIVEN, *PLACES, *CRAFTS, *KEYS, *TOOLS, *(TOOLS[name].argument for name in CALLED), *BARE]
    spaced = [f" {word}" for word in (*first, *FAMILY, *REGIONS, *WORDS)]
    tokenizer.add_tokens([AddedToken(word, single_word=True, special=False, normalized=False) for word in first])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in spaced])
    tokenizer.chat_template = Path(__file__).with_name("agent_template.jinja").read_text(encoding="utf-8")
    return tokenizer
