"""One batch of questions, answered in every tier, as columns of a collection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...controller.budgets import fit_budget
from ...controller.effort import find_shared_prefix, render_tiers
from ...controller.options import GenerationOptions, with_seed
from ...controller.policies.record import AnswerIds, PassiveRecorder, ThoughtRecord, mean_entropy
from ...controller.session import Session
from ...controller.text.answers import extract_answer, normalize_answer
from ...controller.trace import GenerationResult
from ...controller.types import KEEP, Directive, Request, SamplingParams, State, StepInfo
from ...probes.records import UNKNOWN, Array, RecordRows
from ..runner import batch_seed
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question, hash_question


@dataclass(slots=True)
class _Reader:
    """A watcher that keeps the hidden states after the prompt."""

    layers: tuple[int, ...]
    states: dict[int, State] = field(default_factory=dict)

    def observe(self, token: int, seen: StepInfo | None = None) -> Directive:
        """See `Watcher.observe`."""
        if seen is not None and not self.states:
            self.states = {layer: seen.state(layer) for layer in self.layers}
        return KEEP


@dataclass(frozen=True, slots=True)
class Collector:
    """Collects on one session; `tiers` in the order of their numbers in the columns."""

    session: Session
    checker: AnswerChecker
    tiers: Sequence[str]
    rollouts: int
    layers: tuple[int, ...]
    max_new_tokens: int
    seed: int

    def batch(
        self, number: int, questions: Sequence[Question], advance: Callable[[int], None]
    ) -> tuple[dict[str, Array], dict[str, list[str]]]:
        """Columns and texts of one part; `advance` is told the rollouts of each finished batch."""
        rollouts = RecordRows("rollouts")
        boundaries = RecordRows("boundaries")
        kept: dict[int, list[State]] = {layer: [] for layer in self.layers}
        for tier_number, tier in enumerate(self.tiers):
            for rollout in range(self.rollouts):
                seed = batch_seed(self.seed, tier, rollout, number)
                for index, (done, ends) in enumerate(self._answer(questions, tier, seed)):
                    question, at = questions[index], len(rollouts)
                    final = normalize_answer(extract_answer(done.answer))
                    right = self._grade(question, done.answer)
                    written = done.usage.thinking, done.usage.answer
                    finished = done.finish_reason == "stop"
                    rollouts.add(index, tier_number, rollout, right, *written, mean_entropy(done.signals), finished)
                    numbers = AnswerIds()
                    for end in ends:
                        outcome = self._outcome(question, end, right, final, numbers)
                        boundaries.add(at, end.end, end.features, *outcome)
                        for layer in self.layers:
                            kept[layer].append(end.states[layer])
                advance(len(questions))
        columns = {**self._questions(questions), **rollouts.columns(), **boundaries.columns()}
        for layer in self.layers:
            width = columns[f"questions.state.{layer}"].shape[1]
            columns[f"boundaries.state.{layer}"] = np.array(kept[layer], dtype=np.float32).reshape(-1, width)
        texts = {
            "hash": [hash_question(q) for q in questions],
            "problem": [q.problem for q in questions],
            "kind": [q.kind or "" for q in questions],
        }
        return columns, texts

    def _answer(
        self, questions: Sequence[Question], tier: str, seed: int
    ) -> list[tuple[GenerationResult, list[ThoughtRecord]]]:
        """What each question came to, and where its thoughts ended."""
        rows: list[list[ThoughtRecord]] = []

        def begin() -> Callable[[ThoughtRecord], None]:
            rows.append([])
            return rows[-1].append

        plain = with_seed(GenerationOptions(effort=tier, preset="off", max_new_tokens=self.max_new_tokens), seed)
        policies = (PassiveRecorder(begin, self.layers),) if tier != "none" else ()
        options = replace(plain, policies=policies, signals=True)
        done = self.session.run([question.problem for question in questions], options)
        return list(zip(done, rows or [[] for _ in done], strict=True))

    def _questions(self, questions: Sequence[Question]) -> dict[str, Array]:
        """The table of questions, with the hidden states that tiers are chosen by."""
        session, readers, requests = self.session, [], []
        for question in questions:
            budgets = {tier: fit_budget(tier, self.max_new_tokens) for tier in self.tiers}
            known = render_tiers(session.engine.tokenizer, question.problem, session.markers, budgets)
            readers.append(_Reader(self.layers))
            look = find_shared_prefix(session.codec, question.problem, known)
            requests.append(Request(look.ids, 1, readers[-1], layers=self.layers))
        session.engine.generate(requests, SamplingParams(temperature=0.0))
        states = {f"questions.state.{layer}": np.stack([r.states[layer] for r in readers]) for layer in self.layers}
        level = np.array([UNKNOWN if q.level is None else q.level for q in questions], dtype=np.int64)
        words = np.array([len(q.problem.split()) for q in questions], dtype=np.int32)
        return {"questions.level": level, "questions.words": words, **states}

    def _grade(self, question: Question, answer: str) -> int:
        return int(self.checker.grade(question, answer).equal)

    def _outcome(
        self, question: Question, end: ThoughtRecord, right: int, final: str, numbers: AnswerIds
    ) -> tuple[int, int, int, int, float, int]:
        """Right, same, stated, said, confidence and trial of a boundary."""
        stated = numbers.of(end.stated)
        if end.trial is None:  # no room for one, so the thinking is as good as over
            return right, 1, stated, UNKNOWN, 0.0, 0
        drawn = end.trial.drawn or ""
        same = normalize_answer(extract_answer(drawn)) == final
        now = right if same else self._grade(question, drawn)
        said = numbers.of(end.trial.answer)
        return now, int(same), stated, said, end.trial.confidence, end.trial.tokens
