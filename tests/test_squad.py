"""SQuAD 2.0's scores against cases counted by hand, a naive search for thresholds, and torchmetrics."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinyft.evaluation.squad import SquadV2, exact_match, f1, normalize

WORDS = ("a", "the", "An", "cat", "Cat", "sat!", "mat", "...", "7", "don't", "Zürich")
texts = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
questions = st.lists(st.tuples(texts, st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0)), st.lists(texts, max_size=3)),
                     min_size=1, max_size=8)


def score(rows: list[tuple], **options) -> dict:
    """Scores of (prediction, probability that there is no answer, right answers)."""
    predictions = [{"id": f"q{i}", "prediction_text": text, "no_answer_probability": probability}
                   for i, (text, probability, _) in enumerate(rows)]
    references = [{"id": f"q{i}", "answers": {"text": answers, "answer_start": [0] * len(answers)}}
                  for i, (_, _, answers) in enumerate(rows)]
    return SquadV2().compute(predictions=predictions, references=references, **options)


@pytest.mark.parametrize(("text", "expected"), [
    ("  The  Cat,\tsat. ", "cat sat"), ("a an the", ""), ("Another theme", "another theme"), ("don't", "dont"),
    ("A-team", "ateam"), ("«Café»", "«café»"), ("U.S.A.", "usa"), ("the-cat", "thecat"),
])
def test_normalised(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(("prediction", "answer", "expected"), [
    ("the black cat", "black cat", 1.0), ("black cat", "cat", 2 / 3), ("cat cat", "cat dog", 0.5),
    ("cat cat cat", "cat", 0.5), ("cat cat", "cat cat dog", 0.8),
    ("dog", "cat", 0.0), ("", "", 1.0), ("the", "", 1.0), ("cat", "", 0.0),
    ("", "cat", 0.0),
])
def test_f1_of_two_texts(prediction, answer, expected):
    assert f1(prediction, answer) == pytest.approx(expected)
    assert exact_match(prediction, answer) == (expected == 1.0)


def test_scores_counted_by_hand():
    rows = [
        ("The Normans", 0.1, ["Normans", "the French"]),  # right
        ("in France in 1066", 0.2, ["France", "1066 in France"]),  # f1 of the second: 2 * 3 / (4 + 3)
        ("England", 0.9, ["Denmark"]),  # wrong
        ("", 0.8, []),  # right: there is no answer
        ("Rollo", 0.3, []),  # wrong
    ]
    assert score(rows) == pytest.approx({
        "exact": 40, "f1": 100 * (2 + 6 / 7) / 5, "total": 5,
        "HasAns_exact": 100 / 3, "HasAns_f1": 100 * (1 + 6 / 7) / 3, "HasAns_total": 3,
        "NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2,
        "best_exact": 60, "best_exact_thresh": 0.1, "best_f1": 100 * (3 + 6 / 7) / 5, "best_f1_thresh": 0.2,
    })


def test_answers_of_articles_alone_count_where_there_is_no_other():
    assert score([("", 0.0, ["the", "cat"])])["exact"] == 0
    assert score([("", 0.0, ["the", "..."])])["exact"] == 100


def test_above_the_threshold_the_model_says_nothing():
    rows = [("Normans", 0.4, ["Normans"]), ("Rollo", 0.6, []), ("Rollo", 0.5, [])]
    assert score(rows, no_answer_threshold=0.5)["exact"] == pytest.approx(200 / 3)
    assert score(rows, no_answer_threshold=0.3)["exact"] == pytest.approx(200 / 3)
    assert score(rows, no_answer_threshold=0.7)["exact"] == pytest.approx(100 / 3)


def test_parts_without_questions_are_left_out():
    assert not any(name.startswith("NoAns") for name in score([("a", 0.0, ["b"])]))
    only_without = score([("", 0.0, [])])
    assert not any(name.startswith("HasAns") for name in only_without)
    assert only_without["NoAns_exact"] == only_without["best_exact"] == 100 and only_without["best_exact_thresh"] == 0


@given(questions)
def test_what_must_hold_of_any_scores(rows):
    scores = score(rows)
    for prefix in ("", "HasAns_", "NoAns_", "best_"):
        if f"{prefix}exact" in scores:
            assert 0 <= scores[f"{prefix}exact"] <= scores[f"{prefix}f1"] <= 100 + 1e-9
    parts = [(scores.get(f"{part}_f1", 0), scores.get(f"{part}_total", 0)) for part in ("HasAns", "NoAns")]
    assert sum(value * count for value, count in parts) == pytest.approx(scores["f1"] * scores["total"])
    assert sum(count for _, count in parts) == len(rows)
    # An empty text is how a prediction says that there is no answer.
    silent = score([("", 0.0, answers) for _, _, answers in rows])
    assert silent.get("NoAns_exact", 100) == 100
    assert scores["best_exact"] >= 100 * sum(not answers for _, _, answers in rows) / len(rows) - 1e-9


@given(questions)
def test_no_threshold_is_better_than_the_best(rows):
    """With distinct probabilities the best is the best of all thresholds, of what a reply with words loses."""
    rows = [(text, 5 * i % 9 / 10, answers) for i, (text, _, answers) in enumerate(rows)]  # in no order
    assume(all(answers or normalize(text) or not text for text, _, answers in rows))  # the search counts "the" as words
    found = score(rows)
    tried = [score(rows, no_answer_threshold=threshold / 10 - 0.05) for threshold in range(10)]
    for name in ("exact", "f1"):
        assert found[f"best_{name}"] == pytest.approx(max(each[name] for each in tried))
        at_best = score(rows, no_answer_threshold=found[f"best_{name}_thresh"])
        if found[f"best_{name}"] > tried[0][name] + 1e-9:
            assert at_best[name] == pytest.approx(found[f"best_{name}"])


@pytest.mark.parametrize(("predictions", "references", "message"), [
    (["x"], ["y"], "id 'x' stands in one of them only"), (["x", "x"], ["x"], "id 'x' stands twice in the predictions"),
    (["x"], ["x", "x"], "id 'x' stands twice in the references"), ([], [], "0 predictions for 0 references"),
])
def test_ids_that_do_not_match(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        SquadV2().compute([{"id": key, "prediction_text": "", "no_answer_probability": 0.0} for key in predictions],
                          [{"id": key, "answers": {"text": [], "answer_start": []}} for key in references])


@pytest.mark.referee
def test_torchmetrics_agrees(rng):
    """On questions with answers, which is what SQuAD 1.1, and torchmetrics, have."""
    text = pytest.importorskip("torchmetrics.functional.text", reason="torchmetrics is not installed")
    for _ in range(30):
        rows = [(" ".join(rng.choice(WORDS, rng.integers(0, 5))), 0.0,
                 [" ".join([*rng.choice(WORDS, rng.integers(0, 4)), "mat"]) for _ in range(rng.integers(1, 4))])
                for _ in range(5)]
        theirs = text.squad(
            [{"id": str(i), "prediction_text": reply} for i, (reply, _, _) in enumerate(rows)],
            [{"id": str(i), "answers": {"text": answers, "answer_start": [0] * len(answers)}}
             for i, (_, _, answers) in enumerate(rows)])
        ours = score(rows)
        assert ours["exact"] == pytest.approx(float(theirs["exact_match"]), abs=1e-3)
        assert ours["f1"] == pytest.approx(float(theirs["f1"]), abs=1e-3)
