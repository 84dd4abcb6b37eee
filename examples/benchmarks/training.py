"""One training step of GPT-2 124M, tinyft and its peers in processes of their own, taking turns."""

import statistics
import time
from contextlib import ExitStack

from tinyft.kernels.jit import HAS_BFLOAT16

from .peers import installed
from .processes import BATCHES, Process, describe
from .timing import REST, Table

PARTS = ("forward", "backward", "optimizer")
WARM_UP = 2  # rounds that aren't counted


def take_turns(processes: list[Process], batch: str, rounds: int) -> dict[str, list[dict]]:
    """What each process answered, by name; after a rest each time, for the reason that `timing` gives."""
    answers: dict[str, list[dict]] = {process.name: [] for process in processes}
    for round_number in range(WARM_UP + rounds):
        for process in processes:
            time.sleep(REST)
            answer = process.step(batch)
            if round_number >= WARM_UP:
                answers[process.name].append(answer)
    return answers


def _milliseconds(steps: list[dict]) -> dict[str, float | None]:
    """Medians of each part and of the whole; None for the parts of a peer that can't tell them apart."""
    parts = {part: 1000 * statistics.median(step[part] for step in steps) if part in steps[0] else None
             for part in PARTS}
    return {**parts, "whole_step": 1000 * statistics.median(sum(step.values()) for step in steps)}


def _compare(table: Table, dtype: str, names: list[str], threads: int, rounds: int) -> None:
    """All peers of one precision at once: three or four models of 2 to 4 GB."""
    suffix = "_bf16" if dtype == "bfloat16" else ""
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(name + suffix, threads)) for name in names]
        for batch in BATCHES:
            table.title(f"step_{batch}_{dtype}", f"training step, GPT-2 124M, {dtype}, {describe(batch)}",
                        "ratio: how many times as long as tinyft's the whole step takes")
            answers = take_turns(processes, batch, rounds)
            rows = {name: _milliseconds([answer["step"] for answer in taken]) for name, taken in answers.items()}
            ours = rows["tinyft" + suffix]["whole_step"]
            for name, row in rows.items():
                table.add(name, "ms", **row, ratio=row["whole_step"] / ours, peak_MB=answers[name][-1]["peak"])


def measure(table: Table, without_torch: bool, threads: int, rounds: int = 7) -> None:
    """Medians of `rounds` steps, first in float32, then in bfloat16, where the CPU has it."""
    peers, missing = installed(without_torch)
    if missing:
        names = [f"{name} ({peer.install})" for name, peer in missing.items()]
        print(f"\ntraining peers that are not installed: {'; '.join(names)}")
    for dtype in ("float32", "bfloat16") if HAS_BFLOAT16 else ("float32",):
        names = [name for name, peer in peers.items() if dtype in peer.dtypes]
        _compare(table, dtype, names, threads, rounds)
