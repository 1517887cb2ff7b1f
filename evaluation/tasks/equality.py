r"""Whether an answer equals the gold one, beyond spelling: `\dfrac12` and `0.5`, sets in any order, units left out.

Exact match settles most. The rest goes to math-verify in a process with a deadline, because some texts make it
compute for ever (its issue 65) and its own timeouts only work in a main thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from ...controller.text.answers import extract_boxed, normalize_answer
from ...errors import OptionError
from .questions import Question
from .sandbox import AnswerError, AnswerTimeoutError, Closing, CrashError, SandboxProcess

DEADLINE = 5.0
"""Seconds for one comparison; math-verify needs some hundredths."""
LONGEST = 10_000
"""Characters of an answer that are still worth reading; the longest gold answers are some thousands."""
RIGHT = 0.99
"""What reasoning-gym's scores have to reach: 1 is right, but some are sums of shares."""

_WORD = 3
"""Letters that make a word, where fewer may be a product."""

Outcome = Literal["equal", "different", "unparsable", "timeout", "crash"]
Method = Literal["exact", "math-verify", "score_answer"]

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ ,'’-]+[^\W\d_]+)*")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
_BASE = re.compile(r"_\{?(\d+)\}?$")
_SPELLINGS = (
    (re.compile(r",\s*\\!\s*|\{,\}"), ","),  # how LaTeX sets thousands
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
    """What one comparison found, and what settled it; a timeout or a crash is no equality."""

    outcome: Outcome
    method: Method = "exact"

    @property
    def equal(self) -> bool:
        """Whether the answer is right."""
        return self.outcome == "equal"


class AnswerChecker(Closing):
    """Compares answers; keeps a helper process and what it found, from the first doubtful pair until the end of `with`.

    deadline: seconds for one comparison. Threads may share a checker; they take turns at what is not yet known.
    """

    def __init__(self, deadline: float = DEADLINE) -> None:
        if not deadline > 0:
            raise OptionError(f"deadline is {deadline}; accepted: seconds above 0")
        self.deadline = deadline
        self.method: Method = "math-verify" if find_spec("math_verify") else "exact"
        self._workers = {library: SandboxProcess(library) for library in ("math_verify", "reasoning_gym")}
        self._known: dict[tuple[str, ...], Equality] = {}

    def check(self, gold: str, answer: str) -> Equality:
        r"""Compare an answer with the gold one; not symmetric: `(2,\infty)` will do for `x > 2`, not the reverse."""
        return self._remember((gold, answer), self._compare)

    def grade(self, question: Question, answer: str) -> Equality:
        """Compare an answer, as written or its boxed part, with a question's, by the question's own scorer if any."""
        if question.drawn is None:
            return self.check(question.answer, answer)
        return self._remember((question.drawn.name, question.drawn.entry, extract_boxed(answer) or answer), self._score)

    def close(self) -> None:
        """End the helper processes; what they found stays."""
        for worker in self._workers.values():
            worker.close()

    def _remember(self, key: tuple[str, ...], find: Callable[..., Equality]) -> Equality:
        if key not in self._known:
            self._known[key] = find(*key)
        return self._known[key]

    def _compare(self, gold: str, answer: str) -> Equality:
        if max(len(gold), len(answer)) > LONGEST:
            return Equality("equal" if answer == gold else "unparsable")
        gold, answer = _spelling(gold), _spelling(answer)
        if answer and answer == gold:
            return Equality("equal")
        outcome = _by_sight(gold, answer)
        if outcome is not None or self.method == "exact":
            return Equality(outcome or "different")
        return Equality(
            self._ask("math_verify", "compare", *(_rewritten(text, _REWRITES) for text in (gold, answer))),
            "math-verify",
        )

    def _score(self, name: str, entry: str, answer: str) -> Equality:
        if len(answer) > LONGEST or not answer.strip():
            return Equality("unparsable", "score_answer")
        whole = _WRAPPED.fullmatch(answer.strip())
        score = self._ask("reasoning_gym", "score", name, entry, whole[1] if whole else answer)
        if isinstance(score, float):
            score = "equal" if score >= RIGHT else "different"
        return Equality(score, "score_answer")

    def _ask(self, library: str, *request: str) -> Any:
        """What the helper says, or the outcome that its silence amounts to."""
        try:
            return self._workers[library].ask(*request, seconds=self.deadline)
        except AnswerTimeoutError:
            return "timeout"
        except CrashError:
            return "crash"
        except AnswerError:
            return "unparsable"  # the library tripped over the text


def right_answers(asked: Sequence[tuple[Question, str]], checker: AnswerChecker) -> list[bool]:
    """Which of these answers are right, each beside its question."""
    return [checker.grade(question, answer).equal for question, answer in asked]


def _spelling(text: str) -> str:
    return normalize_answer(_rewritten(extract_boxed(text) or text, _SPELLINGS))


def _rewritten(text: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        text = pattern.sub(new, text)
    return text


def _by_sight(gold: str, answer: str) -> Outcome | None:
    """What needs no mathematics: words, which algebra would take for products of letters, and bases of numbers."""
    if not answer:
        return "unparsable"
    if _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(gold):
        return "different"  # both are in the one spelling that `normalise` gives
    said, wanted = _words(answer), _words(gold)
    if said is not None and wanted is not None:
        return "equal" if said == wanted else "different"
    if said is not None and _is_long(said):
        return "unparsable"
    bases = [found[1] for found in map(_BASE.search, (gold, answer)) if found]
    return "different" if len(set(bases)) == 2 else None  # math-verify leaves subscripts out


def _words(text: str) -> str | None:
    r"""The words of a text that is nothing else, folded; None for mathematics, which `xy` is and `\text{E}` is not."""
    bare = _WRAPPED.sub(r" \1 ", text)
    plain = bare.strip(" .()*")
    if not _WORDS.fullmatch(plain):
        return None
    folded = " ".join(plain.casefold().split())
    return folded if bare != text or _is_long(folded) else None


def _is_long(words: str) -> bool:
    return max(map(len, re.findall(r"\w+", words))) >= _WORD
