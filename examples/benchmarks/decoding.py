"""Generating with GPT-2 124M: one prompt, a long one, many at once, and the first token after the start of a process.

tinyft and its peers are in processes of their own and take turns, with the same weights and the same prompts. Every
turn has other prompts, so that nobody has read them before.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import generators, machine
from .generators import BITS
from .peers import GPT2_124M, SMALL
from .processes import Process, waiting_of
from .timing import REST, Table, interleaved

PROMPT, NEW, LONG, MANY = 64, 128, 512, 64  # tokens, new ones, tokens of a long prompt; prompts at once
FEW = 4  # prompts that stand for MANY where they come one at a time, since one takes as long as the other
OURS = {32: "tinyft float32", 16: "tinyft bfloat16", 8: "tinyft int8"}  # what peers are compared with, by bits

FIRST_TOKEN = {  # programs; ended right after the token, since it is shown then
    "tinyft": """
from tinyft.inference.engine import load_engine
from tinyft.inference.generate import generate
engine, tokenizer = load_engine({path!r}, weights={kind!r})
print(next(iter(generate(engine, {prompt}, max_new_tokens=1))), flush=True)
""",
    "transformers.generate": """
import torch, transformers
torch.set_num_threads({threads})
model = transformers.GPT2LMHeadModel.from_pretrained({path!r}, dtype=torch.{kind}).eval()
ids = torch.tensor([{prompt}])
print(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)[0, -1], flush=True)
""",
    "llama.cpp": """
import logging, llama_cpp as llama, numpy
logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
where, options = llama.llama_model_default_params(), llama.llama_context_default_params()
where.use_extra_bufts, options.n_threads_batch = {repacks}, {threads}
model = llama.llama_model_load_from_file({path!r}.encode(), where)
context = llama.llama_init_from_model(model, options)
prompt = (llama.llama_token * {length})(*{prompt})
llama.llama_decode(context, llama.llama_batch_get_one(prompt, {length}))
size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
print(numpy.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(size,)).argmax(), flush=True)
""",
}


@dataclass(frozen=True)
class Work:
    """Prompts to write after: how many, tokens in each, new tokens for each, and whether one prompt at a time."""

    rows: int
    length: int
    count: int
    apart: bool = False

    @property
    def tokens(self) -> int:
        """New ones, of all prompts."""
        return self.rows * self.count


class Generator(Process):
    """A process that writes after prompts when asked; its name in tables is that of the peer and of its weights."""

    def __init__(self, peer: str, kind: str, threads: int):
        super().__init__(generators.process_name(peer, kind), threads)
        self.peer, self.kind, self.title = peer, kind, f"{peer} {kind}"
        self.weight_bytes = 0

    def load(self, folder: Path) -> None:
        """What it needs of a model folder; not part of any time."""
        self.weight_bytes = self.step(json.dumps(str(folder)))

    def seconds(self, work: Work, seed: int) -> dict[str, float]:
        """Until the first token, from there to the last, and of everything."""
        return self.step(json.dumps([seed, work.rows, work.length, work.count, work.apart]))["step"]


Jobs = dict[str, tuple[Generator, Work]]
Medians = dict[str, dict[str, float]]


def take_turns(jobs: Jobs, turns: int, more: dict[str, Callable[[int], dict[str, float]]] | None = None) -> Medians:
    """Median seconds of each job by part, after a rest each time, for the reason that `timing` gives.

    more: what else takes part, by name: functions of the turn, from 1, which return numbers by name as well.
    """
    for generator, work in jobs.values():  # compiles and fills memory
        generator.seconds(Work(work.rows, work.length, 2, work.apart), seed=0)
    calls = {name: lambda turn, generator=generator, work=work: generator.seconds(work, turn)
             for name, (generator, work) in jobs.items()}
    calls |= more or {}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for turn in range(1, turns + 1):
        for name, call in calls.items():
            time.sleep(REST)
            taken[name].append(call(turn))
    return {name: {part: statistics.median(each[part] for each in all_turns) for part in all_turns[0]}
            for name, all_turns in taken.items()}


@contextmanager
def running(folder: Path, without_torch: bool, threads: int, only: tuple[str, ...] = ()) -> Iterator[list[Generator]]:
    """All installed peers, or `only` those of such titles, with a model loaded; those with most bits a weight first."""
    kinds = [(peer, kind) for peer, how in generators.installed(without_torch)[0].items() for kind in how.kinds]
    with ExitStack() as stack:
        processes = [stack.enter_context(Generator(peer, kind, threads))
                     for peer, kind in sorted(kinds, key=lambda kind: -BITS[kind[1]])
                     if not only or f"{peer} {kind}" in only]
        for process in processes:
            process.load(folder)
        yield processes


def columns(seconds: dict[str, float], weight_bytes: int, bandwidth: float | None) -> dict[str, float]:
    """Speed after the first token, time until it, and how close to the bound: every weight read once for a token."""
    speed = (NEW - 1) / seconds["rest"]
    row = {"decoding": speed, "prefill_ms": 1000 * seconds["first"], "weights_MB": weight_bytes / 1e6}
    if bandwidth:
        row |= {"bound": 1e9 * bandwidth / weight_bytes, "of_bound": speed * weight_bytes / (1e9 * bandwidth)}
    return row


def compare(rows: Medians) -> Medians:
    """Each row with tinyft's speed and the peer's time beside those of tinyft with as many bits a weight."""
    compared = {}
    for title, row in rows.items():
        ours = rows.get(OURS[BITS[title.split()[-1]]])
        compared[title] = row | {
            "ratio": ours["decoding"] / row["decoding"] if ours else None,
            "prefill_ratio": row["prefill_ms"] / ours["prefill_ms"] if ours else None}
    return compared


def _one_prompt(table: Table, processes: list[Generator], turns: int) -> None:
    """The usual case: a short question and a short reply. Reading is measured in the same turns as its bound."""
    table.title("decode", f"one prompt of {PROMPT} tokens, {NEW} new ones, GPT-2 124M",
                "bound: every weight is read once for a token; ratio: times as long as tinyft with as many bits")
    work = Work(1, PROMPT, NEW)
    medians = take_turns({process.title: (process, work) for process in processes}, turns,
                         {"machine": lambda turn: machine.limits()})
    bandwidth = medians["machine"]["bandwidth"]
    table.add("reading 1 GiB, between the turns", "GB/s", measured=bandwidth)
    rows = compare({process.title: columns(medians[process.title], process.weight_bytes, bandwidth)
                    for process in processes})
    for title, row in rows.items():
        table.add(title, "tokens/s", **row)


def _long_prompt(table: Table, processes: list[Generator], turns: int) -> None:
    """How long it takes to read."""
    table.title("prefill", f"one prompt of {LONG} tokens until the first new one, GPT-2 124M",
                "ratio: times as long as tinyft with as many bits a weight")
    times = take_turns({process.title: (process, Work(1, LONG, 1)) for process in processes}, turns)
    for title, seconds in times.items():
        ours = times[OURS[BITS[title.split()[-1]]]]
        table.add(title, "ms", prefill=1000 * seconds["first"], ratio=seconds["first"] / ours["first"])


def many_jobs(processes: list[Generator]) -> Jobs:
    """MANY prompts by those that can write after several at once, and by tinyft one after the other as well."""
    by_title = {process.title: process for process in processes}
    together = [*OURS.values(), "transformers.generate float32"]
    return {"tinyft float32, one at a time": (by_title[OURS[32]], Work(FEW, PROMPT, NEW, apart=True)),
            **{title: (by_title[title], Work(MANY, PROMPT, NEW)) for title in together if title in by_title}}


def _many_prompts(table: Table, processes: list[Generator], turns: int) -> None:
    """Weights that are read once serve all rows."""
    table.title("many", f"{MANY} prompts of {PROMPT} tokens at once, {NEW} new ones each, GPT-2 124M",
                f"prompts are read in this time as well; one at a time: {FEW} of them; "
                "ratio: times as long as tinyft float32")
    jobs = many_jobs(processes)
    times = take_turns(jobs, turns)
    speeds = {name: work.tokens / times[name]["whole"] for name, (_, work) in jobs.items()}
    for name, speed in speeds.items():
        table.add(name, "tokens/s", speed=speed, ratio=speeds[OURS[32]] / speed)


def first_token_programs(folder: Path, without_torch: bool, threads: int) -> dict[str, str]:
    """By title, a program that loads a model and prints the first token after a prompt."""
    prompt, programs = generators.make_prompts(1, 1, PROMPT, GPT2_124M["vocab_size"])[0], {}
    for peer, how in generators.installed(without_torch)[0].items():
        for kind in how.kinds if peer in FIRST_TOKEN else ():
            path = generators.write_gguf(folder, kind) if peer == "llama.cpp" else folder
            program = FIRST_TOKEN[peer].format(path=str(path), kind=kind, prompt=prompt, length=PROMPT, threads=threads,
                                               repacks=generators.LLAMA_REPACKS)
            programs[f"{peer} {kind}"] = program + "import os; os._exit(0)"
    return programs


def run_program(title: str, program: str, threads: int) -> str:
    """What a fresh Python prints. RuntimeError with what it says if it fails."""
    # Python is to keep its bytecode as it does for everybody who has not forbidden it.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**inherited, **waiting_of(title.split()[0], inherited), "OMP_NUM_THREADS": str(threads),
                   "NUMBA_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"the program for the first token of {title} failed:\n{done.stderr.strip()}")
    return done.stdout.strip()


def _first_token(table: Table, folder: Path, without_torch: bool, threads: int) -> None:
    """Imports, loading and reading the prompt, with files and kernels in their caches."""
    table.title("first_token", f"from process start to the first token after {PROMPT}, GPT-2 124M",
                "a fresh process each time, files and kernels in their caches; "
                "ratio: times as long as tinyft with as many bits a weight")
    programs = first_token_programs(folder, without_torch, threads)
    times = interleaved({title: lambda title=title, program=program: run_program(title, program, threads)
                         for title, program in programs.items()})
    for title, seconds in times.items():
        table.add(title, "s", seconds=seconds, ratio=seconds / times[OURS[BITS[title.split()[-1]]]])


def _small_model(table: Table, folder: Path, without_torch: bool, turns: int) -> None:
    """A model that fits into a cache, where what surrounds products counts."""
    table.title("decode_small", f"one prompt of {PROMPT} tokens, {NEW} new ones, model of 4 M parameters, one thread",
                "ratio: times as long as tinyft with as many bits a weight")
    with running(folder, without_torch, threads=1) as processes:
        times = take_turns({process.title: (process, Work(1, PROMPT, NEW)) for process in processes}, turns)
        rows = compare({process.title: columns(times[process.title], process.weight_bytes, None)
                        for process in processes})
    for title, row in rows.items():
        table.add(title, "tokens/s", **row)


def measure(table: Table, without_torch: bool, threads: int, turns: int = 5) -> None:
    """All of it. What is written for that, 1.4 GB of models, is removed again."""
    missing = generators.installed(without_torch)[1]
    if missing:
        names = [f"{name} ({peer.install})" for name, peer in missing.items()]
        print(f"\npeers in generating that are not installed: {'; '.join(names)}")
    with tempfile.TemporaryDirectory() as place:
        folder = generators.make_folder(Path(place) / "124M", GPT2_124M)
        with running(folder, without_torch, threads) as processes:
            _one_prompt(table, processes, turns)
            _long_prompt(table, processes, turns)
            _many_prompts(table, processes, turns=3)
        _first_token(table, folder, without_torch, threads)
        _small_model(table, generators.make_folder(Path(place) / "small", SMALL), without_torch, turns)
