"""Learn latent thoughts in place of words, and when a thought may skip layers (System-1.5 Reasoning, embedded models).

After arXiv 2505.18962, in two stages: latent thoughts are aligned with the lines of a written chain; then the model is
frozen, and routers and adapters are trained (`latent.py`). Chains, and which of their steps are critical, come from the
embedded models' problems, so the method takes no others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pad_sequence

from ...controller.api import generate
from ...controller.engines.transformers.engine import load_engine
from ...evaluation.stats import paired_bootstrap, rate_interval
from ...evaluation.tasks.toy_problems import Problem, get_split
from ...evaluation.tasks.toy_programs import Program, run
from ...io import write
from ..config import Recipe, RecipeError, Section
from ..methods import Method
from ..preflight import CheckedRecipe, check_frozen, check_recipe
from ..processes import rank0_only
from ..sampling import DivergedError
from ..toy_models.batches import drill_problems
from ..toy_models.traces import Writer
from ..toy_models.train import SIZES, build_optimizers
from ..training_run import TrainingRun, save_model
from .latent import LatentThinking, Parts, early_exit_loss, exit_weights, run_layers, think
from .shortcut import init_arrays

RESULT, SHORTCUTS = "system15.json", "shortcuts.safetensors"
HELD_OUT = "test"
ANSWER_TOKENS = 16


class System15Settings(Section):
    """Settings."""

    thoughts: int = Field(default=3, ge=1)  # latent thoughts per question, and the most steps of a problem
    batch: int = Field(default=64, ge=1)  # problems per optimizer step
    largest: int = Field(default=50, ge=20)  # value in a problem
    align: float = Field(default=1.0, ge=0)  # alpha: weight of the alignment with the teacher's states
    exits: float = Field(default=1.0, ge=0)  # beta: weight of the early-exit loss
    thresholds: tuple[float, ...] = (0.5, 0.6, 0.75)  # lambda_depth: a thought exits where its router says more
    shortcut_steps: int = Field(default=200, ge=1)  # optimizer steps of the second stage
    shortcut_rate: float = Field(default=1e-2, gt=0)  # its learning rate
    width: int = Field(default=32, ge=1)  # of adapters and routers
    held_out: int = Field(default=400, ge=2)  # questions to compare with words


class System15Recipe(Recipe):
    """The recipe of this method; `data.questions` is not used, as each step draws new problems."""

    system15: System15Settings = System15Settings()


def _validate(recipe: System15Recipe) -> CheckedRecipe:
    check_frozen(recipe)
    if recipe.data.task != "tiny" or recipe.data.split == HELD_OUT or not recipe.model.startswith("tersely-tiny"):
        raise RecipeError(
            f"model is {recipe.model!r}, data.task {recipe.data.task!r}, data.split {recipe.data.split!r}; accepted: "
            f"an embedded model, task tiny, whose steps are known, and a split other than the held-out {HELD_OUT!r}",
            code="unsupported_data",
        )
    stages = f"{recipe.optimizer.steps} and {recipe.system15.shortcut_steps}"
    checked = check_recipe(recipe, completions=1)
    return replace(checked, findings=[f"steps: {stages} of {recipe.system15.batch} new problems", checked.findings[-1]])


class Example(NamedTuple):
    """A problem as tokens."""

    prompt: list[int]
    chain: list[int]  # the prompt of the tier `easy` and its thinking
    ends: list[int]  # of each thought, where in the chain the value of its line ends
    critical: list[bool]
    answer: list[int]  # from the closing marker on


def find_critical(program: Program, thoughts: int) -> list[bool]:
    """Which thoughts derive something from earlier steps; the others are independent, or past the end."""
    derived = [any(operand.step is not None for operand in (step.left, step.right)) for step in program]
    return [*derived, *[False] * thoughts][:thoughts]


def draw_problems(split: str, seed: int, settings: System15Settings) -> Iterator[Problem]:
    """Endless short problems of a split without padding; the hash of the text decides the split."""
    return (
        problem
        for problem in drill_problems(seed, [0.0])
        if get_split(problem.problem) == split
        and len(problem.program) <= settings.thoughts
        and max(run(problem.program)) <= settings.largest
    )


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _encode_prompt(tokenizer: Any, problem: Problem, effort: str = "normal") -> list[int]:
    messages = [{"role": "user", "content": problem.problem}]
    return _encode(
        tokenizer,
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, reasoning_effort=effort),
    )


def make_example(tokenizer: Any, close: str, thoughts: int, problem: Problem) -> Example:
    """The example of a problem; thoughts past its end are aligned with its last line."""
    writer, ends = Writer(problem, Random(problem.problem)), list[int]()
    writer.write_facts("easy")
    chain = [*_encode_prompt(tokenizer, problem, "easy"), *_encode(tokenizer, writer.trace.text)]
    first = len(writer.trace.pieces)
    writer.run_pass(careful=False, slip=0.0)
    pieces = [text for text, _ in writer.trace.pieces[first:]]
    for at in range(0, len(pieces), 4):  # "A=3+4", "=", "7", ".\n"
        chain += _encode(tokenizer, "".join(pieces[at : at + 3]))
        ends.append(len(chain) - 1)
        chain += _encode(tokenizer, pieces[at + 3])
    ends = [*ends, *ends[-1:] * thoughts][:thoughts]
    answer = _encode(tokenizer, f"{close}\n\nThe answer is \\boxed{{{problem.answer}}}.{tokenizer.eos_token}")
    return Example(_encode_prompt(tokenizer, problem), chain, ends, find_critical(problem.program, thoughts), answer)


def pad(rows: Sequence[Sequence[int]], side: str = "left") -> tuple[Tensor, Tensor]:
    """Ids and which are not padding, both [rows, length]."""
    tensors = [*map(torch.tensor, rows)]
    parts = (tensors, [*map(torch.ones_like, tensors)])
    ids, valid = (pad_sequence(part, batch_first=True, padding_side=side) for part in parts)
    return ids, valid.bool()


def answer_loss(model: Any, thinking: LatentThinking, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy of the answers' tokens after the thoughts (eq. 8 and 12); the closing marker is given."""
    ids, real = pad([example.answer for example in examples], "right")
    valid, kept = torch.cat([thinking.valid, real], dim=1), real[:, 1:]
    states = run_layers(model, model.get_input_embeddings()(ids), valid, thinking.cache)[-1]
    logits = model.get_output_embeddings()(model.get_decoder().norm(states[:, :-1][kept]))
    return cross_entropy(logits, ids[:, 1:][kept])


@torch.no_grad()
def teacher_thoughts(teacher: Any, examples: Sequence[Example]) -> Tensor:
    """The teacher's last state where each line's value ends, [rows, thoughts, width]."""
    ids, _ = pad([example.chain for example in examples], "right")
    states: Tensor = teacher.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return states[torch.arange(len(ids))[:, None], torch.tensor([example.ends for example in examples])]


def alignment_loss(model: Any, teacher: Any, examples: Sequence[Example], settings: System15Settings) -> Tensor:
    """The loss of the first stage (eq. 9): that of the answer, and thoughts' distance to the teacher's (eq. 6)."""
    thinking = think(model, *pad([example.prompt for example in examples]), settings.thoughts)
    distance = mse_loss(thinking.states[:, :, -1], teacher_thoughts(teacher, examples))
    return answer_loss(model, thinking, examples) + settings.align * distance


def shortcut_loss(
    model: Any, shortcuts: Sequence[Parts], examples: Sequence[Example], settings: System15Settings
) -> Tensor:
    """The loss of the second stage (eq. 13): that of the answer after mixed thoughts, and the early-exit loss."""
    ids, valid = pad([example.prompt for example in examples])
    with torch.no_grad():
        full = think(model, ids, valid, settings.thoughts).states[:, :, -1]
    thinking = think(model, ids, valid, settings.thoughts, shortcuts)
    weights = exit_weights(thinking.states.shape[2], torch.tensor([example.critical for example in examples]))
    exits = early_exit_loss(thinking.states, full, weights)
    return answer_loss(model, thinking, examples) + settings.exits * exits


def optimize(
    run: TrainingRun[System15Recipe],
    optimizers: Sequence[torch.optim.Optimizer],
    steps: int,
    loss_of: Callable[[Sequence[Example]], Tensor],
    examples: Iterator[Example],
) -> None:
    """Take steps at a rate that warms up and falls linearly; raises DivergedError for a loss that is not finite."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    for step in range(1, steps + 1):
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * min(1.0, step / (run.recipe.optimizer.warmup + 1)) * (1 - 0.95 * step / steps)
        loss = loss_of(list(islice(examples, run.recipe.system15.batch)))
        if not bool(loss.isfinite()):
            raise DivergedError(f"the loss of step {step} is not finite; lower optimizer.learning_rate")
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, run.recipe.optimizer.clip_gradients)
            optimizer.step()
            optimizer.zero_grad()
        if step % max(1, steps // 10) == 0:
            run.log(f"step {step}/{steps}: loss {loss.item():.3f}")


class Answers(NamedTuple):
    """What one way of answering gave, of each question: answer, thinking tokens, and layers computed per thought."""

    answers: list[str]
    tokens: list[int]
    layers: list[float]


def answer_in_words(engine: Any, problems: Sequence[Problem], effort: str, limit: int) -> Answers:
    """Greedy answers of the model as it was."""
    texts = [problem.problem for problem in problems]
    found = generate(engine, texts, preset="off", effort=effort, temperature=0, max_new_tokens=limit)
    return Answers([one.answer for one in found], [one.usage.thinking for one in found], [])


@torch.no_grad()
def answer_in_latents(
    model: Any, tokenizer: Any, problems: Sequence[Problem], thoughts: int, close: str, *shortcuts: Any
) -> Answers:
    """Greedy answers after latent thoughts, which cost no tokens; `shortcuts` may be these and their threshold."""
    thinking = think(model, *pad([_encode_prompt(tokenizer, one) for one in problems]), thoughts, *shortcuts)
    token, valid, written = torch.tensor([_encode(tokenizer, close)] * len(problems)), thinking.valid, list[Tensor]()
    for _ in range(ANSWER_TOKENS):
        valid = torch.cat([valid, torch.ones_like(token, dtype=torch.bool)], dim=1)
        states = run_layers(model, model.get_input_embeddings()(token), valid, thinking.cache)[-1]
        token = model.get_output_embeddings()(model.get_decoder().norm(states)).argmax(-1)
        written.append(token)
    answers = tokenizer.batch_decode(torch.cat(written, dim=1))
    return Answers(answers, [0] * len(problems), (thinking.computed / thoughts).tolist())


def compare(arms: Mapping[str, Answers], problems: Sequence[Problem], log: Callable[[str], None]) -> dict[str, Any]:
    """Figures of all arms with intervals of 95 %, and differences to the first."""
    figures, base, golds = dict[str, Any](), list[float](), [f"\\boxed{{{one.answer}}}" for one in problems]
    for name, arm in arms.items():
        right = [float(gold in answer) for gold, answer in zip(golds, arm.answers, strict=True)]
        base = base or right
        accuracy = rate_interval(right)
        change = paired_bootstrap([ours - theirs for ours, theirs in zip(right, base, strict=True)])
        tokens, layers = (sum(each) / len(problems) for each in (arm.tokens, arm.layers))
        spent = {"thinking_tokens": tokens, "layers_per_thought": layers}
        figures[name] = accuracy.named("accuracy") | change.named("difference") | spent
        log(
            f"{name}: {accuracy.estimate:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] right, {change.estimate:+.1%} "
            f"[{change.low:+.1%}, {change.high:+.1%}]; {tokens:.1f} thinking tokens, {layers:.2f} layers per thought"
        )
    return figures


def _train(run: TrainingRun[System15Recipe]) -> None:
    """Both stages and the comparison; they take minutes, so a resumed run starts again."""
    rank0_only(lambda: _train_stages(run))


def _train_stages(run: TrainingRun[System15Recipe]) -> None:
    recipe, settings, close = run.recipe, run.recipe.system15, run.checked.markers.close
    engine = load_engine(recipe.model, recipe.optimizer.dtype, device="cpu")  # where such small models train as fast
    tokenizer, rate, thoughts = engine.tokenizer, recipe.optimizer.learning_rate, settings.thoughts
    teacher, model = engine.model.requires_grad_(False), deepcopy(engine.model).requires_grad_(True)
    problems = draw_problems(recipe.data.split, recipe.data.seed, settings)
    examples = (make_example(tokenizer, close, thoughts, problem) for problem in problems)
    muon = build_optimizers(model, replace(SIZES["small"], matrix_lr=rate, other_lr=rate))
    optimize(run, muon, recipe.optimizer.steps, lambda some: alignment_loss(model, teacher, some, settings), examples)
    model.requires_grad_(False)
    width, generator = model.config.hidden_size, torch.Generator().manual_seed(recipe.seed)
    shortcuts = [
        init_arrays(width, settings.width, settings.width, generator, model.device)
        for _ in range(model.config.num_hidden_layers + 1)
    ]
    arrays = {f"{layer}.{name}": array for layer, parts in enumerate(shortcuts) for name, array in parts.items()}
    adam = [torch.optim.AdamW(arrays.values(), lr=settings.shortcut_rate, weight_decay=0.0)]
    optimize(run, adam, settings.shortcut_steps, lambda some: shortcut_loss(model, shortcuts, some, settings), examples)
    save_model(model, tokenizer, None, run.folder)
    save_file({name: array.detach() for name, array in arrays.items()}, run.folder / SHORTCUTS)
    held_out = list(islice(draw_problems(HELD_OUT, recipe.data.seed + 1, settings), settings.held_out))
    arms = {
        name: answer_in_words(engine, held_out, effort, recipe.rollouts.max_new_tokens)
        for name, effort in {"words": "normal", "brief words": "easy", "no thinking": "none"}.items()
    }
    for number in range(1, thoughts + 1):
        arms[f"latent thoughts: {number}"] = answer_in_latents(model, tokenizer, held_out, number, close)
    for threshold in settings.thresholds:
        found = answer_in_latents(model, tokenizer, held_out, thoughts, close, shortcuts, threshold)
        arms[f"{thoughts}, exits above {threshold:g}"] = found
    write(run.folder / RESULT, json.dumps(compare(arms, held_out, run.log), indent=1) + "\n")


METHOD = Method(recipe=System15Recipe, validate=_validate, train=_train, results=(RESULT,))
