"""A training step beside programs that keep cores busy, as on a machine that others use as well.

Threads that wait for each other suffer most there: what waits in a loop takes the core from the thread that it
waits for, so that a step can slow down by far more than the cores that are left would explain.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tinyft.kernels.cpu import cpu_quota, physical_cores

from .peers import installed
from .processes import Process, describe
from .timing import REST, Table

BATCH = "shared_masked"
BUSY = (1, 2)  # processes beside the step
PEERS = ("tinyft", "transformers")
SETTLE = 0.2  # seconds until a busy process is past its start
IN_A_ROW, SECONDS = 20, 2.0  # steps, as many as fit in that time: short ones vary with whom the system lets run
MODELS = {"124M": ("GPT-2 124M", ""), "small": ("small model of 4 M parameters", "_small")}  # title, end of its name


def cores_shared() -> float:
    """How many cores this process may use; fewer than it sees where a container's quota says so."""
    return min(physical_cores(), cpu_quota() or float("inf"))


def fair_share(cores: float, threads: int, busy: int) -> float:
    """How many times as long as alone a step would take beside `busy` processes if all ran for equal times.

    With a thread for each core that is (cores + busy) / cores. Cores that are left over serve the others for nothing.
    """
    return max(1.0, (threads + busy) / max(cores, threads))


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen]]:
    """Processes that do nothing and never pause, until the `with` block ends in whatever way.

    They also end by themselves once this process, their parent, is gone without having come to the block's end.
    """
    code = f"import os\nwhile os.getppid() == {os.getpid()}:\n    for _ in range(10**6): pass"
    processes: list[subprocess.Popen] = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL))
        time.sleep(SETTLE if count else 0)
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _steps_in_a_row(process: Process) -> list[float]:
    """Milliseconds of 2 steps at least, after one that isn't counted.

    Without a rest between them, as in a training: who has slept is let in first, and would seem not to be disturbed.
    """
    time.sleep(REST)
    process.step(BATCH)
    taken, end = [], time.perf_counter() + SECONDS
    while len(taken) < 2 or (len(taken) < IN_A_ROW and time.perf_counter() < end):
        taken.append(1000 * sum(process.step(BATCH)["step"].values()))
    return taken


def _take_turns(processes: list[Process], turns: int) -> dict[str, dict[int, float]]:
    """Median milliseconds by process and number of busy ones; each turn goes through all numbers."""
    taken = {process.name: {count: [] for count in (0, *BUSY)} for process in processes}
    for process in processes:
        _steps_in_a_row(process)  # compiles and fills memory
    for _ in range(turns):
        for count in (0, *BUSY):
            with busy_processes(count):
                for process in processes:
                    taken[process.name][count] += _steps_in_a_row(process)
    return {name: {count: statistics.median(times) for count, times in by_count.items()}
            for name, by_count in taken.items()}


def columns(times: dict[int, float], ours: dict[int, float]) -> dict[str, float]:
    """A row of the table from times by number of busy processes, and tinyft's."""
    row = {"alone": times[0], "ratio": times[0] / ours[0]}
    for count in BUSY:
        row |= {f"beside_{count}": times[count], f"slower_{count}": times[count] / times[0],
                f"ratio_{count}": times[count] / ours[count]}
    return row


def measure(table: Table, without_torch: bool, threads: int, turns: int = 3) -> None:
    """Steps of both models, alone and beside busy processes, and what a fair share of the cores would make of it."""
    here, cores = installed(without_torch)[0], cores_shared()
    fair = {f"slower_{count}": fair_share(cores, threads, count) for count in BUSY}
    for key, (title, end) in MODELS.items():
        table.title(f"busy_{key}", f"training step beside 1 and 2 busy processes, {title}, {describe(BATCH)}",
                    "slower: times as long as alone; ratio: times as long as tinyft beside as many")
        with ExitStack() as stack:
            processes = [stack.enter_context(Process(name + end, threads)) for name in PEERS if name in here]
            times = _take_turns(processes, turns)
        rows = {name: columns(by_count, times["tinyft" + end]) for name, by_count in times.items()}
        for name, row in rows.items():
            table.add(name.removesuffix(end), "ms", **row)
        table.add(f"{threads} threads' fair share of {cores:g} cores", "times", **{
            column: fair.get(column) for column in rows["tinyft" + end]})
