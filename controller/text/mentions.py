"""The value that a sentence mentions, by the kind of answer that its question wants: a choice, a date, a number.

Lenient: the sentence has to be one that answers (see `endings`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .choices import AFFIRMED
from .cues import either
from .questions import ARTICLE, Asked
from .sentences import DENIED
from .value_reader import read_value
from .values import NUMBER_WORDS, normalize_answer, read_number_words, scan_expression

GIVES = re.compile(rf"(?:{either('gives')})", re.I)
_NUMBER_WORDS = re.compile(
    rf"(?:^\W*|\b(?:so|it's|that's|is|are|makes?|takes?|costs?|be|has|have|needs?|gives?|about|namely)\W+|i\.e\. |"
    rf"[=→] )(?:exactly |only |just )?"
    rf"({NUMBER_WORDS})",
    re.I,
)
_SPELLED = re.compile(rf"(?<!\d )\b{NUMBER_WORDS}", re.I)
_TAIL = re.compile(r" (?!too|then|again|either|first|itself|today|now|here|there|instead)[a-z]+(?=[.,;]|$)")
_PART_UNIT = (
    r"(?:hours?|minutes?|min|seconds?|days?|weeks?|months?|years?|feet|foot|ft|inch(?:es)?|pounds?|lbs?|ounces?|oz|"
    r"dollars?|cents?|小时|分钟?|秒|天|元|角|米|厘米)"
)
_COMPOUND = re.compile(
    rf"(?<![\d.,])\d+ ?(?P<unit>{_PART_UNIT})(?:,? and |, | ?)\d+ ?(?!(?P=unit)){_PART_UNIT}(?![a-z])"
)
_TURN = re.compile(
    rf"(?:{either('turns')})|\bwhich (?:means|gives|makes|leaves|rounds to)\b|,? so (?=[\w$\\(-])|(?:所以|因此|故|即)",
    re.I,
)
_TRUTH = re.compile(
    r"(?P<no>(?:\bnot|n['’]t|\bcannot) (?:\w+ly )?(?:be )?(?:true|follow|conclude|valid|correct|imply|guarantee|"
    r"necessarily|possible|mean (?:that )?the)\w*|\binvalid\b|\bfallacy\b)|"
    r"\b(yes|no(?! (?!(?:it|they|s?he|this|that|you|we|i|there|because|since|as|and|but|for|when|if|in|by)\b)[a-z])|"
    r"true|false)\b|((?:回答|答案)[是为：:]?[\"“]是|是的|否|对的|错的|正确|错误|不(?:是|能|会|对|可以)(?=\W*$)|"
    r"(?:所以|因此|故)(?:它|这)?不|(?:所以|因此)(?:它|这)?(?:是|能|会|对|可以))",
    re.I,
)
_CHINESE_NO = "否错不"
_LABEL = re.compile(r"\(?(?<![A-Za-z0-9])([A-Za-z]|\d)(?![A-Za-z0-9])\)?(?!['’=^_+/\d]|\*\w|\.\d)")
_JOINED_LABEL = re.compile(r"\)? (?:and|or) (?:option )?\(?[A-Z\d]\b(?!\.\d)")
_JOINED_TO = re.compile(r"\b[A-Z\d]\)? (?:and|or) (?:option )?$")
_ARTICLE_A = re.compile(
    r" (?:(?!(?:is|was|and|or|as|must|would|could|seems|looks|appears|fits|matches|has)\b)[a-z]|\d+-)"
)
_LEADS = re.compile(
    r"(?:\bso|\bhence|\bthus|\bit's|\bthat's|\b(?:it|that) is|\bleaves|\bleft with|\bchoice|\boption|\banswer|"
    r"\bletter is|\bpick|\bas|→|=>|\bto|\bbe|\bmaking|i\.e\.|\bsay|\bnumber|\bwith|"
    r"\btowards?|选|\*\*)[\s,:*]*\(?$|^\W*$",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"\)?\*{0,2}\s*(?:is|are|it is|looks|seems|correct|right|works|选项|项|$|\W*$)(?!\s*(?:not|wrong|false|out|an?\s))",
    re.I,
)
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?|"
    r"Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
_DATE = re.compile(
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)? )?{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?\b|"
    rf"\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}(?:,? \d{{4}})?|{_MONTH} \d{{4}}|\d{{4}}年(?:\d+月(?:\d+日)?)?|"
    r"\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}:\d\d(?:\s?[APap]\.?[Mm]\b)?|\b\d{1,2}\s?[ap]m\b|"
    r"\b\d{3,4}(?: (?:BC|AD|BCE|CE)\b)?(?![\d./])"
)
_CLOCK = re.compile(r"(\d{1,2})点(半|\d{1,2}(?!\d))?")
_WEEKDAY = re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b|(?:星期|周)[一二三四五六日天]")
_LONE_VARIABLE = re.compile(r"(?<![-+*/^=] )(?<![\w\\^*/+-])([A-Za-z])\$?\s*$")
_VARIABLE = r"(?:(?<![\^*/+=-] )(?<![\w\\^*/+-])[$(]?(?:[A-Za-zλμθα]|\\lambda)(?:_\d)?\s*=\s*)"
_ITEM = re.compile(rf"\s*(?:,\s*(?:and|or)\s|,|\band\b|\bor\b|和|或|、)\s*\$?({_VARIABLE})?")
_FIRST_ITEM = re.compile(rf"({_VARIABLE})|(?<![\w.,^*/+=(\[{{-])(?<![*/+=^×·-] )(?=[-−+]?(?:\d|√|π|\\frac|\\sqrt))")
_BRACKETS = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]")
_NAME = r"[A-Z][\w’'.-]*(?:(?: (?:of|da|van|de|the|von|and the))? [A-Z][\w’'.-]*){0,4}"
_WORD_LIST = re.compile(r"(?:^|: |\bis |\bare )((?:the )?[^\W\d][^\d,.:=]{0,40}(?:, [^\d,.:=]{1,40}){2,12})\.?$")
_QUOTED = re.compile(r"[`\"“']([^`\"“”']{1,60})[`\"”'](?!\w)|\*\*([^*]{1,60}(?<!:))\*\*")
_CODE = re.compile(
    r"\[(?:[^\[\]]|\[[^\[\]]{0,80}\]){1,80}\]|\b(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP)\b [^;]{3,200};?"
)
_ACTING = re.compile(
    rf"\b({_NAME})(?=\s+(?:is|was|has|had|owns|must|sits|wrote|painted|won|discovered|composed|flows|[a-z]+ed it)\b)"
)
_NAMED = re.compile(
    rf"(?:\b(?i:is|was|were|by|be|it's|that's|called|so|hence|thus|therefore|means?|stands for|prints?|"
    rf"raises|only|as|answer|say)\b[\s,:]*|→\s*|:\s+)(?:in fact |now |the |an? )?({_NAME})|"
    rf"^\W*(?:so\W+)?(?:the )?({_NAME})(?=\W*$)"
)
_PREPOSED = re.compile(rf"\b(?:on|in|for|to|at|of|from) (?:the )?({_NAME})")
_PLACE = re.compile(r"\b(?:under|above|be(?:low|neath|hind|side)|next to|on) (?:the|an?|his|her|their) [a-z]+")
_LOWER = re.compile(
    r"(?:\b(?i:is|was|it's|that's|that is|be|called|so|hence|facing|makes?|means|for|were|gives?|prints?|outputs?|"
    r"returns?|get|yields?|answer|say)\s+|→\s*|:\s*|=\s*)(?:now |facing |usually |simply |just |called )?"
    r"(?:the |an? )?([a-z][\w-]*(?: [a-z][\w-]*)?)(?=\s*[.,;:!]|\s+at the|\s*$)"
)
_THE = re.compile(r"\b(?:is|was|it's|be) the ([a-z]+)(?=[.,;]|$)")
_WORDS = (_NAMED, _ACTING, _PREPOSED, _LOWER, _THE, re.compile(rf"({_NAME})"), re.compile(r"\b([a-z]+)[\"”]?\W*$"))
_SAME = re.compile(
    r"\b(?:equal|neither|the same(?=\W*$| (?:size|age|height|amount)\b)|both(?= (?:are|were|have|cost|weigh)\b))\b",
    re.I,
)
_BEHIND_THAN = re.compile(r" than |(?<=[\w)]) ?> ?(?=[\w(])")
_INEQUALITY = re.compile(
    r"(?:[-−]?[\d./]+ ?(?:<|>|≤|≥|<=|>=|\\[lg]eq?) ?)?\b[a-z] ?(?:<|>|≤|≥|<=|>=|\\[lg]eq?) ?[-−]?[\d./√π]+"
    r"(?: (?:or|and) [a-z] ?(?:<|>|≤|≥|<=|>=|\\[lg]eq?) ?[-−]?[\d./√π]+)?"
)
_FORMULAS = re.compile(r"\$([^$ ](?:[^$]{0,200}[^$ ])?)\$|\\\((.{1,200}?)\\\)|\\\[((?s:.){1,300}?)\\\]")
_SIDES = re.compile(r"(?<![<>!])=(?!>)|≈|\\approx")
_IN_WORDS = re.compile(
    r" ?(?:\\\)|\$)? (?:(?:must|should|has to) )?(?:is|are|be) "
    r"(?:strictly )?(?:(?P<more>greater|more|larger)|less|smaller) than"
    r"(?P<equal> or equal to)? (?:\\\(|\$)? ?"
)
_UNKNOWN = re.compile(r"(?<![A-Za-z\\{])[a-hj-z](?![A-Za-z])")  # in "3(8 + t)"
_POINT = re.compile(r"(?<![\w)])(?:\\left)?\([^()]{1,80},[^()]{1,80}\)")
_STARTS = re.compile(
    r"(?<![A-Za-z0-9_.,:^])(?:[-−+]?[$€£]?\d(?!D\b)|sqrt|\\[a-z{]|√|[-−]?π|[(\[{](?=[-−+\d∞\[]|[a-z]\s?[-−+])|O(?=\()|"
    r"(?<!\d )[a-z](?=\^|[²³]| [-+] \d))"
)
_EQUALS = re.compile(
    r"(?:\b(?:(?i:(?:al)?together|total(?:s|l?ing)?(?: of)?|being|it's|it is|that's)|is|be|equals|at|returns|"
    r"(?:gives|leaves|giving|leaving|yields|yielding|makes|making|to get|we get)(?: me| us)?(?: with)?)\s+|"
    r"(?:=>|(?<![<>!])=(?!>)|≈|→|->|\\implies)[\s*`$]*|: (?=[-−$€£]?[\d(][^:=]*$)|(?:为|等于)\s?)"
)
_STOP_WORDS = frozenset(
    "It So That This The I On After From We He She They Then Now Okay Ok Hmm Yes No But And In At If Not Only There "
    "Both Her His Its One Also Thus Hence That's It's I'm I'd I'll Let Wait All Each Alone To Of For By As Or People "
    "Answer Output Answering Because Since When Where Which What Who With Good Great Right Done Final Given "
    "Close one answer it correct that what easy simple right true found "
    "obvious not also still known already Simple Easy Nothing Maybe Perhaps Adding Although Unlike Sure Fine Simply "
    "Alright Nice Perfect Correct Yep Yeah Nope Phew Oh Ah Actually "
    "Just Still Stick Keep Make Add Use Finally Overall Solid Must Need Should".split()
)
_LEADING = re.compile(r"^(?:Since|Because|As|If|When|But|And|So|Then|Thus|Hence) (?=[A-Z])")
_CHINESE = re.compile(
    r"(?:应该是|一般认为是|就是|即|叫|名|选|是|(?<!认)为|由|属于|：)(?!的)([\u4e00-\u9fffA-Za-z][^，。；、：\s]{0,11})"
)
_CHINESE_VERB = re.compile(r"(?:所|写|作|的|即可|创作|著|画|发明|发现)+的?$")


def read_mention(sentence: str, asked: Asked) -> str | None:
    """The value that is called the answer, that behind the last turn of a sentence, else anywhere in it."""
    if asked.numeric:
        sentence = _SPELLED.sub(_spell_large, sentence)
    if not asked.choices and not asked.truth:
        for match in GIVES.finditer(sentence):
            starts = re.match(r"[-−$\\(]?(?:\d|\\|[a-z]?[(√π])", sentence[match.end() :])
            if starts and (value := _read_at(sentence, match.end(), asked)):
                return value
    if asked.output and len(sentence.split()) == 1:
        return sentence.removesuffix(".").strip("`\"'")
    turns = [match.end() for match in _TURN.finditer(sentence)]
    for start in (*turns[-1:], 0):
        if value := _read_part(sentence[start:].strip(), asked):
            return value
    return None


def read_others(sentence: str, asked: Asked) -> Iterator[str]:
    """Every value of a sentence that may be meant, from the last one on, where numbers or words are asked for."""
    if (
        asked.choices
        or asked.truth
        or asked.alternatives
        or asked.weekday
        or asked.many
        or asked.point
        or asked.equation
    ):
        return
    if not asked.wants_words:
        values = [sentence[start:end].strip(" .") for start, end in _scan_values(sentence, asked)]
        yield from (value for value in reversed(values) if "=" not in value)
    if not asked.numeric and not asked.formal:
        found = (m for pattern in _WORDS for m in pattern.finditer(sentence))
        names = sorted((m for m in found if not sentence.endswith("than ", 0, m.start())), key=lambda m: -m.start())
        yield from filter(None, (_clean(_name_of(match, asked)) for match in names))


def _read_part(sentence: str, asked: Asked) -> str | None:
    if asked.choices:
        return _read_label(sentence, asked)
    if asked.alternatives and ((value := _read_alternative(sentence, asked)) or not asked.truth):
        return value
    if asked.truth:
        return read_truth(sentence)
    if asked.weekday:
        days = _WEEKDAY.findall(sentence)
        return str(days[-1]) if days else None
    if asked.date and (clock := _CLOCK.findall(sentence)):
        return f"{clock[-1][0]}:{clock[-1][1].replace('半', '30').zfill(2)}"
    if asked.date and (dates := [one for one in _DATE.findall(sentence) if one not in asked.text]):
        return str(max(dates, key=len)) if dates[-1].isdigit() else str(dates[-1])
    if asked.many and (series := _read_series(sentence, asked)):
        return series
    if asked.output and (code := _CODE.findall(sentence) or re.findall(r"`([^`]{1,80})`", sentence)):
        return str(code[-1])
    if asked.inequality and (found := [m[0] for m in _INEQUALITY.finditer(_IN_WORDS.sub(_spell_relation, sentence))]):
        return found[-1].strip(" .$")
    if asked.point and (points := _POINT.findall(sentence)):
        return str(points[-1])
    if asked.wants_words:
        number = None if asked.proper else _read_number(sentence, asked)
        return _read_words(sentence, asked) or number or _read_words(sentence, asked, stale_too=True)
    number = _read_number(sentence, asked)
    if number or asked.numeric or asked.formal:
        return number
    return _read_words(sentence, asked, stale_too=True)


def _spell_large(match: re.Match[str]) -> str:
    """A number above twelve in digits."""
    number = read_number_words(match[0], 0)[0] or 0
    return str(number) if number > 12 else match[0]


def _spell_relation(match: re.Match[str]) -> str:
    """The sign of "is greater than" or the like."""
    signs = "≥≤" if match["equal"] else "><"
    return f" {signs[match['more'] is None]} "


def read_truth(sentence: str) -> str | None:
    """The yes or no, or true or false, that a sentence says last."""
    found = list(_TRUTH.finditer(sentence))
    if not found:
        return None
    last = found[-1]
    return last[2] or ("No" if last["no"] or re.search(f"[{_CHINESE_NO}]", last[3]) else "Yes")


def _read_label(sentence: str, asked: Asked) -> str | None:
    """The one choice that a sentence settles on."""
    found = []
    for match in _LABEL.finditer(sentence):
        label = (
            asked.choices.label(match[1])
            if match[1].isupper() or match[1].isdigit() or match[1] in asked.choices
            else None
        )
        before, after = sentence[: match.start()], sentence[match.end() :]
        joined = _JOINED_LABEL.match(after) or _JOINED_TO.search(before)
        if label is None or joined or DENIED.search(before) or (match[1] == "A" and _ARTICLE_A.match(after)):
            continue
        if asked.negated and AFFIRMED.match(after.lstrip(")* ")):
            continue
        if _LEADS.search(before) or _CHOSEN.match(after) or match[0].startswith("("):
            found.append(label)
    if found:
        return found[-1]
    if label := asked.choices.label_of_text_in(re.sub(r"[*$]|(?<= )- ", " ", sentence.lower()), shortest=3):
        return label
    formulas = [side for one in reversed(_find_formulas(sentence)) for side in (one, *reversed(_SIDES.split(one)))]
    values = [sentence[start:end] for start, end in _scan_values(sentence, asked)]
    for value in (_read_number(sentence, asked), *formulas, *reversed(values)):
        if value and (label := asked.choices.label_of(normalize_answer(value).lower())):
            return label
    return None


def _find_formulas(sentence: str) -> list[str]:
    return [str(next(filter(None, match))).strip().rstrip(" .,") for match in _FORMULAS.findall(sentence)]


def _read_alternative(sentence: str, asked: Asked) -> str | None:
    """The one of the question's alternatives that a sentence names last."""
    if asked.comparison is not None and len(asked.alternatives) == 2 and (first := asked.holds_in(sentence)):
        return asked.alternatives[first == "No"]
    sentence = _BEHIND_THAN.split(sentence)[0]
    if same := _SAME.search(sentence):
        return same[0]
    return asked.alternative_in(sentence)


def _read_series(sentence: str, asked: Asked) -> str | None:
    """Several values or names: "x = 7 or x = -2", "3/4 and 1", "Gus, Dana, Eli"; None if there are fewer than two."""
    if words := _WORD_LIST.search(sentence):
        return re.sub(r"^(?:.*\b(?:is|are)|so,?) ", "", words[1], flags=re.I)
    found, reach = None, 0
    sentence = _BRACKETS.sub(lambda match: "#" * len(match[0]), sentence)
    for start in _FIRST_ITEM.finditer(sentence):
        if start.start() < reach:
            continue
        values, variables, end = [], {(start[1] or "").strip()}, scan_expression(sentence, start.end())
        at = start.end()
        while end is not None:
            values.append(sentence[at:end])
            reach = end
            joined = _ITEM.match(sentence, end + (sentence[end : end + 1] == "$"))
            if joined is None:
                break
            variables.add((joined[1] or "").strip())
            at, end = joined.end(), scan_expression(sentence, joined.end())
        if len(values) > 1:
            pair = len(variables - {""}) > 1
            found = f"({', '.join(values)})" if pair else ", ".join(values)
    return found


def _scan_values(sentence: str, asked: Asked) -> Iterator[tuple[int, int]]:
    reach = 0
    for match in _STARTS.finditer(sentence):
        end = scan_expression(sentence, match.start()) if match.start() >= reach else None
        if end is not None and not DENIED.search(sentence[: match.start()]):
            if not _has_unknown(sentence[match.start() : end], asked):
                yield match.start(), end
            reach = end


def _read_number(sentence: str, asked: Asked) -> str | None:
    """The value that the question asks for, behind the last equality, in the last formula, or the last one."""
    for match in reversed(list(asked.names.finditer(sentence)) if asked.names else []):
        if value := _read_at(sentence, match.end(), asked):
            return value
    compounds = [*_COMPOUND.finditer(sentence)]
    equalities = [*_EQUALS.finditer(sentence)][-20:]
    if compounds and not any(
        one.start() >= compounds[-1].end() and _read_at(sentence, one.end(), asked) for one in equalities
    ):
        return compounds[-1][0]
    if counted := asked.find_counted(sentence):
        return counted
    formulas = [one for one in _find_formulas(sentence) if not (asked.counts and _UNKNOWN.search(one))]
    if asked.equation and formulas and "=" in formulas[-1]:
        return formulas[-1]
    values = [sentence[start:end] for start, end in _scan_values(sentence, asked)]
    if asked.equation and values and "=" in values[-1]:
        return values[-1]
    for match in reversed(equalities):
        variable = _LONE_VARIABLE.search(sentence[: match.start()]) if asked.variables else None
        if variable and variable[1] in asked.variables:
            continue
        if value := _read_at(sentence, match.end(), asked):
            return value
    if formulas:
        return formulas[-1]
    if values:
        return next((value for value in reversed(values) if value.replace(",", "") not in asked.numbers), values[-1])
    words = [str(read_number_words(sentence, match.start(1))[0]) for match in _NUMBER_WORDS.finditer(sentence)]
    return words[-1] if words and asked.numeric else None


def _has_unknown(value: str, asked: Asked) -> bool:
    """Whether a value holds a variable although a number is asked for in words."""
    variable = (asked.numeric or asked.date) and _UNKNOWN.search(value)
    return bool(variable and (asked.counts or not _UNKNOWN.search(asked.text)))


def _read_at(sentence: str, at: int, asked: Asked) -> str | None:
    value = read_value(sentence, at, asked)
    one = value == "1" and "1" not in sentence  # "giving one root"
    if not value or one or not re.search(r"[\d\\πi√∞²³]", value) or _has_unknown(value, asked):
        return None
    return value


def _read_words(sentence: str, asked: Asked, *, stale_too: bool = False) -> str | None:
    """Code, a quoted or bold text, a name that the question does not mention, or the word that ends a clause."""
    if code := _CODE.findall(sentence):
        return str(code[-1])
    if "where" in asked.text.lower() and (places := _PLACE.findall(sentence)):
        return str(places[-1])
    quoted = [next(filter(None, match)).strip() for match in _QUOTED.findall(sentence)]
    if quoted := [one for one in quoted if len(quoted) == 1 or one not in asked.text]:
        if len(quoted[-1].split()) > 4 and quoted[-1] != sentence:
            return _read_words(quoted[-1].rstrip("."), asked, stale_too=stale_too)
        return ARTICLE.sub("", quoted[-1])
    for match in reversed(list(GIVES.finditer(sentence))):
        if named := re.compile(rf"(?:the )?({_NAME})").match(sentence, match.end()):
            return named[1].rstrip(".")
        if not match[0].isascii():
            return re.sub(r"即可$", "", sentence[match.end() :]).strip(" ，。") or None
    proper = asked.proper
    groups = (
        ((_NAMED,), (_ACTING,), (_PREPOSED,), (_THE, _CHINESE))
        if proper
        else ((_NAMED, _LOWER, _CHINESE), (_ACTING, _PREPOSED))
    )
    stale: list[str] = []
    for group in groups:
        found = sorted((m for pattern in group for m in pattern.finditer(sentence)), key=lambda m: m.start())
        names = [_name_of(m, asked) for m in found if not DENIED.search(sentence[: m.start(m.lastindex or 0)])]
        names = [name for one in names if (name := _clean(one))]
        fresh = [one for one in names if one.lower() not in asked.text.lower()]
        if fresh:
            return fresh[-1]
        stale = stale or names
    if not stale_too:
        return None
    if stale and (len(sentence.split()) <= 5 or not asked.wants_words):
        return stale[-1]
    clause = re.match(r"(?:(?i:the|an?) )?([a-z]+)(?=,|\W*$)", sentence)
    return clause[1] if clause else None


def _name_of(match: re.Match[str], asked: Asked) -> str:
    """The name that a match found; a noun behind it belongs to what is not a person ("the Swiss franc")."""
    name = str(match[match.lastindex or 0])
    person = re.search(r"(?i)\b(?:who|whom|whose)\b", asked.text)
    tail = None if person or not name[0].isupper() else _TAIL.match(match.string, match.end(match.lastindex or 0))
    return name + (tail[0] if tail else "")


def _clean(words: str) -> str | None:
    """A name or words without article and verb, a number as its digits; None for what is neither."""
    number, end = read_number_words(words, 0)
    if number is not None and words.islower() and words != "one" and words.count(" ", end) < 2:
        return str(number)
    words = _CHINESE_VERB.sub("", re.sub(r"^(?:is|are|was|prints?|outputs?) ", "", ARTICLE.sub("", words)).rstrip("."))
    words = _LEADING.sub("", re.sub(r"['’]s$", "", words))
    stop = not words or words.split()[0] in _STOP_WORDS or re.search(r"['’](?:s|re|ve|m|ll|d)$", words.split()[0])
    return None if stop or re.match(rf"{_MONTH} \d", words) else words
