"""Reading text as people and models write it: answers, evidence and regions that must not be cut."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tersely.controller.text.answers import Finality, extract_answer, extract_stated_answer, find_statements
from tersely.controller.text.evidence import AnswerEvidence
from tersely.controller.text.questions import read_question
from tersely.controller.text.regions import ProtectedRegions, unclosed_region
from tersely.controller.text.thoughts import ThinkingState
from tersely.controller.text.tokenizer_adapter import TokenFlags, TokenizerAdapter
from tersely.controller.text.tool_calls import CALL_STARTS
from tersely.controller.text.values import answers_equal, normalize_answer
from tersely.evaluation.tasks.equality import AnswerChecker

from ...support.cpu_limit import limited


def count_readings(rows: Iterable[dict[str, Any]]) -> Counter[str]:
    """How texts are read: right, as another answer, not at all, or though they have no answer."""
    counts: Counter[str] = Counter()
    with AnswerChecker() as checker:
        for row in rows:
            found, gold = extract_stated_answer(row["text"], row["question"]), row["answer"]
            if gold is None:
                counts["trap" if found is None else "trap read"] += 1
            elif found is None:
                counts["not read"] += 1
            else:
                equal = found.lower() == gold.lower() or answers_equal(found, gold) or checker.check(gold, found).equal
                counts["right" if equal else "other"] += 1
    return counts


@pytest.mark.parametrize(
    ("name", "rows", "size", "traps", "right", "other", "traps_read"),
    [
        ("stated_answers.jsonl", slice(None), 1281, 181, 1085, 9, 30),
        ("learned_answers.jsonl", slice(None), 563, 115, 400, 33, 45),
        ("unseen_answers.jsonl", slice(188), 188, 30, 150, 6, 9),
        ("unseen_answers.jsonl", slice(188, 388), 200, 30, 152, 11, 12),
        ("unseen_answers.jsonl", slice(388, None), 160, 24, 114, 17, 7),
    ],
)
def test_sentences_are_read_as_well_as_measured(
    name: str, rows: slice, size: int, traps: int, right: int, other: int, traps_read: int
) -> None:
    """At least so many answers are read right, at most so many as another one, and so many texts without an answer.

    Weights are learnt from the first two files. Of the unseen sets only the sums may be looked at, so that they stay a
    fair measure; the last one, of whole ends of thinking, is harder than the other two.
    """
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines()[rows]
    counts = count_readings(map(json.loads, lines))
    assert (len(lines), counts["trap"] + counts["trap read"]) == (size, traps)
    assert counts["right"] >= right, counts
    assert counts["other"] <= other, counts
    assert counts["trap read"] <= traps_read, counts


@pytest.mark.parametrize(
    "text",
    [
        "Is the answer 12?",
        "So the question is how many there are after selling 3.",
        "If the answer were 12, the sum would be odd.",
        "So the answer is not 12.",
        "Next I will compute the total of the 12 boxes.",
        "FINAL ANSWER: <letter>",
        "The final answer should be in the form \\boxed{...}.",
    ],
)
def test_plans_questions_and_denials_state_nothing(text: str) -> None:
    assert extract_stated_answer(text, "How many boxes are there?") is None


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("3x = 51, so x = 17. That's Juan's count. Maria has 34.", "Juan knows her. How many has Maria?", "34"),
        ("So there are 20. Next I need to take a quarter of them.", "How many are red?", None),
        ("r² = 25, so the radius is 5.", "What is the area of the circle?", None),
        ("So it can't be B.", "Which one?\nA. one\nB. two", None),
        ("A 25-year-old needs B: zinc.", "Which one?\nA. iron\nB. zinc", "B"),
        ("<answer>The answer is **12**.</answer>", "", "12"),
        ("The answer is no because 7 divides it.", "Is 91 a prime number?", "no"),
        ("97 is a prime number: no prime up to 9 divides it.", "Is 97 a prime number?", "Yes"),
        ("Cleo is the tallest.", "Who is the tallest: Ann, Ben or Cleo?", "Cleo"),
        ("v = 120 km / 2 h = 60 km/h", "What is the speed of the train in km/h?", "60"),
        ("Die Antwort lautet daher 12.", "", "12"),
        ("La réponse finale est : **$\\frac{3}{4}$**", "", "3/4"),
        ("La respuesta es B.", "Which one?\nA. iron\nB. zinc", "B"),
        ("Wenn die Antwort ist 12, dann geht es nicht auf.", "", None),
        ("Die Antwort ist nicht 12.", "", None),
        ("Die Antwort ist 12,5.", "", None),
        ("La réponse est 1.250 euros.", "", None),
        ("The town has 1.5 million people.", "How many people does the town have?", "1500000"),
        ("It is worth two million dollars.", "How many dollars is it worth?", "2000000"),
        ("So it is worth $3 million.", "How much is it worth in millions?", "3"),
        ("So the answer is 3x.", "Simplify 5x - 2x.", "3x"),
        ("No, that was 1648.", "In which year did it end?", None),
        ("x = 3 or x = -3.", "Solve $x^2 = 9$.", "3, -3"),
        ("So: pear, fig, plum.", "Sort plum, fig and pear by weight.", "pear, fig, plum"),
        ("So 12 are left, while 8 were sold.", "How many are left?", "12"),
        ("So fifty-six ounces. " + "It is a long text. " * 2, "How many ounces?", "56"),
        ("The step before is 7. " * 200 + "So 12.", "How many steps?", "12"),
        ("Therefore, the answer is the lamp is on the desk.", "Where is the lamp?", "on the desk"),
        ("So k must be greater than 5.", "The range of values for k is", "k > 5"),
        ("Hence \\( x \\) must be less than or equal to 3.", "What is the range of values for x?", "x ≤ 3"),
        ("The new front is red.", "What is now the color of the front?", "red"),
        ("5. **Combine them:** it spells lamp.", "Spell 'pmal' backwards.", "lamp"),
        ('Answer: "De hoofdstad van Noorwegen is Oslo."', "Which city? Reply in Dutch.", "Oslo"),
        ("So the answer: none.", "Are there any birds without wings?", "No"),
        (
            "So the answer: the kilogram of gold is heavier.",
            "Which is heavier, 1 kilogram of gold or 1 pound of tin?",
            "1 kilogram of gold",
        ),
        ("That is not the answer.\n2. Explain it.", "How many are there?", None),
        ("Thus, the solution is the ordered pair \\((x, y) = (-3, 6)\\).", "Which point is it?", "(-3, 6)"),
    ],
)
def test_the_end_of_a_text_is_read_by_what_is_asked(text: str, question: str, answer: str | None) -> None:
    assert extract_stated_answer(text, question) == answer


LARGER, CAPITAL = "Which is larger, 8.5 or 8.12?", "What is the capital of Norway?"


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("Tenths decide, so 8.5 is bigger than 8.12. I think that much is clear.", LARGER, "8.5"),
        ("So mathematically, 8.5 > 8.12.", LARGER, "8.5"),
        ("So 8.5 is larger. It is the same as 8.50.", LARGER, "8.5"),
        ("Tom Hale was taller. I have checked both.", "Who was taller then, Anna Berg or Tom Hale?", "Tom Hale"),
        ("So the answer is cycling.", "Should I walk or cycle to the lake?", "cycle"),
        ("The capital of Norway is Oslo. It has a harbour, and ferries to Kiel leave from there.", CAPITAL, "Oslo"),
        ('So my final response is: "The capital of Norway is Oslo."', CAPITAL, "Oslo"),
        (
            'A short reply: "Peru lies on the continent of South America."',
            "Which continent is Peru on?",
            "South America",
        ),
        ("Putting it all together, A seems the best.", "Which one?\nA. iron\nB. zinc", "A"),
    ],
)
def test_a_sentence_may_answer_in_the_words_of_the_question(text: str, question: str, answer: str) -> None:
    assert extract_stated_answer(text, question) == answer


@pytest.mark.parametrize(
    ("text", "finality"),
    [
        ("Tenths decide, so 8.5 is larger.", Finality.ANSWERS),
        ("So 8.5 > 8.12.", Finality.ANSWERS),
        ("8.5 is larger.", Finality.ASKED),
        ("So 8.5 is smaller.", None),
        ("So 8.12 is not larger.", None),
        ("So is 8.12 larger?", None),
        ("So some people find that 8.12 is larger.", None),
    ],
)
def test_the_words_of_a_question_call_an_alternative_the_answer(text: str, finality: Finality | None) -> None:
    found = [one.finality for one in find_statements(text, LARGER) if one.finality >= Finality.ASKED]
    assert found == [finality] * (finality is not None)
    assert (AnswerEvidence(LARGER).find_answer(text) is not None) is (finality is Finality.ANSWERS)


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("It is Oslo. The answer should be short and precise.", CAPITAL, "Oslo"),
        ("It is Oslo. I'll keep the tone friendly. The user wants no details.", CAPITAL, "Oslo"),
        ("The capital is Oslo. A plain reply seems enough, so nobody has to search for what matters.", CAPITAL, "Oslo"),
        ("The answer is Oslo. Is a map needed? No, that's silly.", CAPITAL, "Oslo"),
        ("The answer is Oslo. For a chat, a brief answer is best.", CAPITAL, "Oslo"),
        ("So that is $50. Next, I'll add the tax.", "What is the final price?", None),
        ("It is Oslo. Good, nothing else is asked such as its size.", CAPITAL, "Oslo"),
        ("It is Oslo. Its size isn't asked.", CAPITAL, "Oslo"),
    ],
)
def test_words_about_the_reply_are_not_the_answer(text: str, question: str, answer: str | None) -> None:
    assert extract_stated_answer(text, question) == answer


def test_a_phrase_keeps_its_articles() -> None:
    assert extract_stated_answer("So the answer is under the mat.", "Where is the key?") == "under the mat"


def test_choices_that_are_listed_again_are_not_the_answer() -> None:
    options = "1. Ann is Bob's niece.\n2. Ann is Bob's aunt.\n3. Ann is Bob's child."
    text = "So Ann is Bob's aunt.\n\nThe options:\n" + options
    assert extract_stated_answer(text, "What is Ann to Bob?\n" + options) == "2"


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("The curve $y = 2x - k$ has 7 x-intercepts.", "Find the number of $x$-intercepts of the curve.", "7"),
        ("So the six pens cost 90 at a price of 15.", "A pen costs 15. How much do six pens cost?", "90"),
        ("So it covers 45 yards in 3 minutes at a pace of 15.", "Its pace is 15. How far is it in 3 minutes?", "45"),
    ],
)
def test_a_variable_is_no_count_and_a_given_number_rarely_a_result(text: str, question: str, answer: str) -> None:
    assert extract_stated_answer(text, question) == answer


@pytest.mark.parametrize(
    "text",
    [
        "The answer is between 12 and 15.",
        "The answer is at most 12.",
        "The answer is a multiple of 7.",
        "The answer is off by 2.",
        "The answer is 12, no wait, 14.",
        "The answer choices are 12, 14 and 16.",
        "A possible answer is 12.",
        "The answer of 12 doesn't make sense.",
        "I don't think the answer is 12.",
        "Tom says the answer is 12.",
        "For instance, if the answer is 5, write \\boxed{5}.",
    ],
)
def test_what_is_not_called_the_answer(text: str) -> None:
    assert all(one.finality < Finality.ANSWERS for one in find_statements(text, "How many boxes are there?"))


@pytest.mark.parametrize("text", ["Option A is partially correct.", "Answer A is tempting.", "A is correct in part."])
def test_a_choice_that_is_only_weighed_is_not_the_answer(text: str) -> None:
    assert not list(find_statements(text, "Which one?\nA. iron\nB. zinc"))


@pytest.mark.parametrize(
    ("reply", "question", "answer"),
    [
        ("**30**\n\nThe differences are 4, 6 and 8, so the next difference is 10.", "What comes next: 12, 20?", "30"),
        ("It arrives at **11:30**.\n\nTime = 150/60 = 2.5 hours.", "When does it arrive?", "11:30"),
        ("We have **20 eggs**.\n\n20 - 8 = 12\n\nSo 12 eggs are left.", "How many eggs are left?", "12"),
        ("**Step 1:** 20 - 8 = 12\n\n**Answer:** 12", "How many eggs are left?", "12"),
        ("Start with **12 eggs**, so 1 dozen.\n\n12 - 4 = 8", "How many eggs are left?", "8"),
        ("Water boils at **100 °C** (212 °F, 373 K).", "What is the boiling point of water?", "100"),
    ],
)
def test_a_reply_may_begin_with_its_answer(reply: str, question: str, answer: str) -> None:
    assert answers_equal(extract_answer(reply, question), answer)


def test_a_fraction_is_one_number_where_nothing_is_stated() -> None:
    assert extract_answer("Il reste \\dfrac{2}{9} du gâteau, voilà.") == "2/9"


def test_a_choice_that_is_settled_is_the_answer() -> None:
    (statement,) = find_statements("Only zinc fits. So B.", "Which one?\nA. iron\nB. zinc")
    assert (statement.answer, statement.finality) == ("B", Finality.ANSWERS)
    assert not list(find_statements("So not B.", "Which one?\nA. iron\nB. zinc"))


KIN = "How is Ann related to Bob?\n1. Ann is Bob's ancestor.\n2. Ann is Bob's descendant.\n3. None of these is correct."
NOT_ONE = "Which is not a metal?\nA. iron\nB. chlorine"


@pytest.mark.parametrize(
    ("text", "question", "label"),
    [
        ("Option 3: none, but 2 is correct.", KIN, "2"),
        ("Options 1 and 3 are wrong, and so I choose option 2.", KIN, "2"),
        ("Therefore option 2, not option 1.", KIN, "2"),
        ("Option 3 is not correct because option 1 is correct.", KIN, "1"),
        ("So option 1 is correct and option 2 is not.", KIN, "1"),
        ("So option 3 is out.", KIN, None),
        ("Option 1 clearly isn't correct.", KIN, None),
        ("So option 3, none of these, is correct.", KIN, "3"),
        ("Therefore, Ann is a descendant of Bob.", KIN, "2"),
        ("So option B isn't a metal.", NOT_ONE, "B"),
        ("Therefore option B, not option A.", NOT_ONE, "B"),
        ("So option B is out.", "What is the least common multiple?\nA. 12\nB. 24", None),
        ("So option B is out.", "True or false?\nA. It is true.\nB. It is false.", None),
        ("The answer is the child of Ann.", "Who?\nA. the child of Ann\nB. Bob", "A"),
        ("So option A is correct, as it conducts.", NOT_ONE, None),
    ],
)
def test_a_choice_that_is_denied_is_not_the_answer(text: str, question: str, label: str | None) -> None:
    assert extract_stated_answer(text, question) == label


FAMILY = (
    "What is Ann to Bob?\n1. Ann is Bob's great grandparent.\n2. Ann is Bob's grandparent.\n3. Ann is Bob's sibling."
)
MORALS = "Which is wrong?\nA. Wrong, Wrong\nB. Wrong, Not wrong\nC. Not wrong, Wrong\nD. Not wrong, Not wrong"
FORMULAS = "Which?\n(A) 8 over 12 (B) 25 × 8 (C) $f(x)+2=0$ (D) -32 ft/s"
UNKNOWN = "Who came late?\nA. Ann\nB. Bob\nC. Cannot be determined\nD. both are equally early or late"
PRICES = "(a) How much?\nThe options are:\nA: $8.00\nB: 24 cm\nC: 1/4\nD: 0.3"


@pytest.mark.parametrize(
    ("text", "question", "label"),
    [
        ("They share a parent, so Bob and Ann are siblings.", FAMILY, "3"),
        ("Therefore, Ann is Bob's great-grandparent.", FAMILY, "1"),
        ("So Ann is the grandparent of Bob.", FAMILY, "2"),
        ("So Bob is Ann's grandparent.", FAMILY, None),
        ("Therefore, Cleo is Dan's grandparent.", FAMILY, None),
        ("So 1 is wrong, and 2 isn't as clearly wrong.", MORALS, "B"),
        ("So both are not wrong.", MORALS, "D"),
        ("So the first is wrong.", MORALS, None),
        ("Therefore, it costs 8 dollars.", PRICES, "A"),
        ("So the probability is 0.25.", PRICES, "C"),
        ("So it is 25.", PRICES, None),
        ("A: $8.00 - Incorrect\nB: 24 - Correct\nC: 1/4 - Incorrect\nD: 0.3 - Incorrect", PRICES, "B"),
        ("A: $8.00 - too high\nD: 0.3 - too low", PRICES, None),
        ("The price is 0.3. So D. Checking the rest:\nA: $8.00 does not fit.\nB: 24 does not.", PRICES, "D"),
        ("\\[ 8.0 \\cdot 2 + 8 = 24 \\text{ cm} \\]", PRICES, "B"),
        ("So 24 are left for 7 people.", PRICES, "B"),
        ("So the sum is \\(\\frac{8}{12}\\).", FORMULAS, "A"),
        ("Therefore, it is \\(25 \\times 8\\).", FORMULAS, "B"),
        ("So \\( f(x) + 2 = 0 \\).", FORMULAS, "C"),
        ("So the change is \\(-32 \\mathrm{ft} / \\mathrm{s}\\).", FORMULAS, "D"),
        ("So nothing was said of it, and we can't know who came late.", UNKNOWN, "C"),
        ("So it was Ann. There is no need to choose C.", UNKNOWN, "A"),
        ("So both are equally early.", UNKNOWN, "D"),
        ("So it must have been Ann. It was sunny. The day was warm. They sat. All slept. It was dark.", UNKNOWN, "A"),
        ("There are options: A, B, C and D.", UNKNOWN, None),
    ],
)
def test_a_choice_is_known_by_what_it_says(text: str, question: str, label: str | None) -> None:
    assert extract_stated_answer(text, question) == label


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("So the Rhine is longer than the Seine.", "Is the Rhine longer than the Seine?", "Yes"),
        ("So the Seine is longer than the Rhine.", "Is the Rhine longer than the Seine?", "No"),
        ("So the Rhine is not shorter than the Seine.", "Is the Rhine longer than the Seine?", "Yes"),
        ("Therefore, a zebra can run faster than a lion.", "Can a lion run faster than a zebra?", "No"),
        ("Sputnik flew in 1957, so it was launched before Luna 1.", "Was Luna 1 launched after Sputnik?", "Yes"),
        ("So Luna 1 was not launched before Sputnik; it was after.", "Was Luna 1 launched before Sputnik?", "No"),
        ("Iron is less dense than gold.", "Answer yes or no. Is gold denser than iron? Give a short answer.", "Yes"),
        ("So Eve Low was older than Sir Tom Fox.", "Who was older, Tom Fox or Eve Low?", "Eve Low"),
        ("So a whale is no fish.", "Is a whale a fish?", "No"),
        ("The premises do not overlap, so that does not follow.", "If all A are B, can we conclude that?", "No"),
        ("He should look under the bed.", "Where should he look for the cat?", "under the bed"),
        ("Also gibt es 2 davon.", "Wie viele h hat das Wort?", "2"),
    ],
)
def test_what_is_said_of_the_question_answers_it(text: str, question: str, answer: str | None) -> None:
    assert extract_stated_answer(text, question) == answer


def test_a_choice_that_is_not_is_the_answer_to_what_is_not() -> None:
    assert [one.answer for one in find_statements("So option B isn't a metal.", NOT_ONE)] == ["B"]


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("So both methods give me 84 miles.", True),
        ("All the approaches I've tried give the same answer of 84.", True),
        ("So all methods lead to 54 and 30.", False),
        ("I'm now pretty confident that the trip is 84 miles.", True),
        ("So I think 84 is right.", True),
        ("Let me make sure that the trip is 84 miles.", False),
        ("So that confirms that the whole trip is 84 miles.", True),
        ("Both methods give 84 cases to check.", False),
        ("Both methods give 84 miles for the first day.", False),
        ("Neither of the two methods gives 84.", False),
        ("I'm pretty sure there are 84 days left.", False),
        ("I'm confident that the second trip is 84 miles.", False),
        ("I want to be very sure that it is 84.", False),
        ("I'm not very confident that the answer is 84.", False),
        ("This confirms that the remainder is 84.", False),
        ("I think 84 is the smallest divisor.", False),
        ("I think 84 is not right.", False),
    ],
)
def test_what_was_found_in_several_ways_is_called_the_answer(text: str, final: bool) -> None:
    found = [one for one in find_statements(text, "How far is the trip?") if one.finality is Finality.ANSWERS]
    assert [one.answer for one in found] == (["84"] if final else [])


def test_the_answer_outlives_conclusions_behind_it() -> None:
    text = "The answer is 12 boxes.\n\nTo check: so that makes 30 of 36 eggs.\n\nTherefore 6 eggs are left over."
    assert extract_stated_answer(text) == "12"
    assert next(find_statements(text)).finality is Finality.ANSWERS
    assert extract_stated_answer(text + " Wait, no: it is 13.") == "13"


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        (r"\( x = 5 \)", "5"),
        (r"$\dfrac{3}{4}$", "3/4"),
        (r"1\frac{4}{5}", "9/5"),
        (r"2\sqrt{3}", r"2\sqrt{3}"),
        (r"36\pi \text{ cm}^3", r"36\pi"),
        (r"90^\circ", "90"),
        ("540 meters", "540"),
        ("25 percent", "25%"),
        ("3:45 PM", "3:45 PM"),
        ("3:00 p.m.", "3 PM"),
        ("$1.5 million", "1500000"),
        ("3 millions", "3000000"),
        ("3万元", "30000"),
        ("(2,3)", "(2, 3)"),
        ("6 N", "6"),
        ("5 a day", "5"),
        ("−7", "-7"),
    ],
)
def test_values_have_one_spelling(written: str, spelled: str) -> None:
    assert normalize_answer(written) == spelled


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *[(r"2\sqrt{3}", "2"), (r"36\pi", "36"), ("2x + 3", "2"), ("5 cm", "5 m"), ("5%", "5"), (r"1\frac45", "14/5")],
        *[("3x", "3"), ("2i", "2"), ("4ab", "4"), ("1.2 million", "1.2"), ("3亿", "3万"), ("2 3", "23")],
    ],
)
def test_different_answers_are_never_equal(first: str, second: str) -> None:
    assert not answers_equal(first, second)


@pytest.mark.parametrize(("first", "second"), [("1.5 million", "1.5 million dollars"), ("3万元", "30000元")])
def test_a_scale_is_no_unit(first: str, second: str) -> None:
    assert answers_equal(first, second)


def test_derivations_are_counted_and_restatements_are_not() -> None:
    evidence = AnswerEvidence("How many eggs are left?")
    claim, finality = evidence.read("So there are 12 eggs left.") or pytest.fail("nothing read")
    assert (claim.answer, claim.derivations, claim.answered, finality) == ("12", 1, 0, Finality.ASKED)
    evidence.read(" So 12 eggs are left. The answer is 12.")
    assert (claim.derivations, claim.answered) == (1, 1)
    evidence.read(" Wait, let me check that. 20 - 8 = 12.")
    evidence.read(" So the answer is 12.0 eggs.")
    assert (claim.derivations, claim.answered) == (2, 2)
    other, _ = evidence.read(" Hmm, so the answer is 13.") or pytest.fail("nothing read")
    assert (other.answer, other.agreeing) == ("13", 1)


def test_a_word_is_one_answer_however_it_is_written() -> None:
    evidence = AnswerEvidence("Is 97 a prime number?")
    claim, _ = evidence.read("The answer is Yes.") or pytest.fail("nothing read")
    evidence.read("Wait, let me check 7. So the answer is yes.")
    assert (claim.derivations, claim.contested) == (2, False)


REGIONS = [
    ("<tool_call>ls\n`", "tool call"),
    ("a ```py\nx", "code"),
    ("a ```py\nx\n``` b", None),
    ("x\n``", "code"),
    ("so \\[ x", "math"),
    ("so \\[ x\n\ny", "math"),
    ("so \\[ x \\] y", None),
    ("cost $5 and", None),
    ("price \\$5 then $y", "math"),
    ("$x$ y", None),
    ("$x\nnext", None),
    ("\\boxed{\\frac{1}{2}", "math"),
    ("\\boxed{\\frac{1}{2}} ", None),
    ("\\(a\n\nb", None),
    ("\\[ a" + " word" * 500 + " and on", None),
    ('\n\n{"a": [1, ', "JSON"),
    ('\n\n{"a": [1]} ok', None),
    ("<tool_call>{", "tool call"),
    ("<tool_call>{}</tool_call>", None),
    ("<｜tool▁calls▁begin｜>x", "tool call"),
    ("[TOOL_CALLS] x\n\n y", "tool call"),
]


@pytest.mark.parametrize(("text", "kind"), REGIONS)
def test_open_regions_are_known_whole_and_piece_by_piece(text: str, kind: str | None) -> None:
    regions = ProtectedRegions()
    for character in text:
        regions.feed(character)
    assert unclosed_region(text) == regions.open == kind


PIECES = (
    *"So 12 times 7 is 84|. |\n\n|\n|$|x = 4$| 5| 3.50|{|}|[|]|\\[ 3 |\\]|`|``|```py\n|```\n|Wait, |word".split("|"),
    *'<|tool_call>|function|=|</tool_call>|<function=|</function>|"|: 1|\\boxed{|\\|(|a\\)|[TOOL|_CALLS]'.split("|"),
)


class Pieces:
    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(PIECES[i] for i in ids)


def test_a_call_behind_dropped_brackets_is_seen() -> None:
    thinking = ThinkingState(TokenizerAdapter(Pieces()))
    for piece in ("word", "word", "word", "<"):
        thinking.add(PIECES.index(piece))
    thinking.retract(3)
    for piece in ("<function=", "word"):
        thinking.add(PIECES.index(piece))
    assert thinking.may_call and thinking.protected == "tool call"


def test_a_growing_thinking_knows_its_open_regions() -> None:
    """Looking at any time, also seldom, finds what a scan of the whole text finds."""
    codec = TokenizerAdapter(Pieces())
    for seed in range(60):
        rng = Random(seed)
        thinking = ThinkingState(codec)
        call: Iterator[int] = iter(())
        for _ in range(120):
            thinking.add(next(call, None) or rng.randrange(len(PIECES)))
            if rng.random() < 0.05:
                call = map(PIECES.index, ("<", "function", "="))
            if rng.random() < 0.05:
                thinking.retract(rng.randrange(30))
            if rng.random() < 0.4:
                fenced = any(codec.flags[token] & TokenFlags.FENCE for token in thinking.ids)
                assert thinking.protected == (unclosed_region(thinking.text) if fenced else None), thinking.text[-90:]
                begun = any(thinking.text.endswith(start[:n]) for start in CALL_STARTS for n in range(1, len(start)))
                assert thinking.may_call == (begun or any(map(thinking.text.__contains__, CALL_STARTS)))


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ("Which city is the capital?\nA. 北京\nB. 上海", "所以答案是上海。", "B"),
        ("Which is it?\nA) same\nB) same", "So it is the same.", None),
        ("Which is it? {'A': '12', 'B': 'an oak'}", "So it is an oak.", "B"),
        ("Which?\nA. tea\nB. oil\n1) A section of steps.\n2) A line Answer: A (or B).", "So it is oil.", "B"),
        ("Solve 2x = 6.\n1. Give all answers as decimals.\n2. Round them.", "So x = 3.", "3"),
        ("Is it so? Please select from the following options: ['yes', 'no']", "So it is. Yes.", "Yes"),
        ("When? Please select from the following options: ['1:15 P.M.', '2:30 P.M.']", "So at 2:30 P.M.", "2:30 P.M."),
    ],
)
def test_choices_are_read_by_texts_that_tell_them_apart(question: str, text: str, answer: str | None) -> None:
    assert extract_stated_answer(text, question) == answer


def test_hostile_questions_are_read_at_once() -> None:
    with limited(1.0):
        read_question("Is " + " " * 7_000 + "more than ?")
        for unit in ("'A': '", "1. ", "A. x\n", "options ['", "options ['a',", "one of ", "A. 1/"):
            read_question("Which? " + unit * (7_000 // len(unit)))
        same = "left right " * 40
        asked = read_question(f"Where?\nA) {same}up\nB) {same}down")
        assert asked.choices.label_of_text_in("left right " * 100) is None
