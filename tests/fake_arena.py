"""Models that say what they are told to, and servers of pages in a thread of this process or in one of their own.

As a script, `fake_arena.py FILE` serves an arena whose votes go to FILE, and prints its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np

from tinyft.data.entries import Turn
from tinyft.evaluation.arena import Arena
from tinyft.evaluation.journal import Journal
from tinyft.inference.prompt_files import PromptLine


class Scripted:
    """A model of an arena. says: its reply in pieces, or what it raises. seconds: before each of them.

    A piece that is None waits until `go_on` is set.
    """

    def __init__(self, name: str, *says: str | Exception | None, seconds: float = 0.0):
        self.name, self.says, self.seconds = name, says or ("I am a reply.",), seconds
        self.go_on, self.asked = threading.Event(), []

    def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to end."""

    async def stream(self, turns, **how) -> AsyncIterator[str]:
        """What it was told to say."""
        self.asked.append((turns, how))
        for piece in self.says:
            await asyncio.sleep(self.seconds)
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                while not self.go_on.is_set():
                    await asyncio.sleep(0.005)
            else:
                yield piece


def prompt_lines(*texts: str) -> list[PromptLine]:
    """A file of prompts, as it is read."""
    return [PromptLine({"prompt": text}, (Turn("user", text),), text) for text in texts]


def make_arena(path: Path, *models: Scripted, seed: int = 0, **options) -> Arena:
    """An arena of these models, or of two."""
    models = models or (Scripted("first-model", "I am a reply."), Scripted("second-model", "I am another."))
    return Arena(models, Journal(path), np.random.default_rng(seed), **options)


@contextlib.contextmanager
def serving(server) -> Iterator[str]:
    """Serve in a thread of this process -> the address. It is drained in the end."""
    from tinyft.inference.web import listen, serve_until_signal

    listener, ready = listen("127.0.0.1", 0), threading.Event()
    thread = threading.Thread(target=serve_until_signal, args=(server, listener, ready.set), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.drain()
        thread.join(30)
        assert not thread.is_alive(), "the server doesn't end"


def told(response) -> tuple[list[dict], dict]:
    """(pieces, the battle in the end) of the events of a battle."""
    values = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n") if event]
    assert "battle" in values[0] and "battle" in values[-1]
    return [value for value in values if "battle" not in value], values[-1]["battle"]


def main() -> None:
    """Serve an arena until a signal comes."""
    from tinyft.evaluation.arena_server import ArenaServer
    from tinyft.inference.web import listen, serve_until_signal

    listener = listen("127.0.0.1", 0)
    arena = make_arena(Path(sys.argv[1]))
    print(arena.journal.repaired, file=sys.stderr)
    serve_until_signal(ArenaServer(arena), listener,
                       lambda: print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True))


if __name__ == "__main__":
    main()
