"""A content-addressed store: what was scored or decided once is read back, never computed again.

Entropy-guided branching is not reproducible on a served teacher, and even where it is, a second run should cost
nothing. So every raw score and every finished search is kept in one SQLite file under the hash of all that determines
it, one transaction a batch, synchronised to disk. Each row carries a digest of its content; a file that SQLite or a
digest finds damaged is moved aside and said so, because a silently wrong score would spoil everything after it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scaletot_jax.errors import DataError, ResourceError

_LAYOUT = 1
_TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, content BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID"


def content_key(*parts: Any) -> str:
    """SHA-256 over JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Store:
    """Keys to bytes on disk. Use as a context manager.

    Args:
      path: the SQLite file; made where absent.

    Raises:
      ResourceError: the disk is full.
      DataError: a row was damaged after the file was opened.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise _full(self.path, error) from error
            self._set_aside(str(error))
            self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=DELETE")
            database.execute("PRAGMA synchronous=FULL")
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if layout not in (0, _LAYOUT):
                raise sqlite3.DatabaseError(f"layout {layout} is not {_LAYOUT}")
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version={_LAYOUT}")
            for key, content, digest in database.execute("SELECT key, content, digest FROM entries"):
                if digest != _digest(key, content):
                    raise sqlite3.DatabaseError(f"the content of entry {key[:12]} is not what was written")
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _set_aside(self, why: str) -> None:
        """Keeps the damaged file under another name: what it held is computed again, nothing wrong is read."""
        number = 0
        while (aside := self.path.with_name(f"{self.path.name}.damaged{number}")).exists():
            number += 1
        self.path.replace(aside)
        self.path.with_name(self.path.name + "-journal").unlink(missing_ok=True)
        print(
            f"warning: {self.path} is damaged ({why}); moved to {aside.name}, its scores are computed again",
            file=sys.stderr,
        )

    def get(self, key: str) -> bytes | None:
        """The content of ``key``, or None."""
        try:
            row = self._database.execute("SELECT content, digest FROM entries WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error
        if row is None:
            return None
        if row[1] != _digest(key, row[0]):
            raise self._damaged(f"the content of entry {key[:12]} is not what was written")
        return row[0]

    def put(self, entries: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> None:
        """Writes all entries in one transaction; a key that is there keeps its content."""
        rows = [(key, content, _digest(key, content)) for key, content in dict(entries).items()]
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", rows)
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise _full(self.path, error) from error

    def get_json(self, key: str) -> Any:
        """The JSON content of ``key``, or None."""
        content = self.get(key)
        return None if content is None else json.loads(content)

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM entries").fetchone()[0]

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def _damaged(self, why: str) -> DataError:
        return DataError(
            "the teacher's store is damaged",
            where=str(self.path),
            why=why,
            do="run the same command again: the file is checked and set aside on opening, and its scores computed again",
        )


def pack_scores(full: np.ndarray, local: np.ndarray) -> bytes:
    """Two float32 arrays [V] as little-endian bytes."""
    return np.stack([full, local]).astype("<f4").tobytes()


def unpack_scores(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of :func:`pack_scores`."""
    both = np.frombuffer(content, "<f4").reshape(2, -1)
    return both[0], both[1]


def pack_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def unpack_json(content: bytes) -> Any:
    """The inverse of :func:`pack_json`."""
    return json.loads(content)


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + content, digest_size=8).digest()


def _full(path: Path, error: sqlite3.Error) -> ResourceError:
    return ResourceError(
        "the teacher's store cannot be written",
        where=str(path),
        why=str(error),
        do="free some space (or stop the other process that uses it) and run the same command again; nothing stored is lost",
    )
