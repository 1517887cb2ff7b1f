"""Checks that no arm is flattered: same questions, every token counted, nothing learnt from what is tested on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...controller.policies.base import Policy
from ...errors import TerselyError
from ...probes.tier_selector import TierProbe
from ..tasks.questions import Question, hash_question
from .arms import HELPER
from .records import ArmRecords

_SHOWN = 3
_ROUNDING = 1e-6


class CheckError(TerselyError, ValueError):
    """A comparison would be unfair."""


def check_comparable(records: Sequence[ArmRecords]) -> None:
    """Raise CheckError unless all arms were asked the same, and count all that their engines put out."""
    base = records[0]
    asked = [(row.id, row.rollout) for row in base.rows]
    for arm in records:
        if [(row.id, row.rollout) for row in arm.rows] != asked:
            raise CheckError(f"arm {arm.arm!r} was asked other questions than {base.arm!r}; ask both the same")
        _check_counts(arm)


def _check_counts(arm: ArmRecords) -> None:
    """Every row's total must hold its parts, and all rows what the engine says it put out."""
    for row in arm.rows:
        written = 0 if arm.arm == HELPER else row.thinking + row.answer_tokens  # a helper's own tokens are weighted
        if row.total + _ROUNDING < written + row.overhead or row.overhead + _ROUNDING < row.probe + row.discarded:
            raise CheckError(f"arm {arm.arm!r} leaves tokens out of the total of question {row.id!r}; count them all")
    if arm.made is None:
        return
    counted = sum(row.thinking + row.answer_tokens + row.discarded + row.probe for row in arm.rows)
    if counted < arm.made:
        raise CheckError(
            f"arm {arm.arm!r} counts {counted} tokens, but its engine put out {arm.made}; count probes, trials and "
            "discarded tokens too"
        )


def check_disjoint(splits: Mapping[str, Sequence[Question]]) -> None:
    """Raise CheckError if a question stands twice, in two splits or in one, however it is named."""
    owners: dict[str, tuple[str, Question]] = {}
    for name, questions in splits.items():
        for question in questions:
            owner, first = owners.setdefault(hash_question(question), (name, question))
            if owner != name:
                raise CheckError(f"question {question.id!r} of split {name!r} is also in split {owner!r}; part them")
            if first is not question:
                raise CheckError(f"questions {first.id!r} and {question.id!r} are one; leave one of them out")


def check_unseen(policies: Iterable[Policy | TierProbe], questions: Sequence[Question]) -> None:
    """Raise CheckError if a policy or probe has learnt from questions asked here (see `Policy.learned_from`)."""
    asked = {hash_question(question): question.id for question in questions}
    for policy in policies:
        seen = [asked[key] for key in getattr(policy, "learned_from", ()) if key in asked]
        if seen:
            shown = ", ".join(sorted(seen)[:_SHOWN])
            raise CheckError(
                f"{policy.name!r} has learnt from {len(seen)} of the questions it would be tested on ({shown}); "
                "test on others"
            )
