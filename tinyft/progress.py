"""How far a long job is: a bar on a terminal, a line now and then in a pipe or a log."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

SECONDS_BETWEEN_LINES = 30.0
Item = TypeVar("Item")


def progress(items: Sequence[Item], description: str, unit: str) -> Iterator[Item]:
    """Yield the items one by one, and show on stderr how many are done; a bar disappears at the end.

        for entry in progress(entries, "replies before", unit="reply"):
    """
    with ProgressMeter(len(items), description, unit, leave=False) as meter:
        for item in items:
            yield item
            meter.update()


class ProgressMeter:
    """Shows on stderr how much of a job is done; `update` counts one more.

    On a terminal it is tqdm's bar. Elsewhere, or without tqdm, it is a line at most every
    SECONDS_BETWEEN_LINES seconds, so that a log stays readable and short jobs say nothing.
    total: how many there are; initial: how many of them were done earlier; leave: whether the bar stays; quiet: show
    nothing.
    """

    def __init__(self, total: int, description: str, unit: str, *, initial: int = 0, leave: bool = True,
                 quiet: bool = False):
        self.total, self.description, self.unit = total, description, unit
        self.initial = self.done = initial
        self.begin = self.last_line = time.monotonic()
        self.bar, self.quiet = None, quiet
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            try:  # imported here, as only people in front of a terminal need it
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, initial=initial, desc=description, unit=unit, leave=leave, file=sys.stderr,
                            dynamic_ncols=True, smoothing=0.1, mininterval=0.5, disable=False)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()

    def update(self, note: str = "") -> None:
        """Count one more; note: what else to show, such as the loss."""
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update()
            return
        now = time.monotonic()
        if not self.quiet and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            passed = now - self.begin
            left = passed / (self.done - self.initial) * (self.total - self.done)
            print(f"{self.description}: {self.unit} {self.done} of {self.total}, {_clock(passed)} passed, "
                  f"about {_clock(left)} left{', ' * bool(note)}{note}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line on stdout without tearing the bar."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
