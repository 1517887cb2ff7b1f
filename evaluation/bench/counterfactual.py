"""The baselines cut from one arm's thinking: what it wrote up to the cut stands, the answer is written anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import fmean
from typing import Any

from ...controller.request_builder import PreparedRequest
from ...controller.types import Completion, SamplingParams
from ..runner import batch_seed
from ..tasks.questions import Question
from .arms import CONFIDENCE, FIXED, ORACLE, RANDOM, Arm
from .records import ArmRecords, BenchRow, to_row
from .run import Bench, piece_name
from .trial_answers import GREEDY, LEAD, MOST_TRIALS, TrialAnswers
from .truncation import (
    Recording,
    TrialPoint,
    Truncation,
    TruncationBaseline,
    bisect_to_cost,
    budgets,
    confident_stop,
    cost,
    first_correct,
    random_stop,
    spread,
)

NEVER = 2.0
"""A confidence that no trial answer has."""
CURVE = 8
"""Budgets on the fixed-budget curve."""
TRIALS = "trial answers"
"""What `advance` is told while trial answers are asked for."""
_WORDS_OFF = 0.02
"""How far from the target, as a share of it, a matched arm may be before it says so."""

Choice = Callable[[Recording, int], tuple[Truncation | None, int]]
"""Called as `choose(source, rollout)`: where to cut (None: not at all), and tokens paid for trial answers."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """One batch of the arm that is cut."""

    rollout: int
    number: int
    questions: Sequence[Question]
    prepared: Sequence[PreparedRequest]
    rows: Sequence[BenchRow]
    sources: Sequence[Recording]


class Counterfactual:
    """Cuts one arm, which has been run."""

    def __init__(self, bench: Bench, arm: Arm) -> None:
        self.bench, self.arm = bench, arm
        session = bench.answerer.session
        self._cutter = TruncationBaseline(session.codec, session.markers)
        self._lead = session.codec.encode(LEAD)
        self._at = cache(self._cutter.at)  # settings are sought by trying many
        self._units = [self._unit(*unit) for unit in bench.units()]
        self._all = [(source, unit.rollout) for unit in self._units for source in unit.sources]

    @property
    def sources(self) -> list[Recording]:
        """Everything that is cut."""
        return [source for source, _ in self._all]

    def baselines(self, target: float) -> list[ArmRecords]:
        """The baselines, those that can be matched costing `target` tokens on average, as near as they come."""
        budget = round(self._match(lambda b: self._at_budget(round(b)), target, 1, max(s.total for s in self.sources)))
        # Cost falls as the chance rises, so its complement is what is matched.
        chance = 1 - self._match(lambda rest: self._at_random(1 - rest), target, 0, 1)
        # Confidences crowd just below 1, where no even scale tells them apart.
        stated = [*sorted({trial.confidence for source in self.sources for trial in source.trials}), NEVER]
        threshold = stated[
            round(self._match(lambda i: self._at_confidence(stated[round(i)]), target, 0, len(stated) - 1))
        ]
        found = [
            (FIXED, self._at_budget(budget), f"at {budget} thinking tokens"),
            (
                CONFIDENCE,
                self._at_confidence(threshold),
                "never" if threshold == NEVER else f"from a confidence of {threshold:.7g} on",
            ),
            (RANDOM, self._at_random(chance), f"with a chance of {chance:.3f} after each thought"),
        ]
        made = [self._cut(name, choose, setting) for name, choose, setting in found]
        made = [self._owned_up(records, target) for records in made]
        return [*made, self._cut(ORACLE, self._at_first_correct, "", GREEDY)]

    def curve(self) -> list[tuple[int, ArmRecords]]:
        """Fixed budgets from small to large."""
        return [(b, self._cut(f"budget {b}", self._at_budget(b), "")) for b in budgets(self.sources, CURVE)]

    # -- rules -------------------------------------------------------------------------------------------------------

    def _at_budget(self, budget: int) -> Choice:
        return lambda source, _: (self._cutter.at_budget(source, budget), 0)

    def _at_random(self, chance: float) -> Choice:
        return lambda source, rollout: (
            self._end(source, random_stop(source, chance, self.bench.seed, rollout)),
            0,
        )

    def _at_confidence(self, threshold: float) -> Choice:
        def choose(source: Recording, _: int) -> tuple[Truncation | None, int]:
            end, paid = confident_stop(source, threshold)
            return self._end(source, end), paid

        return choose

    def _at_first_correct(self, source: Recording, _: int) -> tuple[Truncation | None, int]:
        """Cut where the trial answer was first right, and answer as the trial did."""
        cut = self._end(source, first_correct(source))
        return cut and Truncation((*cut.ids, *self._lead), cut.forced + len(self._lead)), 0

    def _end(self, source: Recording, end: int | None) -> Truncation | None:
        return None if end is None else self._at(source, end)

    def _match(self, rule: Callable[[float], Choice], target: float, low: float, high: float) -> float:
        def mean_cost(setting: float) -> float:
            choose = rule(setting)
            return fmean(cost(source, *choose(source, rollout)) for source, rollout in self._all)

        return bisect_to_cost(mean_cost, target, low, high)

    def _owned_up(self, records: ArmRecords, target: float) -> ArmRecords:
        """Say so where an arm could not be made as dear as it should be."""
        off = records.total() / target - 1
        if abs(off) <= _WORDS_OFF:
            return records
        return replace(records, setting=f"{records.setting}; {off:+.0%} tokens against the judged arm")

    # -- pieces of work ----------------------------------------------------------------------------------------------

    def _unit(self, rollout: int, number: int, indices: Sequence[int]) -> _Unit:
        bench = self.bench
        piece = piece_name(bench, self.arm, rollout, number, indices)
        questions = [bench.questions[i] for i in indices]
        prepared = bench.answerer.session.prepare([q.problem for q in questions], self.arm.options)
        rows = [BenchRow(**row) for row in piece["rows"]]
        sources = [self._source(*one) for one in zip(rows, piece["ids"], prepared, strict=True)]

        def ask() -> list[Any]:
            prompts = [ready.request.prompt_ids for ready in prepared]
            found = TrialAnswers(bench.answerer, bench.checker, bench.batch).ask(
                list(zip(questions, sources, strict=True)), prompts
            )
            return [[asdict(trial) for trial in trials] for trials in found]

        trials = bench.journal.piece(f"trials of {self.arm.name}/{rollout}/{number}", ask)
        bench.advance(TRIALS, len(indices))
        tried = [
            replace(source, trials=tuple(TrialPoint(**trial) for trial in row))
            for source, row in zip(sources, trials, strict=True)
        ]
        return _Unit(rollout, number, questions, prepared, rows, tried)

    def _source(self, row: BenchRow, ids: Sequence[int], ready: PreparedRequest) -> Recording:
        # The baseline is bound by no tier, so neither are the budgets that it is cut at.
        room = replace(ready.budget, thinking=ready.request.max_new_tokens - ready.budget.reserve)
        opened = ready.rendered.state == "thinking"
        source = Recording(row.id, tuple(ids), row.thinking, row.answer_tokens, opened, room)
        ends = self._cutter.ends(source)
        return replace(source, ends=ends, tries=spread(ends, MOST_TRIALS))

    def _cut(self, name: str, choose: Choice, setting: str, sampling: SamplingParams | None = None) -> ArmRecords:
        """One cut arm; its answers are sampled as the cut arm's own, if nothing else is said."""
        rows: list[BenchRow] = []
        for unit in self._units:
            make = partial(self._written, name, unit, choose, sampling or self.arm.options.sampling)
            # The setting is in the key: it follows from what was run before.
            piece = self.bench.journal.piece(f"{name}/{setting}/{unit.rollout}/{unit.number}", make)
            self.bench.advance(name, len(unit.rows))
            rows += [BenchRow(**row) for row in piece]
        return ArmRecords(name, self.bench.ordered(rows), self.bench.rollouts, setting=setting, cut=True)

    def _written(self, name: str, unit: _Unit, choose: Choice, sampling: SamplingParams) -> list[dict[str, Any]]:
        """Rows of one batch: those that were cut with a new answer, the others as they were."""
        bench, chosen = self.bench, [choose(source, unit.rollout) for source in unit.sources]
        rows: list[BenchRow] = [_unchanged(row, name, paid) for row, (_, paid) in zip(unit.rows, chosen, strict=True)]
        cut = [(i, where, paid) for i, (where, paid) in enumerate(chosen) if where is not None]
        seed = batch_seed(bench.seed, unit.rollout, unit.number, name)
        texts = [(*unit.prepared[i].request.prompt_ids, *where.ids) for i, where, _ in cut]
        limits = [max(1, unit.prepared[i].request.max_new_tokens - len(where.ids)) for i, where, _ in cut]
        written = bench.answerer.write_on(texts, limits, replace(sampling, seed=seed)) if texts else []
        for (i, where, paid), more in zip(cut, written, strict=True):
            forced = [False] * (len(where.ids) - where.forced) + [True] * where.forced + [False] * len(more.token_ids)
            done = Completion((*where.ids, *more.token_ids), tuple(forced), more.finish_reason)
            whole = bench.answerer.session.finish(unit.prepared[i], done)
            whole = replace(whole, usage=replace(whole.usage, probe=paid))
            rows[i] = to_row(unit.questions[i], name, unit.rollout, whole, bench.checker, bench.weights)
        return [asdict(row) for row in rows]


def _unchanged(row: BenchRow, name: str, paid: int) -> BenchRow:
    return replace(row, arm=name, probe=row.probe + paid, overhead=row.overhead + paid, total=row.total + paid)
