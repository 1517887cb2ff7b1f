"""The command `tersely collect`: sample rollouts at several efforts, and store what probes are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import typer

from ..controller.budgets import DIFFADAPT, EFFORTS, STRATEGIES, fit_budget
from ..controller.options import GenerationOptions, flag, with_seed
from ..controller.policies import make_policy
from ..controller.policies.record import AnswerIds, PassiveRecorder, ThoughtRecord, mean_entropy
from ..controller.prompts import render
from ..controller.request_builder import find_prefix
from ..controller.session import Session
from ..controller.text.answers import extract_answer, normalize_answer
from ..controller.text.markers import resolve_markers
from ..controller.trace import GenerationResult
from ..controller.types import State
from ..errors import check_known
from ..io import announce_resume
from ..probes.calibrate.data import ENOUGH
from ..probes.records import UNKNOWN, Array, RecordRows, RecordStore
from ..probes.rule import FEATURES
from . import cli_utils as cli
from .runner import batch_seed, batches
from .tasks.equality import AnswerChecker
from .tasks.questions import Question, hash_question, load_all

DIFFADAPT_ROLLOUTS = 10  # samples of a question by which DiffAdapt (arXiv 2510.19669) labels it


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """The options of `tersely collect`."""

    out: Annotated[Path, flag("Output folder; resumes, or adds questions up to a larger --limit.")]
    model: cli.Model = "tersely-tiny-large"
    tasks: cli.Tasks = "tiny"
    split: Annotated[str, flag("Split to draw from: fit, calibrate or test.")] = "fit"
    limit: Annotated[int | None, flag("Maximum questions per task.", min=1)] = ENOUGH
    seed: cli.Seed = 0
    tiers: Annotated[str | None, flag("Efforts to sample at, comma-separated; default: none,easy,normal,hard.")] = None
    strategy: Annotated[
        str, flag("What the efforts mean; diffadapt: its prompts, temperatures and caps, without none.")
    ] = "tiers"
    rollouts: Annotated[int | None, flag("Rollouts per question and effort; default: 1, for diffadapt 10.", min=1)] = (
        None
    )
    layers: Annotated[str, flag("Hidden layers to store, comma-separated; -1 is the last.")] = "-1"
    batch_size: cli.BatchSize = 32
    max_new_tokens: cli.MaxNewTokens = 2048
    markers: cli.MarkerPair = None
    think_prompt: cli.ThinkPrompt = False

    def __post_init__(self) -> None:
        check_known("strategy", self.strategy, STRATEGIES)
        cli.parse_list("--layers", self.layers, int)

    def plan(self, session: Session) -> dict[str, Any]:
        """What decides a collection; for its folder, None is the same as nothing."""
        markers = session.markers
        return {
            **cli.identify(self, "out tasks"),
            "task": self.tasks,
            "strategy": None if self.strategy == "tiers" else self.strategy,
            "tiers": self.efforts,
            "rollouts": self.samples,
            "layers": self.hidden_layers,
            "features": FEATURES,
            "fingerprint": session.engine.fingerprint(),
            "closing": len(session.codec.encode(markers.close + markers.close_suffix + markers.answer_prefix)),
        }

    @property
    def efforts(self) -> tuple[str, ...]:
        """The tiers to sample in; those of DiffAdapt all think."""
        default = ",".join(EFFORTS[self.strategy == DIFFADAPT : -1])
        return cli.parse_list("--tiers", self.tiers or default, str, EFFORTS[:-1])

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The layers whose states are stored."""
        return cli.parse_list("--layers", self.layers, int)

    @property
    def samples(self) -> int:
        """Rollouts of a question in each tier."""
        return self.rollouts or (DIFFADAPT_ROLLOUTS if self.strategy == DIFFADAPT else 1)


@cli.takes(CollectOptions)
def collect(options: CollectOptions) -> None:
    """Collect the training data of `tersely calibrate`: signals, hidden states and trial answers after each thought.

    The rollouts are not controlled, but a strategy's caps are kept. Trial answers cost tokens here, but not when the
    probes are used.
    """
    from ..controller.engines.transformers.engine import load_engine

    seed, split, per_question = options.seed, options.split, len(options.efforts) * options.samples
    names = cli.parse_list("--tasks", options.tasks, str)
    questions = load_all(names, split, options.limit, seed)
    markers = resolve_markers(options.markers)
    session = Session(load_engine(options.model, grouped=True), markers, options.think_prompt)
    store = RecordStore(options.out, options.plan(session))
    if len(questions) < ENOUGH:
        typer.echo(
            f"{len(questions)} questions to collect; calibrate needs three collections, or one of about {ENOUGH} "
            "that it divides; a larger --limit adds questions to the same folder",
            err=True,
        )
    earlier = [load_all(names, split, before, seed) for before in store.limits[:-1]]
    groups = list_batches([*earlier, questions], options.batch_size)
    trial_tokens = 0
    resumable = announce_resume(options.out, lambda: store.parts)
    with resumable, AnswerChecker() as checker, cli.show_progress(per_question * len(questions)) as advance:
        collector = Collector(session, checker, options)
        # Batches are sorted by level; in random order, an interrupted collection is still a fair sample.
        for number in Random(seed).sample(range(len(groups)), len(groups)):
            rows = groups[number]
            if store.has(number):
                advance("skipping", per_question * len(rows))
                continue
            columns, texts = collector.collect_batch(number, rows, lambda n: advance("collecting", n))
            store.put(number, columns, texts)
            trial_tokens += int(columns["boundaries.trial"].sum())
    trials = f"; trial answers cost {trial_tokens} tokens" if trial_tokens else ""
    typer.echo(f"{options.out} holds {per_question} rollouts of each of {len(questions)} questions{trials}")


def list_batches(drawn: Sequence[Sequence[Question]], batch_size: int) -> list[list[Question]]:
    """Group questions into batches; those of the first draws come first and stay the same when later ones are added."""
    groups: list[list[Question]] = []
    for questions in drawn:
        known = {hash_question(question) for group in groups for question in group}
        added = [question for question in questions if hash_question(question) not in known]
        groups += [[added[i] for i in indices] for indices in batches(added, batch_size)]
    return groups


@dataclass(frozen=True, slots=True)
class Collector:
    """Collects on one session; the columns hold tiers by their index in `options.efforts`."""

    session: Session
    checker: AnswerChecker
    options: CollectOptions

    def collect_batch(
        self, number: int, questions: Sequence[Question], advance: Callable[[int], None]
    ) -> tuple[dict[str, Array], dict[str, list[str]]]:
        """Columns and texts of one batch; `advance` is called with the number of finished rollouts."""
        rollouts, boundaries = RecordRows("rollouts"), RecordRows("boundaries")
        options, layers = self.options, self.options.hidden_layers
        states: dict[int, list[State]] = {layer: [] for layer in layers}
        for tier_index, tier in enumerate(options.efforts):
            for rollout in range(options.samples):
                seed = batch_seed(options.seed, tier, rollout, number)
                for index, (result, thoughts) in enumerate(self._answer(questions, tier, seed)):
                    question, rollout_row = questions[index], len(rollouts)
                    final = normalize_answer(extract_answer(result.answer))
                    right = int(self.checker.grade(question, result.answer).equal)
                    entropy, finished = mean_entropy(result.signals), result.finish_reason == "stop"
                    tokens = result.usage.thinking, result.usage.answer
                    rollouts.add(index, tier_index, rollout, right, *tokens, entropy, finished)
                    answer_ids = AnswerIds()
                    for thought in thoughts:
                        labels = self._label(question, thought, right, final, answer_ids)
                        boundaries.add(rollout_row, thought.end, thought.features, *labels)
                        for layer in layers:
                            states[layer].append(thought.states[layer])
                advance(len(questions))
        columns = {**self._question_columns(questions), **rollouts.columns(), **boundaries.columns()}
        for layer in layers:
            width = columns[f"questions.state.{layer}"].shape[1]
            columns[f"boundaries.state.{layer}"] = np.array(states[layer], dtype=np.float32).reshape(-1, width)
        texts = {
            "hash": [hash_question(q) for q in questions],
            "problem": [q.problem for q in questions],
            "kind": [q.kind or "" for q in questions],
        }
        return columns, texts

    def _answer(
        self, questions: Sequence[Question], tier: str, seed: int
    ) -> list[tuple[GenerationResult, list[ThoughtRecord]]]:
        rows: list[list[ThoughtRecord]] = []

        def start_row() -> Callable[[ThoughtRecord], None]:
            rows.append([])
            return rows[-1].append

        length, strategy = self.options.max_new_tokens, self.options.strategy
        plain = GenerationOptions(effort=tier, max_new_tokens=length, strategy=strategy)
        caps = () if strategy == "tiers" else (make_policy("budget"),)
        policies = (*caps, PassiveRecorder(start_row, self.options.hidden_layers)) if tier != "none" else ()
        options = replace(with_seed(plain, seed), policies=policies, signals=True)
        results = self.session.run([question.problem for question in questions], options)
        return list(zip(results, rows or [[] for _ in results], strict=True))

    def _question_columns(self, questions: Sequence[Question]) -> dict[str, Array]:
        """The columns of the questions, with the hidden states from which tiers are chosen."""
        prefixes = [self._shared_prefix(question.problem) for question in questions]
        states = {
            f"questions.state.{layer}": np.stack(self.session.engine.hidden_states(prefixes, layer))
            for layer in self.options.hidden_layers
        }
        level = np.array([UNKNOWN if q.level is None else q.level for q in questions], dtype=np.int64)
        words = np.array([len(q.problem.split()) for q in questions], dtype=np.int32)
        return {"questions.level": level, "questions.words": words, **states}

    def _shared_prefix(self, problem: str) -> tuple[int, ...]:
        """The token ids with which the prompts of all tiers start."""
        session, renderings = self.session, {}
        for tier in self.options.efforts:
            budget = fit_budget(tier, self.options.max_new_tokens, strategy=self.options.strategy)
            renderings[tier] = render(session.engine.tokenizer, problem, budget, session.markers)
        return find_prefix(session.codec, problem, renderings)

    def _label(
        self, question: Question, thought: ThoughtRecord, right: int, final: str, answer_ids: AnswerIds
    ) -> tuple[int, int, int, int, float, int]:
        """The columns `right`, `same`, `stated`, `said`, `confidence` and `trial` of a boundary."""
        stated = answer_ids.get(thought.stated)
        if thought.trial is None:  # there was no room for one, so the thinking is practically over
            return right, 1, stated, UNKNOWN, 0.0, 0
        sampled = thought.trial.sampled or ""
        same = normalize_answer(extract_answer(sampled)) == final
        right_now = right if same else int(self.checker.grade(question, sampled).equal)
        greedy = answer_ids.get(thought.trial.answer)
        return right_now, int(same), stated, greedy, thought.trial.confidence, thought.trial.tokens
