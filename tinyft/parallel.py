"""Ranks that mpirun has started, and how they talk: through MPI, by mpi4py.

While a backward pass runs, it tells after each block that the gradients of the block are complete. They are sent on
their way at once, and travel while the blocks below are computed; the token table, which gets its last gradient at the
very end, goes last. Before the optimizer's step all is waited for. MPI moves data only while somebody calls it, so that
after each block all that is on its way is asked how far it has come.

Matrices are added up where they lie. What is small, biases, norms and adapters, travels together: a message costs some
20 microseconds, however short it is.
"""

import hashlib
import itertools
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np

from .gpt2 import GPT2
from .kernels.cpu import default_threads
from .ranks import ALONE, Ranks
from .tensor import Tensor
from .version import VERSION

SMALL = 2**16  # elements; smaller gradients of a block are put together
# What tells a process how many there are and which it is: MPICH, Intel's MPI and srun --mpi=pmi2; Open MPI; MVAPICH.
STARTED_BY = (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
              ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"))
GRACE = 5.0  # seconds that a rank which fails waits for the first, which mostly fails for the same reason, to say so


class MPIRanks(Ranks):
    """Ranks of an MPI communicator.

    comm: mpi4py's, of which only calls that don't block are used: a rank that waits asks, and sleeps in between, so
    that it leaves its core to those that are at work. in_place: MPI.IN_PLACE. local: the communicator of the ranks on
    this host.
    """

    def __init__(self, comm, in_place, local):
        self.comm, self.in_place, self.local = comm, in_place, local
        self.rank, self.size, self.on_host = comm.Get_rank(), comm.Get_size(), local.Get_size()
        self.cores = float(default_threads())  # of this host that this rank has for itself, on average
        self._left: list[dict[str, Tensor]] = []  # buckets of this step that are still to be sent, in order
        # Requests that are on their way, with the small gradients that travel together, and whose they are.
        self._sent: list[tuple[Any, np.ndarray | None, list[Tensor]]] = []

    def gather(self, value: Any) -> list:
        return self._gather(self.comm, value)

    def _gather(self, comm, value: Any) -> list:
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.empty(comm.Get_size(), np.int64)
        _wait(comm.Iallgather(np.array([len(own)], np.int64), sizes))
        together = np.empty(sizes.sum(), np.uint8)
        _wait(comm.Iallgatherv(own, [together, sizes]))
        ends = np.cumsum(sizes)
        return [pickle.loads(together[end - size : end]) for end, size in zip(ends, sizes, strict=True)]

    def in_turn(self, function: Callable[[], None]) -> None:
        if self.local.Get_rank() == 0:
            function()
        self._gather(self.local, None)
        if self.local.Get_rank() > 0:
            function()

    def copy_from_first(self, arrays: Sequence[np.ndarray]) -> None:
        for array in arrays:
            _wait(self.comm.Ibcast(array, root=0))

    def take_cores(self, own: list[int]) -> None:
        """Work out how many cores this rank has for itself: own, divided by the ranks that may use them."""
        of_all = self._gather(self.local, own)
        self.cores *= sum(1 / sum(cpu in cpus for cpus in of_all) for cpu in own) / len(own)
        numba.set_num_threads(self.threads)

    @property
    def threads(self) -> int:
        """How many threads to compute with, if nobody says otherwise."""
        given = numba.config.NUMBA_NUM_THREADS
        return given if given != default_threads() else max(1, int(self.cores + 1e-6))

    def begin_sums(self, model: GPT2, parameters: dict[str, Tensor]) -> None:
        self._left = _buckets(model, parameters)
        count, blocks = len(self._left), len(model.h)

        def send(layer: int) -> None:
            while count - len(self._left) < blocks - layer:  # this block, and those above it that had nothing to learn
                self._send(self._left.pop(0))
            for request, _, _ in self._sent:
                request.Test()

        model.on_block_done = send

    def finish_sums(self, model: GPT2, parameters: dict[str, Tensor]) -> None:
        if model.on_block_done is None:  # a rank without rows in this step
            self.begin_sums(model, parameters)
        model.on_block_done = None
        while self._left:
            self._send(self._left.pop(0))
        self.gather(None)  # all are here
        while self._sent:
            request, together, tensors = self._sent.pop(0)
            _wait(request, eagerly=True)
            if together is not None:
                ends = np.cumsum([tensor.size for tensor in tensors])
                for tensor, part in zip(tensors, np.split(together, ends[:-1]), strict=True):
                    tensor.grad = part.reshape(tensor.shape)

    def _send(self, bucket: dict[str, Tensor]) -> None:
        """Begin to add up the gradients of some parameters, in the same order on every rank."""
        small = []
        for tensor in bucket.values():
            grad = np.zeros(tensor.shape, tensor.dtype) if tensor.grad is None else tensor.grad
            tensor.grad = np.ascontiguousarray(grad)
            if tensor.size < SMALL:
                small.append(tensor)
            else:
                self._sent.append((self.comm.Iallreduce(self.in_place, tensor.grad), None, [tensor]))
        if small:
            together = np.concatenate([tensor.grad.reshape(-1) for tensor in small])
            self._sent.append((self.comm.Iallreduce(self.in_place, together), together, small))


def _buckets(model: GPT2, parameters: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The parameters of each block, from the last to the first, and the rest: in the order of the backward pass."""
    blocks = [{name: p for name, p in parameters.items() if name.startswith(f"h.{layer}.")}
              for layer in reversed(range(len(model.h)))]
    rest = {name: p for name, p in parameters.items() if not any(name in block for block in blocks)}
    return [*blocks, rest]


def _wait(request, eagerly: bool = False) -> None:
    """Ask until a request is done; in between sleep, longer each time, or eagerly let only others have the core.

    Whoever waits for another rank sleeps; for data that only move while both ends ask, that would take too long.
    """
    pause = 20e-6
    for asked in itertools.count():
        if request.Test():
            return
        if eagerly:
            _yield_core()
        elif asked > 100:
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)


def _allowed_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


_yield_core = getattr(os, "sched_yield", lambda: time.sleep(0))


# ---- a job's beginning and end

_connected: MPIRanks | None = None


def connect() -> Ranks:
    """The ranks that mpirun has started with this process; ALONE if it has been started without.

    For the beginning of a script. From here on only the first rank is seen: what the others print goes nowhere. Each
    gets its share of the host's cores as threads, unless NUMBA_NUM_THREADS says otherwise. ValueError if mpi4py is
    missing or belongs to another MPI, or if the ranks have other versions of tinyft or other options.
    """
    global _connected
    rank, size = _started_as()
    if _connected is not None or size == 1:
        return _connected or ALONE
    if rank > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        from mpi4py import MPI  # an extra, which only ranks need
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"mpirun has started {size} processes, which need mpi4py to talk to each other, and there is "
                         f"none that works ({error}); pip install mpi4py") from None
    world = MPI.COMM_WORLD
    if world.Get_size() != size:
        raise ValueError(f"mpirun has started {size} processes, but mpi4py sees {world.Get_size()}: they belong to "
                         f"different MPIs; use the mpirun of {MPI.Get_library_version().splitlines()[0].strip()}")
    _connected = MPIRanks(world, MPI.IN_PLACE, world.Split_type(MPI.COMM_TYPE_SHARED))
    sys.excepthook = lambda kind, error, trace: end_job("".join(traceback.format_exception(kind, error, trace)))
    _connected.check_same({"tinyft's version": VERSION, "the hash of its source files": _hash_of_sources(),
                           "the command line": " ".join(sys.argv[1:])})
    _connected.take_cores(_allowed_cpus())
    return _connected


def connected() -> MPIRanks | None:
    """What `connect` has found in this process, if it has found other ranks."""
    return _connected


def _started_as() -> tuple[int, int]:
    """This process's number and how many there are, as mpirun has left them in the environment; else (0, 1)."""
    for size, rank in STARTED_BY:
        if os.environ.get(size, "").isdecimal() and os.environ.get(rank, "").isdecimal():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def _hash_of_sources() -> str:
    """A short hash of all of tinyft's source files."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def end_job(outcome: str | int) -> None:
    """After an error on this rank: end all others as well, with one message. Where there are none, nothing happens.

    outcome: what to say, or the exit status of an error of which all has been said. The others would wait for this
    rank without end, and MPI's own way to leave waits for them.
    """
    if _connected is None:
        return
    rank = _connected.rank
    message, status = (outcome, 1) if isinstance(outcome, str) else ("", outcome)
    if rank > 0:
        time.sleep(GRACE + 0.1 * rank)  # if the first fails too, this is as far as it gets
        message = f"rank {rank} of {_connected.size}, on {socket.gethostname()}: {message or f'exit status {status}'}"
    if message:
        print(message.rstrip(), file=sys.__stderr__, flush=True)
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where MPI would say that it was asked to do this
    _connected.comm.Abort(status)


def share_replies(ranks: Ranks, function: Callable[[list], list], entries: list) -> list:
    """function(entries), which gives one reply for each, shared out: all replies on all ranks.

    ValueError if the ranks have other entries.
    """
    ranks.check_same({"entries to reply to": len(entries),
                      "the hash of these entries": hashlib.sha256(repr(entries).encode()).hexdigest()[:12]})
    own = entries[ranks.rank :: ranks.size]
    replies: list = [None] * len(entries)
    for rank, part in enumerate(ranks.gather(list(function(own)) if own else [])):
        replies[rank :: ranks.size] = part
    return replies
