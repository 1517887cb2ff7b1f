"""The values that a text may end with, and what speaks for and against each: its marks.

A mark is a short text: what the sentence of the value does ("plans 0", "so"), what comes behind it ("later checks"),
and how the value fits the question ("conflict unit"). Weights of the marks (`endings`) say how likely a value is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from .cues import LANGUAGES, either
from .mentions import read_mention, read_others, read_truth
from .questions import COMMON, Asked, stem
from .sentences import find_turn, split_sentences

Candidate = tuple[str, frozenset[str]]
Stated = tuple[str, str, int]  # an answer, its finality, and how far before the end of the text its sentence begins
_REACH, _SENTENCES, _OTHERS = 1_200, 6, 8
_KINDS = ("options", "truth", "alternatives", "date", "weekday", "many", "point", "equation", "output", "wants_words",
          "numeric", "formal")  # fmt: skip
_CUES = [
    (f"{kind} {number}", re.compile(pattern))
    for kind in ("plans", "checks", "supposed")
    for number, pattern in enumerate(pattern for language in LANGUAGES for pattern in getattr(language, kind))
]
_INTENDS = re.compile(r"need|want|have to|ought|must|let|还|需要")
_VERIFIES = re.compile(r"check|verif|confirm|make sure|again|another way|plug|recomput|recap|验算|检查|验证")
_DONE = re.compile(
    r"(?:\b(?:which|that|this)(?:'s| is| equals| gives| makes| leaves)|\bto (?:get|obtain|give)|\bgiv(?:es|ing)|"
    r"\byield\w+|\bresult\w* in|\bequals?|\bis|=|→|\bget|\bobtain)\s[^=;]{0,80}$"
)
_CLOSERS = re.compile(rf"\W*(?:{either('closers')})\W*", re.I)
_ASIDES = re.compile(rf"(?:{either('asides')})", re.I)
_DENIALS = re.compile(rf"(?:{either('denials')})", re.I)
_RESULT = re.compile(rf"(?:{either('results')})", re.I)
_SO = re.compile(r"\s*(?:so|thus|hence|therefore|所以|因此)\b", re.I)
_INTRODUCES = re.compile(r"\W*(?:after|on|in|at|for|from|by|with|without|during)\b[^\d=]*,\s*$|[^\d=]*:\s*$", re.I)
_NO = re.compile(r"\W*(?:no|not|i don't think so)\b|\W*不[，,]", re.I)
_CORRECTION = re.compile(r"\b(?:it's|it is|it must be|it should be|but|so|therefore)\b|而是|应该是", re.I)
_NOT = re.compile(r"not\b|n['’]t\b", re.I)
_CLAUSE = re.compile(r"(?:[;:—]|(?<!\d),(?=\s)|,(?=\s[^\d]))\s|\s(?=(?:but|so|while) |and [A-Z][a-z]+ \d)|[，；]")
_HOWEVER = re.compile(r"(?:,? (?:but|however|yet|before (?:\w+ing|tax|tips?|discounts?))\b|[，,]但)[^\d,，;]*$", re.I)
_DISMISSES = re.compile(r"\W*(?:no|nope|yes|yep|yeah|right|that doesn't matter|never mind|不|是的|对)\b[^\d]*", re.I)
_CHINESE_COMMA = re.compile(r"(?<=[\u4e00-\u9fff]),|,(?=[\u4e00-\u9fff])")
_CHINESE_ASIDE = re.compile(r"\((?=[\u4e00-\u9fff])([^()]*)\)")
_WORD = re.compile(r"[a-z]{3,}")
_AGAINST = re.compile(
    r"(?:of (?!(?:un)?qualified)|plain|conflict|denied|aside|introduced|no|asks|however|left (?:term|other)|"
    r"later (?:colon|plans|so|asks)|(?:plans|checks|supposed) \d+\Z)"
)
_STARTS_SIDE = re.compile(
    r"[,;:。，；]|\.\s|\b(?:and|so|hence|thus|then|therefore|giving|gives|which|yields?|is|means|get|have|that)\b|"
    r"→|=>|⟹|⇒"
)
_LEFT_SIDE = re.compile(
    r"[\s$\\(]*((?:\d*[A-Za-zθαβ]|\\?(?:sin|cos|tan|log|ln)|\d+\\[a-z]+)(?:_\{?\w+\}?)?(?:[²³]|\^\{?\w+\}?)?"
    r"(?:\s?[θxαβ](?![A-Za-z])|\([^()]{1,12}\)|\s?\\theta)?)[\s$\\)]*(?:=|≈)"
)
_FORMULA = re.compile(r"(?<![A-Za-z\d'’])[b-hj-zB-HJ-Z](?![A-Za-z'’])|[a-z]\(|\\")
_MARKUP = re.compile(r"[$\\{}\s]")
_EQUALS = re.compile(
    r"(?:[=≈→:]|\b(?:is|are|was|were|be|equals?|(?:comes?|amounts?|adds? up|works out) to|gives?|makes?|leaves?|"
    r"yields?|get|totals?|only|exactly|so|that's|it's|giving|making|leaving|costs?|takes?|has|have|had|needs?)|"
    r"[是为得共剩有])[\s$*\\(\[`\"'“]*$",
    re.I,
)


def find_candidates(text: str, asked: Asked, stated: Stated | None = None) -> Iterator[Candidate]:
    """The values of the last sentences, from the last one on; then what was stated last, where they do not have it."""
    behind = len(text) - len(text.rstrip())
    text = _CHINESE_ASIDE.sub(r"（\1）", _CHINESE_COMMA.sub("，", text[-_REACH:].rstrip()))
    later = {"later colon"} if text.endswith((":", "：")) else set()
    common = "kind " + next((kind for kind in _KINDS if getattr(asked, kind)), "other")
    decides = asked.truth or asked.alternatives
    passed, clean, dismissed = 0, False, False
    seen: set[str | None] = set()
    for start, end in [*split_sentences(text)][: -_SENTENCES - 1 : -1]:
        sentence = text[start:end].strip()
        asks = sentence.endswith(("?", "？", "...", "…"))
        if (not asks and not asked.truth and _CLOSERS.fullmatch(sentence)) or (dismissed and asks):
            later.add("later closer")
            dismissed = False
            continue
        dismissed = not decides and not passed and _DISMISSES.fullmatch(sentence) is not None
        if dismissed:
            continue
        marks = {common, f"passed {min(passed, 3)}", *later, *_mark_sentence(sentence, asks)}
        before, fair = len(seen), False
        for value, own in _read_sentence(sentence, asked):
            answer = asked.resolve(value)
            found = {*marks, *own, *_mark_value(value, sentence, text[:start], asked)}
            if stated is not None and stated[2] <= len(text) + behind - start:
                same = stated[0] == answer
                found.add(f"agrees {stated[1]}" if same else "contains" if stated[0] in (answer or "") else "differs")
            found |= _count(found, asked, clean)
            fair = fair or "against 0" in found
            clean = clean or fair
            seen.add(answer)
            yield value, frozenset(found)
        passed += 1
        later.update(_mark_later(marks, len(seen) > before, fair))
        if len(seen) == before and any(asked.find_conflicts(sentence)):
            later.add("later conflict")
    if stated is not None and stated[0] not in seen:
        yield stated[0], frozenset({common, f"stated {stated[1]}", *later})


def _count(found: set[str], asked: Asked, clean: bool) -> set[str]:
    """How many marks speak against a value; a number that only stands there counts less."""
    more = set()
    if asked.numeric and "derived" not in found and "result" not in found:
        more = {f"plain {mark}" for mark in ("given", "of unqualified") if mark in found}
    against = sum(_AGAINST.match(mark) is not None for mark in found | more)
    return more | {f"against {min(against, 3)}"} | ({"first clean"} if not against and not clean else set())


def _mark_sentence(sentence: str, asks: bool) -> Iterator[str]:
    """What a sentence does: it plans, checks, supposes, asks, concludes."""
    lower = sentence.lower()
    turn = find_turn(lower)
    verifies = _VERIFIES.search(lower) is not None
    for name, cue in _CUES:
        if found := cue.search(lower, turn):
            if verifies and name[0] == "p":
                yield "checks 9"
                continue
            done = name[0] != "c" and not _INTENDS.search(found[0]) and _DONE.search(lower, found.end())
            yield f"{name} done" if done else name
        elif turn and cue.search(lower):
            yield f"{name} first"
    if asks:
        yield "asks"
    if _HOWEVER.search(sentence):
        yield "however"
    if _SO.match(sentence):
        yield "so"
    if _RESULT.search(sentence):
        yield "result"


def _mark_later(marks: set[str], values: bool, fair: bool) -> Iterator[str]:
    """What a sentence with these marks means for those before it."""
    kinds = {mark.split()[0] for mark in marks if mark[-1].isdigit()} | marks
    yield from (f"later {mark}" for mark in ("asks", "plans", "however", "checks") if mark in kinds)
    yield ("later value" if fair else "later against") if values else "later so" if "so" in marks else "later words"


def _read_sentence(sentence: str, asked: Asked) -> Iterator[tuple[str, set[str]]]:
    """The values of a sentence: of what it asserts, then of what it denies, adds or says of something else."""
    if asked.truth and not asked.alternatives:
        if value := read_truth(sentence):
            yield value, {"main"}
        return
    asides = [(match[0], {"aside"}) for match in _ASIDES.finditer(sentence)]
    kept, dropped = _split_clauses(_ASIDES.sub("", sentence).rstrip("。"), asked)
    seen: set[str] = set()
    for part, marks in ((kept, set[str]()), *dropped, *asides):
        words = {stem(word) for word in _WORD.findall(part.lower()) if len(word) > 3} - COMMON
        shared = f"shared {min(3, len(words & asked.words))}"
        main = read_mention(part, asked)
        for value in (main, *islice(read_others(part, asked), _OTHERS)):
            if not value or value in seen or (main and value != main and (value in main or main in value)):
                continue
            seen.add(value)
            mismatches = {f"of {mismatch}" for mismatch in asked.find_mismatches(value, part)}
            yield value, marks | mismatches | {shared} | ({"main"} if value is main else set())


def _split_clauses(sentence: str, asked: Asked) -> tuple[str, list[tuple[str, set[str]]]]:
    """What a sentence asserts, and its other clauses with their marks."""
    kept: list[str] = []
    dropped: list[tuple[str, set[str]]] = []
    introduced = False  # by a clause about something else
    start = 0
    if no := _NO.match(sentence):
        correction = _CORRECTION.search(sentence, no.end())
        start = correction.start() if correction else len(sentence)
        dropped.append((sentence[:start], {"no"}))
    for end in (*(match.end() for match in _CLAUSE.finditer(sentence, start)), len(sentence)):
        clause = sentence[start:end]
        marks = {f"conflict {one}" for one in asked.find_conflicts(clause)}
        denied = _DENIALS.search(clause.lstrip())
        if denied and not (asked.negated and _NOT.search(denied[0])):
            marks.add("denied")
        if introduced:
            marks.add("introduced")
        if marks:
            introduced = _INTRODUCES.match(clause) is not None
            dropped.append((clause, marks))
        else:
            kept.append(clause)
        start = end
    return "".join(kept).strip(), dropped


def _mark_value(value: str, sentence: str, before: str, asked: Asked) -> Iterator[str]:
    """How a value stands in its sentence, and how it relates to the question and the text before."""
    bare = value.replace(",", "").strip("$€£%. ")
    words = [asked.about(stem(word)) for word in _WORD.findall(value.lower())] if value[0].isalpha() else []
    if bare in asked.numbers or (value in asked.text and len(value) > 1) or (words and all(words)):
        yield "given"
    elif any(words):
        yield "given word"
    yield "digits" if re.search(r"\d", value) else "letters"
    if re.search(rf"[=≈→] ?\$?{re.escape(bare)}(?!\d)", (before + " " + sentence).replace(",", "")):
        yield "derived"
    if before.count(value) + sentence.count(value) > 1:
        yield "repeated"
    at = sentence.rfind(value)
    if at < 0:
        yield "spelled"
        return
    head, tail = sentence[:at], sentence[at + len(value) :]
    if _EQUALS.search(head):
        yield "equals"
    elif not head.strip("$*\\(\"'` "):
        yield "begins"
    if not re.search(r"\d", tail):
        yield "last number"
    if not tail.strip("$*.!\\)\"'`。 "):
        yield "ends"
    if left := _LEFT_SIDE.match(_STARTS_SIDE.split(head)[-1]):
        yield f"left {_name_left_side(_MARKUP.sub('', left[1]), asked)}"
    noun = re.match(r"[$*\\)\s%]*([a-z]{3,})", tail) if asked.thing else None
    if noun:
        yield "asked noun" if stem(noun[1]) == asked.thing else "noun" if asked.about(noun[1]) else "other noun"


def _name_left_side(name: str, asked: Asked) -> str:
    """What stands on the other side of a value's equation: what is asked for, a term, or another variable."""
    same = re.search(rf"(?<![A-Za-z\d]){re.escape(name)}(?![A-Za-z\d²^])", _MARKUP.sub("", asked.text))
    if same and not name[0].isdigit():
        return "asked"
    if not (name.isalpha() or "(" in name or "_" in name):
        return "term"
    return "other" if _FORMULA.search(asked.text) else "free"
