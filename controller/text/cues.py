"""The words by which people and models state answers and begin to reflect, language by language.

Each entry is a regular expression for small letters, without groups that count but for the one named below; all take
linear time. A language is added by adding it to `LANGUAGES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

Patterns = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Language:
    """Cues of one language."""

    answers: Patterns = ()  # what stands before an answer; the group `subject` must be what the question asks for
    corrects: Patterns = ()  # what stands before a value that corrects the one before it, which may be on the way
    behind: Patterns = ()  # what stands behind one ("... is the answer")
    headings: Patterns = ()  # a line after which the answer stands on the next one
    concludes: Patterns = ()  # how a sentence draws a conclusion
    turns: Patterns = ()  # where, within a sentence, its conclusion begins
    states: Patterns = ()  # what stands before a value that follows from something, anywhere in a sentence
    copulas: Patterns = ()  # verbs before the value of a concluding sentence
    fillers: Patterns = ()  # words between a cue and the value
    hedges: Patterns = ()  # words that make an answer a guess
    supposed: Patterns = ()  # words that make a sentence a supposition, a question or an instruction
    negations: Patterns = ()  # words that deny the value behind a cue
    no_phrases: Patterns = ()  # beginnings of what is not an answer in words
    reflections: Patterns = ()  # how a thought begins that reflects on those before, as plain words
    reconsiders: Patterns = ()  # what shows, anywhere in a text, that what was derived is looked at once more
    deliberates: Patterns = ()  # how a sentence begins that goes on thinking, as no answer does
    confirms: Patterns = ()  # what shows that a result was found to be right
    signals: Patterns = ()  # words without which a sentence that holds no number states nothing
    finals: Patterns = ()  # words without one of which nothing matches `answers` or `behind`
    turn_signals: Patterns = ()  # texts without which no conclusion begins within a sentence
    equals: Patterns = ()  # verbs between what the question asks for and its value
    form_only: Patterns = ()  # sentences of a question that ask for a form only
    form: Patterns = ()  # words that show that a phrase is about the form of the answer
    asks: Patterns = ()  # how a sentence asks without a question mark
    numeric: Patterns = ()  # what asks for a number
    counted: Patterns = ()  # how a number of things is asked for; the group is the thing
    many: Patterns = ()  # what asks for several values
    truth: Patterns = ()  # how a question for yes or no begins
    plans: Patterns = ()  # what shows that a sentence is not the last step
    checks: Patterns = ()  # how a sentence begins that checks an answer, or what shows that it did
    closers: Patterns = ()  # words of a sentence that ends a text and says nothing
    undecided: Patterns = ()  # how a choice or a sentence says that nothing can be said
    replies: Patterns = ()  # how a sentence begins that plans the wording of the reply
    asides: Patterns = ()  # clauses behind a value that speak of another one
    denials: Patterns = ()  # what denies the value of its clause
    gives: Patterns = ()  # how somebody says what they will answer
    measures: Patterns = ()  # nouns of what can be measured, of which a question asks for some
    alternatives: Patterns = ()  # what a question chooses between, in two groups
    dates: Patterns = ()  # how a question asks for a date or a time
    percents: Patterns = ()  # how a question asks for a percentage
    chances: Patterns = ()  # how a question asks for a probability
    weekdays: Patterns = ()  # how a question asks for a day of the week
    scopes: Patterns = ()  # words that limit a statement to a part, a step or a case
    qualifiers: Patterns = ()  # words of a question that one step does not answer
    results: Patterns = ()  # what shows that a value was arrived at
    wants_words: Patterns = ()  # how a question asks for a name or words
    open: Patterns = ()  # how a question asks for a text, a program or a proof, which no short value answers
    common: Patterns = ()  # words of a question that say nothing about what the question asks for, without a final s


_BE = r"(?:is|are|was|'s|be|becomes?|equals?|remains?|comes? out (?:to|as)|turns? out to be|seems to be|has to be)"
_MODAL = r"(?:(?:should|would|must|will|can only|has to|might|could|may)\s+(?:then |indeed |still |also |just )?)?"

_SURE = (
    "method", "approach", "calculation", "ways", "confident", "certain", "sure", "convinced", "confirm",
    "verif", "i think", "i believe",
)  # fmt: skip
"""Words of the cues for what several derivations gave and what was found to be right."""

ENGLISH = Language(
    answers=(
        r"(?<!other )(?<!one )(?<!trap )(?<!wrong )(?<!tempting )(?<!obvious )(?<!naive )"
        r"(?<!first )(?<!second )(?<!another )(?<!possible )(?<!previous )(?<!earlier )(?<!initial )"
        r"\b(?:answer|solution)s?(?:\*\*)?"
        r"(?!\s+(?:choices|options|key)\b|"
        r"\s+(?:to|for|of|in) (?:\w+ )?(?:(?:first|second|third|next|previous|part|step|sub-?\w+)\b|case \d))"
        r"(?:\s+(?:to|for|of|in)\s[^.:=\n]{1,80}?)?\s+"
        rf"(?:\w+\s+)?{_MODAL}{_BE}\b",
        r"\b(?:answer|solution)(?:\s+(?:choice|letter|option|number))?\s*(?:\*\*|\"|')?\s*(?::|=(?!=)|→|->)",
        r"\b(?:answer|solution) (?=[-$\\(]?\d|\\[(b])",
        r"\b(?:i|we)(?:'d|'ll| will| would|) (?:then |just |simply )?(?:answer|output|report|"
        r"reply)\b(?: with)?:?(?=\s*[-$\\(\"“*]*\d)",
        r"\bfinal\s*:",
        r"\banswer of\b",
        r"\b(?:determined|found|reached|got|have) the answer,(?= \w+(?: \w+)?,)",
        r"\b(?:correct|right|best|matching|appropriate) (?:\w+ )?(?:option|choice|letter|one|statement)\s+"
        rf"{_MODAL}{_BE}\b",
        r"\b(?:go(?:ing)? with|settle on|opt for)"
        r"(?= +(?:the )?(?:option|choice|answer|[-$\\(*]*\d|[*(]*[a-z]\b))",
        r"\b(?<!no need to )(?<!needing to )(?<!having to )(?:select|choose|pick)"
        r"(?= (?:option|choice|answer|\(?[b-hj]\)?(?![\w’'])))",
        # What several derivations gave, and what was found to be right: neither is on the way.
        r"\b(?<!neither of )(?<!neither of the )"
        r"(?:both|all|either|two|three|these|different|each) (?:of (?:these |the |them )?|the )?(?:\w+ )?"
        r"(?:methods?|approach(?:es)?|calculations?|ways)(?: i(?:'ve)? (?:tried|used))?,? "
        r"(?:all |both |also |still |should |consistently )?"
        r"(?:leads? to|gives?|giving|yields?|confirms?|arrives? at|agrees? (?:on|that)|results? in|gets?|ends? up with|"
        r"points? to)\b(?: me| us| that)?(?: the)?(?: same)?(?: answer| result| total| number)?"
        r"(?: of| is| should be|,)?(?=\s*[-$\\(*]*\d)(?![^,;:\n]{0,30}(?: (?:and|or) \W{0,3}\d|"
        r"\b(?:first|second|third|parts?|steps?|cases?|factors?|choices|favou?rable|before|each)\b))",
        r"\b(?:(?:i'm|i am|i feel|(?<!be )(?:pretty|quite|fairly|very|now)) (?:confident|certain|sure|convinced)"
        r"(?: now)?,?|(?:that|this|it|which) (?:also )?(?:confirms|confirmed|verifies)(?= (?:that )?(?:the|it) ))"
        r"(?: that)? (?:\w+ ){0,4}?(?P<subject>\w+)(?:'s|’s| is| are| has| have| equals)"
        r"(?: indeed| exactly)?(?=\s*[-$\\(*]*\d)",
        r"\bi (?:think|believe)(?: that)?(?=\s*[-$\\(*]*\d[\d,.]*\)?(?: \w+)? (?:is|should be|must be) "
        r"(?:(?:the|definitely|indeed) ){0,2}(?:answer|correct|right|better)\b)",
    ),
    corrects=(
        r"(?:\bwait\b,? ?no|\bno|\bactually|\bsorry)\b\s?[,:—-]*\s*(?:it|that)(?:'s|’s| is| should be| must be)\b",
    ),
    behind=(
        rf"\s{_MODAL}(?:is|be|seems|are)\s+(?:indeed |definitely |in fact |probably |likely )?"
        r"(?:the |our |my )?(?:final |correct |right |best |only |most )*(?:answer|solution|choice|option)\b"
        r"(?! is| to| \(?[a-j]\b)",
        r"\sit is\W*$",
        r"(?:(?<=, making [a-j])|(?<=, leaving [a-j])) (?:as )?the (?:most )?"
        r"(?:correct|right|best|accurate) (?:answer|choice|option)\b",
        r"(?:\)|\.)?(?<!\s)\s++(?:as|for) (?:the|my|our) (?:final )?answer\b",
    ),
    headings=(
        r"\banswer(?:\s+is)?",
        r"\banswer[\s*]*:",
    ),
    concludes=(
        r"\b(?:so|thus|therefore|hence|consequently|finally|overall"
        r"|in (?:total|all|conclusion|the end)|altogether|as a result|that means|which means|this means|"
        r"putting (?:it|this|that|everything)(?: all)? together|"
        r"that is|this gives|that gives|accordingly|in summary|(?:confident|certain|sure) (?:that|in)|i think|"
        r"i believe|i get|it (?:looks|seems) like|seems that|conclude that|confirms? that|we get)\b",
    ),
    turns=(
        r"\b(?:(?:therefore|hence|thus|meaning|namely)\b,?\s?|i\.e\.,?\s?|that is,\s?)",
        r"(?:[,;:] so,?\s|=>|→|⇒)",
    ),
    states=(
        r"\b(?:answer|result|total|value|sum|product|probability|difference|number|amount|area|length|cost|"
        r"remainder)\s+"
        r"(?:of [^.,;=]{1,60}? )?(?:is|equals|=|:|must be|would be|should be)",
        r"\b(?:so|thus|therefore|hence)[, ]+(?:i|we)\s+(?:get|have|find)",
        r"\b(?:that|this|which)\s+(?:makes|gives|yields|leaves)",
    ),
    copulas=(
        r"\b(?:is|are|was|be|equals?|gives?|makes?|leaves?|yields?|get|gets|have|has|had|needs?|takes?|cost|costs|"
        r"at|as|returns?|"
        r"paid|pays?|earns?|spends?|for|only|to|of)\b",
    ),
    fillers=(
        r"(?:exactly|just|still|simply|indeed|actually|therefore|thus|then|also|clearly|equal to|to be|equals|now|"
        r"approximately|about|roughly|around|most likely|probably|likely|definitely|only|indeed|namely|thereby|so|"
        r"(?:me|us|her|him|them)(?: with)?|the ordered pair|"
        r"(?:on|in) the interval|those two|given by|an?(?= [\d$\\(])|the (?:number|value|letter|"
        r"option|choice|fraction|point|set|interval|equation)|option|choice|letter|"
        r"\\text\{[^{}]*\}\s*(?==)|\\therefore|that)\b",
    ),
    hedges=(
        r"\b(?:if|maybe|perhaps|might|could|possibly|not (?:\w+ )?(?:sure|certain|confident)|i guess|"
        r"i wonder|seems? (?:like|that)|suggests?|expected|in (?:that|which) (?:version|case,? the answer would)|"
        r"(?:is|seems|looks) (?:also |very |quite |more |a )*(?:possible|plausible|candidate))\b",
    ),
    supposed=(
        r"^\W*(?:if|suppose|assume|assuming|let's say|imagine|whether|unless|when|what if|say)\b",
        r"\b(?:if|whether|suppose|unless) (?:the|my|our|this) (?:final )?answer\b",
        r"\b(?:(?:would|can|could)(?: the)? answer be|for example|in the (?:format|form)|format)\b",
        r"\b(?:must|should|need to|have to) (?:be )?(?:output|enclosed?|written|formatted|presented|expressed)\b",
        r"\b(?:answer|option|choice) \S{1,3} (?:says|states|means|would|claims)\b",
        r"\banswer (?:is|was|would be|should be|can ?)\s?(?:not|n't)\b",
        r"\b(?:between \S+ and [^,;]*$|has to be an?|smaller (?:case|example)|(?:we could|let's|if we) try)\b",
        r"\b(?:ruled out|excluded|eliminated|wrong|incorrect|mistaken|cannot be right|can't be right)\b",
        r"\b(?:question|problem) (?:is|asks) (?:how|what|which|who|whose|when|where|whether|if|for|to find)\b|"
        r"\b(?:doubt|unlikely|(?:\w+n't|not) (?:think|believe)|assume|says?|claims?|first thought|people|students?) "
        r"(?:that )?(?:the )?(?:correct |final )?answer\b|\bdoes(?:n't| not) (?:make sense|fit|match)\b|"
        r"\d+\W+(?:no,? wait|wait,? no)\b|\b(?:partially|partly) (?:correct|right|true)\b|\bcorrect in\b|\btempting\b",
    ),
    negations=(
        r"\s*(?:not|n't|never|neither|none of these|wrong|incorrect|different|unlikely|supposed|between|off by|"
        r"at (?:least|most)|(?:greater|less|more|fewer|larger|smaller|higher|lower) than|"
        r"an? (?:integer|multiple|divisor|factor))\b",
    ),
    no_phrases=(
        r"(?:\W|an?\s+(?:integer|number|whole|positive|multiple|single|unique|real|decimal)|"
        r"in\b|not\b|correct|right\b|wrong|incorrect|the same|"
        r"as\b|that\b|this\b|it\b|if\b|to\b|also|consistent|confirmed|clear|going|given|expected|based|what|how|"
        r"when|where|"
        r"still|already|probably|likely|unique|simply|obvious|straightforward|supposed|expressed|written|enough|"
        r"there\b|"
        r"(?:(?:very|both|more|as|short|clear|accurate|brief|concise|direct|simple) (?:and |but |or |yet )?)*"
        r"(?:clear|concise|accurate|precise|brief|short|simple|direct|helpful|polite|informative|complete|"
        r"best|appropriate|sufficient|ideal)(?=\W*$| (?:and|but|yet|enough|in|to|for)\b|[,.;:])|"
        r"(?:keep|state|provide|explain|ensure|present|include|almost|ready|highlighted|formatted|displayed)\b|"
        r"because|since|indeed|definitely|either|one of|just|good|valid|reasonable|being|found|close|between|less|"
        r"more|greater|smaller|larger|at (?:least|most)|always|never|inside|within|required|needed|an answer|they|we\b|"
        r"i\b|you|he\b|she\b|let|wait|so\b|but\b|and\b|or\b|with\b|from\b|for\b|of\b|by\b|on\b|has\b|have\b|is\b|"
        r"are\b)",
    ),
    reflections=(
        "wait", "hmm", "alternatively", "but wait", "hold on", "let me double-check", "let me double check",
        "let me verify", "let me check", "but let me", "let me recheck", "actually", "on second thought", "to be sure",
        "just to be sure", "looking back",
    ),
    reconsiders=(
        r"\b(?:wait|hmm|alternatively|hold on|double[- ]check|let me (?:verify|check|re-?check|confirm|see)|"
        r"let me think again|actually|on second thought|to be sure|looking back|"
        r"another (?:way|approach|method)|check again|re-?check|"
        r"let's (?:verify|check|double)|just to (?:confirm|make sure)|but let me|is that right|verify)\b",
    ),
    deliberates=(
        r"(?:wait|hmm+|hold on|no,? wait|but wait|actually,? (?:wait|no|let me)|alternatively,? (?:maybe|perhaps|i)|"
        r"let me (?:re-?check|re-?think|reconsider|re-?read|re-?do|think)|"
        r"(?:okay|ok|alright),? (?:so|let me|let's))\b(?=.)",
    ),
    confirms=(
        r"\b(?:that(?:'s|’s| is) (?:correct|right|consistent)|is (?:indeed )?(?:correct|right)|match(?:es)?|"
        r"checks? out|confirms|confirmed|consistent|makes sense|seems (?:correct|right)|same (?:answer|result|as)|"
        r"adds up|works|agrees|looks good|all good|confident|yes)\b",
    ),
    signals=(
        "answer", "solution", "option", "choice", "correct", "go with", "going with", "pick", "choose",
        "select", "settle", "it is", "wait", "no,", "no:", "so it's", "so that's", "anser", "output", "report", "reply",
        "final:",
        *_SURE,
    ),
    finals=(
        "answer", "solution", "option", "choice", "correct", "right", "best", "matching", "appropriate", "go with",
        "going with", "settle on", "opt for", "pick", "choose", "select", "it is", "output", "report",
        "reply", "final",
        *_SURE,
    ),
    turn_signals=(
        " so", "therefore", "hence", "thus", "meaning", "namely", "i.e.", "that is,", "=>", "→", "⇒",
    ),
    equals=(
        r"=|≈|:|\b(?:is|are|was|must be|should be|would be|will be|has to be|equals?|remains|comes (?:out )?to)\b"
        r"(?: equal to)?|\bof(?= [-$]?[\d.,]*\d\W*$)",
    ),
    form_only=(
        r"\b(?:express|give|write|enter|enclose|round|leave|end|put|submit|provide) (?:your|the|all|his|her|each)\b|"
        r"\b(?:give|select|choose|provide|reply|respond) [^.?=]{1,40}\banswers?\b|"
        r"\b(?:select|choose) (?:one )?(?:from|of|among)\b",
    ),
    form=(
        r"\b(?:question|line|format|required|tag|follow|followed|user|options|text|correct|answer|explanation|"
        r"need|step|"
        r"problem|calculation|box|boxed|instructions?|above|same|period|periodic)\b",
    ),
    asks=(
        r"\b(?:find|compute|evaluate|determine|calculate|express|simplify|solve|how many|how much|what|which|who|"
        r"count|give|select|choose)\b",
    ),
    numeric=(
        r"\bhow (?:many|much|old|long|far|tall|often|fast)\b|\b(?:compute|evaluate(?! to)|calculate)\b|"
        r"\b(?:number|sum|product|probability|value|area|volume|length|distance|remainder|degree|ratio) of\b|"
        r"\bpercent\w* of\b",
    ),
    counted=(
        r"\bhow many (?:more |other |different |distinct |total |of the )?"
        r"(?:[a-z-]+ (?!does|is|was|has)(?=[a-z]+s\b))?"
        r"(?!(?:are|is|does|did|were|was|will|can|would|has|have|had|should|could|must)\b)([a-z]{3,})",
    ),
    many=(
        r"\b(?:roots|solutions|values|zeros|intercepts|eigenvalues|factors|multiples|divisors|all|integers|pairs|"
        r"two numbers)"
        r"\b|^\W*(?:solve|alphabeti[sz]e|put|list|order|arrange|sort|rank|name the)\b|\border of\b|\bthe order\b|"
        r"\bwhat are [a-z]\b|\blist (?:them|the)\b",
    ),
    truth=(
        r"^\W*(?:is|are|do|does|did|can|could|will|would|was|were|has|have|should|must)\b|\btrue or false\b|"
        r"\byes or no\b|\byes/no\b|, right\?|"
        r", (?:can|could|do|does|did|is|are|will|would) (?:we|i|it|you|they|there|that|this|he|she|the)\b",
    ),
    open=(
        r"(?:^|[.!?:;,]\s+|\b(?:please|and|then|you|also) )(?:explain|describe|discuss|summari[sz]e|translate|suggest|"
        r"recommend|outline|draft|implement|refactor|debug|prove|design|rewrite|compose|elaborate|compare|"
        r"plan(?! to\b)|show that|fix (?:the|this|my)|(?:write|create|generate|make|give|plan|build|list|name)"
        r"(?: me| us)?(?: an?| some| the| two| three| four| five| ten| \d+)? (?:[a-z-]+ ){0,3}?(?:function|program|"
        r"code|script|class|test|query|regex|poem|story|essay|letter|email|e-mail|paragraph|article|summary|report|"
        r"plan|list|itinerary|recipe|outline|reasons?|examples?|ideas?|ways|tips|pros|argument|review|speech|sentences?))\b"
        r"(?! (?:your|the|each|all) (?:answers?|reasoning|work|steps?|final|thinking|letter|number|calculations?))",
        r"\b(?:pros and cons|advantages and disadvantages|tell me about|and why|"
        r"how (?:do|does|can|could|would|should) (?:i|you|we|one))\b|(?:^|[.!?]\s+)why\b",
        r"(?:^|[.!?]\s+)(?:please )?(?:(?:list|name|give|find|state) (?:two|three|four|five|ten|several|some|\d+)|"
        r"should (?:i|we))\b",
        r"[a-z],? and (?:how|what|which|who|when|where)\b[^.?]*\?",
    ),
    plans=(
        r"^\W*(?:next|first|now,? (?:i|let|for|we)|let me|let's|let (?=[a-z]+ (?:be|denote)\b)|then (?:i|we|"
        r"[a-z]+ it\b)|"
        r"to find|we could|i will|what about|but (?:only|should)|"
        r"(?:add|subtract|multiply|divid|squar|doubl|halv|count|averag)ing [^,;]* (?:will|should|would) )\b|"
        r"\b(?:(?<!what )(?<!that )(?<!one )(?<!number )(?<!value )(?:i|we)(?:'ll|'d| will| should| can|)? "
        r"(?:then |now |just |still |only |also )*"
        r"(?:need(?! \W*(?:about |only |exactly |at least )?\d)|want|have to|ought|must|compute|calculate|add|"
        r"divide|multiply|subtract|use|try|count|compare|consider|substitute|work out|plug)\b|"
        r"(?:what|all that|it|that) (?:still )?(?:remains|leaves us) (?:to|is to|is [a-z-]+(?:ing|ion)\b)|"
        r"i can (?:plug|use|now)|doesn't work|does not work|(?<!what )they (?:ask for|want)|need(?:s)? to be|"
        r"has to be careful|"
        r"some (?:years|time|days|months) (?:later|after|before)|let (?:me|us)|let's|i'll do|i'll \w+ (?:now|"
        r"next|then|later))\b|^\W*then [^.]* would\b|"
        r"\b(?:can|to|must|should) be (?:added|counted|found|multiplied|divided|subtracted|summed|computed|"
        r"included|corrected)\b|"
        r"^\W*(?:it|the (?:question|problem)) (?:says|states|gives|asks)\b|^\W*then there\b|"
        r"\bset up an?\b|^\W*then [^.]* follows\b|"
        r"\bneed \d+ mod\b|\d \w+ to (?:check|consider|try|test)\b|"
        r"\bsomething(?:'s| is) (?:off|wrong)\b|\b(?:can't|cannot) be right\b|\bmakes no sense\b|"
        r"\bcontradict|^\W*but then\b|\bha(?:s|ve) to (?!be\b)|\b(?:last|next|final|"
        r"remaining) step\b|"
        r"(?<!using )(?<!by )(?<!from )(?<!with )the formula\b(?! (?:approach|method|gave|gives))|"
        r"^\W*(?:(?:now|then|next)\b,? )?(?:just )?(?:plug|apply|take|add|subtract|multiply|divide|compute|"
        r"calculate|find|"
        r"use|square|cube|sum|count|combine|substitute|convert|average)\b(?![^.]*(?:=|→|\bgives\b|\bis\b|"
        r"\bto get\b|:))",
        r"^\W*(?:i|we) (?:already )?(?:know|remember|recall)\b",
    ),
    checks=(
        r"^\W*(?:\w+,? )?(?:and )?(?:to |let me |let's |a |i'll |i'd |i |we |can |could |then |just )*"
        r"(?:quick |sanity |cross-?|"
        r"double[- ]?|re-?)*"
        r"(?:check|verify|verification|verifying|sanity|confirm|recap|re-?count|re-?compute|re-?calculate|re-?do|"
        r"summari[sz]e)(?:ing)?\b(?! (?:multiples|the (?:other|rest)|each|smaller))|"
        r"\bchecks? (?:passes|out)\b|^\W*(?:(?:this|that|it|which) )?(?:works|fits|holds|satisfies)\b|"
        r"\b(?:don't|do not|can't|cannot) (?:see|find|think|have) (?:there(?:'s| are) |i(?:'ve)? made )?any\b|"
        r"^\W*\([^()]* [^()]* [^()]*\)\W*$|^\W*(?:multiply|plug|substitut)\w* (?:it |this |that )?back\b",
    ),
    closers=(
        # No word is a row of others, or the ways to read them would double with each.
        r"(?:yes|yep|yeah|good|great|right|okay|ok|done|perfect|correct|nice|fine|indeed|alright|"
        r"sure|hmm|so|solid|sound|intended|reasonable|plausible|therefore|now|with|i'?ve|got|"
        r"that'?s|that|this|is|it|it'?s|i'?m|i|am|think|believe|seems?|looks?|same|result|all|the|answer|final|"
        r"pretty|quite|fairly|very|confident|certain|our|my|solution|and|"
        r"(?:checks?|works?) out|makes sense|matches|no others?|everything|should be|consistent|straightforward|easy)",
    ),
    undecided=(
        r"\b(?:can(?:no|['’])t|can ?not|couldn['’]t|unable to|impossible to|no way to) "
        r"(?:be )?(?:definitively |really )?"
        r"(?:answer|determin|know|say|tell|conclude|decid)\w*|\bundetermined\b|\bundecid\w+\b|\bunknown\b|"
        r"\bnot (?:known|answerable|determin\w+|(?:enough|sufficient) (?:info\w*|context|details?|data|evidence))|"
        r"\b(?:insufficient|isn['’]t enough|lack of) (?:info\w*|context|details?|data|evidence)\b",
    ),
    replies=(
        r"(?:\w+,? ){0,2}(?:(?:i|we)(?:'ll|’ll| will| should| can| could|(?: just)? (?:need|want) to)|let me|let's|"
        r"no need to|make sure (?:to|i)|ready to)"
        r" (?:(?:just|also|simply|now|then|directly|be|try to|aim to|still) )*"
        r"(?:answer|respond|reply|provide|phrase|format|formulate|mention|explain|acknowledge|clarify|keep|be|"
        r"overcomplicate|elaborate|generate|stick to|lead with|show|include|note|point out|highlight|address|"
        r"emphasi[sz]e|present|share|craft|deliver|convey|communicate|draft|finali[sz]e|structure|"
        r"write(?= it\W*$|\W*$| (?:the|my|a) (?:answer|response|reply))|put(?= (?:the|my|our) (?:final )?answer))\b",
        r"(?:(?:final|output) )*(?:formulat|construct|draft|finali[sz]|refin|structur|generat|polish|prepar|review)\w*"
        r"(?: (?:and|the|a|final|output|response|answer|reply|generation|result|draft|format\w*))*:",
        r"(?:now |so )?(?:i(?:'m|’m| am|'ve|’ve| have)|my) (?:\w+ )*?(?:satisfied|ready|confident|goal|focus|aim|"
        r"format+ing|formulating|crafting|preparing|presenting|framing|finalizing|drafting|considering|completed|"
        r"finished|double-checked)\b",
        r"(?:(?:so|thus|and),? )?(?:(?:i|we) (?:don['’]t|do not|can['’]t) see any "
        r"(?:mistake|error|issue|problem|ambiguit|reason)|"
        r"(?:i (?:think|believe) )?(?:i|we)(?:['’]ve| have) covered (?:all|everything)|"
        r"(?:that|this|it) (?:also )?confirms (?:it|the (?:result|answer))\b)",
        r"(?:keep (?:it|the|this)|(?:the )?user|nothing (?:else|more) (?:is|was|needs)|"
        r"[^.,]* (?:isn't|is not|aren't) asked\b|they (?:just|probably|likely|might|may|only|want|didn)|"
        r"(?:my|the|this) (?:final )?(?:response|reply|explanation|tone)|this (?:answer|covers|captures)|"
        r"[^.]*\b(?:the user|overcomplicat\w+|concise\w*|to the point|tone|wording|keep it (?:simple|brief|short))\b|"
        r"(?:my|the) answer (?:should|must|will|needs to|has to) (?:just |also |simply )?be (?:very |both )?"
        r"(?:clear|concise|accurate|precise|brief|short|simple|direct|helpful|polite|informative))\b",
    ),
    asides=(
        r"(?<=[\w)$*]),? (?:while|whereas|rather than|instead of|as opposed to|not to be confused|compared (?:to|with)|"
        r"even though|although|(?<!and )since|(?<!and )because|"
        r"to account for|due to|owing to|unlike|but not|and not|"
        r"which (?:is|was) (?:how|not|about|roughly|also)|"
        r"just like|excluding|as (?:\d|it|she|he|they)|as a check)\b.*?(?=;|,? (?:so|hence|thus|therefore|but)\b|$)",
        r",? and (?:since|because) [^,]*(?=, )|,? (?:of course|obviously|for sure|definitely)\b|"
        r",? (?:attained|achieved|reached) (?:at|when|for)\b[^,;]*",
        r",? (?:which (?:checks|works|fits)|such as|including)\b.*",
        r", (?:up|down) (?:by |from )?[^,;]*",
        r"(?<=[\w)$]), not (?:[^,;]|,(?=\d))*",
        r"(?:^|,? )(?:so there's |there's |there is )?(?:no need|without (?:needing|having)) to "
        r"(?:choose|consider|pick|select|resort)\b.*?(?=,| so\b| and\b|$)",
        r" \((?=[^()\\]*(?:[a-z]{2}|≈|~)[^()\\]*\))(?![^()]*\bor [a-h]\b)[^()]*\)",
    ),
    denials=(
        r"\b(?:can't|cannot|can not|couldn't|wouldn't|won't|isn't|aren't|doesn't|don't|didn't|does not|"
        r"is not|are not|it's not|that's not|wasn't|was not|"
        r"not (?:even|divisible|asked|enough)|is (?:ruled )?out|is excluded|rules out|is wrong|"
        r"too (?:small|large|big|high|low)|less (?:ideal|likely|suitable|relevant|appropriate|accurate|comprehensive)|"
        r"is only (?:part|half)|ruled out|excluded|eliminated|discarded|fails?|"
        r"is (?:one|an?|another) (?:solution|root|factor|possibility)|"
        r"don't need|(?:is|comes) (?:only )?(?:second|third)|"
        r"(?:cycles?|repeats?) (?:with|every)|in the beginning|at first|initially|"
        r"to (?:begin|start) with|originally|so far)\b",
    ),
    gives=(
        r"\b(?:i|we)(?:'d|'ll| will| would|) (?:then |just |simply |still )?(?:answer|say|report|give|output|"
        r"reply|write|"
        r"respond with|leave (?:it|this|that) as|go (?:with|for)|put)\b(?: (?:it|this) as)?[:\s]*"
        r"(?:about |approximately |roughly |"
        r"the (?:full |final |exact )?(?:date|answer|form|value)[:\s]*)?",
    ),
    measures=(
        r"\b(?:length|width|height|side|radius|radii|diameter|perimeter|circumference|area|volume|speed|velocity|"
        r"resistance|current|voltage|force|energy|momentum|frequency|charge|power|pressure|temperature|"
        r"sum|product|mean|average|median|difference|remainder|quotient|derivative|slope|discount|reduction|"
        r"subtotal|gcd|lcm|"
        r"cost|price|weight|mass|distance|age|angle|period|profit|mod|exponent|complement|digits?)(?:e?s)?\b",
    ),
    alternatives=(
        r"\b([a-z]+)['’\"”]?(?: (?:more|up))? or (?:is it |does it |do they |will it )?['‘\"“]?([a-z]+)\b",
        r"[,:] ([^,:?]{1,40}?),? or ([^,:?]{1,40})\?",
    ),
    dates=(
        r"^\W*(?:on |at )?(?:when|(?:what|which) (?:date|time))\b|"
        r"\bwhat (?:is|was|will be) the (?:date|time)\b(?! \w+ity)|"
        r"\bfull date\b",
    ),
    percents=(r"\b(?:in|what|which|as a) percent(?:age)?\b",),
    chances=(r"\b(?:probability|chances?|likelihood|what fraction(?:al part)?)\b",),
    weekdays=(r"\bday of the week\b|\b(?:which|what) weekday\b",),
    scopes=(
        r"\b(?:first|second|third|fourth|fifth|once|twice|initial|original|earlier|without|iteration|pass|step|stage|"
        r"phase|so far|at this point|smaller (?:case|example)|special case)\b",
    ),
    qualifiers=(
        r"\b(?:total|both|altogether|in all|left|remain|remaining|now|per|each|average|mean|difference|more|less|fewer|"
        r"after|whole|entire|second|third|last|other|combined|together|net|final|years?|months?|weeks?|days?)\b",
    ),
    results=(
        r"[=≈→:✓]|->|\b(?:so|thus|therefore|hence|then|finally|overall|altogether|in (?:total|all)|means?|meaning|"
        r"i\.e\.|arrive at|end up|need(?:s|ed)?|everyone|saves?|"
        r"gives?|giving|leav\w+|left|makes?|making|takes?|yields?|that's|it's|that is|it is|comes? (?:out )?to|equals?|"
        r"we get|i get|answer|namely|because|since|would|must|should|will)\b|\bis (?:also |then |indeed )?$",
    ),
    wants_words=(
        r"(?:^\W*|, (?!where|whose)|[:;] |\b(?:and|then|say|tell me|determine|find|state|identify|name) |"
        r"^\W*(?:in|on|at|by|to|from|with|for|under|of) |"
        r"^[^,]*\b(?:is|does|did|was|are|to|by) )(?:who|whom|whose|where|"
        r"which (?!values?|numbers?|integers?|two|of these numbers|x\b|years?\b|is\b.*\.$))\b|"
        r"\b(?:what(?:'s| is| was)?(?: now)? the (?:[\w]+ ){0,2}"
        r"(?:unit|name|capital|currency|opposite|plural|symbol|chemical|formula of|color|colour|word|largest|longest|"
        r"\w+est (?!(?:possible|positive|number|value|integer|common|prime|factor|two|three|\w)\b)|"
        r"past tense|synonym|antonym)|"
        r"what (?:day|kind|shape|word|colou?r|country|city|language|animal|command|element)|in which (?!year)|"
        r"unscramble|spell|"
        r"print|output|decode|reverse|command|statement|"
        r"concatenate|"
        r"symbol|what does (?=[^?]*\b(?:stand|mean|print|output|return|say|contain|evaluate)))\b|"
        r"\bwhat is (?-i:[A-Z][a-z]+)\?$|\bsql\b",
    ),
    common=tuple(
        "the and for what how many much doe did will would can are was were that this with have has had his her their "
        "its from all each one two three per find compute evaluate determine calculate expres simplify solve value "
        "answer your when then than get give which who more need you there they she him them into after before "
        "not but are hi wa ha thi select choose correct line form end reply following".split()
    ),
)  # fmt: skip

CHINESE = Language(
    answers=(
        r"(?:答案|结果|最终答案|正确选项|正确答案)(?:应该|就|应当|也|便)?(?:是|为|：|:|＝|=)",
        r"(?:应该|应当|因此|所以|故)?选(?:择|项)?(?=\s*[a-z（(])",
    ),
    behind=(r"(?:就|应该)?是(?:正确|最终)?的?答案", r"是正确的"),
    headings=(r"最终答案[：:]?", r"答案[：:]?"),
    concludes=(r"(?:所以|因此|于是|故|因而|综上|这样|那么|总共|一共)",),
    turns=(r"[，；](?:所以|因此|故|即)",),
    states=(r"(?:得到|等于|得出|即为|总共是?|一共是?|还剩|剩下)",),
    copulas=(r"(?:是|为|有|等于|得|共|需要|剩)",),
    fillers=(r"(?:等于|应该是|应该|选项|就是|恰好)",),
    hedges=(r"(?:也许|可能|或许|大概)",),
    supposed=(r"^\W*(?:如果|假设|假如|设)", r"(?:是不是|对吗|吗)"),
    negations=(r"\s*(?:不是|并非|错误)",),
    no_phrases=(r"(?:正确|错|不|对|这|那|什么|多少|一样|否)",),
    reflections=("等等", "等一下", "不过", "让我再", "再检查", "重新", "另外", "或者", "嗯", "验证一下"),
    reconsiders=(r"(?:等等|等一下|不过|检查|验证|重新|另一种|再想|再算|或者)",),
    deliberates=(r"(?:等等|等一下|嗯|不对|让我(?:再|重新))",),
    confirms=(r"(?:没错|没问题|一致|吻合|符合|验证正确|正确无误|对的)",),
    signals=("答案", "选", "正确"),
    finals=("答案", "结果", "选", "正确"),
    turn_signals=("，", "；"),
    equals=(r"(?:是|为|等于|=|有)",),
    form_only=(r"(?:表示|格式|写出)",),
    form=("问题", "格式", "题目"),
    asks=("求", "计算", "多少", "几", "哪", "什么", "谁"),
    numeric=("多少", "几", "求", "计算"),
    counted=(r"多少(?:个|只|本|块|张)?([\u4e00-\u9fff]{1,2})(?=？|\?)",),
    many=("哪些", "所有", "解方程"),
    truth=(r"吗[？?]|是否|对不对",),
    wants_words=(r"(?:谁|什么|哪|作者|星期几|化学式)",),
    plans=(
        r"^\W*(?:接下来|首先|让我|先)|(?:接下来|然后)(?:再|就)?|需要用|还需要|还要|要的不是|[，。](?:先|再|还要|然后)[^，。=]*$",
    ),
    checks=(r"^\W*(?:再|让我|来|代入)?(?:验算|检查|检验|验证|想想)",),
    closers=(r"(?:没错|没问题|没有了?|正确|对的?|好的?|嗯|是的?)",),
    asides=(r"[，,](?:而不是|不是|而非)[^，。]*", r"（[^（）]*）"),
    denials=(r"(?:不可能|不是|并非|不对|不行|矛盾)",),
    gives=(r"(?:因此|所以|应该|应当|故)*(?:回答|答(?!案))(?:为|是)?[:：]?\s*",),
    measures=(r"(?:半径|直径|边长|单价|周长|面积|体积|长度|宽度|高度|速度|时间|价格)",),
    alternatives=(r"([\u4e00-\u9fff]{1,4}?)(?:，|,)?还是([\u4e00-\u9fff]{1,4})",),
    dates=(r"(?:什么时候|何时|哪一天|几点|什么时间)",),
    percents=(r"百分之几|百分数|百分比",),
    chances=(r"概率|可能性",),
    weekdays=(r"星期几|周几|礼拜几",),
    scopes=(r"第[一二三四五]|原来|起初",),
    qualifiers=(r"一共|总共|共|还剩|剩下|多多少|少多少|相差|平均|现在|最终|最后",),
    results=(r"所以|因此|故|于是|那么|得|等于|即|答|剩|共|应",),
    open=(r"(?:解释|描述|写一|翻译|证明|总结|说明|为什么|如何)",),
)

_ANSWER_WORDS = ("antwort", "réponse", "respuesta", "risposta", "resposta")
_ANSWER_WORD = rf"(?:{'|'.join(_ANSWER_WORDS)})"
_VALUE = r"(?=[-$\\(*\s]*(?:\d+(?:\.\d\d?)?(?![\d.,]*\d| \d{3})|\\|[a-j]\b))"  # but 12,5 and 1.250 mean others here
OTHERS = Language(  # German, French, Spanish, Italian and Portuguese: numbers and letters that are called the answer
    answers=(
        rf"\b{_ANSWER_WORD}(?: \w+)?(?:\s+(?:ist|lautet|wäre|est|es|è|é)\b|[\s*]*:)"
        rf"(?:\s+(?:also|daher|somit|donc|alors|pues|entonces|quindi|option|opción)\b)*[:\s]*{_VALUE}",
        rf"\bist die antwort\s+{_VALUE}",
    ),
    supposed=(rf"\b(?:wenn|falls|si|se) (?:die|la|a) {_ANSWER_WORD}\b",),
    signals=_ANSWER_WORDS,
    finals=_ANSWER_WORDS,
    concludes=(
        r"\b(?:daher|somit|folglich|insgesamt|also (?:gibt|ist|sind|hat|haben|lautet)|donc|por lo tanto|quindi)\b",
    ),
    numeric=(r"\b(?:wie ?viele?|combien|cu[aá]nt[oa]s?|quant[ie]|quantos)\b",),
)

LANGUAGES = (ENGLISH, CHINESE, OTHERS)
DELIBERATION_WORDS = (
    "wait", "hmm", "hold", "no", "but", "actually", "alternatively", "let", "okay", "ok", "alright",
    "等", "嗯", "不对", "让我",
)  # fmt: skip
"""First words of the sentences of `deliberates`."""


def either(kind: str) -> str:
    """All languages' patterns of one kind as one alternative.

    Those in a row that begin a word stand behind one test for that, as a search makes it for each letter of a text.
    """
    patterns = [pattern for language in LANGUAGES for pattern in getattr(language, kind)]
    runs = groupby(patterns, key=lambda pattern: pattern.startswith(r"\b"))
    return "|".join(
        rf"\b(?:{'|'.join(pattern[2:] for pattern in run)})" if words else "|".join(run) for words, run in runs
    )
