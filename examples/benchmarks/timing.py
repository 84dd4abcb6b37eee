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


def ratios(times: dict[str, float], ours: str = "tinyft") -> dict[str, float]:
    """How many times as long as tinyft the others take, as columns of a table."""
    return {f"{peer}/{ours}": seconds / times[ours] for peer, seconds in times.items() if peer != ours}


class Table:
    """Rows of (what, unit, numbers by column), printed as they come and kept for --json and --chart."""

    def __init__(self):
        self.titles: dict[str, str] = {}
        self.rows: list[dict] = []
        self.key, self.columns = "", []

    def title(self, key: str, text: str, note: str = "") -> None:
        """Start a new table. `key` is its name in every row that is kept."""
        self.key, self.columns = key, []
        self.titles[key] = text
        print(f"\n{text}" + (f"\n({note})" if note else ""), flush=True)

    def add(self, what: str, unit: str, **numbers: float | None) -> None:
        """One row. Columns named share or of_... hold a part of 1 and are shown in percent."""
        self.rows.append({"table": self.key, "what": what, "unit": unit, **numbers})
        widths = {name: max(8, len(name) + 2) for name in numbers}
        if list(numbers) != self.columns:
            self.columns = list(numbers)
            print(f"  {'':38}{'':8}" + "".join(f"{name:>{width}}" for name, width in widths.items()))
        cells = "".join(f"{_short(name, numbers[name]):>{width}}" for name, width in widths.items())
        print(f"  {what:38}{unit:>8}{cells}", flush=True)


def _short(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "share" or name.startswith("of_"):
        return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
