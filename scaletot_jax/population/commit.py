"""Shards that are committed once, by any number of workers that do not know each other.

    job.json                 what the work is: model, schema, code, table, options; another job is refused
    part-00000.parquet       a shard: written aside, synced, renamed
    records/part-00000.json  its record, atomically, after it: rows, id range, SHA-256, what it was made of
    manifest.json            all records, assembled when the last one is there

Readers trust recorded shards alone. A kill at any moment leaves a shard with a record or one that is made again, with the
same bytes; two workers at one shard write the same bytes over each other; whoever assembles the manifest writes the same
manifest. Names of temporary files are never shared: two machines may use one process number.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.files import disk_errors, fingerprint, plain, read_json, sha256_file, sync_directory
from scaletot_jax.run import _difference as difference

FORMAT = 2
JOB, MANIFEST, RECORDS = "job.json", "manifest.json", "records"


class Shard(NamedTuple):
    """Rows [begin, end) of the population and the file their results go to."""

    number: int
    file: str
    begin: int
    end: int


def plan_shards(rows: int, shard_rows: int) -> list[Shard]:
    """Cuts ``rows`` rows into shards of ``shard_rows`` (the last one may be shorter)."""
    starts = range(0, rows, shard_rows)
    return [Shard(i, f"part-{i:05d}.parquet", begin, min(begin + shard_rows, rows)) for i, begin in enumerate(starts)]


class Ledger:
    """The folder of one job.

    Args:
      directory: made where absent.
      identity: JSON-able; all that the bytes of the shards depend on. Its fingerprint names the job.
      shards: all shards of the job.
      facts: JSON-able, repeated in the manifest for its readers, e.g. ``{"dim": 64}``.
      stated: parts of the identity that every record repeats, e.g. the fingerprint of the model.
      owner: the job's name in the folder; that of the identity by default. A stage gives its own.

    Raises:
      StaleRunError: the folder holds another job; the difference is shown.
    """

    def __init__(
        self,
        directory: str | Path,
        identity: Mapping[str, Any],
        shards: Sequence[Shard],
        *,
        facts: Mapping[str, Any],
        stated: Mapping[str, Any],
        owner: str = "",
    ):
        self.directory, self.shards = Path(directory), list(shards)
        self.facts, self.stated = dict(facts), dict(stated)
        self.identity = json.loads(json.dumps(identity, default=plain))
        self.fingerprint = owner or fingerprint(self.identity)
        with disk_errors(self.directory):
            (self.directory / RECORDS).mkdir(parents=True, exist_ok=True)
        self._own()

    def _own(self) -> None:
        path = self.directory / JOB
        mine = {"format": FORMAT, "fingerprint": self.fingerprint, "identity": self.identity}
        try:
            found = read_json(path)
            owner = found["fingerprint"]
        except (DataError, KeyError, TypeError):  # not there yet, or damaged: then the records say whose they are
            _write_json(path, mine)
            found = read_json(path)  # of two jobs that begin in one folder at one moment, one sees the other here
            owner = found["fingerprint"]
        if owner != self.fingerprint:
            raise StaleRunError(
                "the shards in this folder are of another model, table or option",
                where=str(self.directory),
                why="changed: " + difference(found.get("identity", {}), self.identity),
                do="use another folder, or delete this one",
            )

    def record_path(self, shard: Shard) -> Path:
        return self.directory / RECORDS / (Path(shard.file).stem + ".json")

    def recorded(self, shards: Sequence[Shard]) -> dict[int, dict[str, Any]]:
        """Number → record of those of ``shards`` whose record is whole and whose file is what it says, by its SHA-256."""
        found = {}
        for shard in shards:
            record = self._record(shard)
            path = self.directory / shard.file
            if record is None or not path.is_file() or path.stat().st_size != record["bytes"]:
                continue
            if sha256_file(path) == record["sha256"]:
                found[shard.number] = record
            else:
                self.record_path(shard).unlink(missing_ok=True)  # it speaks of another file
                print(f"score: {path} is not what was recorded; it is made again", file=sys.stderr)
        return found

    def _record(self, shard: Shard) -> dict[str, Any] | None:
        path = self.record_path(shard)
        if not path.exists():
            return None
        try:
            record = read_json(path)
            owner, place = record["fingerprint"], (record["file"], record["first_row"], record["rows"])
            whole = isinstance(record["bytes"], int) and isinstance(record["sha256"], str)
        except (DataError, KeyError, TypeError, UnicodeDecodeError):
            return None
        if owner != self.fingerprint:
            raise StaleRunError(
                "a shard is of another model, table or option",
                where=str(path),
                why=f"fingerprint {owner}, not {self.fingerprint}",
                do=f"use another folder, or delete {self.directory}",
            )
        return record if whole and place == (shard.file, shard.begin, shard.end - shard.begin) else None

    @contextlib.contextmanager
    def commit(self, shard: Shard) -> Iterator[tuple[Path, Callable[[Mapping[str, Any]], None]]]:
        """Makes one shard: yields the path to write to and ``say(facts)``, what the record is to say of the rows beside
        their numbers. At the end the file is synced, renamed and recorded; on an error nothing is left.

        Raises:
          ResourceError: the disk is full.
        """
        said: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        target = self.directory / shard.file
        with _aside(target) as temporary:
            yield temporary, said.update
            seen |= {"bytes": temporary.stat().st_size, "sha256": sha256_file(temporary)}
        if seen:  # else another worker recorded this very shard in the meantime
            record = {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                **self.stated,
                "file": shard.file,
                "rows": shard.end - shard.begin,
                "first_row": shard.begin,
                "last_row": shard.end - 1,
                **said,
                **seen,
            }
            _write_json(self.record_path(shard), record)

    def seal(self) -> bool:
        """Assembles the manifest if every shard has a record and a file; says whether it is there."""
        entries = []
        for shard in self.shards:
            record = self._record(shard)
            path = self.directory / shard.file
            if record is None or not path.is_file() or path.stat().st_size != record["bytes"]:
                return False
            entries.append({name: value for name, value in record.items() if name not in ("format", "fingerprint")})
        repeated = set(self.stated)
        shards = [{name: value for name, value in entry.items() if name not in repeated} for entry in entries]
        manifest = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            **self.stated,
            **self.facts,
            "rows": sum(entry["rows"] for entry in shards),
            "shards": shards,
        }
        path = self.directory / MANIFEST
        if not path.exists() or path.read_bytes() != _json_bytes(manifest):
            _write_json(path, manifest)
        for folder in (self.directory, self.directory / RECORDS):  # all is whole: this is what killed workers left
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        return True


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a finished job, every shard checked by its SHA-256.

    Raises:
      DataError: the job is not finished, or a shard is not what was recorded.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).exists():
        raise DataError(
            "the population is not scored completely", where=str(directory), do="run 'scaletot score' again"
        )
    manifest = read_json(directory / MANIFEST)
    for entry in manifest["shards"]:
        path = directory / entry["file"]
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            raise DataError(
                "a shard is missing or was changed",
                where=str(path),
                do="run 'scaletot score' again: it makes this shard anew",
            )
    return manifest


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=plain, allow_nan=False) + "\n").encode()


def _write_json(path: Path, value: Any) -> None:
    with _aside(path) as temporary:
        temporary.write_bytes(_json_bytes(value))


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, synced and renamed over it at the end; removed on failure.

    A worker that sees the whole job done sweeps ours away as left over. That is no failure: the file is there, the same.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with disk_errors(path):
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except FileNotFoundError:
            if temporary.exists() or not path.exists():
                raise
        finally:
            temporary.unlink(missing_ok=True)
