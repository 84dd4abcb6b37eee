"""One training step of GPT-2 124M, tinyft and its peers in processes of their own, taking turns.

The batch has the lengths of an Alpaca batch: 8 rows of 40 to 75 tokens, replies of about 13. Separate
processes keep each other's memory settings and threads apart, and give each its own peak memory.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tinyft.kernels.jit import HAS_BFLOAT16

from .timing import Table

VOCABULARY = 50257
OURS = ("tinyft", "tinyft_bf16") if HAS_BFLOAT16 else ("tinyft",)
PEERS = ("transformers", "transformers_bf16")


def make_batch(masked: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (8, T), padded with -100; masked: only the replies are learned."""
    rng = np.random.default_rng(0)
    lengths, replies = rng.integers(40, 76, 8), rng.integers(6, 21, 8)
    inputs = rng.integers(0, VOCABULARY, (8, lengths.max()))
    targets = np.full_like(inputs, -100)
    for row, (length, reply) in enumerate(zip(lengths, replies, strict=True)):
        first = length - reply - 1 if masked else 0
        targets[row, first : length - 1] = inputs[row, first + 1 : length]
        targets[row, length - 1] = VOCABULARY - 1
    return inputs, targets


def tinyft_step(bfloat16: bool):
    """A function of (inputs, targets) that trains one step and returns seconds by part."""
    from tinyft import GPT2, AdamW, GPT2Config
    from tinyft.memory import keep_freed_memory
    from tinyft.ops import use_bfloat16

    keep_freed_memory()
    use_bfloat16(bfloat16)
    model = GPT2(GPT2Config(), np.random.default_rng(0))
    optimizer = AdamW(model)

    def step(inputs, targets):
        times = [time.perf_counter()]
        loss = model.loss(inputs, targets)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step(1e-5, max_norm=1.0)
        return [*np.diff([*times, time.perf_counter()])]

    return step


def transformers_step(bfloat16: bool):
    """The same in transformers with PyTorch's fused AdamW."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)

    def step(inputs, targets):
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        times = [time.perf_counter()]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=x, labels=y, shift_labels=y, use_cache=False).loss
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return [*np.diff([*times, time.perf_counter()])]

    return step


def serve(peer: str) -> None:
    """The process of one peer: for each line read ("full" or "masked") train a step, print its times."""
    from tinyft.memory import peak_megabytes

    make = tinyft_step if peer in OURS else transformers_step
    step = make(peer.endswith("bf16"))
    batches = {"full": make_batch(False), "masked": make_batch(True)}
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": step(*batches[line.strip()]), "peak": peak_megabytes()}), flush=True)


class Peer:
    """A process that trains a step when asked."""

    def __init__(self, name: str, threads: int):
        script = Path(__file__).resolve().parents[1] / "benchmark.py"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([sys.executable, script, "--serve", name], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._expect()

    def _expect(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a benchmark process ended early; see its error above")
        return line

    def step(self, batch: str) -> dict:
        """Seconds of forward, backward, optimizer; and peak memory so far in MB."""
        self.process.stdin.write(batch + "\n")
        self.process.stdin.flush()
        return json.loads(self._expect())


def measure(table: Table, with_torch: bool, threads: int, rounds: int = 7) -> None:
    """Medians of several steps, the peers taking turns."""
    peers = {name: Peer(name, threads) for name in (OURS + PEERS if with_torch else OURS)}
    for batch, title in (("full", "prompt learned"), ("masked", "prompt masked")):
        steps: dict[str, list[dict]] = {name: [] for name in peers}
        for round_number in range(rounds + 2):
            for name, peer in peers.items():
                result = peer.step(batch)
                if round_number >= 2:
                    steps[name].append(result)
        live = int((make_batch(batch == "masked")[1] != -100).sum())
        table.title(f"training step, GPT-2 124M, 8 rows, {live} targets ({title})")
        for i, part in enumerate(("forward", "backward", "optimizer")):
            table.add(part, "ms", **{name: 1000 * statistics.median(step["seconds"][i] for step in taken)
                                     for name, taken in steps.items()})
        table.add("whole step", "ms", **{name: 1000 * statistics.median(sum(step["seconds"]) for step in taken)
                                         for name, taken in steps.items()})
        table.add("peak memory", "MB", **{name: taken[-1]["peak"] for name, taken in steps.items()})
    for peer in peers.values():
        peer.process.stdin.close()
        peer.process.wait()
