"""What a question asks for, and whether a clause speaks of that and gives a value of its kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .choices import COMMON, NO_CHOICES, NOT, Choices, Comparison, find_choices, read_comparison, stem
from .cues import either
from .sentences import split_sentences
from .values import SCALE, normalize_answer, parse_value

_WORD = re.compile(r"[a-z]{3,}")
_NUMERIC = re.compile(rf"(?:{either('numeric')})", re.I)
_ASKS = re.compile(rf"(?:{either('asks')})", re.I)
_NEGATED = re.compile(r"\bnot\b|n['’]t\b|\b(?:except|incorrect|(?<!true or )false)\b", re.I)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question asks for."""

    words: frozenset[str] = frozenset()  # the content words of the sentence that asks
    choices: Choices = NO_CHOICES
    numeric: bool = False  # whether a number is asked for
    names: re.Pattern[str] | None = None  # what the question asks for by name, with the verb behind it
    thing: str = ""  # what "how many" asks for, without a final s
    counted: re.Pattern[str] | None = None  # a number of those things
    many: bool = False  # whether several values are asked for
    equation: bool = False  # whether an equation is asked for
    truth: bool = False  # whether yes or no, or true or false, is asked for
    comparison: Comparison | None = None
    wants_words: bool = False  # whether a name or words are asked for
    date: bool = False  # whether a date or a time is asked for
    inequality: bool = False  # whether the solutions of an inequality are asked for
    point: bool = False  # whether a point or a vector is asked for
    output: bool = False  # whether what a program prints or a string is asked for
    alternatives: tuple[str, ...] = ()  # the words that the question chooses between
    compared: re.Pattern[str] | None = None  # one of them with what the question asks behind it ("8.5 is larger")
    unit: str = ""  # the unit of time or length that "how many" asks for
    text: str = ""  # the sentence that asks
    measures: frozenset[str] = frozenset()  # which measures it asks for ("area")
    others: frozenset[str] = frozenset()  # names that the question mentions but does not ask about
    scopes: frozenset[str] = frozenset()  # the parts, steps and cases that it mentions
    variables: frozenset[str] = frozenset()  # those that it mentions and does not ask for
    rates: frozenset[str] = frozenset()  # the units of time or number of "per month" and "each day" in it
    degrees: frozenset[str] = frozenset()  # its adjectives that compare, without their endings
    weekday: bool = False  # whether a day of the week is asked for
    percent: bool = False  # whether a percentage is asked for
    chance: bool = False  # whether a probability is asked for
    negated: bool = False  # whether it asks for what is not
    qualifiers: frozenset[str] = frozenset()  # its words that one step does not answer ("total", "left")
    formal: bool = False  # whether it holds formulas
    numbers: frozenset[str] = frozenset()  # those that it gives, without commas
    open: bool = False  # whether no single value can be the answer: a text is asked for, or several things are

    @property
    def proper(self) -> bool:
        """Whether a person, a place or another thing with a name is asked for."""
        return _PROPER.search(self.text) is not None

    @property
    def names_one(self) -> bool:
        """Whether the answer is a name or one of its alternatives, which needs no further step once it is stated."""
        return bool(self.alternatives) or (not self.numeric and self.proper)

    @property
    def counts(self) -> bool:
        """Whether it asks how many there are of something, which no variable can be."""
        return bool(self.thing) or "number of" in self.text

    def about(self, word: str) -> bool:
        """Whether a word is one that the question asks about, or says nothing by itself."""
        return stem(word) in self.words or word in _GENERIC

    def means(self, subject: str, clause: str) -> bool:
        """Whether the subject of a clause in small letters may be what the question asks for."""
        known = self.about(subject) or (len(subject) < 3 and subject in re.findall(r"\w+", self.text.lower()))
        return not self.text or (known and not any(self.find_conflicts(clause)))

    def covers(self, lower: str) -> bool:
        """Whether a sentence in small letters speaks of what the question asks for."""
        if not self.words:
            return False
        common = self.words.intersection(map(stem, _WORD.findall(lower)))
        return len(common) >= max(2, min(3, len(self.words) * 0.4))

    def find_counted(self, sentence: str) -> str | None:
        """The last number that a sentence gives of the things that "how many" asks for."""
        if self.counted is None or self.thing not in sentence.lower():
            return None
        return next((str(found) for found in reversed(self.counted.findall(sentence))), None)

    def is_aside(self, lower: str) -> bool:
        """Whether a sentence says that something else than what the question asks for has its value."""
        subject = _SUBJECT.search(lower)
        return bool(self.words and subject and not self.about(subject[1]) and not self.covers(lower))

    def find_conflicts(self, clause: str) -> Iterator[str]:
        """In what a clause speaks of something else than the question asks for: a person, a part, a measure."""
        names = frozenset(_PERSON.findall(clause))
        lower = clause.lower()
        if not frozenset(_SCOPE.findall(lower)) <= self.scopes:
            yield "scope"
        variable = _ASSIGNED.match(clause)
        if variable and variable[1] in self.variables:
            yield "variable"
        rates = frozenset(_RATE.findall(lower))
        if rates and self.rates and not rates & self.rates:
            yield "rate"
        if names & self.others and not any(name in self.text for name in names):
            yield "person"
        part = _PART.match(lower)
        if part and self.text and not _same_part(part[1], part[2], self.text.lower()):
            yield "part"
        degrees = _degrees_in(lower)
        if degrees and self.degrees and not degrees & self.degrees:
            yield "degree"
        units = {stem(unit) for unit in _UNIT.findall(lower)}
        if self.unit and units and self.unit not in units:
            yield "unit"
        measures = _measures_in(lower)
        if self.measures and not self.wants_words and not measures & self.measures:
            if measures:
                yield "measure"
            elif "cost" in self.measures and _UNPRICED.search(clause):
                yield "no money"

    def find_mismatches(self, value: str, clause: str) -> Iterator[str]:
        """In what a value of a clause is not of the kind that the question asks for."""
        if _RANKED.search(self.text) and _COMPARES.search(clause):
            yield "compared"
        percent = _PERCENT.search(clause) is not None
        if self.percent and (_PRICED.search(value) or (_PRICED.search(clause) and not percent)):
            yield "no percentage"
        if self.chance and (number := parse_value(value)) is not None and not (0 <= number <= 1 or "%" in value):
            yield "no chance"
        if self.names_one and value.islower() and not self.alternatives and "where" not in self.text.lower():
            yield "no name"
        if not self.qualifiers.isdisjoint(_QUALIFIER.findall(clause.lower())):
            yield "qualified"
        elif self.qualifiers:
            yield "unqualified"

    def holds_in(self, sentence: str) -> str | None:
        """Yes or No, where a sentence says what the question asks, or compares the two that it compares."""
        if self.comparison is not None:
            return self.comparison.holds_in(sentence)
        for clause in reversed(re.split(r"[:;,—]\s", sentence)):
            common = self.words.intersection(map(stem, _WORD.findall(clause.lower())))
            if len(common) >= max(2, 0.6 * len(self.words)):
                return None if _WHETHER.search(sentence) else "No" if NOT.search(clause) else "Yes"
        return None

    def chosen_in(self, sentence: str) -> str | None:
        """The one of the question's alternatives of which a sentence says what the question asks."""
        found = self.compared.search(sentence) if self.compared else None
        if found is None or _NEGATED.search(found[0]) or _BELIEVED.search(sentence[: found.start()]):
            return None
        return next((one for one in self.alternatives if one.lower() == found[1].lower()), None)

    def alternative_in(self, text: str) -> str | None:
        """The one of the question's alternatives that a text names last, with its ending."""
        at = {one: _find_last(one.lower(), text.lower()) for one in self.alternatives}
        best = max(at, key=lambda one: (at[one], len(one)), default="")
        if at.get(best, -1) < 0:
            return None
        word = re.split(r"\W", text[at[best] :], maxsplit=1)[0]
        return word if best.isascii() and word.lower().startswith(best.lower()) else best

    def resolve(self, value: str) -> str | None:
        """A value as an answer: of a choice its label; None for what cannot be one."""
        if value in self.alternatives:
            return value  # "1 pound of tin" is not a number
        scale = _SCALE.search(value)
        if scale and re.search(rf"\b(?:in|how many) {scale[0].strip()}", self.text, re.I):
            value = value.replace(scale[0], "")
        answer = normalize_answer(value)
        return self.choices.label_of_answer(answer) if self.choices else answer


@lru_cache(maxsize=256)
def read_question(question: str) -> Asked:
    """What a question asks for; of a long prompt its end counts."""
    question = question[-8_000:]
    sentences = [question[start:end] for start, end in split_sentences(question)]
    asking = [s for s in sentences if ("?" in s or "？" in s or _ASKS.search(s)) and not _FORM_ONLY.search(s)]
    last = asking[-1] if asking else sentences[-1] if sentences else ""
    words = [word for one in _WORD.findall(last.lower()) if (word := stem(one)) not in COMMON]
    persons = frozenset(_PERSON.findall(last)) - _NO_PERSONS
    either_or = _ALTERNATIVES.search(last) if _CHOOSES.search(last) else None
    measures = _measures_in(last.lower())
    alternatives = tuple(ARTICLE.sub("", one.strip(" $")) for one in either_or.groups() if one) if either_or else ()
    if (listed := _LISTED.search(question)) and not _NUMERIC.search(last):
        alternatives = tuple(one for one in _QUOTED.findall(listed[1]) if one.lower() not in ("yes", "no"))
    degrees = _degrees_in(last.lower())
    percent, chance = _PERCENTS.search(last) is not None, _CHANCES.search(last) is not None
    weekday = _WEEKDAYS.search(last) is not None
    equation = "equation of" in last or "equation for" in last
    numeric = percent or chance or (_NUMERIC.search(last) is not None and not weekday)
    wants_words = not numeric and _WANTS_WORDS.search(last) is not None
    numeric = not equation and (numeric or (bool(measures) and not wants_words))
    negated = _NEGATED.search(last) is not None
    if choices := find_choices(question, negated):
        return Asked(frozenset(words), choices, negated=negated)
    counted = _COUNTED.search(last)
    things = next(filter(None, counted.groups()), "").lower() if counted else ""
    thing = stem(things)
    return Asked(
        frozenset(words),
        numeric=numeric or bool(thing),
        names=_name_pattern(last, words),
        thing=thing,
        counted=re.compile(rf"(?<![\d^.,/])({NUMBER})\s*(?:[a-z-]+\s+){{0,2}}?{re.escape(thing)}", re.I)
        if thing
        else None,
        many=not thing and _MANY.search(last) is not None and not re.search("inequality|interval|larger|smaller", last),
        equation=equation,
        truth=_TRUTH.search(last) is not None,
        comparison=read_comparison(last, alternatives),
        wants_words=wants_words,
        output=_OUTPUT.search(question[-300:]) is not None and _LITERAL.search(question) is not None,
        inequality="inequality" in last
        or _RANGE.search(last) is not None
        or (_INEQUALITY.search(last) is not None and not _EXTREME.search(last)),
        point=_POINT.search(last) is not None,
        date=_DATE.search(last) is not None,
        alternatives=alternatives,
        compared=_comparison(alternatives, degrees),
        unit=thing if _UNIT.fullmatch(f"1 {things}") else "",
        scopes=frozenset(_SCOPE.findall(question.lower())),
        variables=_find_unasked(last),
        degrees=degrees,
        rates=frozenset(_RATE.findall(last.lower())),
        weekday=weekday,
        percent=percent,
        chance=chance,
        qualifiers=frozenset(_QUALIFIER.findall(last.lower())),
        formal=_FORMAL.search(last) is not None,
        numbers=frozenset(one.replace(",", "") for one in re.findall(r"\d+(?:[.,/]\d+)*", question)),
        negated=negated,
        open=_is_open(question),
        text=last,
        measures=measures,
        others=frozenset(_PERSON.findall(question)) - persons - _NO_PERSONS if persons else frozenset(),
    )


def _find_last(word: str, text: str) -> int:
    """Where a word, perhaps with another ending, begins last; -1 for nowhere."""
    start = r"\b" if word[:1].isascii() and word[:1].isalnum() else ""
    stem = word[:-1] if word.isascii() and word.isalpha() and len(word) > 4 else word
    return max((match.start() for match in re.finditer(start + re.escape(stem), text)), default=-1)


def _comparison(alternatives: Sequence[str], degrees: frozenset[str]) -> re.Pattern[str] | None:
    """How a sentence says which of two is the larger, the older or the like."""
    if not alternatives or not degrees:
        return None
    same = "|".join(sorted(degrees)).replace("larg", "larg|bigg|great|more")
    more = r"|\s?>\s?\d" if "larg" in degrees else ""
    return re.compile(
        rf"(?<![\w.])({'|'.join(map(re.escape, alternatives))})(?![\w]|\.\d)\W*"
        rf"(?:(?:(?:is|was|are|were)\b|['’]s\b)(?: \w+){{0,2}}\W+(?:{same})(?:er|est)?\b{more})",
        re.I,
    )


def _find_unasked(asking: str) -> frozenset[str]:
    """The variables that a question mentions and does not ask for."""
    if _SOLVES.search(asking):
        return frozenset()
    asking = _RATIO_OF_UNITS.sub("", asking)
    return frozenset(_LETTER.findall(asking)) - frozenset(_WANTED.findall(asking))


def _same_part(part: str, noun: str, text: str) -> bool:
    """Whether a question asks about a part ("each person", "the larger one") too."""
    if part in ("each", "every", "per", "one"):
        return re.search(
            r"\b(?:each|every|per|apiece|one)\b" if part == "one" else r"\b(?:each|every|per|apiece)\b", text
        ) is not None or bool(noun and re.search(rf"\b{noun}", text))
    return part[:4] in text


def _measures_in(lower: str) -> frozenset[str]:
    same = {"price": "cost", "average": "mean"}
    return frozenset(same.get(found, stem(found)) for found in _MEASURE.findall(lower))


def _degrees_in(lower: str) -> frozenset[str]:
    return frozenset("larg" if found in ("bigg", "great") else found for found in _DEGREE.findall(lower))


def _is_open(question: str) -> bool:
    """Whether a question asks for a text, or for several things: in its last paragraph, or in labelled parts."""
    paragraph = question.rstrip().rpartition("\n\n")[2]
    several = sum(mark in "?？" for mark in paragraph) > 1 or _PARTS.search(question) is not None
    return several or _OPEN.search(question) is not None


def _name_pattern(asking: str, words: Sequence[str]) -> re.Pattern[str] | None:
    """What the values of the asked words and variables stand behind."""
    cue = _ASKS.search(asking)
    behind = _WORD.findall(asking[cue.end() :].lower()) if cue else []
    nouns = [word for found in behind if (word := stem(found)) in words][:2]
    names = [rf"\b{re.escape(noun)}s?\b[^.,;=\d]{{0,60}}?" for noun in nouns]
    for expression in _EXPRESSION.findall(asking):
        tokens = re.findall(r"\\[A-Za-z]+|\S", expression)
        if 0 < len(tokens) <= 40 and "=" not in tokens:
            names.append(r"(?<![A-Za-z\\_^])" + r"\s*".join(map(re.escape, tokens)))
    if not names:
        return None
    return re.compile(rf"(?:{'|'.join(names)})(?:\\\)|\$)?\s*(?:{either('equals')})", re.I)


NUMBER = r"[-+−]?[$€£¥]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?(?:%|" + SCALE + ")?"
_SCALE = re.compile(SCALE)
_WHETHER = re.compile(r"\b(?:whether|if|question|asks?|asking|might|may|could|would)\b|\?", re.I)
_COUNTED = re.compile(rf"(?:{either('counted')})", re.I)
_MANY = re.compile(rf"(?:{either('many')})", re.I)
_WANTS_WORDS = re.compile(rf"(?:{either('wants_words')})", re.I)
_OPEN = re.compile(rf"(?:{either('open')})", re.I | re.M)
_PARTS = re.compile(r"(?:^|\s)\(?a\)\s.{1,2000}?\s\(?b\)\s", re.S)
_SCOPE = re.compile(rf"(?:{either('scopes')})")
_QUALIFIER = re.compile(rf"(?:{either('qualifiers')})")
_INEQUALITY = re.compile(r"[<>≤≥]|\\[lg]eq?(?![a-z])")
_RANGE = re.compile(r"\brange of (?:the )?(?:possible )?values\b|取值范围")
_EXTREME = re.compile(
    r"\b(?:how many|smallest|largest|least|greatest|minimum|maximum|sum|number of|what is|let|if)\b", re.I
)
_RANKED = re.compile(r"\b\w{2,}est\b|\b(?:last|third|position)\b")
_COMPARES = re.compile(r"(?:er|more|less|before|after|ahead|behind) (?:than |of )?(?-i:[A-Z])\w+[^,;]*$")
_RATE = re.compile(r"\b(?:per|an?|each|every) (second|minute|hour|day|week|month|year)\b")
_DEGREE = re.compile(
    r"\b(short|long|tall|small|larg|bigg|young|old|cheap|high|low|fast|slow|near|light|heavi|few|lat|earli|wid|narrow|"
    r"thick|thin|great|less|more|least|most|middle|half|first|second|third|next|last)(?:er|est)?\b"
)
ARTICLE = re.compile(r"^(?i:the|an?) ")
_BELIEVED = re.compile(
    r"\b(?:(?:some|many|most)(?:one| people)?|people|might|may|could|(?<!i )think(?:ing)?|at first|"
    r"mis(?:take|read|conc)\w*|confus\w*|intuit\w*)\b",
    re.I,
)
_PERCENT = re.compile(r"%|\bpercent", re.I)
_PERCENTS = re.compile(rf"(?:{either('percents')})", re.I)
_WEEKDAYS = re.compile(rf"(?:{either('weekdays')})", re.I)
_CHANCES = re.compile(rf"(?:{either('chances')})", re.I)
_ASSIGNED = re.compile(
    r"^\W{0,9}(?:(?:so|thus|hence|therefore|then|(?:we|i) (?:get|have|know)|from [^,=]{1,40},)\s+){0,3}"
    r"[$(\\]{0,3}([A-Za-z])\s?=(?!=)",
    re.I,
)
_SOLVES = re.compile(r"\b(?:solve|solutions?|roots?|equation|function|inverse)\b|解方程|根", re.I)
_LETTER = re.compile(r"(?<![A-Za-z\\'’])(?![aA] [A-Za-z]|I\b)[A-Za-z](?![A-Za-z'’])")
_WANTED = re.compile(
    r"(?:(?:values? of|find|is|are|for|what's|compute|determine|求)\s*(?:the (?:value|number) )?|"
    r"(?:integer|number|prime|constant|value|angle|point|smallest|largest|least|greatest|positive|real|what|which)s? )"
    r"[$(\\]*([A-Za-z])(?![A-Za-z(]|\s*[-+*/^=])",
    re.I,
)
_RATIO_OF_UNITS = re.compile(r"\b[a-zA-Z]{1,3}/(?:s|h|hr|min|L|mol|m|kg|K)(?![A-Za-z])")
_GENERIC = frozenset("result total value answer sum number amount rest one whole it median".split())
_PERSON = re.compile(
    r"(?<=[a-z,;] )[A-Z][a-z]+|(?<=\bthe )[A-Z][a-z]+|\b[A-Z][a-z]+(?=(?:'s|’s)? (?:is|has|had|and|was|[a-z]+s)\b)"
)
_NO_PERSONS = frozenset(
    "Who What How Which When Where If The She He It They In There Each Every One Two An Let This That Then So His Her "
    "At On For After Before And But Find Compute".split()
)
_POINT = re.compile(
    r"\b(?:cent(?:er|re)|(?<!boiling )(?<!melting )(?<!freezing )point|vertex|coordinates|vector|midpoint|"
    r"cross product|gradient|triple|ordered pair)\b|"
    r"坐标|向量|中点",
    re.I,
)
_OUTPUT = re.compile(
    r"\b(?:prints?|output|python|code|string|replace|program|regular expression|command|query|return(?:s|ed)?)\b", re.I
)
_LITERAL = re.compile(r"[`\[(=]|\"|python|program|code|sql|regular|command", re.I)
_PROPER = re.compile(
    r"\b(?:who|whom|whose|where|city|country|river|capital|planet|mountain|ocean|month|day|team|author|language|ship|"
    r"company|painter|king|queen|president|island|lake|sea|war|book|novel|film|continent|nation)\b|谁|作者|首都",
    re.I,
)
_FORMAL = re.compile(
    r"[$\\=]|\d\s*[-+*/^]|^\W*(?:find|compute|evaluate|convert|express|calculate|simplify|expand)\b.*\d|"
    r"^\W*what is\b.*(?:\d ?[%×·÷]|\bof \d+(?!\d|st|nd|rd|th)|(?<!\d)\d+(?!\d|st|nd|rd|th)[^?]{0,80}?\W\d|"
    r"\d (?:percent|plus|minus|times|divided|mod|squared|cubed|degrees|[a-z]+ (?:in|to|into)\b))",
    re.I,
)
_PART = re.compile(
    r"\W*(?:so |then |hence |thus |and )?(?:that's |that is )?(?:the )?"
    r"(each|every|per|one(?! (?:second|minute|hour|day|week|month|year|more|of))|inner|outer|other|"
    r"smaller|larger|remaining|former|latter)\b(?!\W*$)\W*(\w*)"
)
_UNIT = re.compile(
    r"\d ?(seconds?|minutes?|hours?|days?|weeks?|months?|years?|inches|feet|miles?|meters?|"
    r"kilometers?|kg|km|cm|lit(?:er|re)s?)\b"
)
_PRICED = re.compile(r"\$\d|\bdollars?\b|\bcents?\b")
_UNPRICED = re.compile(
    r"^(?!.*(?:\$|dollar|cent|€|£)).*\d ?(?:lit[er]+s?|gallons?|km|miles?|hours?|kg|pounds?)\b", re.I
)
_MEASURE = re.compile(rf"(?:{either('measures')})")
_CHOOSES = re.compile(
    rf"(?:{either('truth')})|还是|\b(?:which|who|what) (?:\w+ )?(?:is|was|are|were)\b[^,:]*[,:][^,:?]* or ", re.I
)
_LISTED = re.compile(
    r"\b(?:options|choices|one of|from)[^\[\]\n]{0,40}\[((?:['\"][^'\"\n]{1,80}['\"],?\s?){2,10})\]", re.I
)
_QUOTED = re.compile(r"['\"]([^'\"\n]+)['\"]")
_ALTERNATIVES = re.compile(rf"(?:{either('alternatives')})", re.I)
_DATE = re.compile(rf"(?:{either('dates')})", re.I)
_TRUTH = re.compile(rf"(?:{either('truth')})", re.I)
_SUBJECT = re.compile(
    r"\b(?:the|its|their) (?:\w+ )?([a-z]+)(?: (?:came|comes) out)? (?:(?:would|will|must) be|is|are|was|as|costs|"
    r"weighs)\s+(?=[-$\\(\d])"
)
_EXPRESSION = re.compile(r"(?:\$|\\\()([^$]{1,80}?)(?:\$|\\\))")
_FORM_ONLY = re.compile(rf"(?:{either('form_only')})", re.I)
