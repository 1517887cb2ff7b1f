"""What a text ends with where no words call it an answer: "24*7 is 168.", "**Yes**", "so C.", "So 54. ✓"

Only for the end of a text whose question is known; far too lenient to decide on while a model thinks.
"""

from __future__ import annotations

import re

from .cues import either
from .mentions import GIVES, read_mention, read_truth
from .sentences import Asked, find_turn, is_supposed, split_sentences

_SENTENCES = 3
_PLANS = re.compile(rf"(?:{either('plans')})")
_CHECKS = re.compile(rf"(?:{either('checks')})")
_CLOSERS = re.compile(rf"\W*(?:{either('closers')})\W*", re.I)
_ASIDES = re.compile(rf"(?:{either('asides')})", re.I)
_DENIALS = re.compile(rf"(?:{either('denials')})", re.I)
_POINTS_BACK = re.compile(r"\W*(?:that|this)(?:'s|’s| is)\b", re.I)
_UNASKED = re.compile(r"\b(?:not (?:asked|needed|what)|don't need|isn't (?:asked|needed)|irrelevant)\b", re.I)
_STARTS_FINAL = re.compile(r"\W*(?:so|thus|hence|therefore|it's|that's|yes|the answer)\b", re.I)
_OBTAINS = re.compile(r"\b(?:obtain|get|find)\b[^\w$€£]*[$€£\\]?\d", re.I)
_SO = re.compile(r"\s*(?:so|thus|hence|therefore|所以|因此)\b", re.I)
_NO = re.compile(r"\W*(?:no|not|i don't think so)\b|\W*不[，,]", re.I)
_INTRODUCES = re.compile(r"\W*(?:after|on|in|at|for|from|by|with|without|during)\b[^\d=]*,\s*$|[^\d=]*:\s*$", re.I)
_NOT = re.compile(r"not\b|n['’]t\b", re.I)
_CORRECTION = re.compile(r"\b(?:it's|it is|it must be|it should be|but|so|therefore)\b|而是|应该是", re.I)
_CLAUSE = re.compile(r"(?:[;:—]|(?<!\d),(?=\s)|,(?=\s[^\d]))\s|\s(?=(?:but|so|while) |and [A-Z][a-z]+ \d)|[，；]")

_ON_THE_WAY = re.compile(
    r"(?:^|\s)(?:\d+[a-z]|[a-z](?:²|³|\^\d))\s*=[^a-z]*$|[a-z][^=]*[-+] ?\d+ ?= ?0\W*$"
)  # "d² = 225", "3m = 30"
_HOWEVER = re.compile(r"(?:,? (?:but|however|yet|before (?:\w+ing|tax|tips?|discounts?))\b|[，,]但)[^\d,，;]*$", re.I)
_BUT_NOT = re.compile(r", but not\b", re.I)


def read_ending(text: str, asked: Asked) -> str | None:
    """What the last sentences of a text arrive at, as it stands there; "" if they are on the way, None for nothing.

    They are read backwards. What only checks, denies or closes is passed over; a plan, a question, or what is not asked
    for means that the text ends on the way.
    """
    text = text[-1_200:].rstrip()
    if text.endswith((":", "：")):
        return ""
    sentences = [text[start:end].strip() for start, end in split_sentences(text)]
    left, denied = _SENTENCES, ""
    for sentence in reversed(sentences[-2 * _SENTENCES :]):
        if asked.truth and (value := read_truth(sentence)):
            return value
        lower = sentence.lower()
        asks = sentence.endswith(("?", "？", "...", "…"))
        if not asks and (_CLOSERS.fullmatch(sentence) or _CHECKS.search(lower)):
            continue
        if left == 0:
            break
        left -= 1
        on_the_way = _is_on_the_way(sentence, asked)
        sentence = _cut_asides(sentence, asked)
        plans = sentence[find_turn(sentence.lower()) :]
        if asks or on_the_way or (_PLANS.search(plans.lower()) and not (GIVES.search(plans) or _OBTAINS.search(plans))):
            return ""
        kept, dropped = _keep_asserted(sentence, asked)
        if is_supposed(kept.lower()):
            return ""
        denied += dropped
        value = read_mention(kept, asked)
        if value and not asked.accepts(value, kept, text[: text.rfind(sentence[:40])]):
            return ""
        if value and not (asked.options and re.search(rf"(?<![A-Za-z]){re.escape(value)}(?![A-Za-z])", denied)):
            return value
        points_back = _POINTS_BACK.match(sentence) and asked.is_about_other(sentence)
        if (
            points_back
            or _SO.match(sentence)
            or (not asked.options and re.search(r"\d", dropped) and not _UNASKED.search(dropped))
        ):
            return ""
    return None


def _is_on_the_way(sentence: str, asked: Asked) -> bool:
    """Whether a sentence ends with a reservation, or with a power or a multiple of what is asked for."""
    if asked.equation or asked.options or _STARTS_FINAL.match(sentence) or _UNASKED.search(sentence):
        return False
    if asked.wants_words and not asked.date:
        return _BUT_NOT.search(sentence) is not None
    return _HOWEVER.search(sentence) is not None or _ON_THE_WAY.search(sentence) is not None


def _cut_asides(sentence: str, asked: Asked) -> str:
    """A sentence without its asides, but for those that speak more of what is asked for than the rest."""

    def speaks(text: str) -> int:
        return sum(asked.about(word) for word in re.findall(r"[a-z]{3,}", text.lower()))

    def cut(match: re.Match[str]) -> str:
        return match[0] if speaks(match[0]) >= max(1, speaks(sentence[: match.start()])) else ""

    return _ASIDES.sub(cut, sentence).rstrip("。")


def _keep_asserted(sentence: str, asked: Asked) -> tuple[str, str]:
    """A sentence without what it denies or says about something else, and that."""
    if asked.truth:
        return sentence, ""
    kept: list[str] = []
    dropped: list[str] = []
    introduced = False  # by a clause about something else
    start = 0
    if no := _NO.match(sentence):
        correction = _CORRECTION.search(sentence, no.end())
        start = correction.start() if correction else len(sentence)
        dropped.append(sentence[:start])
    for end in (*(match.end() for match in _CLAUSE.finditer(sentence, start)), len(sentence)):
        clause = sentence[start:end]
        other = asked.is_about_other(clause) and not sentence.startswith("Therefore")
        denied = _DENIALS.search(clause.lstrip())
        if other or introduced or (denied and not (asked.negated and _NOT.search(denied[0]))):
            introduced = _INTRODUCES.match(clause) is not None and (
                denied is not None or asked.is_limited(clause, clause.lower())
            )
            dropped.append(clause)
            if (other and re.search(r"\d|\bwhich\b|\bthat(?:'s| is)\b", clause)) or _SO.match(clause):
                dropped += kept
                kept.clear()  # what the sentence arrives at is something else
        else:
            kept.append(clause)
        start = end
    return "".join(kept).strip(), " ".join(dropped)
