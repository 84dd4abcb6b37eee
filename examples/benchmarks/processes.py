"""Training steps in processes of their own, so that peers keep their memory settings and threads to themselves.

A process says "ready" and then answers every line it reads, the name of a batch, with a line of JSON: what
its step returned, and the most memory it has held so far.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tinyft.kernels.threads import BRIEF_WAITING

VOCABULARY = 50257
PREFIX = 24  # tokens that Alpaca's prompts begin with, in GPT-2's vocabulary
BATCHES = {
    "shared_full": f"prompts learned, rows share {PREFIX} tokens",
    "shared_masked": f"prompts masked, rows share {PREFIX} tokens",
    "full": "prompts learned, rows share nothing",
    "masked": "prompts masked, rows share nothing",
}
SHARED = tuple(name for name in BATCHES if name.startswith("shared"))  # as instructions usually are

# How long threads without work ask for more where nobody sets it: OpenMP of GNU, then of Intel and LLVM, by their
# manuals.
USUAL_WAITING = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}


def make_batch(name: str, vocabulary: int = VOCABULARY) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (8, T), padded with -100: rows of 40 to 75 tokens and replies of about 13, as in Alpaca.

    "full" learns whole rows, "masked" only the replies. The rows are random tokens and share nothing; in the SHARED
    batches they are the same but for their first PREFIX tokens, which are those of the first row.
    """
    rng = np.random.default_rng(0)
    lengths, replies = rng.integers(40, 76, 8), rng.integers(6, 21, 8)
    inputs = rng.integers(0, vocabulary, (8, lengths.max()))
    if name in SHARED:
        inputs[:, :PREFIX] = inputs[0, :PREFIX]
    targets = np.full_like(inputs, -100)
    for row, (length, reply) in enumerate(zip(lengths, replies, strict=True)):
        first = length - reply - 1 if name.endswith("masked") else 0
        targets[row, first : length - 1] = inputs[row, first + 1 : length]
        targets[row, length - 1] = vocabulary - 1
    return inputs, targets


def describe(name: str) -> str:
    """A batch in a few words."""
    return f"8 rows, {int((make_batch(name)[1] != -100).sum())} targets ({BATCHES[name]})"


def serve(step: Callable[[np.ndarray, np.ndarray], dict], vocabulary: int = VOCABULARY) -> None:
    """The process's side: train a step on each batch that is asked for."""
    from tinyft.memory import peak_megabytes

    batches = {name: make_batch(name, vocabulary) for name in BATCHES}
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps({"step": step(*batches[line.strip()]), "peak": peak_megabytes()}), flush=True)


def waiting_of(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment, so that the threads of a process wait as they do for its users.

    tinyft makes its own threads wait briefly and leaves that in the environment. Another package would take it over,
    since both use one OpenMP library, and give way to busy processes sooner than it really does.
    """
    if name.split("_")[0] in ("tinyft", "account"):
        return {}
    return {key: USUAL_WAITING[key] for key, value in BRIEF_WAITING.items() if environment.get(key) == value}


class Process:
    """The other side: a process that trains a step when asked, and ends with the `with` block."""

    def __init__(self, name: str, threads: int):
        script = Path(__file__).resolve().parents[1] / "benchmark.py"
        environment = {**os.environ, **waiting_of(name, os.environ), "OMP_NUM_THREADS": str(threads),
                       "NUMBA_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
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
