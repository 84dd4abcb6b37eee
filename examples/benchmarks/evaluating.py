"""Evaluating GPT-2 124M in EleutherAI's harness: tinyft's adapter beside the harness' own model on PyTorch.

Both are in processes of their own and take turns on the same questions. These are made up, of random signs, in the form
and of about the lengths of the real ones, since how long a model takes does not depend on what is asked.
"""

import importlib.util
import io
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .generators import make_folder
from .peers import GPT2_124M
from .processes import Process, threads_given
from .timing import REST, Table

MARK = "evaluates_"  # begins the name of a process
PEERS = ("tinyft", "hf")
EXAMPLES = 5  # before each question


@dataclass(frozen=True)
class Task:
    """title: in tables; count: of questions; examples: before each; batch_size: with which the harness' own model was
    the fastest of 1, 4, 16 and 32; turns: fewer where one takes minutes."""

    title: str
    count: int
    examples: int
    batch_size: int
    turns: int


TASKS = {"mmlu_global_facts": Task("100 MMLU questions, five-shot", 100, EXAMPLES, 4, 2),
         "hellaswag": Task("200 HellaSwag questions", 200, 0, 4, 2),
         "triviaqa": Task("50 TriviaQA questions, five-shot", 50, EXAMPLES, 16, 1)}


# ---- what is asked


def make_data(folder: Path, seed: int) -> Path:
    """Write the questions below a folder, as `--data-dir` has them."""
    rng = np.random.default_rng(seed)

    def words(fewest: int, most: int) -> str:
        """Text of so many tokens: letters and digits in turn, which no tokenizer of GPT-2's kind joins."""
        length = int(rng.integers(fewest, most + 1))
        return "".join(chr(rng.integers(97, 123) if i % 2 else rng.integers(48, 58)) for i in range(length))

    def mmlu(count: int) -> list[dict]:
        return [{"question": words(20, 80), "choices": [words(4, 16) for _ in range(4)],
                 "answer": int(rng.integers(4))} for _ in range(count)]

    def hellaswag(count: int) -> list[dict]:
        return [{"activity_label": words(4, 6), "ctx_a": words(30, 60), "ctx_b": words(2, 6), "ctx": "",
                 "endings": [words(14, 40) for _ in range(4)], "label": str(rng.integers(4))} for _ in range(count)]

    def trivia(count: int) -> list[dict]:
        return [{"question": words(14, 30), "answer": {"aliases": [words(2, 8)], "value": words(2, 8)}}
                for _ in range(count)]

    parts = {"cais/mmlu/global_facts/test": mmlu(100), "cais/mmlu/global_facts/dev": mmlu(EXAMPLES),
             "Rowan/hellaswag/validation": hellaswag(200), "Rowan/hellaswag/train": hellaswag(8),
             "mandarjoshi/trivia_qa/rc.nocontext/validation": trivia(50),
             "mandarjoshi/trivia_qa/rc.nocontext/train": trivia(60)}
    for name, rows in parts.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


# ---- who answers


def load(peer: str, folder: Path):
    """A model of the harness."""
    from tinyft.evaluation.lm_eval import ENGINE, TinyftLM
    from tinyft.inference.engine import load_engine

    if peer == "tinyft":
        return TinyftLM(*load_engine(folder, **ENGINE))
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(threads_given())
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32")


def serve(name: str) -> None:
    """The process's side. The first line names a model folder, each that follows a task with its data.

    Lines are JSON, and so are the answers: as "step" seconds and what the model said to each question, and the peak
    memory in MB.
    """
    # A script beside this package is called like a library that the harness imports.
    sys.path.append(sys.path.pop(0))
    from tinyft.evaluation import harness
    from tinyft.memory import peak_megabytes

    peer = name.removeprefix(MARK)
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        return
    model = load(peer, Path(json.loads(line)))
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        task, data, limit, examples, model.batch_size_per_gpu = json.loads(line)
        options = harness.Options(limit=limit, num_fewshot=examples, data_dir=Path(data))
        manager, names = harness.find_tasks([task])
        if peer == "tinyft":  # nothing of an earlier turn may be known
            model.known.forget()
            model.engine.scheduler = None
        with redirect_stderr(io.StringIO()):  # bars, which the harness' own model shows whatever it is told
            begin = time.perf_counter()
            results = harness.run_tasks(model, names, manager, options)
            seconds = time.perf_counter() - begin
        said = [sample["resps"] for sample in results["samples"][task]]
        print(json.dumps({"step": {"seconds": seconds, "said": said}, "peak": peak_megabytes()}), flush=True)


def differences(ours: list, theirs: list) -> tuple[float, int]:
    """The largest difference of two log-likelihoods in nats, and how many answers are others."""
    largest, others = 0.0, 0
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one[0][0], str):
            others += one != other
            continue
        scores, their_scores = ([choice[0][0] for choice in each] for each in (one, other))
        largest = max(largest, *(abs(a - b) for a, b in zip(scores, their_scores, strict=True)))
        others += int(np.argmax(scores)) != int(np.argmax(their_scores))
    return largest, others


# ---- side by side


def installed(without_torch: bool) -> list[str]:
    """Who can take part."""
    if not importlib.util.find_spec("lm_eval"):
        return []
    return [peer for peer in PEERS if peer == "tinyft" or not without_torch and importlib.util.find_spec("torch")]


def measure(table: Table, without_torch: bool, threads: int) -> None:
    """All tasks. What is written for that, half a GB, is removed again."""
    peers = installed(without_torch)
    if not peers:
        print("\nevaluation is left out: pip install lm-eval")
        return
    table.title("evaluate", "questions in lm-eval, GPT-2 124M, float32",
                "hf: the harness' own model on PyTorch; times of a whole task; a model of random weights writes as "
                "long as it may, 256 tokens")
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = make_folder(Path(place) / "124M", GPT2_124M)
        processes = {peer: stack.enter_context(Process(f"{MARK}{peer}", threads)) for peer in peers}
        for process in processes.values():
            process.step(json.dumps(str(folder)))
        for name, task in TASKS.items():
            _one_task(table, name, task, processes, Path(place))


def _one_task(table: Table, name: str, task: Task, processes: dict[str, Process], place: Path) -> None:
    taken, answers = {peer: [] for peer in processes}, {}
    for turn in range(task.turns + 1):
        data = make_data(place / f"questions-{turn}", seed=turn)
        for peer, process in processes.items():
            time.sleep(REST)
            # The first turn compiles and fills memory.
            answers[peer] = process.step(json.dumps([name, str(data), task.count if turn else 2, task.examples,
                                                     task.batch_size]))
            if turn:
                taken[peer].append(answers[peer]["step"]["seconds"])
    seconds = {peer: statistics.median(each) for peer, each in taken.items()}
    table.add(task.title, "s", **seconds, **({"ratio": seconds["hf"] / seconds["tinyft"]} if "hf" in seconds else {}))
    table.add("  peak memory so far", "MB", **{peer: each["peak"] for peer, each in answers.items()},
              **({"ratio": answers["tinyft"]["peak"] / answers["hf"]["peak"]} if "hf" in seconds else {}))
    if "hf" in seconds:
        largest, others = differences(answers["tinyft"]["step"]["said"], answers["hf"]["step"]["said"])
        table.add("  largest difference; other answers", "nats", difference=largest, others=others)
