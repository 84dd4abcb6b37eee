"""Write a file beside its place and rename it, so that nobody ever finds half a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

from tinyft.files import replacing


def stop(message: str) -> NoReturn:
    """End the program with one line on standard error, which says what to do."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file to write that appears under its name only when all of it is there."""
    with replacing(path) as beside, open(beside, "w", encoding="utf-8", newline="\n") as file:
        yield file
