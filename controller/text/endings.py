"""What a text ends with where no words call it an answer: "24*7 is 168.", "**Yes**", "so C.", "So 54. ✓"

Only for the end of a text whose question is known; far too lenient to decide on while a model thinks. The values that
it may be have marks, short texts: what the sentence of the value does ("plans 0", "so"), what comes behind it ("later
checks"), and how the value fits the question ("conflict unit"). Their weights say how likely the value is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from .choices import COMMON, stem
from .cues import LANGUAGES, either
from .mentions import read_mention, read_others, read_truth
from .questions import Asked
from .sentences import find_turn, split_sentences

Candidate = tuple[str, frozenset[str]]
Stated = tuple[str, str, int]  # an answer, its finality, and how far before the end of the text its sentence begins
_REACH, _SENTENCES, _OTHERS = 1_200, 6, 8
_KINDS = ("choices", "truth", "alternatives", "date", "weekday", "many", "point", "equation", "output", "wants_words",
          "numeric", "formal")  # fmt: skip
_CUES = [
    (kind, f"{kind} {number}", re.compile(pattern))
    for kind in ("plans", "checks", "supposed")
    for number, pattern in enumerate(pattern for language in LANGUAGES for pattern in getattr(language, kind))
]
_INTENDS = re.compile(r"need|want|have to|ought|must|let|还|需要")
_VERIFIES = re.compile(r"check|verif|confirm|make sure|again|another way|plug|recomput|recap|验算|检查|验证")
_DONE = re.compile(
    r"(?:\b(?:which|that|this)(?:'s| is| equals| gives| makes| leaves)|\bto (?:get|obtain|give)|\bgiv(?:es|ing)|"
    r"\byield\w+|\bresult\w* in|\bequals?|\bis|=|→|\bget|\bobtain)\s[^=;]{0,80}$"
)
_CLOSERS = re.compile(rf"(?<!\W)\W*+(?:(?:{either('closers')})[\s,.!;—，。！-]*+)+\W*", re.I)
_REPLIES = re.compile(
    rf"(?!.*(?:\d|[\"“”`*=]|\w (?-i:[A-Z])|answer (?:is|as|with (?:yes|no)|:)))\W*(?:{either('replies')})(?=.* \w)",
    re.I,
)
"""A sentence about the reply that names no value."""
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
_DISMISSES = re.compile(r"\W*(?:no|nope|yes|yep|yeah|right|that doesn't matter|never mind|不|是的|对)\b\W*", re.I)
_CHINESE_COMMA = re.compile(r"(?<=[\u4e00-\u9fff]),|,(?=[\u4e00-\u9fff])")
_CHINESE_ASIDE = re.compile(r"\((?=[\u4e00-\u9fff])([^()]*)\)")
_WORD = re.compile(r"[a-z]{3,}")
_ITEM = re.compile(r"[\s*>(-]*(?:option )?\(?([A-Za-z]|\d)(?:[.):]|\*\*:?)\W*\S|\W*option ([A-Z]|\d) ", re.I)
_GOES_ON = re.compile(r"(\s*)[-*]\s|\s*(?:This|It )")
_BULLET = re.compile(r"(\s*)[-*]\s")
_NUMBERED = re.compile(r"(?:[*>#-]\s+)?\d{1,2}[.)]\s+(?=[*\"“A-Za-z])")
_VERDICT = re.compile(
    r"\b(?:incorrect|wrong|false|too \w+|not|fails?)\b|n['’]t\b|[✗❌]|"
    r"(?P<right>\b(?:correct|matches|fits|right answer|what we want|aligns|closest|very close)\b|[✓✅])",
    re.I,
)
_AGAINST = re.compile(
    r"(?:of (?!(?:un)?qualified)|plain|conflict|denied|aside|introduced|no(?:un)?\Z|asks|however|left (?:term|other)|"
    r"later (?:colon|plans|so|asks)|(?:plans|checks|supposed) \d+\Z|verifies)"
)
"""Marks that count against a value."""
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
    for start, end in reversed(_drop_lists([*split_sentences(text)], text, asked)):
        if seen and passed >= _SENTENCES:
            break
        sentence = text[start:end].strip()
        if not asked.choices:
            sentence = _NUMBERED.sub("", sentence)
        asks = sentence.endswith(("?", "？", "...", "…"))
        idle = _REPLIES.match(sentence.replace("**", "")) or (not asked.truth and _CLOSERS.fullmatch(sentence))
        if (idle and not asks) or (dismissed and asks):
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
        values = len(seen) > before  # that no later sentence has, as the weights were learnt
        later.update(_mark_later(marks, values, fair))
        if not values and any(asked.find_conflicts(sentence)):
            later.add("later conflict")
    if stated is not None and stated[0] not in seen:
        yield stated[0], frozenset({common, f"stated {stated[1]}", *later})


def _drop_lists(sentences: list[tuple[int, int]], text: str, asked: Asked) -> list[tuple[int, int]]:
    """The sentences without those that go through the choices one by one, but for one that is found right."""
    heads = [_ITEM.match(text, start, end) for start, end in sentences] if asked.choices else []
    labels = [asked.choices.label(head[1] or head[2]) if head else None for head in heads]
    if len({*labels} - {None}) < 2:
        return sentences
    kept: list[tuple[int, int]] = []
    item: int | None = None  # where the choice begins that a sentence is about
    bullet: re.Match[str] | None = None  # before that choice
    for label, (start, end) in zip(labels, sentences, strict=True):
        before = item
        if label:
            item, bullet = start, _BULLET.match(text, start, end)
        elif not (more := _GOES_ON.match(text, start, end)) or (bullet and more[1] and len(more[1]) <= len(bullet[1])):
            item = None
        verdict = _VERDICT.search(text, start, end)
        alone = label is not None and before is None and end == sentences[-1][1]
        if item is None or alone:
            kept.append((start, end))
        elif verdict and verdict["right"]:
            kept.append((item, end))
    return kept


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
    for kind, name, cue in _CUES:
        if found := cue.search(lower, turn):
            if verifies and kind == "plans":
                yield "verifies"
                continue
            done = kind != "checks" and not _INTENDS.search(found[0]) and _DONE.search(lower, found.end())
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
    if "verifies" in marks:
        kinds.add("checks")
    yield from (f"later {mark}" for mark in ("asks", "plans", "however", "checks") if mark in kinds)
    yield ("later value" if fair else "later against") if values else "later so" if "so" in marks else "later words"


def _read_sentence(sentence: str, asked: Asked) -> Iterator[tuple[str, set[str]]]:
    """The values of a sentence: of what it asserts, then of what it denies, adds or says of something else."""
    if asked.truth and not asked.alternatives:
        if value := read_truth(sentence) or asked.holds_in(_ASIDES.sub("", sentence)):
            yield value, {"main"}
        return
    if asked.choices and (label := asked.choices.label_of_whole(sentence.lower())):
        yield label, {"main"}
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


_BIAS = -1.4
_LEAST, _LEAST_OF_FEW = 0.0, -1.5
"""Log-odds above which a value is read; the second where the question gives the few that it may be."""
_TOLD = {"stated asked", "stated hedged"}
"""Marks of a value that is read where nothing else is and nothing speaks against it."""
_WEIGHTS = {
    "against 0": 1.0, "against 1": -0.8, "against 2": -2.0, "against 3": -1.1, "agrees asked": 1.1,
    "agrees concludes": 0.7, "agrees hedged": 0.3, "aside": -0.1, "asked noun": 1.2, "asks": -1.4, "begins": -0.2,
    "checks 0": -1.3, "checks 0 first": 0.2, "conflict measure": -1.4, "conflict part": 0.2, "conflict person": -1.6,
    "conflict rate": -0.6, "conflict scope": -0.2, "conflict unit": -0.4, "conflict variable": -1.8, "contains": 0.4,
    "denied": -2.5, "derived": 0.3, "differs": -1.1, "digits": -1.6, "ends": 0.9, "equals": 0.8, "first clean": 1.3,
    "given": -1.0, "given word": -0.2, "however": 0.4, "introduced": 0.4, "kind choices": 0.3, "kind equation": 0.5,
    "kind formal": -0.3, "kind many": -0.2, "kind numeric": -0.6, "kind other": -0.4, "kind output": -0.3,
    "kind point": -0.5, "kind truth": 0.5, "kind wants_words": 0.2, "kind weekday": -0.8, "last number": 0.5,
    "later against": -0.4, "later asks": 0.9, "later checks": 2.0, "later closer": 1.4, "later colon": -0.2,
    "later conflict": -0.6, "later however": 0.5, "later plans": -1.0, "later so": 0.3, "later value": 0.2,
    "later words": 0.4, "left asked": 0.2, "left free": -1.7, "left other": 2.4, "left term": -0.9, "letters": -1.3,
    "main": 1.9, "no": -0.8, "noun": 1.2, "of compared": -0.7, "of no chance": -0.9, "of no name": -0.4,
    "of unqualified": -1.0, "other noun": -0.9, "passed 0": 0.4, "passed 1": -0.8, "passed 2": -1.0, "passed 3": -1.5,
    "plain given": 1.2, "plain of unqualified": 0.1, "plans 0": -1.2, "plans 0 done": 1.1, "plans 0 first": 0.9,
    "plans 1": -0.2, "plans 1 done": -3.4, "plans 2": -1.1, "repeated": 0.9, "result": 0.2, "shared 0": -0.9,
    "shared 1": -0.5, "shared 2": -0.1, "shared 3": -0.5, "so": 0.7, "spelled": 0.9, "stated asked": 1.2,
    "stated concludes": 0.6, "stated hedged": 1.1, "supposed 0": -0.9, "supposed 0 done": -2.2,
    "supposed 0 first": -1.5, "supposed 2": 0.1, "supposed 2 done": -2.7, "supposed 4": 0.5, "supposed 7": 0.1,
    "supposed 9": -0.8, "verifies": -0.8,
}  # fmt: skip
"""Of the marks, in log-odds, from `python benchmarks/fit_endings.py MODEL__TASK.jsonl ...`, which needs recordings."""


def read_ending(text: str, asked: Asked, stated: Stated | None = None) -> str | None:
    """The likeliest of the values that a text may end with, as it stands there; None where none is likely.

    A value's log-odds are those of the value over none: the sum of the weights of its marks, a conditional logit.
    """
    best, least = None, _LEAST_OF_FEW if asked.choices or asked.truth or asked.alternatives else _LEAST
    for value, marks in find_candidates(text, asked, stated):
        odds = _BIAS + sum(_WEIGHTS.get(mark, 0.0) for mark in marks)
        if odds > (max(least, _LEAST) if "denied" in marks else least):
            best, least = value, odds
        elif best is None and not marks.isdisjoint(_TOLD) and not any(map(_AGAINST.match, marks)):
            best = value
    return best
