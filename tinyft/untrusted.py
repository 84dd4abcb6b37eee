"""What comes out of other people's files: shown in messages so that it does no harm, and held within bounds.

A model folder is downloaded, a data set passed on. Whatever stands in such a file, the answer is a model, entries, or
one clear line; never memory or time without end, a file outside the folder, or code that runs.
"""

from typing import Any

MAX_ID = 2**31 - 1  # of a token; tiktoken counts in 32 bits


def shown(value: Any, most: int = 80) -> str:
    """A value for a message: as Python writes it, all of it printable, cut where it is long."""
    try:
        text = repr(value[: most + 1] if isinstance(value, str) else value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return f"a value of the type {type(value).__name__} that is too large to show"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def is_whole(value: Any, low: int = 0, high: int = MAX_ID) -> bool:
    """Whether a value is an integer from low to high, and not true or false."""
    return type(value) is int and low <= value <= high
