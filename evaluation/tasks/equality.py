r"""Whether an answer equals the gold one mathematically: `\dfrac12` and `0.5`, sets in any order, units left out.

Exact match settles most pairs. The rest goes to math-verify in a sandbox process with a deadline, because some texts
make it compute forever (its issue 65) and its own timeouts only work in a main thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from ...controller.text.answers import extract_boxed, normalize_answer
from ...errors import OptionError
from .questions import GYM_DRAW_SECONDS, Drawn, Question, TaskError
from .sandbox import CallError, Closing, CrashError, DeadlineError, SandboxError, SandboxProcess

DEADLINE = 5.0  # seconds for one comparison; math-verify usually needs a few hundredths
LONGEST = 10_000  # longest answer that is compared, in characters; the longest gold answers have a few thousand
PASS_SCORE = 0.99
"""Score of reasoning-gym that counts as correct; 1 is full marks, but some scores are sums of fractions."""

_WORD_LETTERS = 3  # fewest letters of a word; fewer may be a product of variables

Outcome = Literal["equal", "different", "unparsable", "timeout", "crash"]
Method = Literal["exact", "math-verify", "score_answer"]

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ ,'’-]+[^\W\d_]+)*")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?|\d{4}-\d\d-\d\d|\d{1,2}(?::\d\d)? [AP]M")  # numbers, dates and times
_BASE = re.compile(r"_\{?(\d+)\}?$")
_SPELLINGS = (
    (re.compile(r",\s*\\!\s*|\{,\}"), ","),  # LaTeX's thousands separators
    (re.compile(r"(?<!\\)\\[ ;:!]|\\quad(?![A-Za-z])"), " "),
    (re.compile(r",(?!\d{3}(?!\d))"), ", "),  # any other comma separates: -2,1 is not -21
)
_REWRITES = (
    (re.compile(r"(?<!\\)\\[()\[\]]|\\?\$"), ""),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])\s*\.?"), ""),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*(?:\(([^()]*)\)|(\w+))"), r"\\sqrt{\1\2}"),
)


@dataclass(frozen=True, slots=True)
class Equality:
    """The outcome of one comparison, and the method that decided it."""

    outcome: Outcome
    method: Method = "exact"

    @property
    def equal(self) -> bool:
        """Whether the answer is correct; a timeout or a crash counts as incorrect."""
        return self.outcome == "equal"


class AnswerChecker(Closing):
    """Compares answers within `deadline` seconds each and caches the outcomes; threads take turns.

    A comparison ends within `sandbox.GRACE` of its deadline; what is done once, starting and drawing a question's batch
    again, does not count. The sandbox processes run until the end of `with`.
    """

    def __init__(self, deadline: float = DEADLINE) -> None:
        if not deadline > 0:
            raise OptionError(f"deadline is {deadline}; accepted: more than 0 seconds")
        self.deadline = deadline
        self.method: Method = "math-verify" if find_spec("math_verify") else "exact"
        self._sandboxes = {library: SandboxProcess(library) for library in ("math_verify", "reasoning_gym")}
        self._cache: dict[tuple[Hashable, ...], Equality] = {}

    def check(self, gold: str, answer: str) -> Equality:
        r"""Compare an answer with the gold one; not symmetric: `(2,\infty)` is fine for `x > 2`, not the reverse."""
        return self._cached((gold, answer), self._compare)

    def grade(self, question: Question, answer: str) -> Equality:
        """Grade an answer (or its boxed part) by the question's own scorer if it has one; raises TaskError."""
        if question.drawn is None:
            return self.check(question.answer, answer)
        return self._cached((question.drawn, extract_boxed(answer) or answer), self._score)

    def close(self) -> None:
        for sandbox in self._sandboxes.values():
            sandbox.close()

    def _cached(self, key: tuple[Hashable, ...], compute: Callable[..., Equality]) -> Equality:
        if key not in self._cache:
            self._cache[key] = compute(*key)
        return self._cache[key]

    def _compare(self, gold: str, answer: str) -> Equality:
        if max(len(gold), len(answer)) > LONGEST:
            return Equality("equal" if answer == gold else "unparsable")
        gold, answer = _normalize(gold), _normalize(answer)
        if answer and answer == gold:
            return Equality("equal")
        outcome = _compare_text(gold, answer)
        if outcome is not None or self.method == "exact":
            return Equality(outcome or "different")
        rewritten = (_substitute(text, _REWRITES) for text in (gold, answer))
        return Equality(self._call("math_verify", "compare", *rewritten), "math-verify")

    def _score(self, drawn: Drawn, answer: str) -> Equality:
        if len(answer) > LONGEST or not answer.strip():
            return Equality("unparsable", "score_answer")
        try:
            self._sandboxes["reasoning_gym"].call("prepare", drawn.name, drawn.seed, seconds=GYM_DRAW_SECONDS)
        except SandboxError as error:
            raise TaskError(f"{drawn} cannot be drawn again: {error}; use the release that drew it") from None
        wrapped = _WRAPPED.fullmatch(answer.strip())
        text = wrapped[1] if wrapped else answer
        score = self._call("reasoning_gym", "score", drawn.name, drawn.seed, drawn.index, text)
        if isinstance(score, float):
            score = "equal" if score >= PASS_SCORE else "different"
        return Equality(score, "score_answer")

    def _call(self, library: str, *request: Any) -> Any:
        """Call the sandbox; a failed call becomes an outcome."""
        try:
            return self._sandboxes[library].call(*request, seconds=self.deadline)
        except DeadlineError:
            return "timeout"
        except CrashError:
            return "crash"
        except CallError:
            return "unparsable"  # the library failed to parse the text


def right_answers(pairs: Sequence[tuple[Question, str]], checker: AnswerChecker) -> list[bool]:
    """Whether each answer to its question is correct."""
    return [checker.grade(question, answer).equal for question, answer in pairs]


def _normalize(text: str) -> str:
    return normalize_answer(_substitute(extract_boxed(text) or text, _SPELLINGS))


def _substitute(text: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        text = pattern.sub(new, text)
    return text


def _compare_text(gold: str, answer: str) -> Outcome | None:
    """Decide without mathematics, if possible: words (algebra would read products of letters) and number bases."""
    if not answer:
        return "unparsable"
    if _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(gold):
        return "different"  # both are normalized
    answer_words, gold_words = _extract_words(answer), _extract_words(gold)
    if answer_words is not None and gold_words is not None:
        return "equal" if answer_words == gold_words else "different"
    if answer_words is not None and _has_long_word(answer_words):
        return "unparsable"
    bases = [match[1] for match in map(_BASE.search, (gold, answer)) if match]
    if len(set(bases)) == 2:
        return "different"  # math-verify ignores subscripts
    return "equal" if _squeeze(gold) == _squeeze(answer) else None


def _squeeze(text: str) -> str:
    r"""A text without spaces, markup and a final sign of percent: `18 + 10i`, `\text{(B)}`."""
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)|\\?%$", "", _WRAPPED.sub(r"\1", text))
    return re.sub(r"^\((\w)\)$", r"\1", bare)


def _extract_words(text: str) -> str | None:
    r"""The case-folded words of a text of words only; None for mathematics, such as `xy` (but not `\text{E}`)."""
    bare = _WRAPPED.sub(r" \1 ", text)
    plain = bare.strip(" .()*")
    if not _WORDS.fullmatch(plain):
        return None
    folded = " ".join(plain.casefold().split())
    return folded if bare != text or _has_long_word(folded) else None


def _has_long_word(words: str) -> bool:
    return max(map(len, re.findall(r"\w+", words))) >= _WORD_LETTERS
