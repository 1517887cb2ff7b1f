"""Train an embedded model to answer TrimR's questions, as it knows neither yes nor no.

Questions are made of thinking that `tersely train tiny` learns from, for problems of the split `train`, as TrimR cuts
it; half of the pairs get another number in the second ending. Rules say what is right. Prints how often the verdicts of
the verifier are, on problems of `calibrate`. `tersely bench --verifier FOLDER --no-verifier-rules` uses what is saved.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from measuring import make_parser, print_figures
from torch.nn.functional import cross_entropy

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.policies.trimr import ThoughtSegmenter, TrimR
from tersely.controller.text.answers import extract_stated_answer
from tersely.controller.text.thoughts import ThinkingState
from tersely.controller.text.tokenizer_adapter import TokenizerAdapter
from tersely.controller.verification import AnswersEqual, AnswerStated, Question, decide_by_rules
from tersely.controller.verifiers import LLMVerifier, encode_chat, format_question, reply_ids
from tersely.evaluation.tasks.toy_problems import Problem, stream
from tersely.training.toy_models.traces import Writer, think, wrong_value
from tersely.training.training_run import write_model

TRIMR = TrimR()


def find_endings(problem: Problem, codec: TokenizerAdapter, rng: Random) -> list[str]:
    """The endings of the segments of a thinking about the problem."""
    writer, thinking = Writer(problem, rng), ThinkingState(codec)
    think(writer, rng.choice(("normal", "normal", "hard")))
    for token in codec.encode(writer.trace.text + "Wait, again.\n\n"):
        thinking.add(token)
    segments = ThoughtSegmenter(TRIMR.cues).new_segments(thinking)
    return [TRIMR.ending(thinking, start, end) for start, end in segments]


def make_questions(split: str, codec: TokenizerAdapter, seed: int) -> Iterator[tuple[Question, bool]]:
    """Questions with their verdicts, of both kinds in turn."""
    rng = Random(f"verifier:{seed}")
    for problem in stream(split, seed):
        endings = find_endings(problem, codec, rng)
        if len(endings) < 2:
            continue
        ending = rng.choice(endings)
        if rng.random() < 0.5:  # without the sentence that states an answer
            ending = ending.rpartition(" ")[0].rpartition(". ")[0] or ending.split("\n")[0]
        first, second = rng.sample(endings, 2)
        stated = extract_stated_answer(second)
        if rng.random() < 0.5 and stated is not None and stated.isdigit():
            second = second.replace(stated, str(wrong_value(int(stated), rng)))
        for asked in (AnswerStated(problem.problem, ending), AnswersEqual(problem.problem, first, second)):
            yield asked, bool(decide_by_rules(asked))


def train(options: argparse.Namespace) -> None:
    """Train the model and write it."""
    engine = load_engine(options.model)
    model, tokenizer = engine.model, engine.tokenizer
    codec, (yes, no) = TokenizerAdapter(tokenizer), reply_ids(tokenizer)
    questions = make_questions("train", codec, options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / options.steps)))
    model.train()
    for step in range(1, options.steps + 1):
        batch = [next(questions) for _ in range(options.batch)]
        rows = [encode_chat(tokenizer, format_question(question)) for question, _ in batch]
        last = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.tensor([[*row, *[0] * (int(last.max()) + 1 - len(row))] for row in rows])
        mask = (torch.arange(ids.shape[1]) <= last[:, None]).long()
        logits = model(ids, attention_mask=mask, logits_to_keep=last, use_cache=False).logits
        wanted = torch.tensor([yes[0] if verdict else no[0] for _, verdict in batch])
        loss = cross_entropy(logits.diagonal(dim1=0, dim2=1).T, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    write_model(model.eval(), tokenizer, Path(options.out))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """How often the saved verifier is right, by kind of question and verdict."""
    engine = load_engine(options.out)
    verifier, found = LLMVerifier(engine, timeout=None), dict[str, list[bool]]()
    questions = make_questions("calibrate", TokenizerAdapter(engine.tokenizer), options.seed)
    for question, verdict in (next(questions) for _ in range(options.questions)):
        said = verifier.submit(question).result() > 0.5
        found.setdefault(f"{type(question).__name__} {'yes' if verdict else 'no'}", []).append(said == verdict)
    verifier.close()
    return {name: fmean(right) for name, right in sorted(found.items())}


def main() -> None:
    """Train, measure and print."""
    parser = make_parser(__doc__, threads=1)
    parser.add_argument("--model", default="tersely-tiny-small", help="to start from (default: %(default)s)")
    parser.add_argument("--out", required=True, help="folder of the verifier")
    parser.add_argument("--steps", type=int, default=400, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="questions a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=400, help="to measure with (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train(options)
    print_figures(measure(options), options.json, 3)


if __name__ == "__main__":
    main()
