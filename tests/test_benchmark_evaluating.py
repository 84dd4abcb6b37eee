"""Questions for the benchmark of evaluation, and how answers are compared."""

import sys

import pytest
from tiny import EXAMPLES

sys.path.append(str(EXAMPLES))

from benchmarks import evaluating, generators  # noqa: E402

from tinyft.files import read_json_lines  # noqa: E402


def test_questions_are_as_long_as_they_say_and_others_each_time(tmp_path):
    tokenizer = generators.make_tokenizer(50257)
    folders = [evaluating.make_data(tmp_path / str(i), seed) for i, seed in enumerate((1, 1, 2))]
    for name, count in (("cais/mmlu/global_facts/test", 100), ("Rowan/hellaswag/validation", 200),
                        ("mandarjoshi/trivia_qa/rc.nocontext/validation", 50)):
        first, same, other = ([row for _, row in read_json_lines(folder / f"{name}.jsonl")] for folder in folders)
        assert len(first) == count and first == same != other
    for _, row in read_json_lines(folders[0] / "cais/mmlu/global_facts/test.jsonl"):
        assert 20 <= len(tokenizer.encode(row["question"])) <= 80
        assert all(4 <= len(tokenizer.encode(choice)) <= 16 for choice in row["choices"])


def scores(*values):
    return [[[value, False]] for value in values]


@pytest.mark.parametrize("ours, theirs, expected", [
    ([scores(-1.0, -2.0)], [scores(-1.0, -2.0)], (0, 0)),
    ([scores(-1.0, -2.0), scores(-3.0, -1.0)], [scores(-1.5, -2.0), scores(-3.0, -1.0)], (0.5, 0)),
    ([scores(-1.0, -2.0)], [scores(-2.0, -1.0)], (1.0, 1)),
    ([[["a"]], [["b"]]], [[["a"]], [["c"]]], (0, 1)),
])
def test_differences(ours, theirs, expected):
    assert evaluating.differences(ours, theirs) == expected
