"""Answers that a model has given already, so that an interrupted evaluation goes on where it was."""

import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

from ..files import make_writable_folder, one_line
from ..inference.engine import Engine
from ..tokenizer import Tokenizer

SECONDS_BETWEEN_COMMITS = 2.0


class KnownAnswers:
    """JSON values by key, in an SQLite file; without a path they are only kept while this object lives.

    Used as a context manager while answers come: what has been put is on disk every two seconds and at the end, also
    when the block is left by an error. ValueError for a file that is no such database.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.n_found = path, 0
        if path is not None:
            make_writable_folder(path.parent)
        try:
            self._database = sqlite3.connect(":memory:" if path is None else path, timeout=30)
            self._database.execute("create table if not exists answers (key text primary key, value text)")
            self._database.commit()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: can't be used as a store of answers ({one_line(error)}); delete it, or choose "
                             "another with --cache-dir") from None
        self._committed = time.monotonic()

    def get(self, key: str) -> Any:
        """The value of a key; None if there is none."""
        row = self._database.execute("select value from answers where key = ?", (key,)).fetchone()
        self.n_found += row is not None
        return row and json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._database.execute("insert or replace into answers values (?, ?)", (key, json.dumps(value)))
        if time.monotonic() - self._committed > SECONDS_BETWEEN_COMMITS:
            self._commit()

    def forget(self) -> None:
        """Let go of all that is kept."""
        self._database.execute("delete from answers")
        self._commit()

    def __enter__(self) -> "KnownAnswers":
        return self

    def __exit__(self, *exception) -> None:
        self._commit()

    def _commit(self) -> None:
        self._database.commit()
        self._committed = time.monotonic()


def fingerprint(engine: Engine, tokenizer: Tokenizer) -> str:
    """What tells a model from any other: its config, prepared weights and tokens."""
    total = hashlib.blake2b(digest_size=16)
    total.update(repr((engine.config, engine.kept_as, sorted(tokenizer.vocab.items()),
                       sorted(tokenizer.added.items(), key=str))).encode())
    for array in (engine.weights.panels, engine.weights.scales, engine.weights.plain):
        total.update(array.view("u1").data)
    return total.hexdigest()
