r"""Reading answers: what a thought states as its conclusion, and what a final reply says.

A text is read sentence by sentence. A sentence may *answer* ("the answer is 12", `\boxed{12}`, "FINAL ANSWER: C"),
*conclude* ("so that leaves 12 eggs") or do neither. The words by which it does are data (`LANGUAGES`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from .cues import LANGUAGES
from .values import answers_equal, find_closing_brace, normalize_answer, parse_value, scan_expression

__all__ = [
    "Finality", "Statement", "answers_equal", "extract_answer", "extract_boxed", "extract_stated_answer",
    "find_closing_brace", "find_statements", "normalize_answer", "parse_value",
]  # fmt: skip

_LONGEST_PHRASE = 60


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

    The question helps: what it asks for is told from intermediate results, and a choice is known by its letter.
    """
    last: Statement | None = None
    for statement in find_statements(text, question):
        if last is None or statement.finality >= min(last.finality, Finality.HEDGED):
            last = statement
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
        sentence = text[start:end]
        if heading and (value := _read_value(sentence, _BULLET.match(sentence).end(), asked)):  # type: ignore[union-attr]
            read: tuple[str, Finality] | None = value, Finality.ANSWERS
        else:
            read = _read_sentence(sentence, asked)
        heading = read is None and "nswer" in sentence and _HEADING.search(sentence) is not None
        if read is not None and (answer := asked.resolve(read[0])):
            yield Statement(answer, read[1], start, end)


# -- sentences ---------------------------------------------------------------------------------------------------------

_END = re.compile(r"[.!?]+(?:[*\"'”’)\]}$]|\\\)|\\\])*(?=\s)|\n|[。！？；]")
_DISPLAY = re.compile(r"\s*\\\[")
_ABBREVIATED = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|vs|approx|No|Eq|e\.g|i\.e)|^\s*\W*\d{1,2}|\b[A-Z])\.$")


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    r"""Start and end of each sentence; a line break ends one, except in display mathematics."""
    start = 0
    for match in _END.finditer(text):
        if match.start() < start:
            continue
        end = match.end()
        if match[0] == "\n":
            ahead = _DISPLAY.match(text, end) if text[start:end].rstrip().endswith(":") else None
            opened = text.find("\\[", start, ahead.end() if ahead else end)
            if opened >= 0:
                closed = text.find("\\]", opened, opened + 2_000)
                end = closed + 2 if closed >= opened else end
        elif match[0] == "." and _ABBREVIATED.search(text[max(start, end - 9) : end]):
            continue
        if text[start:end].strip():
            yield start, end
        start = end
    if text[start:].strip():
        yield start, len(text)


# -- one sentence ------------------------------------------------------------------------------------------------------


def _either(name: str) -> str:
    """All languages' patterns of one kind as one alternative."""
    return "|".join(pattern for language in LANGUAGES for pattern in getattr(language, name))


_FLAGS = re.IGNORECASE
_BULLET = re.compile(r"[\s*>#-]*")
_SIGNALS = tuple(signal for language in LANGUAGES for signal in language.signals)
_SYMBOL = re.compile(r"[\d\\π√∞]")
_HEADING = re.compile(rf"(?:{_either('headings')})\W*$", _FLAGS)
_ANSWER = re.compile(rf"(?:{_either('answers')})")
_ANSWER_BEHIND = re.compile(rf"\s*(?:{_either('behind')})")
_CONCLUDES = re.compile(rf"(?:{_either('concludes')})")
_HEDGED = re.compile(rf"(?:{_either('hedges')})")
_SUPPOSED = re.compile(rf"(?:{_either('supposed')})")
_NEGATED = re.compile(rf"(?:{_either('negations')})", _FLAGS)
_STATES = re.compile(rf"(?:{_either('states')})\s*:?\s*(?:exactly |just |still )?")
_COPULA = re.compile(rf"(?:{_either('copulas')})")
_TURN = re.compile(rf"(?:{_either('turns')})")
_JOINED = re.compile(r"\s*(?:,\s*(?:and|or)|,|and|or|和|或)\s+|、", _FLAGS)
_FILLER = re.compile(rf"(?:\s|[:*_\"'“”‘’`>→]|\\\s|(?:{_either('fillers')}))+", _FLAGS)
_NO_PHRASE = re.compile(rf"(?:{_either('no_phrases')})", _FLAGS)
_TAGGED = re.compile(r"<(answer|ANSWER|Answer)>\s*([^<>]{1,200}?)\s*(?:</\1|$)")
_NUMBER = re.compile(r"[-+−]?\$?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?%?")
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
    found = _answer(sentence, lower, asked) if any(signal in lower for signal in _SIGNALS) else None
    finality = Finality.ANSWERS
    if found is None:
        if asked.options:
            found = asked.label_of_text_in(lower) if _CONCLUDES.search(lower) else None
            finality = Finality.HEDGED
        elif _SYMBOL.search(sentence):
            found, finality = _conclusion(sentence, lower, asked)
    if found is None or sentence.rstrip(' \n*"”)').endswith(("?", "？")) or _SUPPOSED.search(lower):
        return None
    return found, min(finality, Finality.HEDGED if _HEDGED.search(lower) else Finality.ANSWERS)


def _answer(sentence: str, lower: str, asked: Asked) -> str | None:
    """The value that a sentence calls the answer."""
    found = None
    for cue in _ANSWER.finditer(lower):
        found = _read_value(sentence, cue.end(), asked, phrases=True, many=cue[0].endswith("are")) or found
    found = found or _value_before(sentence, lower)
    if asked.options and (found is None or found not in asked.options):
        letter = asked.letter_in(sentence)
        if letter and (found or _CONCLUDES.search(lower) or "correct" in lower):
            return letter
    return found


def _conclusion(sentence: str, lower: str, asked: Asked) -> tuple[str | None, Finality]:
    """The value that a concluding sentence comes to, and how final it is.

    That behind what is asked for, of its last equation, behind its verb, or its last number.
    """
    concludes = _CONCLUDES.search(lower) is not None
    if asked.names is not None:
        named = [value for cue in asked.names.finditer(sentence) if (value := _read_value(sentence, cue.end(), asked))]
        if named:
            return named[-1], Finality.ASKED if concludes else Finality.HEDGED
    stated = [value for cue in _STATES.finditer(lower) if (value := _read_value(sentence, cue.end(), asked))]
    if not concludes:
        return (stated[-1] if stated else None), Finality.CONCLUDES
    finality = Finality.ASKED if asked.covers(lower) else Finality.CONCLUDES
    if turn := max((cue.end() for cue in _TURN.finditer(lower)), default=0):
        if value := _read_value(sentence, turn, asked):
            return value, finality
        sentence, lower = sentence[turn:], lower[turn:]
    equation = max(sentence.rfind("="), sentence.rfind("≈"))
    if equation >= 0 and (value := _read_value(sentence, equation + 1, asked)):
        return value, finality
    verbs = [value for cue in _COPULA.finditer(lower) if (value := _read_value(sentence, cue.end(), asked))]
    if stated or verbs:
        return (stated or verbs)[-1], finality
    numbers = _NUMBER.findall(sentence)
    return (numbers[-1] if numbers else None), finality


def _value_before(sentence: str, lower: str) -> str | None:
    """The value in "12 is the answer", "option B is correct"."""
    for cue in _ANSWER_BEHIND.finditer(lower):
        before = sentence[max(0, cue.start() - 120) : cue.start()].rstrip(" *")
        if before.endswith("\\)") and (at := before.rfind("\\(")) >= 0:
            return _from_math(before[at + 2 : -2])
        if before.endswith("$") and (at := before.rfind("$", 0, -1)) >= 0:
            return _from_math(before[at + 1 : -1])
        last = re.search(rf"(?:^|[\s(*])(\(?[A-Z]\)?|{_NUMBER.pattern}(?: [a-z]+)?)$", before)
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
    value, end = _read_one(sentence, at)
    if value is None:
        return _read_phrase(sentence, at, asked) if phrases else None
    values = [value]
    while many and (joined := _JOINED.match(sentence, end)):
        value, end = _read_one(sentence, joined.end())
        if value is None:
            break
        values.append(value)
    return ", ".join(values)


def _read_one(sentence: str, at: int) -> tuple[str | None, int]:
    math, end = _read_math(sentence, at)
    if math is not None:
        return math, end
    if (choice := _LETTER.match(sentence, at)) and not re.match(r"[A-Z] [A-Z]\w", sentence[choice.start() :]):
        return choice[1], choice.end()
    stop = scan_expression(sentence, at)
    if stop is not None and not sentence[at:stop].isalpha():
        value = sentence[at:stop]
        if re.search(r"\d|\\|[πi∞√]", value) and not _is_list_item(sentence, at, stop):
            return _reduce(value), stop
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
    return bool(content) and content[0] != " " and content[-1] != " " and not re.search(r"[A-Za-z]{3}| [a-z]", bare)


def _from_math(content: str) -> str | None:
    content = re.sub(r"(?:\\quad|\\qquad|[\s.,;:])+$", "", content.strip())
    boxed = extract_boxed(content)
    return boxed if boxed else _reduce(content) if content else None


def _reduce(expression: str) -> str:
    """What an expression comes to: the last side of its equations, or all of an equation in several variables."""
    sides = re.split(r"(?<![<>!])=(?!>)|≈|\\approx(?![A-Za-z])|\\(?:implies|Rightarrow|to)(?![A-Za-z])", expression)
    last = sides[-1].strip()
    if len(sides) == 1 or not last or last.count("{") != last.count("}") or last.count("(") != last.count(")"):
        return expression.strip()
    if len(sides) == 2 and re.search(r"\d\s*[a-z]", sides[0]) and re.fullmatch(r"-?\d+", last):
        return expression.strip()  # 2x + 3y = 7 is an answer itself
    return last


def _read_phrase(sentence: str, at: int, asked: Asked) -> str | None:
    """A name or a short phrase up to the end of its clause, or the number that the clause comes to."""
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
_ABOUT_FORM = re.compile(rf"(?:{_either('form')})", _FLAGS)
_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_NUMBER_WORD = re.compile(rf"(?:{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})(?![\w-])", re.IGNORECASE)


# -- questions ---------------------------------------------------------------------------------------------------------

_OPTION = re.compile(r"^\s*\(?([A-Z]|\d)[.):]\s+(\S.*)$", re.MULTILINE)
_NAMED = re.compile(
    r"(?:option|choice|answer|select|choose|pick|letter)s?\s*:?\s*\*{0,2}\(?([A-Z]|\d)\)?\b(?!\s*=)", re.I
)
_WORD = re.compile(r"[a-z]{3,}")
_NUMERIC = re.compile(rf"(?:{_either('numeric')})", _FLAGS)
_ASKS = re.compile(rf"(?:{_either('asks')})", _FLAGS)
_COMMON = frozenset(word for language in LANGUAGES for word in language.common)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question asks for.

    Attributes:
        words: the content words of the sentence that asks.
        options: the text of each labelled choice, by its label.
        numeric: whether a number is asked for.
        names: what is asked for by name, with the verb behind it.
    """

    words: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    numeric: bool = False
    names: re.Pattern[str] | None = None

    def covers(self, lower: str) -> bool:
        """Whether a sentence in small letters speaks of what is asked for."""
        if not self.words:
            return False
        common = self.words.intersection(map(_stem, _WORD.findall(lower)))
        return len(common) >= max(2, min(3, len(self.words) * 0.4))

    def letter_in(self, sentence: str) -> str | None:
        """The label that a sentence names last."""
        named = [label.upper() for label in _NAMED.findall(sentence) if label.upper() in self.options]
        return named[-1] if named else None

    def label_of_text_in(self, lower: str) -> str | None:
        """The label of the one choice whose text a sentence repeats."""
        found = [label for label, text in self.options.items() if len(text) > 3 and text in lower]
        return found[0] if len(found) == 1 else None

    def resolve(self, value: str) -> str | None:
        """A value as an answer: of a choice its label; None for what cannot be one."""
        answer = normalize_answer(value)
        if not self.options or answer in self.options:
            return answer
        folded = answer.lower()
        if found := [label for label, text in self.options.items() if text == folded]:
            return found[0]
        head = re.match(r"\(?([A-Z]|\d)[.):]?\s", answer + " ")
        return head[1] if head and head[1] in self.options else None


@lru_cache(maxsize=256)
def read_question(question: str) -> Asked:
    """What a question asks for; of a long prompt its end counts."""
    question = question[-8_000:]
    found = _OPTION.findall(question)
    labels = "".join(label for label, _ in found)
    options: Mapping[str, str] = {}
    if len(found) >= 2 and (labels in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" or labels in "123456789"):
        options = {label: normalize_answer(text).lower() for label, text in found}
    sentences = [question[start:end] for start, end in split_sentences(question)]
    asking = [s for s in sentences if ("?" in s or "？" in s or _ASKS.search(s)) and not _FORM_ONLY.search(s)]
    last = asking[-1] if asking else sentences[-1] if sentences else ""
    words = [word for found in _WORD.findall(last.lower()) if (word := _stem(found)) not in _COMMON]
    numeric = not options and _NUMERIC.search(last) is not None
    return Asked(frozenset(words), options, numeric, None if options else _name_pattern(last, words))


def _name_pattern(asking: str, words: Sequence[str]) -> re.Pattern[str] | None:
    """What the values of the asked words and variables stand behind."""
    cue = _ASKS.search(asking)
    behind = _WORD.findall(asking[cue.end() :].lower()) if cue else []
    nouns = [word for found in behind if (word := _stem(found)) in words][:2]
    names = [rf"\b{re.escape(noun)}s?\b[^.,;=\d]{{0,60}}?" for noun in nouns]
    for expression in _EXPRESSION.findall(asking):
        tokens = re.findall(r"\\[A-Za-z]+|\S", expression)
        if 0 < len(tokens) <= 40 and "=" not in tokens:
            names.append(r"(?<![A-Za-z\\_^])" + r"\s*".join(map(re.escape, tokens)))
    if not names:
        return None
    return re.compile(rf"(?:{'|'.join(names)})(?:\\\)|\$)?\s*(?:{_either('equals')})", _FLAGS)


_EXPRESSION = re.compile(r"(?:\$|\\\()([^$]{1,80}?)(?:\$|\\\))")
_FORM_ONLY = re.compile(rf"(?:{_either('form_only')})", _FLAGS)


def _stem(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 3 else word
