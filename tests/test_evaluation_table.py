"""The table and the chart of what the harness found."""

import math

import pytest

from tinyft.evaluation.table import plot, rows_of, table


def results(accuracies, *, perplexity=20.0, choices=4):
    """What the harness gives, of a group of one task, which it lists after that, and a task that is no mean."""
    mean = sum(accuracies) / len(accuracies)
    samples = [{"doc_id": i, "filter": "none", "acc": value, "arguments": [None] * choices}
               for i, value in enumerate(accuracies)]
    return {
        "results": {"task": {"acc,none": mean, "acc_stderr,none": 0.2, "alias": " - task", "sample_len": 4},
                    "group": {"acc,none": mean, "acc_stderr,none": 0.1, "alias": "group", "name": "group"},
                    "text": {"perplexity,none": perplexity, "perplexity_stderr,none": "N/A"}},
        "group_subtasks": {"group": ["task"]}, "n-samples": {"task": {"effective": len(accuracies)},
                                                             "text": {"effective": 3}},
        "higher_is_better": {"group": {"acc": True}, "task": {"acc": True}, "text": {"perplexity": False}},
        "configs": {"task": {"output_type": "multiple_choice"}, "text": {"output_type": "loglikelihood_rolling"}},
        "samples": {"task": samples, "text": []},
    }


def test_rows_of_one_model():
    group, task, text = rows_of([results([1.0, 0.0, 1.0, 1.0])])
    assert (group.items, group.depth, task.items, task.depth, text.items) == (4, 0, 4, 1, 3)
    assert task.values == ((0.75, 0.2),) and task.difference is None
    assert task.guessing == 0.25 and math.isnan(group.guessing) and math.isnan(text.guessing)
    assert math.isnan(text.values[0][1]) and not text.higher_is_better


def test_the_error_of_a_difference_is_of_the_same_questions():
    """Three questions answered alike and one better: the mean of 0, 0, 0, 1 and its standard error."""
    group, task, text = rows_of([results([1.0, 0.0, 1.0, 0.0]), results([1.0, 0.0, 1.0, 1.0], perplexity=15.0)])
    assert task.difference == group.difference == pytest.approx((0.25, 0.25))
    assert text.difference[0] == -5 and math.isnan(text.difference[1])


def test_where_a_number_is_no_mean_both_errors_add_up():
    one, other = results([1.0, 0.0]), results([0.0, 0.0])
    other["results"]["task"]["acc,none"] = 0.9  # an F1, say
    _, task, _ = rows_of([one, other])
    assert task.difference == pytest.approx((0.4, math.hypot(0.2, 0.2)))


def test_groups_stand_before_what_is_in_them():
    one = results([1.0])
    one["results"] |= {name: {"acc,none": 0.5} for name in ("b", "a", "all", "other")} | {"silent": {"alias": "silent"}}
    one["results"]["inside"] = {"acc,none": 0.1}
    one["group_subtasks"] = {"group": ["task"], "all": ["group", "b"], "silent": ["inside"]}
    one["n-samples"] |= {"b": {"effective": 5}, "inside": {"effective": 7}, "a": {"effective": 1, "original": 9}}
    rows = rows_of([one])
    assert [(row.task, row.depth, row.items) for row in rows] == [
        ("all", 0, 6), ("group", 1, 1), ("task", 2, 1), ("b", 1, 5), ("inside", 0, 7), ("text", 0, 3), ("a", 0, 1),
        ("other", 0, 0)]


def test_a_metric_after_several_filters_is_several_rows():
    one = results([1.0])
    one["results"]["task"] |= {"acc,strict": 0.5, "acc_stderr,strict": 0.1}
    assert [row.metric for row in rows_of([one])] == ["acc", "acc (none)", "acc (strict)", "perplexity"]


def test_the_table():
    both = [results([1.0, 0.0]), results([1.0, 1.0], perplexity=1.5e6)]
    assert table(rows_of(both), ["before", "after"]).split("\n") == [
        "task    metric        items         before          after      difference  guessing",
        "group   acc               2  0.500 ± 0.100  1.000 ± 0.100  +0.500 ± 0.500",
        "  task  acc               2  0.500 ± 0.200  1.000 ± 0.200  +0.500 ± 0.500     0.250",
        "text    perplexity ↓      3         20.000        1.5e+06        +1.5e+06",
        "↓ less is better"]


def test_what_was_not_run_is_said():
    one = results([1.0])
    one["results"]["task"] = {"pass@1,none": math.nan, "pass@1_stderr,none": math.nan}
    assert "not run" in table(rows_of([one]), ["model"])


def test_the_chart(tmp_path):
    pytest.importorskip("matplotlib", reason="needs pip install matplotlib")
    both = [results([1.0, 0.0]), results([1.0, 1.0])]
    path = tmp_path / "scores.png"
    assert plot(rows_of(both), ["before $x^2$", "after"], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    for each in both:
        each["results"], each["group_subtasks"] = {"text": each["results"]["text"]}, {}
    assert not plot(rows_of(both), ["before", "after"], path), "a perplexity is on another scale"
