"""What a paired comparison proves: loses no accuracy beyond the margin and saves tokens, or not, or not yet."""

from __future__ import annotations

from dataclasses import dataclass

from ..stats import Array, Interval, needed_questions, smoothed_deviation

FEWEST = 10
"""Questions below which nothing is decided: tokens that happen to agree on a handful would make an interval of none."""
GOOD = "non-inferior and saving"
INFERIOR = "inferior"
WASTEFUL = "not saving"
OPEN = "inconclusive"
EXIT_CODES = {GOOD: 0, INFERIOR: 1, WASTEFUL: 1, OPEN: 2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word for it, and for an open one how many questions it would take (None: no number is known to do)."""

    word: str
    needed_n: int | None = None


def judge(accuracy: Array, accuracy_ci: Interval, tokens: Array, tokens_ci: Interval, margin: float) -> Verdict:
    """Judge per-question differences (ours minus baseline) by their intervals.

    The margin must have been fixed before the run. An open question names the number of questions at which the
    interval would probably (80 %) decide it, if the true difference is what was seen, gains in accuracy not counted on.
    """
    few = len(accuracy) < FEWEST
    if accuracy_ci.high < -margin and not few:
        return Verdict(INFERIOR)
    if tokens_ci.low >= 0 and not few:
        return Verdict(WASTEFUL)
    needs: list[int | None] = [FEWEST] if few else []
    if accuracy_ci.low <= -margin:
        distance = abs(margin + min(accuracy_ci.estimate, 0.0))
        needs.append(needed_questions(smoothed_deviation(accuracy), distance))
    if tokens_ci.high >= 0:
        needs.append(needed_questions(float(tokens.std()), abs(tokens_ci.estimate)))
    if not needs:
        return Verdict(GOOD)
    known = [n for n in needs if n is not None]
    return Verdict(OPEN, max(*known, len(accuracy) + 1) if len(known) == len(needs) else None)
