r"""Reading answers: what a thought states as its conclusion, and what a final reply says.

A text is read sentence by sentence. A sentence may *answer* ("the answer is 12", `\boxed{12}`, "FINAL ANSWER: C"),
*conclude* ("so that leaves 12 eggs") or do neither. The words by which it does are data (`LANGUAGES`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from .cues import LANGUAGES, either
from .mentions import find_mention
from .sentences import NUMBER, Asked, find_turn, is_supposed, read_question, split_sentences
from .values import answers_equal, find_closing_brace, normalize_answer, parse_value, scan_expression

__all__ = [
    "Finality", "Statement", "answers_equal", "extract_answer", "extract_boxed", "extract_stated_answer",
    "find_closing_brace", "find_statements", "normalize_answer", "parse_value",
]  # fmt: skip

_LONGEST_PHRASE = 60
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


def extract_boxed(text: str) -> str | None:
    r"""Content of the last closed ``\boxed{...}`` (braces may nest), or None."""
    at = len(text)
    while (at := text.rfind("\\boxed{", 0, at)) >= 0:
        start = at + len("\\boxed{")
        end = find_closing_brace(text[start : start + 2_000])
        if end is not None:
            return text[start : start + end].strip()
    return None


def extract_stated_answer(text: str, question: str = "") -> str | None:
    """The last answer that a text states, normalized; None if it states none.

    The question helps: what it asks for is kept apart from intermediate results, a choice is known by its letter, and
    where nothing is called an answer the end of the text is read by the kind of answer that the question wants.
    """
    asked = read_question(question)
    last: Statement | None = None
    for statement in find_statements(text, asked):
        if last is None or statement.finality >= min(last.finality, Finality.HEDGED):
            last = statement
    if last is None and question and (mention := find_mention(text, asked)):
        return asked.resolve(mention)
    return None if last is None else last.answer


def extract_answer(text: str, question: str = "") -> str:
    """The answer in a final reply: its boxed part, its stated answer, its last number, or all of it."""
    answer = extract_boxed(text) or extract_stated_answer(text, question)
    if answer:
        return answer
    numbers = _NUMBER.findall(text)
    return normalize_answer(numbers[-1]) if numbers else text.strip()


def find_statements(text: str, question: str | Asked = "") -> Iterator[Statement]:
    """The answers and conclusions of a text in their order; linear in its length."""
    asked = read_question(question) if isinstance(question, str) else question
    heading = False
    for start, end in split_sentences(text):
        sentence = text[max(start, end - _LONGEST_SENTENCE) : end]
        if heading and (value := _read_value(sentence, _BULLET.match(sentence).end(), asked)):  # type: ignore[union-attr]
            read: tuple[str, Finality] | None = value, Finality.ANSWERS
        else:
            read = _read_sentence(sentence, asked)
        heading = read is None and "nswer" in sentence and _HEADING.search(sentence) is not None
        if read is not None and (answer := asked.resolve(read[0])):
            yield Statement(answer, read[1], start, end)


# -- one sentence ------------------------------------------------------------------------------------------------------


_FLAGS = re.IGNORECASE
_BULLET = re.compile(r"[\s*>#-]*")
_SIGNALS = tuple(signal for language in LANGUAGES for signal in language.signals)
_SYMBOL = re.compile(r"[\d\\π√∞]")
_HEADING = re.compile(rf"(?:{either('headings')})\W*$", _FLAGS)
_ANSWER = re.compile(rf"(?:{either('answers')}|(?P<corrects>{either('corrects')}))")
_ANSWER_BEHIND = re.compile(rf"\s*(?:{either('behind')})")
_CONCLUDES = re.compile(rf"(?:{either('concludes')})")
_HEDGED = re.compile(rf"(?:{either('hedges')})")
_NEGATED = re.compile(rf"(?:{either('negations')})", _FLAGS)
_STATES = re.compile(rf"(?:{either('states')})\s*:?\s*(?:exactly |just |still )?")
_COPULA = re.compile(rf"(?:{either('copulas')})")
_JOINED = re.compile(r"\s*(?:,\s*(?:and|or)|,|and|or|和|或)\s+|、", _FLAGS)
_FILLER = re.compile(rf"(?:\s|[:*_\"'“”‘’`>→]|\\\s|(?:{either('fillers')}))+", _FLAGS)
_NO_PHRASE = re.compile(rf"(?:{either('no_phrases')})", _FLAGS)
_TAGGED = re.compile(r"<(answer|ANSWER|Answer)>\s*([^<>]{1,200}?)\s*(?:</\1|$)")
_NUMBER = re.compile(NUMBER)
_LAST_VALUE = re.compile(rf"(?:^|[\s(*])(\(?[A-Z]\)?|{NUMBER}(?: [a-z]+)?)$")
_LETTER = re.compile(r"\(?\b([A-Z])\b\)?(?![-'’=^_(+*/\d])(?!\s[a-z=+*/<>^-])")
_PLACEHOLDER = re.compile(r"(?i)\.\.\.|\\dots|\\ldots|…|answer|letter|your|result|[?_x]?|\\text\{\}|\\?(?:quad|cdots)")


def _read_sentence(sentence: str, asked: Asked) -> tuple[str, Finality] | None:
    """The value of one sentence and how final it is; the cheap tests come first."""
    if "\\boxed" in sentence and (boxed := extract_boxed(sentence)) and not _PLACEHOLDER.fullmatch(boxed):
        return boxed, Finality.ANSWERS
    if "</" in sentence and (tagged := _TAGGED.search(sentence)) and not _PLACEHOLDER.fullmatch(tagged[2]):
        return tagged[2], Finality.ANSWERS
    lower = sentence.lower()
    if len(lower) != len(sentence):
        lower = sentence
    found, finality = None, Finality.ANSWERS
    if any(signal in lower for signal in _SIGNALS):
        found, finality = _answer(sentence, lower, asked)
    if found is None:
        if asked.options:
            found = asked.label_of_text_in(lower) if _CONCLUDES.search(lower) else None
            finality = Finality.HEDGED
        elif not asked.truth and (asked.numeric or not asked.wants_words) and _SYMBOL.search(sentence):
            found, finality = _conclusion(sentence, lower, asked)
    if found is None or sentence.rstrip(' \n*"”)').endswith(("?", "？")) or is_supposed(lower):
        return None
    return found, min(finality, Finality.HEDGED if _HEDGED.search(lower) else Finality.ANSWERS)


def _answer(sentence: str, lower: str, asked: Asked) -> tuple[str | None, Finality]:
    """The value that a sentence calls the answer, or corrects the one before to.

    A solution is on the way where a number is asked for, such as how many there are.
    """
    found, finality = None, Finality.ANSWERS
    for cue in _ANSWER.finditer(lower):
        if value := _read_value(sentence, cue.end(), asked, phrases=True, many=cue[0].endswith("are")):
            found, finality = value, Finality.HEDGED if cue["corrects"] else Finality.ANSWERS
            if asked.numeric and cue[0].startswith("solution"):
                finality = Finality.ASKED
    if found is None:
        found = _value_before(sentence, lower)
    if asked.options and (found is None or found not in asked.options):
        letter = asked.letter_in(sentence)
        if letter and (found or _CONCLUDES.search(lower) or "correct" in lower):
            return letter, Finality.ANSWERS
    return found, finality


def _conclusion(sentence: str, lower: str, asked: Asked) -> tuple[str | None, Finality]:
    """The value that a concluding sentence arrives at, and how final it is.

    That behind what the question asks for, of its last equation, behind its verb, or its last number.
    """
    concludes = _CONCLUDES.search(lower) is not None
    turn = find_turn(lower)
    if turn and _SYMBOL.search(sentence, turn):
        sentence, lower = sentence[turn:], lower[turn:]
    if asked.names is not None:
        named = [value for cue in asked.names.finditer(sentence) if (value := _read_value(sentence, cue.end(), asked))]
        if named:
            return named[-1], Finality.ASKED if concludes else Finality.HEDGED
    if concludes and asked.counted is not None and (counts := asked.counted.findall(sentence)):
        return counts[-1], Finality.ASKED
    stated = [value for cue in _STATES.finditer(lower) if (value := _read_value(sentence, cue.end(), asked))]
    if not concludes:
        return (stated[-1] if stated else None), Finality.CONCLUDES
    if asked.is_aside(lower):
        return None, Finality.CONCLUDES
    finality = Finality.ASKED if asked.covers(lower) else Finality.CONCLUDES
    if turn and "=" not in sentence and (value := _read_value(sentence, 0, asked)):
        return value, finality
    equation = max(sentence.rfind("="), sentence.rfind("≈"))
    if equation >= 0 and not asked.equation and (value := _read_value(sentence, equation + 1, asked)):
        return value, finality
    verbs = [value for cue in _COPULA.finditer(lower) if (value := _read_value(sentence, cue.end(), asked))]
    if stated or verbs:
        return (stated or verbs)[-1], finality
    if (stop := max(sentence.rfind("\\("), sentence.rfind(" $"))) >= 0 and (
        value := _read_value(sentence, stop, asked)
    ):
        return value, finality
    numbers = _NUMBER.findall(sentence)
    if asked.many and turn:
        return ", ".join(numbers) or None, finality
    return (numbers[-1] if numbers else None), finality


def _value_before(sentence: str, lower: str) -> str | None:
    """The value in "12 is the answer", "option B is correct"."""
    for cue in _ANSWER_BEHIND.finditer(lower):
        before = sentence[max(0, cue.start() - 120) : cue.start()].rstrip(" *")
        if before.endswith("\\)") and (at := before.rfind("\\(")) >= 0:
            return _from_math(before[at + 2 : -2])
        if before.endswith("$") and (at := before.rfind("$", 0, -1)) >= 0:
            return _from_math(before[at + 1 : -1])
        last = _LAST_VALUE.search(before)
        if last:
            return last[1].strip("()")
    return None


def _read_value(sentence: str, start: int, asked: Asked, *, phrases: bool = False, many: bool = False) -> str | None:
    """The value that begins at `start` behind fillers.

    Words count only where `phrases` are accepted, and several values only where there may be `many`.
    """
    filler = _FILLER.match(sentence, start)
    at = filler.end() if filler else start
    if _NEGATED.match(sentence, at):
        return None
    value, end = _read_one(sentence, at, asked)
    if value is None:
        return _read_phrase(sentence, at, asked) if phrases else None
    values = [value]
    while (many or asked.many) and (joined := _JOINED.match(sentence, end)):
        value, end = _read_one(sentence, joined.end(), asked)
        if value is None:
            break
        values.append(value)
    return ", ".join(values)


def _read_one(sentence: str, at: int, asked: Asked) -> tuple[str | None, int]:
    math, end = _read_math(sentence, at)
    if math is not None:
        return (math if asked.equation else _reduce(math)), end
    if (choice := _LETTER.match(sentence, at)) and not re.match(r"[A-Z] [A-Z]\w", sentence[choice.start() :]):
        return choice[1], choice.end()
    stop = scan_expression(sentence, at)
    if stop is not None and not sentence[at:stop].isalpha():
        value = sentence[at:stop]
        if re.search(r"\d|\\|[πi∞√²³]", value) and not _is_list_item(sentence, at, stop):
            return (value if asked.equation else _reduce(value)), stop
    if word := _NUMBER_WORD.match(sentence, at):
        return str(_NUMBER_WORDS[word[0].lower()]), word.end()
    return None, at


def _is_list_item(sentence: str, at: int, end: int) -> bool:
    return sentence[end : end + 1] in "." and at == 0 and sentence[:end].isdigit() and end < len(sentence)


def _read_math(sentence: str, at: int) -> tuple[str | None, int]:
    r"""The value in ``\(...\)``, ``\[...\]``, ``$...$`` or ``$$...$$`` that begins here, and where that ends."""
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if sentence.startswith(opening, at):
            begin = at + len(opening)
            end = sentence.find(closing, begin, begin + 1_000)
            if end < 0 or (opening == "$" and not _looks_like_math(sentence[begin:end])):
                continue
            return _from_math(sentence[begin:end]), end + len(closing)
    return None, at


def _looks_like_math(content: str) -> bool:
    """Whether what stands between two dollars is mathematics, not prose between two prices."""
    bare = re.sub(r"\\[A-Za-z]+(?:\{[^{}]*\})?", "", content)
    return bool(content) and content[0] != " " and content[-1] != " " and not re.search(r"[A-Za-z]{3}| [a-z]{2}", bare)


def _from_math(content: str) -> str | None:
    content = re.sub(r"(?:\\quad|\\qquad|[\s.,;:])+$", "", content.strip())
    boxed = extract_boxed(content)
    return boxed or content or None


def _reduce(expression: str) -> str:
    """What an expression arrives at: the last side of its equations, or all of an equation in several variables."""
    sides = re.split(r"(?<![<>!])=(?!>)|≈|\\approx(?![A-Za-z])|\\(?:implies|Rightarrow|to)(?![A-Za-z])", expression)
    last = sides[-1].strip()
    if len(sides) == 1 or not last or last.count("{") != last.count("}") or last.count("(") != last.count(")"):
        return expression.strip()
    if len(sides) == 2 and re.search(r"\d\s*[a-z](?![a-z])", sides[0]) and re.fullmatch(r"-?\d+", last):
        return expression.strip()  # 2x + 3y = 7 is an answer itself
    return last


def _read_phrase(sentence: str, at: int, asked: Asked) -> str | None:
    """A name or a short phrase up to the end of its clause, or the number that the clause arrives at."""
    phrase = _CLAUSE.match(sentence, at)
    words = _MARKUP.sub("", phrase[0]).strip() if phrase else ""
    name = _NAME.match(words) if not asked.numeric else None
    if name and len(name[0]) < len(words):
        return name[0].strip()  # "Ben in position 5"
    if (numbers := _NUMBER.findall(words)) and len(words.split()) > 2:
        return str(numbers[-1])
    if asked.numeric or _NO_PHRASE.match(sentence, at) or _ABOUT_FORM.search(words):
        return None
    words = _ARTICLE.sub("", words)
    short = 0 < len(words) <= _LONGEST_PHRASE and len(words.split()) <= 6
    return words if short and re.search(r"\w", words) and not _PLACEHOLDER.fullmatch(words) else None


_CLAUSE = re.compile(r"[^.,;:!?\n(。，；—]+")
_MARKUP = re.compile(r"[*_`\"“”]")
_NAME = re.compile(r"(?:[A-Z][\w'’.-]*\s+){1,4}(?=(?:in|at|is|who|on|because|since|being|as|for|with|from)\b)")
_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\w)", re.IGNORECASE)
_ABOUT_FORM = re.compile(rf"(?:{either('form')})", _FLAGS)
_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_NUMBER_WORD = re.compile(rf"(?:{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})(?![\w-])", re.IGNORECASE)
