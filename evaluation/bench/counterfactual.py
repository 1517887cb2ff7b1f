"""Baselines made by truncating one arm's thinking: the output up to the cut is kept, and a new answer is sampled.

Some rules need trial answers at the ends of recorded thoughts, asked for as `controller.trials` does live. A
trial costs its forced and its sampled tokens; the text before it is not paid for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import fmean
from typing import Any

from ...controller.policies.base import TrialAnswer
from ...controller.request_builder import PreparedRequest
from ...controller.trials import ANSWER_PREFIX, MAX_TRIAL_TOKENS, TrialDecoder
from ...controller.types import Completion, SamplingParams
from ..runner import batch_seed
from ..tasks.questions import Question
from . import truncation
from .arms import CONFIDENCE, EQUAL, FIXED, ORACLE, RANDOM, TRUNCATED_ARMS, Arm, Bench, run_batch
from .records import ArmRecords, BenchRow, to_row
from .truncation import Recording, TrialPoint, Truncation, TruncationBaseline

NEVER = 2.0  # a confidence that no trial answer reaches
CURVE = 8  # budgets on the fixed-budget curve
MAX_TRIALS = 12  # trial answers of one generation, at thoughts evenly spread over it
GREEDY = SamplingParams(temperature=0.0)
TRIALS = "trial answers"  # the description that `advance` gets while trial answers are sampled
_TOLERANCE = 0.02  # relative distance from the target cost above which an arm's setting says so
_TRIAL_WORK, TRUNCATION_WORK = 0.3, 0.1
"""Time of one generation's trial answers, and of truncating it once, relative to the generation itself."""

WORK = {TRIALS: _TRIAL_WORK, **dict.fromkeys(TRUNCATED_ARMS, TRUNCATION_WORK)}
"""Work of each step for one generation; that of a budget of the curve is the same as that of a truncated arm."""
TOTAL_WORK = _TRIAL_WORK + TRUNCATION_WORK * (len(TRUNCATED_ARMS) + CURVE)
"""Without the hard budgets, of which there is one for each policy."""

Choice = Callable[[Recording, int], tuple[Truncation | None, int]]
"""Called as `choose(recording, rollout)`; returns the truncation (None: not at all) and tokens paid for trials."""


@dataclass(frozen=True, slots=True)
class _Batch:
    rollout: int
    number: int
    questions: Sequence[Question]
    prepared: Sequence[PreparedRequest]
    rows: Sequence[BenchRow]
    recordings: Sequence[Recording]


class Counterfactual:
    """Truncates the thinking of an arm that has been run."""

    def __init__(self, bench: Bench, arm: Arm) -> None:
        self.bench, self.arm = bench, arm
        session = bench.runner.session
        self._truncator = TruncationBaseline(session.codec, session.markers)
        self._lead = session.codec.encode(ANSWER_PREFIX)
        self._truncate_at = cache(self._truncator.truncate_at)  # the searches try many settings
        self._batches = [self._load_batch(*batch) for batch in bench.batches()]
        self._all = [(recording, batch.rollout) for batch in self._batches for recording in batch.recordings]

    @property
    def recordings(self) -> list[Recording]:
        return [recording for recording, _ in self._all]

    def baselines(self, target: float) -> list[ArmRecords]:
        """All truncated arms; those with a setting cost as near to `target` tokens on average as possible."""
        longest = max(recording.total for recording in self.recordings)
        budget = round(self._match(lambda b: self._at_budget(round(b)), target, 1, longest))
        # The cost falls as the probability rises, so its complement is searched.
        probability = 1 - self._match(lambda rest: self._at_random(1 - rest), target, 0, 1)
        # Most confidences are just below 1, so the search is over observed values rather than an even scale.
        observed = [*sorted({trial.confidence for recording in self.recordings for trial in recording.trials}), NEVER]
        index = self._match(lambda i: self._at_confidence(observed[round(i)]), target, 0, len(observed) - 1)
        threshold = observed[round(index)]
        searched = [
            (FIXED, self._at_budget(budget), f"at {budget} thinking tokens"),
            (
                CONFIDENCE,
                self._at_confidence(threshold),
                "never" if threshold == NEVER else f"from a confidence of {threshold:.7g} on",
            ),
            (RANDOM, self._at_random(probability), f"with a probability of {probability:.3f} after each thought"),
        ]
        matched = [self._note_mismatch(self._truncate(*arm), target) for arm in searched]
        return [*matched, self._truncate(ORACLE, self._at_first_correct, "", GREEDY)]

    def equal_budgets(self, arms: Sequence[ArmRecords]) -> list[ArmRecords]:
        """A hard budget for each of these arms, which costs as near to the arm on average as possible."""
        longest = max(recording.thinking for recording in self.recordings)
        found = []
        for arm in arms:
            target = arm.mean("total")
            budget = round(self._match(lambda b: self._at_hard_budget(round(b)), target, 1, longest))
            setting = f"at exactly {budget} thinking tokens"
            records = self._truncate(f"{EQUAL}{arm.arm}", self._at_hard_budget(budget), setting)
            found.append(self._note_mismatch(records, target))
        return found

    def curve(self) -> list[tuple[int, ArmRecords]]:
        budgets = truncation.curve_budgets(self.recordings, CURVE)
        return [(b, self._truncate(f"budget {b}", self._at_budget(b), "")) for b in budgets]

    def _at_budget(self, budget: int) -> Choice:
        return lambda recording, _: (self._truncator.truncate_to_budget(recording, budget), 0)

    def _at_hard_budget(self, budget: int) -> Choice:
        return lambda recording, _: (self._truncator.truncate_hard(recording, budget), 0)

    def _at_random(self, probability: float) -> Choice:
        return lambda recording, rollout: (
            self._at_end(recording, truncation.random_stop(recording, probability, self.bench.seed, rollout)),
            0,
        )

    def _at_confidence(self, threshold: float) -> Choice:
        def choose(recording: Recording, _: int) -> tuple[Truncation | None, int]:
            end, paid = truncation.confident_stop(recording, threshold)
            return self._at_end(recording, end), paid

        return choose

    def _at_first_correct(self, recording: Recording, _: int) -> tuple[Truncation | None, int]:
        """Truncate at the first correct trial answer, and answer as the trial did."""
        cut = self._at_end(recording, truncation.first_correct(recording))
        return cut and Truncation((*cut.ids, *self._lead), cut.forced + len(self._lead)), 0

    def _at_end(self, recording: Recording, end: int | None) -> Truncation | None:
        return None if end is None else self._truncate_at(recording, end)

    def _match(self, rule: Callable[[float], Choice], target: float, low: float, high: float) -> float:
        def mean_cost(setting: float) -> float:
            choose = rule(setting)
            return fmean(
                truncation.estimate_cost(recording, *choose(recording, rollout)) for recording, rollout in self._all
            )

        return truncation.bisect_to_cost(mean_cost, target, low, high)

    def _note_mismatch(self, records: ArmRecords, target: float) -> ArmRecords:
        """Add a note to the setting if the arm does not cost what it should."""
        difference = records.mean("total") / target - 1
        if abs(difference) <= _TOLERANCE:
            return records
        return replace(records, setting=f"{records.setting}; {difference:+.0%} tokens against its target")

    def _load_batch(self, rollout: int, number: int, indices: Sequence[int]) -> _Batch:
        bench = self.bench
        piece = run_batch(bench, self.arm, rollout, number, indices)
        questions = [bench.questions[i] for i in indices]
        prepared = bench.runner.session.prepare([q.problem for q in questions], self.arm.options)
        rows = [BenchRow(**row) for row in piece["rows"]]
        recordings = [self._record(*one) for one in zip(rows, piece["ids"], prepared, strict=True)]

        def compute() -> list[Any]:
            prompts = [one.request.prompt_ids for one in prepared]
            trials = ask_trials(bench, list(zip(questions, recordings, prompts, strict=True)))
            return [[asdict(trial) for trial in row] for row in trials]

        trials = bench.checkpoints.get_or_compute(f"trials of {self.arm.name}/{rollout}/{number}", compute)
        bench.advance(TRIALS, len(indices))
        complete = [
            replace(recording, trials=tuple(TrialPoint(**trial) for trial in row))
            for recording, row in zip(recordings, trials, strict=True)
        ]
        return _Batch(rollout, number, questions, prepared, rows, complete)

    def _record(self, row: BenchRow, ids: Sequence[int], prepared: PreparedRequest) -> Recording:
        # The baseline has no budget of a tier, so neither have its truncations.
        room = replace(prepared.budget, thinking=prepared.request.max_new_tokens - prepared.budget.reserve)
        opened = prepared.rendered.state == "thinking"
        recording = Recording(row.id, tuple(ids), row.thinking, row.answer_tokens, opened, room)
        ends = self._truncator.find_ends(recording)
        return replace(recording, ends=ends, trial_ends=truncation.pick_evenly(ends, MAX_TRIALS))

    def _truncate(self, name: str, choose: Choice, setting: str, sampling: SamplingParams | None = None) -> ArmRecords:
        """One truncated arm; by default its answers are sampled as the original arm's."""
        rows: list[BenchRow] = []
        for batch in self._batches:
            compute = partial(self._answer_batch, name, batch, choose, sampling or self.arm.options.sampling)
            # The key includes the setting, which depends on the arms that ran before.
            key = f"{name}/{setting}/{batch.rollout}/{batch.number}"
            rows += [BenchRow(**row) for row in self.bench.checkpoints.get_or_compute(key, compute)]
            self.bench.advance(name, len(batch.rows))
        return ArmRecords(name, self.bench.sort(rows), self.bench.rollouts, setting=setting, truncated=True)

    def _answer_batch(self, name: str, batch: _Batch, choose: Choice, sampling: SamplingParams) -> list[dict[str, Any]]:
        """Rows of one batch: a new answer for the truncated ones, the others unchanged."""
        bench, choices = self.bench, [choose(recording, batch.rollout) for recording in batch.recordings]
        rows = [
            replace(row, arm=name, probe=row.probe + paid, overhead=row.overhead + paid, total=row.total + paid)
            for row, (_, paid) in zip(batch.rows, choices, strict=True)
        ]
        cuts = [(i, cut, paid) for i, (cut, paid) in enumerate(choices) if cut is not None]
        seed = batch_seed(bench.seed, batch.rollout, batch.number, name)
        texts = [(*batch.prepared[i].request.prompt_ids, *cut.ids) for i, cut, _ in cuts]
        limits = [max(1, batch.prepared[i].request.max_new_tokens - len(cut.ids)) for i, cut, _ in cuts]
        answers = bench.runner.continue_from(texts, limits, replace(sampling, seed=seed)) if texts else []
        for (i, cut, paid), answer in zip(cuts, answers, strict=True):
            kept = len(cut.ids) - cut.forced
            forced = (*[False] * kept, *[True] * cut.forced, *[False] * len(answer.token_ids))
            completion = Completion((*cut.ids, *answer.token_ids), forced, answer.finish_reason)
            result = bench.runner.session.finish(batch.prepared[i], completion)
            result = replace(result, usage=replace(result.usage, trial=paid))
            rows[i] = to_row(batch.questions[i], name, batch.rollout, result, bench.checker, bench.weights)
        return [asdict(row) for row in rows]


def ask_trials(bench: Bench, rows: Sequence[tuple[Question, Recording, Sequence[int]]]) -> list[list[TrialPoint]]:
    """Trial answers of recordings at their `trial_ends`; each row is (question, recording, prompt token ids)."""
    session = bench.runner.session
    truncator, lead = TruncationBaseline(session.codec, session.markers), session.codec.encode(ANSWER_PREFIX)
    owners, texts, forced = [], [], []
    for owner, (_, recording, prompt) in enumerate(rows):
        for end in recording.trial_ends:
            cut = truncator.truncate_at(recording, end)
            if cut is not None:
                owners.append(owner)
                texts.append((*prompt, *cut.ids, *lead))
                forced.append(cut.forced + len(lead))
    replies: list[Completion] = []
    for start in range(0, len(texts), bench.batch_size):
        some = texts[start : start + bench.batch_size]
        replies += bench.runner.continue_from(some, [MAX_TRIAL_TOKENS] * len(some), GREEDY)
    trials: list[list[TrialPoint]] = [[] for _ in rows]
    for owner, extra, reply in zip(owners, forced, replies, strict=True):
        trial = TrialDecoder(session.codec, extra)
        for token, signals in zip(reply.token_ids, reply.signals, strict=True):
            if signals is not None and trial.add(token, signals.chosen) is None:
                break
        found = trial.answer() if trial.tokens > extra else TrialAnswer("", 0.0, extra)
        right = bench.checker.grade(rows[owner][0], f"\\boxed{{{found.answer}}}").equal
        trials[owner].append(TrialPoint(found.confidence, found.tokens, right))
    return trials
