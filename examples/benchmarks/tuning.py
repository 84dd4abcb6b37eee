"""Tuning GPT-2 in full and with LoRA: tinyft beside PyTorch with peft, a step's time and the memory that it takes.

Each is in a process of its own. Models of 124M take turns; of larger ones only one process is there at a time. Weights
are random, since neither time nor memory depends on them. TINYFT_TUNING=124M-lora,XL-lora in the environment chooses
rows.
"""

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tinyft.gpt2 import SIZES
from tinyft.memory import available_bytes

from .processes import VOCABULARY, Process, make_batch, waiting_of
from .timing import REST, Table

BATCH = "shared_masked"  # as in `training.py`: eight rows as in Alpaca, prompts not learned
PEERS = ("tinyft", "peft")
WARM_UP = 2  # steps that aren't counted


@dataclass(frozen=True)
class Row:
    """What is tuned, and how.

    base: how tinyft keeps what is frozen, and their_base: PyTorch. gigabytes: what all processes that are there at a
    time take, about. alone: whether that is only one. rounds: steps that are timed; 0 where only memory is
    looked at, in two steps, since AdamW's moments are there from the second on.
    """

    title: str
    shape: dict[str, int]
    gigabytes: float
    lora: bool = False
    recompute: bool = False
    base: str = "float32"
    their_base: str = "float32"
    moments: str = "float32"
    peers: tuple[str, ...] = PEERS
    alone: bool = True
    rounds: int = 3


def _gpt2(name: str) -> dict[str, int]:
    return {"vocab_size": VOCABULARY, "n_positions": 1024, **SIZES[name]}


ROWS = {
    "124M": Row("124M in full", _gpt2("gpt2"), 6, alone=False, rounds=7),
    "124M-lora": Row("124M, LoRA", _gpt2("gpt2"), 4, lora=True, alone=False, rounds=7),
    "355M": Row("355M in full, recomputed", _gpt2("gpt2-medium"), 8, recompute=True),
    "XL-lora": Row("1558M, LoRA; ours in bfloat16", _gpt2("gpt2-xl"), 13, lora=True, base="bfloat16"),
    "XL-lora-int8": Row("1558M, LoRA; ours in int8", _gpt2("gpt2-xl"), 7, lora=True, base="int8", peers=("tinyft",)),
    "XL": Row("1558M in full, recomputed, moments in 16 bits", _gpt2("gpt2-xl"), 22, recompute=True, moments="bfloat16",
              peers=("tinyft",), rounds=0),
}


class TuningProcess(Process):
    """The other side of `tuning_process.py`."""

    def __init__(self, peer: str, row: Row, threads: int):
        script = Path(__file__).with_name("tuning_process.py")
        environment = {**os.environ, **waiting_of(peer, os.environ), "OMP_NUM_THREADS": str(threads),
                       "NUMBA_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
        self.name = peer
        self.process = subprocess.Popen([sys.executable, script, peer, json.dumps(asdict(row))], env=environment,
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def chosen(wanted: str | None) -> dict[str, Row]:
    """The rows that TINYFT_TUNING names, all without it. ValueError for one that there is not."""
    names = [name.strip() for name in (wanted or ",".join(ROWS)).split(",")]
    for name in names:
        if name not in ROWS:
            raise ValueError(f"TINYFT_TUNING names {name!r}, expected some of {', '.join(ROWS)}")
    return {name: ROWS[name] for name in names}


def peers_of(row: Row, without_torch: bool) -> list[str]:
    """Who takes part."""
    there = not without_torch and all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))
    return [peer for peer in row.peers if peer == "tinyft" or there]


def take_steps(row: Row, peers: list[str], threads: int) -> dict[str, list[dict]]:
    """What each process answered, step by step; they take turns, unless each is to be alone."""
    line = json.dumps([array.tolist() for array in make_batch(BATCH, row.shape["vocab_size"])])
    answers: dict[str, list[dict]] = {peer: [] for peer in peers}
    for together in [[peer] for peer in peers] if row.alone else [peers]:
        with ExitStack() as stack:
            processes = [stack.enter_context(TuningProcess(peer, row, threads)) for peer in together]
            for _ in range(WARM_UP + row.rounds):
                for process in processes:
                    time.sleep(REST)
                    answers[process.name].append(process.step(line))
    return answers


def check_losses(answers: dict[str, list[dict]], vocabulary: int) -> None:
    """RuntimeError unless each begins with the loss of a model that knows nothing yet, about ln V."""
    for peer, (first, *_) in answers.items():
        if not abs(first["loss"] - math.log(vocabulary)) < 1:
            raise RuntimeError(f"tuning: the loss of {peer} is {first['loss']}, expected about "
                               f"{math.log(vocabulary):.1f}")


def _add(table: Table, row: Row, answers: dict[str, list[dict]]) -> None:
    """Two lines: seconds and megabytes."""
    counted = WARM_UP if row.rounds else 0
    seconds = {peer: statistics.median(step["seconds"] for step in steps[counted:]) if row.rounds else None
               for peer, steps in answers.items()}
    peaks = {peer: steps[-1]["peak"] for peer, steps in answers.items()}
    both = "peft" in answers
    if row.rounds:
        table.add(row.title, "s", **seconds, **({"ratio": seconds["peft"] / seconds["tinyft"]} if both else {}))
    table.add("  peak memory" if row.rounds else row.title, "MB", **peaks,
              **({"of_theirs": peaks["tinyft"] / peaks["peft"]} if both else {}))


def measure(table: Table, without_torch: bool, threads: int, rows: dict[str, Row] | None = None) -> None:
    """All rows that the machine has the memory for, or those that are chosen."""
    rows = chosen(os.environ.get("TINYFT_TUNING")) if rows is None else rows
    table.title("tuning", "tuning on 8 rows, prompts masked, as in Alpaca; AdamW",
                "seconds of a step, and how many times as long PyTorch with peft takes; LoRA: rank 8 on all layers")
    for name, row in rows.items():
        if row.gigabytes * 1e9 > available_bytes():
            print(f"  {name} is left out: it takes about {row.gigabytes} GB")
            continue
        answers = take_steps(row, peers_of(row, without_torch), threads)
        check_losses(answers, row.shape["vocab_size"])
        _add(table, row, answers)
