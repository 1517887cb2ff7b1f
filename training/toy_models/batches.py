"""Batches for the embedded models: problems -> traces -> token ids with per-token loss weights.

The tokenizer is a byte-level BPE with Qwen's splitting rule, single digits and ChatML markers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from ...evaluation.agents.tasks import Task, stream_tasks
from ...evaluation.agents.tools import CRAFTS, FAMILY, GIVEN, PLACES, REGIONS, TOOL_SCHEMAS, TOOLS, World
from ...evaluation.tasks.toy_problems import KINDS, Problem, draw, stream
from ...evaluation.tasks.toy_programs import Work, draw_work
from ...models import get_model_path
from .steps import CALLED, AgentStep, respond_to
from .traces import CAREFUL, CHOICE, COPY, DIRECT, FAST, FINAL, PLAIN, READ, RESPONSES, SLIP, VERDICT, ToyTrace, respond

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


WEIGHTS = {  # in the order of the classes
    PLAIN: 0.3,
    SLIP: 0.0,
    READ: 1.5,
    COPY: 0.3,
    FAST: 1.5,
    CAREFUL: 1.0,
    VERDICT: 2.0,
    CHOICE: 2.0,
    FINAL: 1.0,
    DIRECT: 4.0,
}
MIX = {"normal": 0.34, "easy": 0.16, "hard": 0.14, "quiz": 0.10, "none": 0.08, "hint": 0.10, "cut": 0.08}
BRIEF_MIX = {"normal": 0.22, "easy": 0.20, "hard": 0.28, "quiz": 0.14, "none": 0.08, "hint": 0.04, "cut": 0.04}
BRIEF = 0.6  # the share of training with brief thinking: a correct pass takes long to learn, checking it does not
DRILL = 0.25  # the share of training over which drills are replaced by the full task family
QUIZ = 5
STEPS = 0.7  # the share of rows with agent steps, when training an agent
STEP_MIX = {"easy": 0.4, "hard": 0.25, "normal": 0.15, "none": 0.2}
TOOLLESS = 0.08
LISTS, PAGES = 0.12, 0.26
"""The shares of an agent's training up to which it copies names, and by which reading pages is replaced by steps."""
CAPS = (20, 50, 99, 250, 600, 999)

Row = tuple[list[int], list[int]]  # token ids, and the trace class of each


class Batch(NamedTuple):
    """Right-padded ids and loss weights, both [rows, tokens]."""

    ids: torch.Tensor
    weights: torch.Tensor


def drill_problems(seed: int, progress: list[float]) -> Iterator[Problem]:
    """Short problems with numbers of every size, at first without padding: the building blocks of the others."""
    rng = Random(f"drill:{seed}")
    while True:
        kind = rng.choice(KINDS)
        work = Work(rng.choice((1, 1, 2, 2, 3)), rng.choice(CAPS), rng.choice((0.1, 0.4)))
        padding = rng.random() * min(1.0, progress[0] / 0.2)
        yield draw(kind, work, rng, padding)


def encode(
    tokenizer: PreTrainedTokenizerFast, problem: Problem, mode: str, rng: Random, brief: bool = False, tools: Any = None
) -> Row:
    """A problem and its response in a mode."""
    effort = mode if mode in ("easy", "hard", "none") else "normal"
    messages = [{"role": "user", "content": problem.problem}]
    return encode_turn(tokenizer, messages, effort, respond(problem, mode, rng, brief), tools)


def encode_lesson(tokenizer: PreTrainedTokenizerFast, task: Task, progress: float, rng: Random) -> Row:
    """A row for this share of an agent's training: first copying names, then reading pages, then taking steps."""
    if progress < LISTS:
        return _encode_answers(tokenizer, [_list(task.world, rng)])
    if rng.random() < max(0.1, 1.0 - (progress - LISTS) / (PAGES - LISTS)):
        return _encode_answers(tokenizer, [_list(task.world, rng), *_questions(task.world, rng)])
    return encode_step(tokenizer, task, rng)


def _list(world: World, rng: Random) -> tuple[str, str]:
    """Names to copy."""
    names = "; ".join(rng.sample(sorted(world.pages), rng.randint(6, 16)))
    return names, names


def _questions(world: World, rng: Random) -> Iterator[tuple[str, str]]:
    """Pages, and questions about single lines."""
    pages = rng.sample(list(world.pages.values()), rng.randint(2, 5))
    yield "\n\n".join(page.text for page in pages) + "\n\nName all.", "; ".join(page.name for page in pages)
    for page in rng.sample(pages, len(pages)):
        key = rng.choice(sorted(page.facts))
        yield f"{page.name}: {key}?", "; ".join(page.facts[key])


def _encode_answers(tokenizer: PreTrainedTokenizerFast, pairs: Iterable[tuple[str, str]]) -> Row:
    """Questions answered without thinking, in one row."""
    return _join(
        encode_turn(tokenizer, [{"role": "user", "content": question}], "none", ToyTrace([(answer, READ)]))
        for question, answer in pairs
    )


def encode_step(tokenizer: PreTrainedTokenizerFast, task: Task, rng: Random) -> Row:
    """A random step of an agent task with its response; sometimes without tools, when nothing can be done."""
    effort = rng.choices(list(STEP_MIX), list(STEP_MIX.values()))[0]
    last = len(task.calls)
    done = rng.choices([0, last - 1, last, rng.randrange(last + 1)], (0.15, 0.2, 0.25, 0.4))[0]
    step = AgentStep(task, done * rng.randrange(2), tools=False) if rng.random() < TOOLLESS else AgentStep(task, done)
    return encode_turn(
        tokenizer, step.messages, effort, respond_to(step, effort, rng), TOOL_SCHEMAS if step.tools else None
    )


def encode_turn(
    tokenizer: PreTrainedTokenizerFast, messages: Any, effort: str, trace: ToyTrace, tools: Any = None
) -> Row:
    """Token ids of a conversation and of the response to it, and the trace class of each (-1 for the conversation)."""
    prompt = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True, reasoning_effort=effort
    )
    trace.add("<|im_end|>")
    ends = list(accumulate(len(text) for text, _ in trace.pieces))
    head = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
    body = tokenizer.backend_tokenizer.encode(trace.text, add_special_tokens=False)
    tags = [trace.pieces[bisect_right(ends, start)][1] for start, _ in body.offsets]
    return head + body.ids, [-1] * len(head) + tags


def _join(rows: Iterable[Row]) -> Row:
    """Several short questions in one row; one answer per row is too little to learn from."""
    ids, tags = zip(*rows, strict=True)
    return list(chain.from_iterable(ids)), list(chain.from_iterable(tags))


def _quiz(tokenizer: PreTrainedTokenizerFast, rng: Random) -> Iterator[Row]:
    """Short questions answered without thinking."""
    for _ in range(QUIZ):
        kind = rng.choice(KINDS)
        yield encode(tokenizer, draw(kind, draw_work(1, rng), rng, rng.random() * 0.5), "none", rng)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: int, progress: list[float], agent: bool = False
) -> Iterator[Batch]:
    """Endless batches of about `size` padded tokens, for an `agent` with steps that call tools.

    `progress[0]` is the share of training done, which moves the mixture from short traces and drills to all tasks.
    """
    rng = Random(f"batches:{seed}")
    full, drill = stream("train", 1000 + seed), drill_problems(seed, progress)
    light = stream("train", 2000 + seed, levels=(1, 1, 1, 2))
    tasks = stream_tasks("train", 3000 + seed, ("lookup", "calculate", "collect", "calculate", "collect"))
    while True:
        pool = []
        brief = not agent and progress[0] < BRIEF
        mix = BRIEF_MIX if brief else MIX
        for mode in rng.choices(list(mix), list(mix.values()), k=384):
            if agent and (progress[0] < LISTS or rng.random() < STEPS):
                pool.append(encode_lesson(tokenizer, next(tasks), progress[0], rng))
                continue
            if mode == "quiz":
                pool.append(_join(_quiz(tokenizer, rng)))
                continue
            drilled = rng.random() < (0.1 if agent else max(0.1, 1.0 - progress[0] / DRILL))
            source = light if mode == "none" and (agent or progress[0] > 0.1) else drill if drilled else full
            tools = TOOL_SCHEMAS if agent and rng.random() < 0.5 else None
            pool.append(encode(tokenizer, next(source), mode, rng, brief, tools))
        pool.sort(key=lambda item: len(item[0]))
        groups: list[list[Row]] = [[]]
        for item in pool:
            if groups[-1] and len(item[0]) * (len(groups[-1]) + 1) > size:
                groups.append([])
            groups[-1].append(item)
        rng.shuffle(groups)
        yield from (_collate(g) for g in groups)


def _collate(group: list[Row]) -> Batch:
    ids = pad_sequence([torch.tensor(ids) for ids, _ in group], batch_first=True)
    tags = pad_sequence([torch.tensor(tags) for _, tags in group], batch_first=True, padding_value=-1)
    return Batch(ids, torch.tensor([*WEIGHTS.values(), 0.0])[tags])
