"""Clients that stream replies from `examples/serve.py` at once, beside the engine alone with as many prompts.

The server is a process of its own and so is the engine. The clients are this process, which has nothing else to do
meanwhile, and talk plain HTTP over sockets: a client library would take more of the processor than there is to share.
"""

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import generators
from .decoding import NEW, PROMPT, Work, running, take_turns
from .generators import Prompts
from .peers import GPT2_124M
from .timing import Table

CLIENTS, WEIGHTS = 16, ("float32", "int8")
HOST, PATIENCE = "127.0.0.1", 180  # seconds that a server may take to start, with kernels to be compiled
SCRIPT = Path(__file__).resolve().parents[1] / "serve.py"


def free_port() -> int:
    """One that nobody listened on a moment ago."""
    with socket.create_server((HOST, 0)) as listener:
        return listener.getsockname()[1]


def _request(method: str, path: str, content: dict | None = None) -> bytes:
    """What goes over the line, for an answer that ends with the connection."""
    body = json.dumps(content).encode() if content else b""
    head = (f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
    return head.encode() + body


def is_ready(port: int) -> bool:
    """Whether a server answers there."""
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(_request("GET", "/v1/models"))
            return b" 200 " in connection.makefile("rb").readline()
    except OSError:
        return False


@contextmanager
def server(command: list[str], port: int) -> Iterator[None]:
    """A process that serves on a port until the `with` block ends. RuntimeError with what it says if it does not."""
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            end = time.perf_counter() + PATIENCE
            while not is_ready(port):
                if process.poll() is not None or time.perf_counter() > end:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not serve on port {port}:\n{log.read().strip()}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


async def _stream(port: int, prompt: list[int], count: int) -> tuple[int, float]:
    """One client: tokens of its reply, and when the first was there."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(_request("POST", "/v1/completions", {
        "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}}))
    status, first, tokens = await reader.readline(), None, 0
    if b" 200 " not in status:
        raise RuntimeError(f"the server answers {status.decode().strip()}: {(await reader.read()).decode().strip()}")
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise RuntimeError(f"the server breaks a reply off: {event['error']}")
            first = first or time.perf_counter()
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    writer.close()
    return tokens, first or time.perf_counter()


async def _stream_all(port: int, prompts: Prompts, count: int) -> list[tuple[int, float]]:
    return await asyncio.gather(*(_stream(port, prompt, count) for prompt in prompts))


def seconds(port: int, prompts: Prompts, count: int) -> dict[str, float]:
    """Until a client, the median one, has its first token, and until all have all."""
    begin = time.perf_counter()
    replies = asyncio.run(_stream_all(port, prompts, count))
    whole = time.perf_counter() - begin
    if any(tokens != count for tokens, _ in replies):
        raise RuntimeError(f"each client asked for {count} tokens, the server says that it sent "
                           f"{sorted(tokens for tokens, _ in replies)}")
    return {"first": statistics.median(first for _, first in replies) - begin, "whole": whole}


def _compare(table: Table, folder: Path, weights: str, threads: int, turns: int) -> None:
    """Server and engine with weights of one kind."""
    port, vocabulary = free_port(), GPT2_124M["vocab_size"]
    command = [sys.executable, str(SCRIPT), str(folder), "--weights", weights, "--host", HOST, "--port", str(port),
               "--threads", str(threads)]
    engine = f"tinyft {weights}"
    with server(command, port), running(folder, False, threads, only=(engine,)) as (process,):
        seconds(port, generators.make_prompts(0, CLIENTS, PROMPT, vocabulary), 2)  # compiles and fills memory
        times = take_turns({"engine": (process, Work(CLIENTS, PROMPT, NEW))}, turns, {
            "clients": lambda turn: seconds(port, generators.make_prompts(turn, CLIENTS, PROMPT, vocabulary), NEW)})
    alone, served = (CLIENTS * NEW / times[name]["whole"] for name in ("engine", "clients"))
    table.add(f"{weights}: engine alone, {CLIENTS} rows", "tokens/s", speed=alone, of_engine=1.0, first_ms=None)
    table.add(f"{weights}: {CLIENTS} clients over HTTP", "tokens/s", speed=served, of_engine=served / alone,
              first_ms=1000 * times["clients"]["first"])


def measure(table: Table, threads: int, turns: int = 3) -> None:
    """What serving costs: HTTP, text, and a process more that wants some of the cores."""
    table.title("serve", f"{CLIENTS} clients that stream {NEW} tokens each after {PROMPT}, GPT-2 124M",
                "first_ms: until the median client has its first token; prompts are read in this time")
    with tempfile.TemporaryDirectory() as place:
        folder = generators.make_folder(Path(place) / "124M", GPT2_124M)
        for weights in WEIGHTS:
            _compare(table, folder, weights, threads, turns)
