"""Reads the value that begins at a position of a sentence: mathematics, a number, a choice or a phrase."""

from __future__ import annotations

import re

from .cues import either
from .questions import NUMBER, Asked
from .values import extract_boxed, read_number_words, scan_expression

_FLAGS = re.IGNORECASE
_JOINED = re.compile(r"\s*(?:,\s*(?:and|or)|,|and|or|和|或)\s+|、", _FLAGS)
_FILLER = re.compile(rf"(?:\s|[:*_\"'“”‘’`>→]|\\\s|(?:{either('fillers')}))+", _FLAGS)
_NO_PHRASE = re.compile(rf"(?:{either('no_phrases')})", _FLAGS)
_LETTER = re.compile(r"\(?\b([A-Z])\b\)?(?![-'’=^_(+*/\d])(?!\s[a-z=+*/<>^-])")
_NEGATED = re.compile(rf"(?:{either('negations')})", _FLAGS)
_OPERATED = re.compile(r"\)? (?:times|plus|minus|multiplied|divided|over) ", _FLAGS)  # a step of a calculation
_LONGEST_PHRASE = 60
_NUMBER = re.compile(NUMBER)
PLACEHOLDER = re.compile(r"(?i)\.\.\.|\\dots|\\ldots|…|answer|letter|your|result|[?_x]?|\\text\{\}|\\?(?:quad|cdots)")


def read_value(sentence: str, start: int, asked: Asked, *, phrases: bool = False, many: bool = False) -> str | None:
    """The value that begins at `start` behind fillers.

    Words count only where `phrases` are accepted, and several values only where there may be `many`.
    """
    filler = _FILLER.match(sentence, start)
    at = filler.end() if filler else start
    if _NEGATED.match(sentence, at):
        return None
    value, end = _read_one(sentence, at, asked)
    if value is not None and _OPERATED.match(sentence, end):
        return None
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
    number, end = read_number_words(sentence, at)
    return (None, at) if number is None else (str(number), end)


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
            return from_math(sentence[begin:end]), end + len(closing)
    return None, at


def _looks_like_math(content: str) -> bool:
    """Whether what stands between two dollars is mathematics, not prose between two prices."""
    bare = re.sub(r"\\[A-Za-z]+(?:\{[^{}]*\})?", "", content)
    return bool(content) and content[0] != " " and content[-1] != " " and not re.search(r"[A-Za-z]{3}| [a-z]{2}", bare)


def from_math(content: str) -> str | None:
    """What stands between the delimiters of a formula, or in the box within it."""
    content = re.sub(r"(?:\\quad|\\qquad|[\s.,;:])+$", "", content.strip())
    boxed = extract_boxed(content)
    return boxed or content or None


def _reduce(expression: str) -> str:
    """What an expression arrives at: the last side of its equations, or all of an equation in several variables."""
    sides = re.split(r"(?<![<>!])=(?!>)|≈|∈|\\(?:implies|Rightarrow|to|in|approx)(?![A-Za-z])", expression)
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
    if asked.truth and (said := _TRUTH.match(words)):
        return said[0]
    if asked.truth and _QUALIFIED.search(words):
        return None
    if asked.truth and not asked.alternatives and (asked.comparison is not None or _CLOSED.match(asked.text.lstrip())):
        return "No" if words.lower() == "none" else asked.holds_in(words)
    if asked.alternatives and (named := asked.alternative_in(words)):
        return named
    if asked.comparison is not None and len(asked.alternatives) == 2 and (first := asked.holds_in(words)):
        return asked.alternatives[first == "No"]
    if not asked.numeric and (said := _SAID.fullmatch(words)):
        return said[1]
    if asked.names is not None and (named_at := asked.names.search(words)) and named_at.end() < len(words):
        words = words[named_at.end() :].strip()
    if "where" in asked.text.lower() and (place := _PLACE.search(words)):
        return place[1]
    name = _NAME.match(words) if not asked.numeric else None
    if name and name[0].strip() in asked.text:
        words = re.sub(
            r"^(?:is|has to be|must be)\s+(?:an? )?", "", words[name.end() :]
        )  # "B is a knight" where B is asked
    elif name and len(name[0]) < len(words):
        return name[0].strip()  # "Ben in position 5"
    if not words.startswith("in ") and (numbers := _NUMBER.findall(words)) and len(words.split()) > 2:
        return str(numbers[-1])
    if asked.numeric or _NO_PHRASE.match(sentence, at) or _ABOUT_FORM.search(words):
        return None
    words = _ARTICLE.sub("", words)
    short = 0 < len(words) <= _LONGEST_PHRASE and len(words.split()) <= 6
    return words if short and re.search(r"\w", words) and not PLACEHOLDER.fullmatch(words) else None


_CLAUSE = re.compile(r"[^.,;:!?\n(。，；—]+")
_MARKUP = re.compile(r"[*_`\"“”]")
_TRUTH = re.compile(r"(?:yes|no|true|false)\b", _FLAGS)
_CLOSED = re.compile(r"(?:is|are|do|does|did|was|were|has|have)\b", _FLAGS)  # other verbs may ask for more
_SAID = re.compile(r"\b[A-Z]\w* (?:\w+ ){2,}is ([A-Z]\w+)")  # "The capital of Norway is Oslo", in any language
_QUALIFIED = re.compile(r"\b(?:only|unless|when|about|based on|other than|depends)\b", _FLAGS)
_PLACE = re.compile(
    r"\b(?:is|are|was|were) (?:still |now )?((?:on|in|at|under|below|behind|above|next to|inside) "
    r"(?:(?! (?:while|because|when|since|and|but)\b).)+)"
)
_NAME = re.compile(r"(?:[A-Z][\w'’.-]*\s+){1,4}(?=(?:in|at|is|who|on|because|since|being|as|for|with|from)\b)")
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\w)", re.IGNORECASE)
_ABOUT_FORM = re.compile(rf"(?:{either('form')})", _FLAGS)
