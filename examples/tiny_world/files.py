"""Write a file beside its place and rename it, so that nobody ever finds half a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO


def stop(message: str) -> NoReturn:
    """End the program with one line on standard error, which says what to do."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file to write that appears under its name only when all of it is there."""
    beside = path.with_name(f"{path.name}.part")
    try:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
