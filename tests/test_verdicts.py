"""What a judge's words mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyft.evaluation.verdicts import parse_choice, parse_score


@pytest.mark.parametrize("text, score", [
    ("85", 85), ("85.", 85), (" 85\n", 85), ("I'd say 85.", 85), ("Score: 85/100", 85), ("85/100", 85),
    ("85 / 100", 85), ("85 out of 100", 85), ("85 of 100", 85),
    ("85%", 85), ("85 %", 85), ("**85**", 85), ("[85]", 85), ("\"85\"", 85),
    ("0", 0), ("100", 100), ("100/100", 100), ("0/100", 0), ("~85", 85), ("85 points", 85), ("87.5", 87.5),
    ("Score: 85\nScore: 85", 85), ('{"score": 85, "of": 100}', 85), ("\\boxed{85}", 85), ("The score is 85", 85),
    ("Score (0-100): 85", 85), ("On a scale from 0 to 100, I give it 85", 85), ("There are 3 errors. Score: 70", 70),
    ("I would rate it 8/10, so 80/100", 80), ("85\n\nGPT-4 wrote it", 85), ("<think>maybe 40, or 50</think>85", 85),
    ("85\n\nThe reply is good.", 85), ("85. The reply is right.", 85), ("1. right\n2. short\nScore: 60", 60),
    ("1. right\n2. short\n\n60", 60), ("Rating: 72 of 100", 72), ("A score of 85 would be fair", 85), ("0.0", 0),
    ("The score is not 100. Score: 85", 85), ("It gets 85.", 85), ("85, because B4 is short", 85), ("\n85\n", 85),
    ('{"reason": "It is not wrong, but short", "score": 40}', 40), ("It is short.\n\n40", 40), ("It gets 40/100.", 40),
    ("Score: 10, wrong city", 10), ("Based on the criteria, the score is 85.", 85), ("Here is my score: 85", 85),
])
def test_scores_that_are_read(text, score):
    assert parse_score(text) == score


@pytest.mark.parametrize("text", [
    "", "  ", "good", "eighty-five", "8/10", "Score: 8/10", "4 out of 5", "101", "150", "1000", "-5", "Score: -5", "−5",
    "80-90", "80–90", "80 to 90", "between 80 and 90", "Score: 80 to 90", "Score: 80 – 90", "40. No, 60.",
    "Score: 40. No, score: 60", "2 of 3 facts are right: 67", "0.85", "1.0", "85,5", "1,000", "1e2", "85pts", "A85",
    "0-100", "1. The answer is right", "<think>it is 40", "Score: 150", "٨٥", "8５", "9" * 5000, "1/2",
    "It scores 2 for style, 60 overall", "I'd give this a 90. It meets 4 criteria", "In 2024 I would say 85",
    "85\n\n2 errors", "The score is not 100", "It is not worth 100", "Score: above 80", "score < 50", "at most 30",
    "It has 3 errors.", "The expected reply has a score of 100; this one 40", "The answer is 42", "It says 42.",
    "It is 42.",
    "The expected reply would get 100/100. This one 40", "Score: 80 or more", "A score of 85 would be too generous",
    "A score of 85 would be wrong",
    "It isn't 100/100", "Score: 40. No, 60.", "Score: 40. No, a score of 60", "under 50", "more than 60", "Score: 80+",
    "It doesn't deserve 100.", "The other reply deserves 100.",
])
def test_scores_that_are_not_read(text):
    assert parse_score(text) is None


def test_what_is_cut_may_lack_digits():
    assert parse_score("The score is 8") == 8
    assert parse_score("The score is 8", is_cut=True) is None and parse_score("85/10", is_cut=True) is None
    assert parse_score("85\n\nThe reply is go", is_cut=True) == 85
    assert parse_choice("A", is_cut=True) is None and parse_choice("A\n\nIt is sho", is_cut=True) == "first"
    assert parse_choice("Reply\nA reply", is_cut=True) is None  # where A was the last word of a line that went on


@given(st.integers(0, 100), st.sampled_from(["{}", "{}.", "{}/100", "Score: {}", "**{}**", "I say {} out of 100.",
                                             "{} %", "Rating = {}/100\nIt is good.", "<think>1 or 2</think>\n{}"]))
def test_every_score_in_every_form(score, form):
    assert parse_score(form.format(score)) == score


@given(st.one_of(st.text(max_size=60), st.text("0123456789./- %,\n*scoreAB", max_size=30)), st.booleans())
def test_any_text_is_a_score_or_none(text, is_cut):
    score = parse_score(text, is_cut)
    assert score is None or 0 <= score <= 100
    assert parse_choice(text, is_cut) in ("first", "second", "tie", None)


@given(st.integers(0, 100), st.integers(0, 100), st.sampled_from(["{} or {}", "{}\n{}", "{}, then {}", "a {} b {}"]))
def test_two_scores_are_one_only_if_they_are_the_same(one, other, form):
    score = parse_score(form.format(one, other))
    assert score is None if one != other or "\n" not in form else score == one


@pytest.mark.parametrize("text, choice", [
    ("A", "first"), ("B.", "second"), ("TIE", "tie"), ("tie", "tie"), ("[[A]]", "first"), ("**B**", "second"),
    ("Reply A", "first"), ("Reply A is better.", "first"), ("Reply A is better than reply B", "first"),
    ("B is clearly better than A", "second"), ("A\n\nBecause B is wrong.", "first"),
    ("A, because B is wrong", "first"),
    ("Answer: B", "second"), ("The winner is reply B.", "second"), ("Verdict: tie", "tie"),
    ("B. It is shorter.", "second"),
    ("<think>A</think>B", "second"), ("Final answer: B", "second"), ("Both are short.\n\nB", "second"),
    ("A - it is right", "first"), ("A is better, because B is not right.", "first"), ("My choice is: A", "first"),
    ("Reply A is wrong and doesn't say why.\nVerdict: B", "second"), ("A\n\nReply B has no reasons.", "first"),
    ("A: names the wrong city.\nB: names the capital.\n\nB", "second"), ("The winner is A since B isn't true", "first"),
])
def test_choices_that_are_read(text, choice):
    assert parse_choice(text) == choice


@pytest.mark.parametrize("text", [
    "", "a", "Neither", "A or B", "AB", "A tie.", "Both are good", "Answer: A. Answer: B", "A good answer would be B",
    "Reply A is not better than reply B", "A is better. B is better.", "A-level", "Reply C", "A reply",
    "Answer A is worse.", "Answer A is wrong.", "In answer A there is an error", "The answer A gives is wrong; B",
    "I don't think A is better.", "Neither A is better nor B; TIE", "A: wrong. B: right. So B.", "A - no, B",
    "B: right",
    "A: wrong", "The wrong answer: A is worse.", "The worse answer is A.", "I am not sure that the answer is A.",
    "A, B", "A or B.", "A. Wrong city.", "Answer: A, B", "A\n\nB is better.", "A\nB", "A\n\nNo, B.", "A. No: B",
    "A is better in tone, but B is right", "It is unclear whether A is better.", "Answer: A. No, B.", "A is better?",
    "A isn't better.", "A, as well as B", "Answer: A or B", "Verdict: A\nVerdict: B", "Verdict: A\nB\nIt is short.",
])
def test_choices_that_are_not_read(text):
    assert parse_choice(text) is None
