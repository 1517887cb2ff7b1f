"""Replaying recorded thinking through policies: where each would have stopped, and whether the answer was right there.

The answer at a stop is what the thinking stated last, or what a reader makes of the thinking so far, which also answers
trials. Without a gold answer the recorded one counts as right. Policies are compared with a hard budget that spends as
many tokens, one number for a set, found in hindsight, and with an oracle.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...controller.budgets import Budget
from ...controller.policies import find_entry_points, make_policies, resolve_policy
from ...controller.policies.base import Policy, Trial, TrialAnswer
from ...controller.policies.readiness import TextReadiness
from ...controller.replay import bind_for_replay, replay
from ...controller.text.answers import extract_answer, extract_stated_answer, find_statements
from ...controller.text.markers import Markers
from ...controller.text.questions import read_question
from ...controller.text.tokenizer_adapter import TokenizerAdapter, get_adapter
from ...controller.trace import Decision
from ...errors import CapabilityError
from ...probes.fingerprint import question_hash
from ..tasks.equality import AnswerChecker
from .formats import RecordedOutput
from .logs import LogError, RecordedSet

if TYPE_CHECKING:
    from .reader import ModelReader

MARKERS = Markers("<think>", "</think>")  # recorded thinking has none; those of most models
EQUAL_BUDGET, FIRST_CORRECT = "equal-budget", "first-correct"
_LONGEST_REASON = 120
_NUMBER = re.compile(r"\S*\d\S*")


@dataclass(frozen=True, slots=True)
class ReplayArm:
    """A preset, or a policy of its own, that is replayed."""

    name: str
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Where and why thinking would have ended: after `tokens` of it, whose text is `thinking`; "" for no answer."""

    decision: Decision
    tokens: int
    thinking: str
    stated: str
    answer: str

    @property
    def reason(self) -> str:
        """The policy and its reason, without this row's answer and numbers, so that equal reasons can be counted."""
        reason = self.decision.reason
        if self.stated:
            reason = re.sub(rf"(?<!\w){re.escape(self.stated)}(?!\w)", "…", reason, flags=re.I)
        text = f"{self.decision.policy}: {_NUMBER.sub('…', reason)}"
        return "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST_REASON])


@dataclass(frozen=True, slots=True)
class ReplayedRow:
    """One recorded output under one arm; `stop` is None where nothing would have ended its thinking early."""

    row: RecordedOutput
    tokens: int
    stop: Stop | None
    seconds: float = 0.0  # of the processor, for the controller alone
    skipped: int = 0  # injections and delegations up to there, whose effect on the text a replay cannot know
    trial_tokens: int = 0  # that were read and written for trial answers
    right_full: bool = False
    right_controlled: bool = False

    @property
    def used(self) -> int:
        """Thinking tokens up to the stop, which are those that the controller was shown."""
        return self.tokens if self.stop is None else self.stop.tokens


def make_replay_arms(
    presets: Sequence[str], policies: Sequence[str], trials: bool = False, probes: str | None = None
) -> list[ReplayArm]:
    """An arm for each preset and policy; raises OptionError, or CapabilityError, ProbeError where a model is needed."""
    modifiers = find_entry_points("tersely.forward_modifiers")
    for name in (*presets, *policies):
        if name in modifiers:
            raise CapabilityError(
                f"{name!r} changes what the model writes, which a recording cannot show; compare it by `tersely bench "
                f"MODEL --arms full,{name}`",
                code="cannot_replay",
            )
    arms = [ReplayArm(name, make_policies(name)) for name in presets]
    arms += [ReplayArm(spec, (resolve_policy(spec),)) for spec in policies]
    return [ReplayArm(arm.name, bind_for_replay(arm.policies, trials, probes)) for arm in arms]


def check_reader(arms: Sequence[ReplayArm], reader: ModelReader) -> None:
    """Raise CapabilityError where a text probe reads the hidden states of another model."""
    probes = [one.probe for arm in arms for one in arm.policies if isinstance(one, TextReadiness)]
    for base in [probe.base for probe in probes if probe is not None and probe.reads_states]:
        if reader.verifier is None or reader.engine.fingerprint() != base["fingerprint"]:
            raise CapabilityError(
                f"the text probe reads hidden states of {base['name']}, which --reader {reader.name} does not show; "
                f"accepted: --reader {base['name']}",
                code="wrong_reader",
            )


def leave_out_learned(one: RecordedSet, arms: Sequence[ReplayArm]) -> RecordedSet:
    """The set without outputs whose questions a policy learned from; raises LogError where none are left."""
    learned = frozenset[str]().union(*(policy.provenance for arm in arms for policy in arm.policies))
    rows = [row for row in one.rows if question_hash(row.question or row.thinking) not in learned]
    if not rows:
        raise LogError(f"the probes learned from all {len(one.rows)} outputs of {one.name}; replay others")
    if len(rows) == len(one.rows):
        return one
    return RecordedSet(
        one.name, rows, one.left_out + Counter({"the probes learned from it": len(one.rows) - len(rows)})
    )


def replay_rows(
    rows: Sequence[RecordedOutput],
    arms: Sequence[ReplayArm],
    tokenizer: Any,
    budget: Budget,
    checker: AnswerChecker,
    advance: Callable[[], None],
    reader: ModelReader | None = None,
) -> list[list[ReplayedRow]]:
    """The outcomes of all rows, for each arm in order; `advance` is called after each row of each arm."""
    codec = get_adapter(tokenizer)
    outcomes: list[list[ReplayedRow]] = [[] for _ in arms]
    for row in rows:
        ids = codec.encode(row.thinking)
        for arm, found in zip(arms, outcomes, strict=True):
            found.append(_replay_row(row, ids, arm, tokenizer, budget, reader))
            advance()
    if reader is not None:
        outcomes = ask_reader(outcomes, reader)
    return [grade(found, checker) for found in outcomes]


class _Trials:
    """Has a reader answer the trials of one row; counts their tokens, and seconds of the processor."""

    def __init__(self, reader: ModelReader, question: str) -> None:
        self.reader, self.question = reader, question
        self.tokens, self.seconds = 0, 0.0

    def answer(self, thinking: str, asked: Trial) -> TrialAnswer:
        start = time.thread_time()
        reply = self.reader.answer_trial(self.question, thinking, asked)
        self.tokens += reply.tokens
        self.seconds += time.thread_time() - start
        return reply


def _replay_row(
    row: RecordedOutput, ids: Sequence[int], arm: ReplayArm, tokenizer: Any, budget: Budget, reader: ModelReader | None
) -> ReplayedRow:
    trials = None if reader is None else _Trials(reader, row.question)
    start = time.thread_time()
    decisions = replay(
        ids,
        arm.policies,
        tokenizer,
        MARKERS,
        budget,
        prompt=row.question,
        until_close=True,
        verifier=None if reader is None else reader.verifier,
        answer_trial=None if trials is None else trials.answer,
    )
    seconds = time.thread_time() - start - (0.0 if trials is None else trials.seconds)
    skipped = sum(decision.action in ("inject", "delegate") for decision in decisions)
    closed = bool(decisions) and decisions[-1].action == "close"
    stop = find_stop(row, ids, decisions[-1], get_adapter(tokenizer)) if closed else None
    return ReplayedRow(row, len(ids), stop, seconds, skipped, 0 if trials is None else trials.tokens)


def find_stop(row: RecordedOutput, ids: Sequence[int], close: Decision, codec: TokenizerAdapter) -> Stop | None:
    """The stop where thinking with these ids is closed, unless nothing but white space would have followed."""
    tokens = close.position
    if not codec.decode(ids[tokens:]).strip():
        return None
    thinking = codec.decode(ids[:tokens])
    stated = extract_stated_answer(thinking, row.question) or ""
    return Stop(close, tokens, thinking, stated, answer=stated)


def ask_reader(outcomes: Sequence[Sequence[ReplayedRow]], reader: ModelReader) -> list[list[ReplayedRow]]:
    """The outcomes of some arms with the reader's answers in place of those that were stated."""
    stops = [(one.row.question, one.stop.thinking) for found in outcomes for one in found if one.stop is not None]
    answers = iter(reader.read(stops))
    return [
        [replace(one, stop=one.stop and replace(one.stop, answer=next(answers))) for one in found] for found in outcomes
    ]


def is_right(row: RecordedOutput, answer: str, checker: AnswerChecker) -> bool:
    """Whether an answer is the gold one, or the recorded one where there is none; choices may be labels or texts."""
    if row.gold is None:
        golds = [extract_answer(row.answer, row.question)]
    else:
        golds = [gold.rpartition("####")[2].strip() for gold in (row.gold, *row.other_golds)]
    if any(checker.check(gold, answer).equal for gold in golds):
        return True
    asked = read_question(row.question)
    return any((label := asked.resolve(gold)) in asked.choices and label == asked.resolve(answer) for gold in golds)


def grade(found: Sequence[ReplayedRow], checker: AnswerChecker) -> list[ReplayedRow]:
    """The outcomes with what was right, as recorded and at the stop."""
    graded = []
    for one in found:
        row = one.row
        full = row.gold is None or is_right(row, extract_answer(row.answer, row.question), checker)
        stopped = full if one.stop is None else is_right(row, one.stop.answer, checker)
        graded.append(replace(one, right_full=full, right_controlled=stopped))
    return graded


def match_budget(lengths: Sequence[int], target: int) -> int:
    """The budget with which thinking of these lengths has about `target` tokens in all."""

    def spend(budget: int) -> int:
        return sum(min(budget, length) for length in lengths)

    above = bisect_left(range(max(lengths)), target, key=spend)
    return min((max(1, above - 1), max(1, above)), key=lambda budget: abs(spend(budget) - target))


def cut_at_equal_tokens(
    found: Sequence[ReplayedRow], codec: TokenizerAdapter, reader: ModelReader | None, checker: AnswerChecker
) -> list[ReplayedRow]:
    """The rows of a policy, each cut at the budget that spends as many tokens as it did, trials included."""
    budget = match_budget([one.tokens for one in found], sum(one.used + one.trial_tokens for one in found))
    close = Decision(EQUAL_BUDGET, "close", f"budget of {budget} thinking tokens is used up", budget)
    cut = []
    for one in found:
        long = one.tokens > budget
        stop = find_stop(one.row, codec.encode(one.row.thinking), close, codec) if long else None
        cut.append(ReplayedRow(one.row, one.tokens, stop))
    if reader is not None:
        (cut,) = ask_reader([cut], reader)
    return grade(cut, checker)


def stop_at_first_correct(
    found: Sequence[ReplayedRow], codec: TokenizerAdapter, checker: AnswerChecker
) -> list[ReplayedRow]:
    """The rows, each stopped behind the first sentence that states the right answer: what could be saved at most."""
    return grade([ReplayedRow(one.row, one.tokens, _find_first(one, codec, checker)) for one in found], checker)


def _find_first(one: ReplayedRow, codec: TokenizerAdapter, checker: AnswerChecker) -> Stop | None:
    row = one.row
    for statement in find_statements(row.thinking, row.question):
        if is_right(row, statement.answer, checker):
            thinking = row.thinking[: statement.end]
            tokens = min(len(codec.encode(thinking)), one.tokens)
            if not row.thinking[statement.end :].strip():
                return None
            close = Decision(FIRST_CORRECT, "close", "the right answer is stated", tokens)
            return Stop(close, tokens, thinking, statement.answer, statement.answer)
    return None
