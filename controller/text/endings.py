"""What a text ends with where no words call it an answer: "24*7 is 168.", "**Yes**", "so C.", "So 54. ✓"

Only for the end of a text whose question is known; far too lenient to decide on while a model thinks.
"""

from __future__ import annotations

import re

from .cues import either
from .mentions import read_mention, read_truth
from .questions import Asked
from .sentences import find_turn, is_supposed, split_sentences

_SENTENCES = 3
_PLANS = re.compile(rf"(?:{either('plans')})")
_CHECKS = re.compile(rf"(?:{either('checks')})")
_CLOSERS = re.compile(rf"\W*(?:{either('closers')})\W*", re.I)
_ASIDES = re.compile(rf"(?:{either('asides')})", re.I)
_DENIALS = re.compile(rf"(?:{either('denials')})", re.I)
_SO = re.compile(r"\s*(?:so|thus|hence|therefore|所以|因此)\b", re.I)
_INTRODUCES = re.compile(r"\W*(?:after|on|in|at|for|from|by|with|without|during)\b[^\d=]*,\s*$|[^\d=]*:\s*$", re.I)
_NO = re.compile(r"\W*(?:no|not|i don't think so)\b|\W*不[，,]", re.I)
_CORRECTION = re.compile(r"\b(?:it's|it is|it must be|it should be|but|so|therefore)\b|而是|应该是", re.I)
_NOT = re.compile(r"not\b|n['’]t\b", re.I)
_CLAUSE = re.compile(r"(?:[;:—]|(?<!\d),(?=\s)|,(?=\s[^\d]))\s|\s(?=(?:but|so|while) |and [A-Z][a-z]+ \d)|[，；]")

_HOWEVER = re.compile(r"(?:,? (?:but|however|yet|before (?:\w+ing|tax|tips?|discounts?))\b|[，,]但)[^\d,，;]*$", re.I)


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
        reserved = not (asked.equation or asked.options or asked.wants_words) and _HOWEVER.search(sentence)
        sentence = _cut_asides(sentence, asked)
        plans = sentence[find_turn(sentence.lower()) :]
        if asks or reserved or _PLANS.search(plans.lower()):
            return ""
        kept, dropped = _keep_asserted(sentence, asked)
        if is_supposed(kept.lower(), find_turn(kept.lower())):
            return ""
        denied += dropped
        value = read_mention(kept, asked)
        if value and not asked.accepts(value, kept, text[: text.rfind(sentence[:40])]):
            return ""
        if value and not (asked.options and re.search(rf"(?<![A-Za-z]){re.escape(value)}(?![A-Za-z])", denied)):
            return value
        if _SO.match(sentence) or (not asked.options and re.search(r"\d", dropped)):
            return ""
    return None


def _cut_asides(sentence: str, asked: Asked) -> str:
    """A sentence without its asides, but for those that say more about the goal of the question than the rest."""

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
