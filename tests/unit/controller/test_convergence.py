"""The exit at answers that agree: what is enough to stop, and that intermediate results never are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.controller.budgets import Budget
from tersely.controller.policies.exits import Convergence
from tersely.controller.replay import replay
from tersely.controller.text.answers import Finality, ends_in_answer, find_statements
from tersely.controller.text.evidence import AnswerEvidence
from tersely.controller.text.markers import Markers
from tersely.controller.text.questions import read_question
from tersely.controller.trace import Decision
from tersely.errors import OptionError
from tersely.evaluation.replay.reader import PieceTokenizer

QUESTION = "How many eggs are left?"
TEXTS = ("stated_answers.jsonl", "unseen_answers.jsonl")
UNFINISHED = [
    json.loads(line) for line in Path(__file__).with_name("unfinished_thinking.jsonl").read_text("utf-8").splitlines()
]


def decide(thinking: str, question: str = QUESTION, agree: int = 2) -> list[Decision]:
    tokenizer = PieceTokenizer()
    ids = tokenizer(thinking + "\n\n")["input_ids"]
    budget, markers = Budget("normal", 1 << 30), Markers("<think>", "</think>")
    return list(replay(ids, (Convergence(agree),), tokenizer, markers, budget, prompt=question, until_close=True))


def closes(thinking: str, question: str = QUESTION, agree: int = 2) -> bool:
    return any(decision.action == "close" for decision in decide(thinking, question, agree))


@pytest.mark.parametrize("row", UNFINISHED, ids=[row["question"][:30] for row in UNFINISHED])
def test_intermediate_results_of_tasks_of_any_kind_end_nothing(row: dict[str, str]) -> None:
    assert not closes(row["thinking"], row["question"])


def test_a_question_for_a_text_or_several_things_is_what_keeps_them_open() -> None:
    open_ = [row for row in UNFINISHED if read_question(row["question"]).open]
    assert len(open_) >= 9
    assert all(closes(row["thinking"], "") for row in open_)
    (note,) = decide(open_[0]["thinking"], open_[0]["question"])
    assert (note.policy, note.action) == ("convergence", "note")


@pytest.mark.parametrize(
    "question",
    [
        QUESTION,
        "Ann plans a party, and makes 3 lists to explain it. How many eggs are left? Explain your reasoning.",
        "Solve for x: 2x + 3 = 7. Show your work.",
        "Write $(-5)^5 + 3$ as an integer.",
        "What is discussed here?\n(A) Why?\n(B) How?\n(C) When?",
    ],
)
def test_one_value_is_enough_for_most_questions(question: str) -> None:
    assert not read_question(question).open


def test_a_confirmation_counts_as_a_derivation() -> None:
    text = "So the answer is 12 eggs.\n\nThat leaves 8, which {}.\n\nSo the answer is 12 eggs."
    assert closes(text.format("matches the 20 of the basket"))
    assert not closes(text.format("are sold"))
    assert not closes(text.format("matches the 20 of the basket"), agree=3)


def test_no_confirmation_counts_once_another_value_was_called_the_answer() -> None:
    text = "So the answer is 12 eggs.\n\nThat leaves 8, which matches.\n\nSo the answer is 12 eggs."
    assert closes(text)
    assert not closes(f"So the answer is 7 eggs.\n\n{text}")


def test_intermediate_results_between_two_equal_answers_do_not_count_against_them() -> None:
    text = "So the answer is 12 eggs.\n\nWait, let me check.\n\nThat makes 8 boxes.\n\nSo the answer is 12 eggs."
    assert closes(text)
    assert not closes(text.replace("That makes 8 boxes", "So there are 8 eggs left"))


def test_three_answers_in_a_row_are_enough() -> None:
    text = "So the answer is 12 eggs.\n\nThe answer is 12.\n\nThe answer is 12."
    assert closes(text)
    assert not closes(text, agree=3)
    assert not closes(f"The answer is 7.\n\n{text}")


def test_a_correction_on_the_way_is_not_the_answer() -> None:
    (found,) = find_statements("Wait, no, that's 16*4=64.", QUESTION)
    assert (found.answer, found.finality) == ("64", Finality.HEDGED)


def test_a_solution_is_on_the_way_where_a_number_is_asked_for() -> None:
    text = "So the solution is x = 2."
    assert next(find_statements(text, "How many pairs are there?")).finality is Finality.ASKED
    assert next(find_statements(text, "Solve x + 3 = 5 for x.")).finality is Finality.ANSWERS


def test_a_remainder_is_read_behind_its_equals_sign() -> None:
    (found,) = find_statements("So the answer is 28501 mod 1000=501.", "Find the remainder of n divided by 1000.")
    assert found.answer == "501"


def test_evidence_that_waits_for_an_answer_is_the_same() -> None:
    pieces = (
        "So 12 eggs are left. ", "Wait, that is 12. Yes, that matches.", "The answer is not clear.", "\\boxed{12}",
        "So 13.", "Perhaps the answer is 13.", "Let me check. So 12 eggs are left.", "Answer:\n12", "The answer is 12.",
    )  # fmt: skip
    at_once, waits = AnswerEvidence(QUESTION), AnswerEvidence(QUESTION)
    answered = []
    for piece in pieces:
        read, found = at_once.read(piece), waits.find_answer(piece)
        assert found is None or found == read
        answered.append(found is not None)
    assert answered == [False, False, False, True, False, False, False, True, True]


def test_whether_a_text_ends_in_an_answer_is_found_without_reading_all_of_it() -> None:
    folder, ends = Path(__file__).parent, 0
    rows = [json.loads(line) for name in TEXTS for line in (folder / name).read_text("utf-8").splitlines()]
    rows += [{"text": f"{text}\n\n12", "question": QUESTION} for text in ("**Final answer**", "Wait, the right one is")]
    rows += [{"text": text, "question": QUESTION} for text in ("Wait, opt for 12.", "No, the best one is 12.")]
    rows += [{"text": text, "question": "Which?\nA. 1\nB. 2"} for text in ("", "\n\n", "So B.", "The answer is B.")]
    for row in rows:
        asked = read_question(row["question"])
        statements = [*find_statements(row["text"], asked)]
        expected = bool(statements) and statements[-1].finality is Finality.ANSWERS
        assert ends_in_answer(row["text"], asked) == expected, row["text"]
        ends += expected
    assert ends > 100


def test_evidence_counts_what_speaks_for_a_claim() -> None:
    evidence = AnswerEvidence(QUESTION)
    evidence.read("Yes, that matches. So there are 12 eggs left.")
    evidence.read(" That is 3 boxes, so it makes sense. So that makes 3 boxes.")
    claim, _ = evidence.read(" So the answer is 12. That checks out.") or pytest.fail("nothing read")
    assert (claim.confirmed, claim.agreeing, claim.insisting, claim.contested) == (2, 1, 2, False)
    other, _ = evidence.read(" The answer is 13.") or pytest.fail("nothing read")
    assert (other.confirmed, other.insisting, other.contested) == (0, 1, True)


def test_long_thinking_is_read_again_when_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(AnswerEvidence, "find_answer", lambda self, text: read.append(text))
    paragraphs = [f"Step {number} is done.\n\n" for number in range(1_500)]  # of 7 tokens
    decide("".join(paragraphs))
    assert len(read) > 800 and "".join(paragraphs).startswith("".join(read)), "nothing is left out"
    first, last = read[:200], read[-20:]
    assert all(text.count("\n\n") == 1 for text in first), "up to 8 times `growth`"
    assert all(4 <= text.count("\n\n") <= 6 for text in last)


@pytest.mark.parametrize("option", ["agree", "stride", "growth"])
def test_options_below_one_are_refused(option: str) -> None:
    with pytest.raises(OptionError):
        Convergence(**{option: 0})
