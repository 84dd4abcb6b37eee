"""Which exercises the corpus must never show, so that they can be asked as a fair test.

A rule such as "make this sentence passive" is only shown to be learned on a sentence that the
model has never read. The corpus generator and the test-set generator draw sentences, lists and
passages from the same code. One in RESERVED_ONE_IN of them, decided by a checksum of the text
itself (of a list: of its first items), belongs to the tests; the corpus and the tuning examples
skip it.
"""

from __future__ import annotations

import zlib

RESERVED_ONE_IN = 12


def is_reserved(text: str) -> bool:
    """True if this exercise text is kept for the tests."""
    return zlib.crc32(text.encode("utf-8")) % RESERVED_ONE_IN == 0
