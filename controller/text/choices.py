"""What a question chooses between: choices with labels, or two things that it compares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from .cues import LANGUAGES, either
from .sentences import DENIED
from .values import normalize_answer, parse_value

_OPTION = re.compile(r"^[^\S\n]*\(?([A-Za-z]|\d)[.):]\s+(\S.*)$", re.MULTILINE)
_INLINE_OPTION = re.compile(r"(?:^|[\s\])?？:：])\(?([A-J])[.)、]\s*([^\s(][^\n]*?)(?=\s+\(?[A-J][.)、]|\s*$)")
_PAIRED_OPTION = re.compile(r"['\"]([A-J\d])['\"]\s?:\s?['\"]([^\n]{1,300}?)['\"]\s?(?=[,}])")
_DATA, _OFFER = re.compile(r"[=(]\s*\{"), re.compile(r"\b(?:which|options?|choices?|choose|select|answers?)\b", re.I)
_LABELS = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "123456789")
_OF_REPLY = re.compile(r"\b(?:(?:your|final|all) (?:final )?answers?|answer:|format|respond|reply|for example)", re.I)
_NAMED = re.compile(
    r"(?:option|choice|answer|select|choose|pick|letter)s?\s*:?\s*\*{0,2}\(?([A-Z]|\d)\)?\b"
    r"(?!\s*=|,(?: and| or)? \(?[A-J]\b)|"
    r"\b([A-Z]|\d)\)?\*{0,2} (?:is|must be|seems|looks|appears)(?: indeed| clearly)? "
    r"(?:to be )?(?:correct|right|(?:the )?best|(?:the )?most likely|to fit best)\b",
    re.I,
)
_DENIED_BEHIND = re.compile(
    r"(?:,? (?:and|or|nor) (?:option )?\(?[A-Z\d]\b\)?)?(?: \w+ly)? ?"
    r"(?:(?:is|are|was|seems?|looks?)(?: \w+ly)? (?:not|out|false|wrong|incorrect|invalid)\b|(?:is|are|was)n['’]t\b)",
    re.I,
)
AFFIRMED = re.compile(r"\b(?:is|are|both)(?: \w+ly)? (?:correct|right|true)\b", re.I)
_OWNED = re.compile(r"\b(?:an?|the) ((?:great )?[a-z]{3,}) of ([a-z]{3,})\b")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z]{3})")
_COPULAS = frozenset("is are was were a an of to".split())
_NOT_SO = re.compile(r"(?: not\b|n't\b)(?: (?!and\b|but\b)\w+){0,3} (?=wrong\b|true\b|correct\b|false\b)")
_AMOUNT = re.compile(
    r"(?:rs\.?\s?)?([-–−]?\s?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?:\s?%)?)(?:(?:[^\d=+*/(]|/(?=[\s\\]*[a-z]))*(?:\^?\{?\d\}?)?\$?)"
)
_SAME_FORMULA = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
        (r"×|·|\\cdot|\\times|multiplied by|\btimes\b|(?<!\*)\*(?!\*)", "*"),
        (r"÷|\\div|divided by|\bover\b", "/"),
        (r"[−–—]", "-"),
        (r"\*\*", "^"),
        (r"\\leq?(?![a-z])|<=", "≤"),
        (r"\\geq?(?![a-z])|>=", "≥"),
        (r"\\(?:left|right|text|mathrm|mathbf|quad)(?![a-z])|[\s${}()\\,`]", ""),
    )
)
_UNDECIDED = re.compile(rf"(?:{either('undecided')})")
_REJECTS = re.compile(r"\b(?:wrong|incorrect|more|further|rest)\b")
COMMON = frozenset(word for language in LANGUAGES for word in language.common)


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices of a question that have labels; false where there are none."""

    texts: Mapping[str, str]  # by label, in small letters
    said: re.Pattern[str]  # finds each in a sentence without its label, in groups "_A", "_B"
    parts: re.Pattern[str] | None  # what all choices say of one thing after another ("true, false")
    negated: bool  # whether the question asks for what is not so
    undecided: str | None = None  # the label of the one that says that nothing can be said

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __contains__(self, label: object) -> bool:
        return label in self.texts

    def letter_in(self, sentence: str) -> str | None:
        """The label that a sentence names last and does not deny; "B is not" denies nothing where that is asked for."""
        named = None
        for found in _NAMED.finditer(sentence):
            if DENIED.search(sentence[: found.start()]):
                continue
            denied = _DENIED_BEHIND.match(sentence, found.end()) is not None
            affirmed = AFFIRMED.search(sentence, found.start()) is not None
            if (label := self.label(found[1] or found[2])) and (denied or not affirmed if self.negated else not denied):
                named = label
        return named

    def label(self, letter: str) -> str | None:
        """The label that a letter or digit is, in the question's own case."""
        return next((one for one in (letter, letter.upper(), letter.lower()) if one in self.texts), None)

    def label_of(self, folded: str) -> str | None:
        """The label of the one choice whose text is, or equals, a value."""
        same = [label for label, text in self.texts.items() if text == folded]
        number = None if same or any(map(str.isdigit, self.texts)) else _read_amount(folded)
        if number is not None:
            same = [label for label, text in self.texts.items() if _read_amount(text) == number]
        if not same and not folded.isalpha() and (formula := _spell_formula(folded)):
            same = [label for label, text in self.texts.items() if _spell_formula(text) == formula]
        return same[0] if len(same) == 1 else None

    def label_of_text_in(self, lower: str, shortest: int = 4) -> str | None:
        """The label of the one choice that a sentence repeats, of those whose text has so many letters or more."""
        if label := self.label_of_whole(lower):
            return label
        labels = [
            one
            for one in self._labels_said(lower)
            if len(self.texts[one]) >= shortest and self.label_of(self.texts[one])
        ]
        return labels[0] if len(labels) == 1 else None

    def _labels_said(self, lower: str) -> set[str]:
        return {(match.lastgroup or "")[1:] for match in self.said.finditer(_fold(lower))}

    def label_of_whole(self, lower: str) -> str | None:
        """The label of "true, false" for a sentence that says so of one thing after another, or of both.

        Of a sentence that nothing can be said, that of the choice which says so.
        """
        if self.undecided is not None and _UNDECIDED.search(lower) and not _REJECTS.search(lower):
            return self.undecided if self._labels_said(lower) <= {self.undecided} else None
        found = self.parts.findall(_NOT_SO.sub(" not ", lower)) if self.parts is not None else []
        if len(found) == 1 and re.search(r"\bboth\b", lower):
            found *= 2
        return self.label_of(", ".join(found))

    def label_of_answer(self, answer: str) -> str | None:
        """The label of an answer in its normal form: a label, a text, or both."""
        if answer in self.texts:
            return answer
        if label := self.label_of(_fold(answer)):
            return label
        head = re.match(r"\(?([A-Za-z]|\d)[.):]?(?:\s|$)", answer)
        return self.label(head[1]) if head else None


NO_CHOICES = Choices({}, re.compile(r"(?!)"), None, negated=False)


def find_choices(question: str, negated: bool) -> Choices:
    """The choices that a question lists."""
    texts = _find_texts(question)
    if not texts:
        return NO_CHOICES
    undecided = [label for label, text in texts.items() if len(text) <= 60 and _UNDECIDED.search(text)]
    sole = undecided[0] if len(undecided) == 1 else None
    return Choices(texts, _find_said(texts), _find_parts(texts), negated, sole)


def _offers(question: str) -> bool:
    """Whether a dict in a question may be its choices, and is no data of it."""
    return _DATA.search(question) is None and _OFFER.search(question) is not None


def _find_texts(question: str) -> Mapping[str, str]:
    """The choices of a question by their labels, which count from A or 1; the parts of a question may have some too."""
    for pattern in (_OPTION, _PAIRED_OPTION, _INLINE_OPTION):
        runs: list[list[tuple[str, str]]] = []
        for label, text in pattern.findall(question) if pattern is not _PAIRED_OPTION or _offers(question) else ():
            if label in "Aa1" or not runs:
                runs.append([])
            runs[-1].append((label, text))
        for run in reversed(runs):
            labels = "".join(label for label, _ in run)
            if labels.isdigit() and any(_OF_REPLY.search(text) for _, text in run):
                continue  # numbered instructions
            if len(run) > 1 and any(known.startswith(labels.upper()) for known in _LABELS):
                return {label: _fold(normalize_answer(text)) for label, text in run}
            break
    return {}


def _fold(text: str) -> str:
    """A text in small letters and without hyphens, in which "a child of Ann" is "ann's child"."""
    return _OWNED.sub(r"\2's \1", _HYPHEN.sub(" ", text.lower().replace("’", "'")))


def _read_amount(text: str) -> Fraction | None:
    """The number that a choice gives, whatever its unit."""
    found = _AMOUNT.fullmatch(text.strip("$ "))
    return parse_value(re.sub(r"[$\s]", "", found[1]).replace("–", "-")) if found else None


@lru_cache(maxsize=1_024)
def _spell_formula(text: str) -> str:
    """A formula in small letters without spaces, brackets and markup: "8 over 12" and \\frac{8}{12} are "8/12"."""
    for pattern, new in _SAME_FORMULA:
        text = pattern.sub(new, text)
    return text


def _find_said(texts: Mapping[str, str]) -> re.Pattern[str]:
    """How a sentence says a choice: with its text, or with the names that all begin with and what sets it apart.

    Of texts within others the longest counts.
    """
    rows = [text.split() for text in texts.values()]
    shared = 0
    while all(len(words) > shared + 1 for words in rows) and len({words[shared] for words in rows}) == 1:
        shared += 1
    known = [name.removesuffix("'s") for name in rows[0][:shared] if stem(name) not in COMMON | _COPULAS]
    names = [re.escape(name) for name in dict.fromkeys(known)][:3]
    few = r"(?:'s)?\W+(?:\w+\W+){0,2}?"
    subject = r"\b" + r"\b[^.;]{0,60}?\b".join(names) + few if names else ""
    if len(names) == 2:
        subject = rf"(?:{subject}|\b{names[1]} and {names[0]}{few}|\b(?:they are|them)\W+(?:\w+\W+)?)"
    cores = sorted(
        ((_spell_core(" ".join(words[shared:]), texts), label) for label, words in zip(texts, rows, strict=True)),
        key=lambda core: -len(core[0]),
    )
    groups = "|".join(f"(?P<_{label}>{core})" for core, label in cores)
    return re.compile(rf"{subject}(?<![\w.,–−-])(?:{groups})(?![\w-]|[.,]\d)")


def _spell_core(text: str, texts: Mapping[str, str]) -> str:
    """How a text is said: one that ends in "greater or smaller" also with only one of them."""
    forms, pair = [text], re.fullmatch(r"(.* )?(\S+) (?:or|/) (\S+)", text)
    if pair:
        forms += [one for word in pair.groups()[1:] if (one := (pair[1] or "") + word) not in texts.values()]
    return f"(?:{'|'.join(map(re.escape, forms))})s?"


def _find_parts(texts: Mapping[str, str]) -> re.Pattern[str] | None:
    """The few parts of which all choices have as many; None for other choices."""
    rows = [text.split(", ") for text in texts.values()]
    parts = {part for row in rows for part in row}
    if len({len(row) for row in rows}) != 1 or len(rows[0]) not in (2, 3) or len(parts) > 4 or "" in parts:
        return None
    return re.compile(rf"(?<!\w)(?<!not )(?:{'|'.join(map(re.escape, sorted(parts, key=len, reverse=True)))})(?!\w)")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a question such as "Is Rome older than Paris?" or "Which is older, Rome or Paris?" compares."""

    first: frozenset[str]  # words of the first thing that the second does not have, in small letters
    second: frozenset[str]
    more: bool  # whether the question says that the first is more, not less

    def holds_in(self, sentence: str) -> str | None:
        """Yes or No, where a sentence compares the two."""
        at = [(match.start(), match[0].lower()) for match in _TOKEN.finditer(sentence)]
        degrees = [*_MORE_OR_LESS.finditer(sentence)]
        for degree in [*(d for d in degrees if _THAN.match(sentence, d.end())), *reversed(degrees)]:
            one, other = (
                max((place for place, word in at if word in words and place < degree.start()), default=-1)
                for words in (self.first, self.second)
            )
            if one != other:
                denied = NOT.search(sentence, max(one, other), degree.start()) is not None
                return "Yes" if (one > other) ^ denied ^ (_is_more(degree) != self.more) else "No"
        return None


def read_comparison(asking: str, alternatives: Sequence[str]) -> Comparison | None:
    """What a question compares; `alternatives` are the two that it names."""
    if len(alternatives) == 2:
        found, parts = _MORE_OR_LESS.search(asking), alternatives
    else:
        found = _CLAIMS.search(" ".join(asking[:1_000].split()))
        parts = (found["one"], found["other"]) if found else ()
    if found is None:
        return None
    one, other = ([word for word in _TOKEN.findall(part) if word.lower() not in _NO_NAMES] for part in parts)
    if len(one) > 1 and _VERB.fullmatch(one[-1]):
        one.pop()
    first, second = ({word.lower() for word in words} for words in (one, other))
    if first <= second or second <= first:
        return None
    return Comparison(frozenset(first - second), frozenset(second - first), _is_more(found))


def _is_more(degree: re.Match[str]) -> bool:
    return (degree["turn"] or "").lower() not in ("less", "fewer") and degree["more"] is not None


_DEGREES = (
    r"(?:(?P<turn>less|fewer|more) )?(?:(?P<more>(?:long|tall|larg|bigg|old|high|fast|quick|heavi|lat|wid|deep|thick|"
    r"great|dens|strong|hott|warm|hard|bright|rich)er|dense|expensive|after|more)|"
    r"(?:short|small|young|low|slow|light|earli|narrow|shallow|thin|weak|cold|soft|poor|cheap)er|before|less|fewer)\b"
)
_MORE_OR_LESS = re.compile(rf"\b{_DEGREES}", re.I)
_CLAIMS = re.compile(
    r"^\W*(?:is|are|was|were|can|could|do|does|did|will|would|has|have)\s+(?P<one>.+?)\s+"
    rf"{_DEGREES}(?:[^?]{{0,40}}?\bthan|(?<=before)|(?<=after))\s+(?P<other>.+?)\?",
    re.I | re.S,
)
_THAN = re.compile(r"(?: \w+){0,2} than\b|(?:(?<=before)|(?<=after)) \w")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W_]{2,}(?:[-'’.]\w+)*|\d")
_VERB = re.compile(r"[a-z]+ed|run|travel|go|move|fly|live|last|weigh|cost|have")
_NO_NAMES = frozenset("the an of in on to and it is was as".split())
NOT = re.compile(r"\b(?:not|never|no|neither|cannot|unlikely)\b|n['’]t\b", re.I)


def stem(word: str) -> str:
    """A word without the s of its plural."""
    return word[:-1] if word.endswith("s") and len(word) > 3 else word
