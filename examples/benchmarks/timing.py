"""Fair timing: the candidates take turns in one run, so that a slow spell of the machine hits all of them."""

import statistics
import time
from collections.abc import Callable

REST = 0.04  # seconds


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, float]:
    """Median seconds of each call. The candidates take turns until `seconds` have passed, 4 turns at least.

    A turn is a short rest, one call that isn't counted, and up to 5 that are. Without the rest the threads of
    the one before, which spin for a while in case more work comes, would take the processor from this one.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds * len(candidates)
    turns = 0
    while turns < 4 or (time.perf_counter() < end and turns < 50):
        for name, call in candidates.items():
            time.sleep(REST)
            call()
            turn_end = time.perf_counter() + 0.2
            while True:
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
                if time.perf_counter() > turn_end or len(times[name]) % 5 == 0:
                    break
        turns += 1
    return {name: statistics.median(taken) for name, taken in times.items()}


class Table:
    """Rows of (what, unit, numbers by column), printed as they come and kept for --json."""

    def __init__(self):
        self.rows: list[dict] = []

    def title(self, text: str) -> None:
        """Start a new part."""
        print(f"\n{text}", flush=True)

    def add(self, what: str, unit: str, **numbers: float | None) -> None:
        """One row; tinyft's own number first, then what it is to be compared with."""
        self.rows.append({"what": what, "unit": unit, **numbers})
        cells = "".join(f"  {name} {_short(value):>6}" for name, value in numbers.items() if value is not None)
        print(f"  {what:38}{unit:>9}{cells}", flush=True)


def _short(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
