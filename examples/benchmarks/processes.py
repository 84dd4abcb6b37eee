"""Training steps in processes of their own, so that peers keep their memory settings and threads to themselves.

A process says "ready" and then answers every line it reads, the name of a batch, with a line of JSON: what
its step returned, and the most memory it has held so far.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

VOCABULARY = 50257
BATCHES = {"full": "prompts learned", "masked": "prompts masked"}


def make_batch(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (8, T), padded with -100: rows of 40 to 75 tokens and replies of about 13, as in Alpaca.

    "full" learns whole rows, "masked" only the replies.
    """
    rng = np.random.default_rng(0)
    lengths, replies = rng.integers(40, 76, 8), rng.integers(6, 21, 8)
    inputs = rng.integers(0, VOCABULARY, (8, lengths.max()))
    targets = np.full_like(inputs, -100)
    for row, (length, reply) in enumerate(zip(lengths, replies, strict=True)):
        first = length - reply - 1 if name == "masked" else 0
        targets[row, first : length - 1] = inputs[row, first + 1 : length]
        targets[row, length - 1] = VOCABULARY - 1
    return inputs, targets


def describe(name: str) -> str:
    """A batch in a few words."""
    return f"8 rows, {int((make_batch(name)[1] != -100).sum())} targets ({BATCHES[name]})"


def serve(step: Callable[[np.ndarray, np.ndarray], dict]) -> None:
    """The process's side: train a step on each batch that is asked for."""
    from tinyft.memory import peak_megabytes

    batches = {name: make_batch(name) for name in BATCHES}
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps({"step": step(*batches[line.strip()]), "peak": peak_megabytes()}), flush=True)


class Process:
    """The other side: a process that trains a step when asked, and ends with the `with` block."""

    def __init__(self, name: str, threads: int):
        script = Path(__file__).resolve().parents[1] / "benchmark.py"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads),
                       "TRANSFORMERS_VERBOSITY": "error"}
        self.name = name
        self.process = subprocess.Popen([sys.executable, script, "--serve", name], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        self._read()
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the benchmark's process '{self.name}' ended early; see its error above")
        return line

    def step(self, batch: str) -> dict:
        """What the step returned, as "step", and the peak memory so far in MB, as "peak"."""
        self.process.stdin.write(batch + "\n")
        self.process.stdin.flush()
        return json.loads(self._read())


def threads_given() -> int:
    """How many threads this process was started for."""
    return int(os.environ["OMP_NUM_THREADS"])
