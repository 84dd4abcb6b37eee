"""Answers that a model has given already, so that an interrupted evaluation goes on where it was."""

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from ..files import make_writable_folder, one_line
from ..inference.engine import Engine
from ..tokenizer import Tokenizer


class KnownAnswers:
    """JSON values by key, in an SQLite file; without a path they are only kept while this object lives.

    What has been put stays, whatever happens to the process. ValueError for a file that is no such database.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.n_found = path, 0
        if path is not None:
            make_writable_folder(path.parent)
        try:
            self._database = sqlite3.connect(":memory:" if path is None else path, timeout=30, isolation_level=None)
            # Each answer is a transaction, which costs little if the disk need not be waited for.
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")
            self._database.execute("create table if not exists answers (key text primary key, value text)")
        except sqlite3.OperationalError as error:
            raise ValueError(f"{path}: can't be used now ({one_line(error)}); is another run at it? Choose another "
                             "folder with --output-dir, or wait") from None
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: is no store of answers ({one_line(error)}); delete it, or choose another folder "
                             "with --output-dir") from None

    def get(self, key: str) -> Any:
        """The value of a key; None if there is none."""
        row = self._database.execute("select value from answers where key = ?", (key,)).fetchone()
        self.n_found += row is not None
        return row and json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._database.execute("insert or replace into answers values (?, ?)", (key, json.dumps(value)))

    def forget(self) -> None:
        """Let go of all that is kept."""
        self._database.execute("delete from answers")


def fingerprint(engine: Engine, tokenizer: Tokenizer) -> str:
    """What tells a model from any other: its config, prepared weights and tokens."""
    total = hashlib.blake2b(digest_size=16)
    total.update(repr((engine.config, engine.kept_as, sorted(tokenizer.vocab.items()),
                       sorted(tokenizer.added.items(), key=str))).encode())
    for array in (engine.weights.panels, engine.weights.scales, engine.weights.plain):
        total.update(array.view("u1").data)
    return total.hexdigest()
