"""Ctrl-C and SIGTERM while something is under way that must not be cut in two."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM has ended a run, as a batch system does when the time is up."""

    exit_status = 128 + 15  # as a shell has it


@contextmanager
def delayed_signals() -> Iterator[Callable[[], int]]:
    """Within the block the first Ctrl-C or SIGTERM is only noted; the second one acts as if there were no block.

    Gives a function that returns the signal's number, or 0. At the end of the block it is raised, or it would be lost.
    """
    noted: list[int] = []

    def note(number, frame) -> None:
        noted.append(number)
        put_back()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # only the main thread may set handlers
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored stays ignored, and what is not Python's stays as it is.
    before = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: noted[0] if noted else 0
    finally:
        put_back()
    if noted:
        raise interruption(noted[0])


def interruption(number: int) -> KeyboardInterrupt:
    """What a signal raises once the state is saved."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
