"""What a short text arrives at where no words call it an answer or a conclusion: "24*7 is 168.", "**Yes**", "so C".

Only for the end of a text whose question is known; far too lenient to decide on while a model thinks.
"""

from __future__ import annotations

import re

from .cues import either
from .sentences import Asked, is_supposed, split_sentences
from .values import scan_expression

_SENTENCES = 3
_PLANS = re.compile(rf"(?:{either('plans')})")
_DENIED = re.compile(r"(?i)\b(?:not|isn't|wasn't|can't|neither|nor|instead of|rather than)\s+(?:an?\s+|the\s+)?$")
_TRUTH = re.compile(r"(?i)\b(yes|no|true|false)\b|(是的|否|对的|错的|正确|错误)")
_LABEL = re.compile(r"\(?(?<![A-Za-z0-9])([A-Za-z]|\d)(?![A-Za-z0-9])\)?(?!['’=^_+/\d]|\*\w|\.\d)")
_ARTICLE_A = re.compile(r" (?!is (?:right|correct))[a-z]")
_LEADS = re.compile(
    r"(?:\bso|\bhence|\bthus|\bit's|\bthat's|\bit is|\bleaves|\bleft with|\bchoice|\boption|\banswer|\bletter is|"
    r"\bpick|\bas|→|=>|\bto|\bbe|\bmaking|i\.e\.|\bsay|\bnumber|选|\*\*)[\s,:*]*\(?$",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"\)?\*{0,2}\s*(?:is|are|it is|looks|seems|correct|right|works|选项|项|$|\W*$)(?!\s*(?:not|wrong|false|out|an?\s))",
    re.I,
)
_QUOTED = re.compile(r"[`\"“']([^`\"“”']{1,60})[`\"”'](?!\w)|\*\*([^*]{1,60})\*\*")
_LIST = re.compile(r"\[[^\[\]]{1,80}\]")
_NAME = r"(?:the |an? )?[A-Z][\w’'.-]*(?: (?:(?:of|da|van|de|the) )?[A-Z][\w’'.-]*){0,4}"
_ARTICLE = re.compile(r"^(?i:the|an?) ")
_ACTING = re.compile(
    rf"\b({_NAME})(?=\s+(?:is the|was the|has|had|owns|must|sits|wrote|painted|won|discovered|[a-z]+ed it)\b)"
)
_NAMED = re.compile(
    rf"\b(?i:is|was|by|be|it's|that's|called|so|hence|thus|therefore|means?|prints?|raises|only|in|as)\b[\s,:]*"
    rf"(?:in fact |the )?({_NAME})"
)
_WORD = re.compile(
    r"(?:\b(?i:is|was|it's|that's|that is|be|called|so|hence|so:|facing|make|makes|means|for|was the|is the|"
    r"were)\s+|→\s*)(?:now |facing )?"
    r"(?:the |an? )?([a-z][\w-]*(?: [a-z][\w-]*)?)(?=\s*[.,;:!]|\s+at the|\s*$)"
)
_PROSE = re.compile(r"(?<![\\a-zA-Z])[a-z]{3}")
_STARTS = re.compile(
    r"(?<![A-Za-z0-9_.,:])(?:[-−+]?[$€£]?\d(?!D\b)|sqrt|\\[a-z{]|√|[-−]?π|[(\[{](?=[-−+\d∞]|[a-z]\s?[-−+]))"
)
_SYMBOL = re.compile(r"[\d\\πi√]")
_EQUALS = re.compile(
    r"(?:\b(?:(?i:it's|it is|that's)|is|be|equals|at|(?:gives|leaves)(?: me| us)?(?: with)?)\s+|"
    r"(?:=>|(?<![<>!])=(?!>)|≈|→|->|\\implies)[\s*`$]*)"
)
_STOP_WORDS = frozenset(
    "It So That This The I On After From We He She They Then Now Okay Ok Hmm Yes No But And In At If Not Only There "
    "Both Her His Its One Also Thus Hence That's It's I'm I'd I'll Let Wait All Each Alone "
    "answer it correct that what".split()
)
_CHINESE = re.compile(r".*(?:是|为|应该是|选)([^，。；、\s]{1,12})$")


def find_mention(text: str, asked: Asked) -> str | None:
    """The value that the last sentences of a text arrive at, as it stands there; None if they state none."""
    sentences = [text[start:end].strip() for start, end in split_sentences(text[-1_200:])]
    for sentence in reversed(sentences[-_SENTENCES:]):
        lower = sentence.lower()
        if sentence.endswith(("?", "？")) or is_supposed(lower) or _PLANS.search(lower):
            return None
        if value := _read(sentence.rstrip("。"), asked):
            return value
    return None


def _read(sentence: str, asked: Asked) -> str | None:
    if asked.options:
        return _read_label(sentence, asked)
    if asked.truth:
        found = list(_TRUTH.finditer(sentence))
        return (
            (found[-1][1] or {"是的": "Yes", "对的": "Yes", "正确": "Yes"}.get(found[-1][2], "No")) if found else None
        )
    if asked.wants_words:
        return _read_words(sentence, asked) or _read_number(sentence, asked)
    return _read_number(sentence, asked) or _read_words(sentence, asked)


def _read_label(sentence: str, asked: Asked) -> str | None:
    """The one choice that a sentence settles on."""
    found = []
    for match in _LABEL.finditer(sentence):
        label = asked.label(match[1]) if match[1].isupper() or match[1].isdigit() or match[1] in asked.options else None
        before, after = sentence[: match.start()], sentence[match.end() :]
        if (
            label is None
            or _DENIED.search(before)
            or (match[1] == "A" and re.match(r" (?!is (?:right|correct))[a-z]", after))
        ):
            continue
        if _LEADS.search(before) or _CHOSEN.match(after) or match[0].startswith("("):
            found.append(label)
    if found:
        return found[-1]
    return asked.label_of_text_in(re.sub(r"[-*]", " ", sentence.lower()), shortest=3)


def _read_number(sentence: str, asked: Asked) -> str | None:
    """The value behind the last sign of equality, in the last formula, with what is counted, or the last one."""
    if asked.counted is not None and (counts := asked.counted.findall(sentence)):
        return str(counts[-1])
    for match in reversed([] if asked.many else list(_EQUALS.finditer(sentence))):
        end = scan_expression(sentence, match.end()) if _SYMBOL.search(sentence, match.end()) else None
        if end is not None and _SYMBOL.search(sentence, match.end(), end):
            return sentence[match.end() : end]
    formulas = re.findall(r"\$([^$ ](?:[^$]{0,200}[^$ ])?)\$|\\\((.{1,200}?)\\\)|\\\[(.{1,300}?)\\\]", sentence)
    formulas = [next(filter(None, match)) for match in formulas]
    formulas = [formula for formula in formulas if not _PROSE.search(formula)]
    if formulas:
        return str(formulas[-1]).rstrip(" .,")
    values: dict[int, str] = {}
    reach = 0
    for match in _STARTS.finditer(sentence):
        end = scan_expression(sentence, match.start()) if match.start() >= reach else None
        if end is not None and not _DENIED.search(sentence[: match.start()]):
            values[match.start()] = sentence[match.start() : end]
            reach = end
    if asked.many and len(values) > 1:
        return ", ".join(values.values())
    return values[max(values)] if values else None


def _read_words(sentence: str, asked: Asked) -> str | None:
    """A quoted or bold text, a name, or the word that ends a clause."""
    if lists := _LIST.findall(sentence):
        return str(lists[-1])
    quoted = [next(filter(None, match)).strip() for match in _QUOTED.findall(sentence)]
    if quoted:
        return _ARTICLE.sub("", quoted[-1])
    for pattern in (_NAMED, _ACTING, _WORD, _CHINESE) if asked.wants_words else (_NAMED, _WORD, _CHINESE):
        found = [
            match[1]
            for match in pattern.finditer(sentence)
            if not _DENIED.search(sentence[: match.start(1)]) and match[1].split()[0] not in _STOP_WORDS
        ]
        if found:
            return _ARTICLE.sub("", found[-1]).rstrip(".")
    clause = re.match(r"(?:the |an? )?([a-z]+)(?=,|\s*$)", sentence)
    return clause[1] if clause else None
