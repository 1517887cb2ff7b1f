r"""Values as people write them: where one ends in a text, one spelling for each, and when two are equal.

A value is a number with its unit, a fraction, an interval, a set, an equation, a LaTeX expression in any of its
delimiters, or a choice. Everything here takes time linear in the text: brackets are followed for `_REACH` characters.
"""

from __future__ import annotations

import re
from fractions import Fraction

_REACH = 600
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_NUMBER = r"(?:\d{1,3}(?:(?:,|\{,\}|,\\!)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FUNCTIONS = "sqrt|cbrt|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|mod|pi|infinity|inf"
_UNITS = "mgslhLWVAJNCF"  # single letters that are units behind a number, and variables elsewhere
_OPERAND = re.compile(
    rf"(?P<number>{_NUMBER})|(?P<command>\\[A-Za-z]+|\\[{{|])|(?P<open>√?[(\[{{])|(?P<symbol>√\s?\d+|[π∞√θφ])|"
    rf"(?P<word>(?:{_FUNCTIONS})(?![A-Za-z])|[A-Za-z](?![A-Za-z'’]))"
)
_OPERATOR = re.compile(
    r"\s*(?:(?:\\(?:cdot|times|div|pm|mp|leq?|geq?|neq?|approx|cup|cap|to|in|equiv|pmod|bmod|mid)(?![A-Za-z])|"
    r"<=|>=|!=|\*\*(?!\s)|(?<=\s)\*\*|[-+−*/×·÷=<>≤≥≠≈±^_∪]|(?<=\d):(?=\d)|\s[xX](?=\s*\d)|(?<=\s)mod(?=\s))\s*)"
)
SCALE = r"(?:\s?(?:thousand|million|billion|trillion)s?\b|[万亿])"
_POSTFIX = re.compile(
    rf"[²³⁴⁵⁶⁷⁸⁹]+|{SCALE}|\s?(?:\\?%|\^\{{?\\circ\}}?|°|!(?!=)|['’](?![A-Za-z])|\s?percent(?:age)?\b)"
)
_CLOCK = re.compile(r"(?<=\d)\s?[APap]\.?[Mm]\b\.?")
_MIXED = re.compile(r" \d+/\d+")
_SIGN = re.compile(r"[-+−±]\s?|\\pm\s*")
_AMOUNT = re.compile(_NUMBER)
_DELIMITER = re.compile(r"\\?.")
_SHORT_FRACTION = re.compile(r"\s?\d\s?(?:\d|\{\d+\})")  # \frac45, \frac 4 5, \frac4{13}
_ROOT = re.compile(r"\s?(?:\d+|[a-z](?![A-Za-z]))")  # \sqrt3
_SCRIPT = re.compile(r"\\circ|\\[A-Za-z]+|[-−]?(?:\d+|\w)")
_FACTOR = re.compile(r" \\(?:pi|sqrt|i|text)\b")
_NO_FACTOR = re.compile(r"\\[()\[\]\\,;!]")
_FUNCTION = re.compile(rf" ?(?!mod)(?:{_FUNCTIONS})(?![A-Za-z])")


def find_closing_brace(text: str) -> int | None:
    """Index of the brace that closes one opened before the text; None if it stays open."""
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    return None


def extract_boxed(text: str) -> str | None:
    r"""Content of the last closed ``\boxed{...}`` (braces may nest), or None."""
    at = len(text)
    while (at := text.rfind("\\boxed{", 0, at)) >= 0:
        start = at + len("\\boxed{")
        end = find_closing_brace(text[start : start + 2_000])
        if end is not None:
            return text[start : start + end].strip()
    return None


def close_bracket(text: str, start: int) -> int | None:
    """Index after the bracket that closes the one at `start`; `(` may be closed by `]` and the reverse (intervals)."""
    depth = 0
    for index in range(start, min(len(text), start + _REACH)):
        character = text[index]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return index + 1
    return None


def scan_expression(text: str, start: int) -> int | None:
    """Index after the bare expression that begins at `start`; None where there is none.

    Words end it, so that in "540 meters" it is the 540; an operator belongs to it only if an operand follows.
    """
    at, end = start, None
    while True:
        sign = _SIGN.match(text, at)
        operand = _scan_operand(text, sign.end() if sign else at)
        if operand is None:
            return end
        at = end = operand
        while (after := _scan_more(text, at)) is not None:
            at = end = after
        operator = _OPERATOR.match(text, at)
        if operator is None:
            return end
        at = operator.end()


def _scan_operand(text: str, at: int) -> int | None:
    if text.startswith(("$", "\\$", "€", "£", "¥"), at):  # currency
        at += 1 + text.startswith("\\", at)
        return match.end() if (match := _AMOUNT.match(text, at)) else None
    found = _OPERAND.match(text, at)
    if found is None:
        return None
    if found["open"]:
        return close_bracket(text, found.end() - 1)
    if found["command"]:
        return _scan_command(text, found)
    if found["word"] and text.startswith("(", found.end()):
        return close_bracket(text, found.end())
    return found.end()


def _scan_command(text: str, found: re.Match[str]) -> int | None:
    """A LaTeX command with its arguments, an environment, or a set in escaped braces."""
    name, at = found[0][1:], found.end()
    if name == "{":
        end = text.find("\\}", at, at + _REACH)
        return end + 2 if end >= 0 else None
    if name == "begin":
        end = text.find("\\end{", at, at + _REACH)
        return None if end < 0 else close_bracket(text, end + 4)
    if name in ("left", "bigl", "big", "Big", "lfloor", "lceil"):
        closing = {"lfloor": "\\rfloor", "lceil": "\\rceil"}.get(name, "\\right")
        end = text.find(closing, at, at + _REACH)
        tail = _DELIMITER.match(text, end + len(closing)) if end >= 0 and closing == "\\right" else None
        return None if end < 0 else tail.end() if tail else end + len(closing)
    if name in ("boxed", "fbox", "quad", "qquad", "end", "right", "item", "therefore", "implies", "Rightarrow"):
        return None
    while at < len(text) and text[at] in "{[":
        closed = close_bracket(text, at)
        if closed is None:
            return None
        at = closed
    if name == "sqrt" and at == found.end():
        digits = _ROOT.match(text, at)
        return digits.end() if digits else None
    if name.endswith("frac") and at == found.end():
        short = _SHORT_FRACTION.match(text, at)
        return short.end() if short else None
    return at


def _scan_more(text: str, at: int) -> int | None:
    """What continues an operand without an operator: a unit sign, a script, a factor, a mixed fraction."""
    postfix = _POSTFIX.match(text, at)
    if postfix and postfix[0]:
        return postfix.end()
    if daytime := _CLOCK.match(text, at):
        return daytime.end()
    following = text[at : at + 1]
    digit = text[at - 1 : at].isdigit()
    if following and following in "^_":
        inner = at + 1
        if text[inner : inner + 1] == "{":
            return close_bracket(text, inner)
        script = _SCRIPT.match(text, inner)
        return script.end() if script else None
    if digit and (mixed := _MIXED.match(text, at)):
        return mixed.end()
    if following == "\\" or (following == " " and _FACTOR.match(text, at)):
        found = _OPERAND.match(text, at + (following == " "))
        taken = found and found["command"] and not _NO_FACTOR.match(text, at)
        return _scan_command(text, found) if found and taken and not _OPERATOR.match(text, at) else None
    if following == "(" and (text[at - 1 : at].isalnum() or text[at - 1] == ")"):
        return close_bracket(text, at)
    if following and (following in "π√" or _FUNCTION.match(text, at)):
        return _scan_operand(text, at + (following == " "))
    if following.isalpha() and following.isascii() and not text[at + 1 : at + 2].isalpha():
        return None if digit and following in _UNITS else at + 1
    return None


_SMALL = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ONE_WORD = "|".join(sorted((*_SMALL, *_TENS, *_SCALES), key=len, reverse=True))
_SCALES |= {"万": 10**4, "亿": 10**8}
NUMBER_WORDS = rf"(?:{_ONE_WORD})(?:(?:[\s-]| and )(?:{_ONE_WORD})\b)*(?![\w-])"
_NUMBER_WORDS = re.compile(NUMBER_WORDS, re.IGNORECASE)


def read_number_words(text: str, at: int) -> tuple[int | None, int]:
    """The number whose name begins here ("one hundred and four"), and where it ends."""
    found = _NUMBER_WORDS.match(text, at)
    if found is None:
        return None, at
    total = part = 0
    for word in re.findall(r"[a-z]+", found[0].lower()):
        if word in _SCALES:
            part = max(part, 1) * _SCALES[word]
            if word != "hundred":
                total, part = total + part, 0
        else:
            part += _SMALL.get(word) or _TENS.get(word, 0)
    return total + part, found.end()


# -- one spelling ------------------------------------------------------------------------------------------------------

_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|bigl|bigr|big|Big)(?![A-Za-z])|\\[!,;:]|\\[()\[\]]|\^\{?\\circ\}?|°|\*\*|`"
)
_POWER = re.compile(r"(?<=[A-Za-z\d)])\*\*(?=\d)")
_SPELLINGS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s?(\d)\s?(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s?(\d)\s?\{"), r"\\frac{\1}{"),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])|[×·]"), "*"),
    (re.compile(r"(?<!\\)\bsqrt\s?\(([^()]*)\)|√\s?\(([^()]*)\)|√\s?(\w+)|\\sqrt\s?(\d)"), r"\\sqrt{\1\2\3\4}"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])|π"), r"\\pi"),
    (re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"(?<![\\A-Za-z])infinity(?![A-Za-z])|∞"), r"\\infty"),
    (re.compile(r"\\leq?(?![A-Za-z])|<="), "≤"),
    (re.compile(r"\\geq?(?![A-Za-z])|>="), "≥"),
    (re.compile(r"\s?percent(?:age)?\b|\\%"), "%"),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"−|–(?=\d)"), "-"),
    (re.compile(r"\^(-?\d{2,}|-\d)"), r"^{\1}"),
    (re.compile(r"(?<=[xyzabkpqrsuvw)])²"), "^2"),
    (re.compile(r"(?<=[xyzabkpqrsuvw)])³"), "^3"),
)
_MARKED_UP = re.compile(r"[\\*`°–−·×√π∞²³]|sqrt|percent|pi|infin")
_PLAIN_NUMBER = re.compile(r"(-?)(?=\.?\d)(\d*)(?:\.(\d*))?")
_PLAIN_FRACTION = re.compile(r"(-?\d*)\s*\\frac\{(\d+)\}\{(\d+)\}")
_COMMA = re.compile(r",(?!\d{3}(?!\d))")  # one between values, not within a number
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d*)?")  # other commas separate: 3,5 is not 35
_QUANTITY = re.compile(
    r"([-+]?(?:[$€£¥]|US\$|\\\$)?\s?[-+]?[\d.,/]*\d%?|-?[\d.]+\s?(?:\*|×|\\times)\s?10\^(?:-?\d+|\{-?\d+\}))"
    rf"\s?(?!(?:(?![{_UNITS}KMTd])[A-Za-z]|[abknpqxyz]{{2,3}})$)"  # variables, as in 3x
    r"((?:[A-Za-z²³]+\.?(?:\s|/|$)){1,4}|[\u4e00-\u9fff]{1,3}(?:/[\u4e00-\u9fff]{1,2})?)"
)
_ASSIGNMENT = re.compile(r"(?:[A-Za-z]\w?|[A-Za-z](?:_\{?\w+\}?)|\\[A-Za-z]+|[A-Za-z]\(\w+\))\s*(?:=|≈)\s*([^=<>≤≥,]+)")
_MIXED_NUMBER = re.compile(r"(-?)(\d{1,9}) (\d{1,9})/(\d{1,9})")
_DAYTIME = re.compile(r"(?i)(?<=\d)(?::00)?\s?([ap])\.?m\.?$")


def normalize_answer(answer: str) -> str:
    """Spell an answer in one way: no delimiters, thousands commas, currency, units, trailing zeros or final stop.

    Equal spellings are equal answers; different ones may still be (see `answers_equal`).
    """
    text = answer.strip().strip("$ ").rstrip(". ")
    if _MARKED_UP.search(text):
        text = _spell(text)
    plain = text.replace("$", "").replace("€", "").replace("£", "").strip().lstrip("+")
    if _THOUSANDS.fullmatch(plain):
        plain = plain.replace(",", "")
    if number := _PLAIN_NUMBER.fullmatch(plain):
        sign, whole, part = number[1], number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
        return f"{sign}{whole}.{part}" if part else "0" if whole == "0" else sign + whole
    if daytime := _DAYTIME.search(text):
        return f"{text[: daytime.start()]} {daytime[1].upper()}M"
    if quantity := _QUANTITY.fullmatch(text):
        return _scale(normalize_answer(quantity[1]), quantity[2])
    if mixed := _MIXED_NUMBER.fullmatch(text):
        sign, whole, top, bottom = mixed.groups()
        return f"{sign}{int(whole) * int(bottom) + int(top)}/{bottom}"
    if assigned := _ASSIGNMENT.fullmatch(text):
        return normalize_answer(assigned[1])
    return " ".join(_COMMA.sub(", ", text).split())


def _scale(number: str, unit: str) -> str:
    """A normalized number times the thousands, millions, ... that its unit begins with."""
    value, scale = parse_value(number), re.match(r"[a-z]+|[万亿]+", unit.lower())
    factor = _SCALES.get(scale[0].removesuffix("s")) if scale else None
    return number if value is None or factor is None else str(value * factor)


def _spell(text: str) -> str:
    unit = re.search(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}(?:\^\{?\d\}?)?\s*$", text)
    if (
        unit
        and unit.start()
        and re.search(r"(?:[\d}]|\\pi)\s*(?:\\[ ,;!]\s*)?$", text[: unit.start()])
        and "\\text" in text
    ):
        text = text[: unit.start()]
    text = _DROPPED.sub("", _POWER.sub("^", _WRAPPERS.sub(r"\1", text)))
    for pattern, new in _SPELLINGS:
        text = pattern.sub(new, text)
    text = text.replace("\\$", "").strip().strip("$").rstrip(".").strip()
    if fraction := _PLAIN_FRACTION.fullmatch(text):
        text = f"{fraction[1]} {fraction[2]}/{fraction[3]}".strip().replace("- ", "-")
    elif not re.search(r"[A-Za-z]{2}(?<!frac)(?<!sqrt)(?<!pi)(?<!infty)", re.sub(r"\\[A-Za-z]+", "", text)):
        text = re.sub(r"\s+", "", text)  # mathematics without words
    return text


_DECIMAL = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
_VALUE = re.compile(rf"({_DECIMAL})(?:/({_DECIMAL}))?(%?)")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[\d.]+)\}\{(-?[\d.]+)\}")


def parse_value(answer: str) -> Fraction | None:
    """The number that an answer spells (12, -0.5, 1/2, 50% or a LaTeX fraction), or None."""
    plain = re.sub(r"(?<!\d) | (?=\D|\d{3}(?!\d))", "", normalize_answer(answer))  # 1 000, but not 2 3
    found = _VALUE.fullmatch(_FRACTION.sub(r"\1\2/\3", plain))
    if found is None or max(map(len, found.groups(""))) > 100 or Fraction(found[2] or 1) == 0:
        return None
    return Fraction(found[1]) / Fraction(found[2] or 1) / (100 if found[3] else 1)


def answers_equal(first: str, second: str) -> bool | None:
    """Whether two answers are equal; None where their spellings differ and they are not both numbers."""
    units = _read_unit(first), _read_unit(second)
    first, second = normalize_answer(first), normalize_answer(second)
    if all(units) and units[0] != units[1]:
        return None
    if first == second:
        return True
    one, other = parse_value(first), parse_value(second)
    if one is None or other is None or ("%" in first) != ("%" in second):
        return None
    return one == other


def _read_unit(answer: str) -> str:
    quantity = _QUANTITY.fullmatch(answer.strip().rstrip("."))
    unit = "" if quantity is None else re.sub(SCALE, "", quantity[2].lower())
    return unit.strip().rstrip(".").removesuffix("s")
