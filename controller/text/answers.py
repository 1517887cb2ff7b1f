r"""Reading answers: what a thought states as its conclusion, and what a final reply says.

A text is read sentence by sentence. A sentence may *answer* ("the answer is 12", `\boxed{12}`, "FINAL ANSWER: C"),
*conclude* ("so that leaves 12 eggs") or do neither. The words by which it does are data (`LANGUAGES`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from .cues import LANGUAGES, either
from .endings import Stated, read_ending
from .questions import NUMBER, Asked, read_question
from .sentences import find_turn, is_supposed, split_sentences
from .value_reader import PLACEHOLDER, from_math, read_value
from .values import answers_equal, extract_boxed, find_closing_brace, normalize_answer, parse_value

__all__ = [
    "Finality", "Statement", "answers_equal", "extract_answer", "extract_boxed", "extract_stated_answer",
    "find_closing_brace", "find_statements", "normalize_answer", "parse_value",
]  # fmt: skip

_LONGEST_SENTENCE = 1_000
"""Characters of a sentence that are read, from its end, which bounds the time for hostile text."""


class Finality(IntEnum):
    """How much a sentence presents its value as the answer."""

    CONCLUDES = 1  # "so that leaves 12 eggs", perhaps on the way
    HEDGED = 2  # "maybe the answer is 12", "the sum is 12"
    ASKED = 3  # a conclusion on what the question asks for
    ANSWERS = 4  # "the answer is 12", `\\boxed{12}`


@dataclass(frozen=True, slots=True)
class Statement:
    """A value that a sentence states."""

    answer: str  # normalized
    finality: Finality
    start: int  # of the sentence in the text
    end: int


def extract_stated_answer(text: str, question: str = "") -> str | None:
    """The last answer that a text states, normalized; None if it states none.

    The question helps: what it asks for is kept apart from intermediate results, a choice is known by its letter, and
    where nothing is called an answer the end of the text is read by the kind of answer that the question wants.
    """
    asked = read_question(question)
    stated, final = find_last_statement(text, asked)
    if question and not final:
        value = read_ending(text, asked, stated)
        if stated and asked.names_one and (not value or value.islower()):
            value = stated[0]
        return asked.resolve(value) if value else None
    return None if stated is None else stated[0]


def find_last_statement(text: str, asked: Asked) -> tuple[Stated | None, bool]:
    """What a text states last, where a conclusion replaces no answer, and whether it is called the answer."""
    last: Statement | None = None
    for statement in find_statements(text, asked):
        if last is None or statement.finality >= min(last.finality, Finality.HEDGED):
            last = statement
    if last is None:
        return None, False
    stated = last.answer, last.finality.name.lower(), len(text) - last.start
    return stated, last.finality is Finality.ANSWERS


def extract_answer(text: str, question: str = "") -> str:
    """The answer in a final reply: its boxed part, what it begins with or states, its last number, or all of it."""
    answer = extract_boxed(text) or _find_lead(text, question) or extract_stated_answer(text, question)
    if answer:
        return answer
    numbers = _NUMBER_OR_FRACTION.findall(text)
    return normalize_answer(numbers[-1]) if numbers else text.strip()


def _find_lead(text: str, question: str) -> str | None:
    """The answer of a reply that begins with it, in bold, and then explains it; None where a later one is final."""
    lead, _, rest = text.strip().partition("\n\n")
    bold = _BOLD.findall(lead)
    if not bold or not rest or lead.endswith(":") or find_last_statement(rest, read_question(question))[1]:
        return None
    if (answer := extract_stated_answer(lead, question)) is None:
        return None
    whole = rf"(?<![\w.,/]){re.escape(answer)}(?![\w/]|[.,]\d)"
    return answer if any(re.search(whole, normalize_answer(one)) for one in bold) else None


def find_statements(text: str, question: str | Asked = "") -> Iterator[Statement]:
    """The answers and conclusions of a text in their order; linear in its length."""
    asked = read_question(question) if isinstance(question, str) else question
    heading = False
    for start, end in split_sentences(text):
        sentence = text[max(start, end - _LONGEST_SENTENCE) : end]
        if heading and (value := read_value(sentence, _BULLET.match(sentence).end(), asked)):  # type: ignore[union-attr]
            read: tuple[str, Finality] | None = value, Finality.ANSWERS
        else:
            read = _read_sentence(sentence, asked)
        heading = read is None and _is_heading(sentence)
        if read is not None and (answer := asked.resolve(read[0])):
            yield Statement(answer, read[1], start, end)


def ends_in_answer(text: str, asked: Asked) -> bool:
    """Whether the last statement of a text calls its value the answer; far quicker than to find all of them."""
    if not (asked.choices or asked.compared or "\\boxed" in text or "</" in text):
        lower = text.lower()
        if not any(map(lower.__contains__, _SIGNALS)) or not any(map(lower.__contains__, _FINALS)):
            return False
    sentences = [text[max(start, end - _LONGEST_SENTENCE) : end] for start, end in split_sentences(text)]
    for number, sentence in reversed([*enumerate(sentences)]):
        before = sentences[number - 1] if number else ""
        if _is_heading(before):
            return [statement.finality for statement in find_statements(text, asked)][-1:] == [Finality.ANSWERS]
        read = _read_sentence(sentence, asked)
        if read is not None and asked.resolve(read[0]):
            return read[1] is Finality.ANSWERS
    return False


# -- one sentence ------------------------------------------------------------------------------------------------------


_FLAGS = re.IGNORECASE
_BULLET = re.compile(r"[\s*>#-]*")
_SIGNALS = tuple(signal for language in LANGUAGES for signal in language.signals)
_FINALS = tuple(word for language in LANGUAGES for word in language.finals)
_SYMBOL = re.compile(r"[\d\\π√∞]")
_HEADING = re.compile(rf"(?:{either('headings')})[^\w!?]*$", _FLAGS)
_NO_HEADING = re.compile(r"n['’]t\b|\b(?:not|never|cannot|no|each|every|check|verify|justify|evaluate|over)\b", _FLAGS)
_ANSWER = re.compile(rf"(?:{either('answers')}|(?P<corrects>{either('corrects')}))")
_ANSWER_BEHIND = re.compile(rf"(?:{either('behind')})")
_CONCLUDES = re.compile(rf"(?:{either('concludes')})")
_HEDGED = re.compile(rf"(?:{either('hedges')})")
_STATES = re.compile(rf"(?:{either('states')})\s*:?\s*(?:exactly |just |still )?")
_COPULA = re.compile(rf"(?:{either('copulas')})")
_SETTLED = re.compile(
    r"\W*(?:(?:(?:so|hence|thus|therefore)\b|→|=>)[,:\s]*(?:it's|that's|(?:it|that) is|it must be)?|that's|"
    r"that is|it's)"
    r"\s*[*(]*([A-Z])\b[)*]*(?=[.!:,]|\s*$|\s\()",
    _FLAGS,
)
_EXAMPLE = re.compile(r"\b(?:for (?:example|instance)|e\.g\.|if the answer|your (?:final )?answer (?:in|as))\b", _FLAGS)
_TAGGED = re.compile(r"<(answer|ANSWER|Answer)>\s*([^<>]{1,200}?)\s*(?:</\1|$)")
_NUMBER = re.compile(NUMBER)
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])")
_BOLD = re.compile(r"\*\*([^*\n]{1,60}(?<!:))\*\*(?!:)")
_NUMBER_OR_FRACTION = re.compile(rf"\\[dt]?frac\{{[^{{}}]{{1,40}}\}}\{{[^{{}}]{{1,40}}\}}|{NUMBER}")
_NAME = re.compile(
    r"[\s*:\"“]*(?:(?:indeed|actually|definitely|clearly|in fact|still|simply|also|located|found|the|in|on) )*[*\"“]*"
    r"([A-Z](?:[\w.-]|['’](?!s\b))*\w(?: (?:of |de |the )?[A-Z](?:[\w-]|['’](?!s\b))*\w){0,3})(?!['’]s)"
)
_LAST_VALUE = re.compile(rf"(?:^|[\s(*])(\(?[A-Z]\)?|{NUMBER}(?: [a-z]+)?)$")


def _is_heading(sentence: str) -> bool:
    """Whether the answer stands on the next line."""
    return "nswer" in sentence and bool(_HEADING.search(sentence)) and not _NO_HEADING.search(sentence)


def _read_sentence(sentence: str, asked: Asked) -> tuple[str, Finality] | None:
    """The value of one sentence and how final it is; the cheap tests come first."""
    if "\\boxed" in sentence and (boxed := extract_boxed(sentence)) and not PLACEHOLDER.fullmatch(boxed):
        return None if _EXAMPLE.search(sentence) else (boxed, Finality.ANSWERS)
    if "</" in sentence and (tagged := _TAGGED.search(sentence)) and not PLACEHOLDER.fullmatch(tagged[2]):
        inner = _read_sentence(tagged[2], asked)
        return inner if inner and inner[1] is Finality.ANSWERS else (tagged[2], Finality.ANSWERS)
    lower = sentence.lower()
    if len(lower) != len(sentence):
        lower = sentence
    found, finality, turn = None, Finality.ANSWERS, find_turn(lower)
    if any(map(lower.__contains__, _SIGNALS)):
        found, finality = _answer(sentence, lower, asked)
    if found is None:
        if asked.choices and (settled := _SETTLED.match(sentence)) and (label := asked.choices.label(settled[1])):
            found = label
        elif asked.choices:
            if _CONCLUDES.search(lower):
                found, finality = asked.choices.letter_in(sentence), Finality.ASKED
                if found is None:
                    found, finality = asked.choices.label_of_text_in(lower), Finality.HEDGED
        elif chosen := asked.chosen_in(sentence):
            found, finality = chosen, Finality.ANSWERS if _CONCLUDES.search(lower) else Finality.ASKED
        elif asked.names_one and (name := _read_name(sentence, asked)):
            found, finality = name, Finality.ASKED
        elif not asked.truth and (asked.numeric or not asked.wants_words) and _SYMBOL.search(sentence):
            found, finality = _conclusion(sentence, lower, turn, asked)
    compares = asked.truth and asked.comparison is not None and not asked.alternatives
    if found is not None and compares and parse_value(found) is not None:
        return None  # no number says whether one thing is more than another
    if found is None or sentence.rstrip(' \n*"”)').endswith(("?", "？")) or is_supposed(lower, turn):
        return None
    return found, min(finality, Finality.HEDGED if _HEDGED.search(lower) else Finality.ANSWERS)


def _answer(sentence: str, lower: str, asked: Asked) -> tuple[str | None, Finality]:
    """The value that a sentence calls the answer, or corrects the one before to.

    A solution is on the way where a number is asked for, such as how many there are.
    """
    found, finality = None, Finality.ANSWERS
    for cue in _ANSWER.finditer(lower):
        if cue["subject"] and not asked.means(cue["subject"], cue[0]):
            continue
        value = read_value(sentence, cue.end(), asked, phrases=True, many=cue[0].endswith("are"))
        if value and not (cue["corrects"] and value.islower() and not asked.alternatives):
            found, finality = value, Finality.HEDGED if cue["corrects"] else Finality.ANSWERS
            if asked.numeric and cue[0].startswith("solution"):
                finality = Finality.ASKED
    if found is None:
        found = _value_before(sentence, lower)
    if asked.choices and (found is None or found not in asked.choices):
        letter = asked.choices.letter_in(sentence)
        if letter and (found or _CONCLUDES.search(lower) or "correct" in lower):
            return letter, Finality.ANSWERS
    return found, finality


def _conclusion(sentence: str, lower: str, turn: int, asked: Asked) -> tuple[str | None, Finality]:
    """The value that a concluding sentence arrives at, and how final it is; its conclusion begins at `turn`.

    That behind what the question asks for, of its last equation, behind its verb, or its last number.
    """
    concludes = _CONCLUDES.search(lower) is not None
    if turn and _SYMBOL.search(sentence, turn):
        sentence, lower = sentence[turn:], lower[turn:]
    if asked.names is not None and (named := _read_last(asked.names.finditer(sentence), sentence, asked)):
        return named, Finality.ASKED if concludes else Finality.HEDGED
    if not concludes:
        return _read_last(_STATES.finditer(lower), sentence, asked), Finality.CONCLUDES
    if counted := asked.find_counted(sentence):
        return counted, Finality.ASKED
    if asked.is_aside(lower):
        return None, Finality.CONCLUDES
    finality = Finality.ASKED if asked.covers(lower) else Finality.CONCLUDES
    if turn and "=" not in sentence and (value := read_value(sentence, 0, asked)):
        return value, finality
    equation = max(sentence.rfind("="), sentence.rfind("≈"))
    value = read_value(sentence, equation + 1, asked) if equation >= 0 and not asked.equation else None
    if value and not (asked.counts and _VARIABLE.search(value)):
        return value, finality
    numbers = _NUMBER.findall(sentence)
    for cue in (_STATES, _COPULA):
        if value := _read_last(cue.finditer(lower), sentence, asked):
            fresh = [one for one in numbers if one not in asked.numbers] if value in asked.numbers else []
            return (fresh[-1] if fresh else value), finality
    if (stop := max(sentence.rfind("\\("), sentence.rfind(" $"))) >= 0 and (value := read_value(sentence, stop, asked)):
        return value, finality
    if asked.many and turn:
        return ", ".join(numbers) or None, finality
    return (numbers[-1] if numbers else None), finality


def _read_last(cues: Iterable[re.Match[str]], sentence: str, asked: Asked) -> str | None:
    """The value behind the last of the cues that have one, rather one that the question does not give."""
    given = None
    for cue in reversed([*cues]):
        value = read_value(sentence, cue.end(), asked)
        if value and value not in asked.numbers:
            return value
        given = given or value
    return given


def _read_name(sentence: str, asked: Asked) -> str | None:
    """The name behind the verb of what the question asks for: "the capital of Norway is Oslo"."""
    for cue in asked.names.finditer(sentence) if asked.names is not None else ():
        name = _NAME.match(sentence, cue.end())
        if name and name[1] not in asked.text:
            return name[1]
    return None


def _value_before(sentence: str, lower: str) -> str | None:
    """The value in "12 is the answer", "option B is correct"."""
    for cue in _ANSWER_BEHIND.finditer(lower):
        before = sentence[max(0, cue.start() - 120) : cue.start()].rstrip(" *")
        if before.endswith("\\)") and (at := before.rfind("\\(")) >= 0:
            return from_math(before[at + 2 : -2])
        if before.endswith("$") and (at := before.rfind("$", 0, -1)) >= 0:
            return from_math(before[at + 1 : -1])
        last = _LAST_VALUE.search(before)
        if last:
            return last[1].strip("()")
    return None
