"""The loop of the population pass: read, encode, compute, write, shard by shard; one implementation for every form of it.

    reader thread: table ─► keys and inputs     main: inputs ─► columns     writer thread: columns ─► Parquet ─► record

A unit of work is a block of rows or, in the form ``distinct``, a shard: there rows whose encoded inputs are equal are
computed once and joined back, to the same bytes as in the form ``rows``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scaletot_jax.errors import DataError
from scaletot_jax.population.commit import Ledger, Shard
from scaletot_jax.population.rows import RowEncoder, distinct_rows
from scaletot_jax.population.source import Source
from scaletot_jax.population.threads import Reader, Writer
from scaletot_jax.profiles.features import Features
from scaletot_jax.progress import Progress

BLOCK = 1 << 16  # rows read, written and compressed together: a row group of the result
FINITE = "finite"
FORMS = ("rows", "distinct")


class Job(NamedTuple):
    """What one process needs to make any shard.

    Attributes:
      source: the table.
      encode: rows → keys and inputs.
      check: raises DataError where inputs are not those the model was built for; called with where they are.
      compute: inputs → columns.
      columns: names of the written ones, in order.
      ledger: where they go.
      form: "rows" or "distinct".
    """

    source: Source
    encode: RowEncoder
    check: Callable[[Features, str], None]
    compute: Callable[[Features], dict[str, np.ndarray]]
    columns: Sequence[str]
    ledger: Ledger
    form: str = "rows"


class Unit(NamedTuple):
    """Rows that are computed together. ``codes``: the place of each row among ``inputs``; None where they are its own."""

    shard: Shard
    keys: pa.Table
    inputs: Features
    codes: np.ndarray | None
    begins: bool  # the first of its shard
    ends: bool  # the last


def make_missing(job: Job, shards: Sequence[Shard], recorded: Container[int]) -> None:
    """Makes those of ``shards`` whose numbers are not ``recorded``, and shows how many of all their rows are done."""
    todo = [shard for shard in shards if shard.number not in recorded]
    rows, left = (sum(shard.end - shard.begin for shard in part) for part in (shards, todo))
    with Progress("score", rows, "rows", done=rows - left) as progress:
        if todo:
            score_shards(job, todo, lambda shard: progress.advance(shard.end - shard.begin))


def score_shards(job: Job, shards: Sequence[Shard], done: Callable[[Shard], None] = lambda shard: None) -> None:
    """Makes the shards, in ascending order, and calls ``done`` after each record."""
    file = _ShardFile(job, done)

    def write(item: tuple[Unit, dict[str, np.ndarray]]) -> None:
        file.write(*item)

    depth = 1 if job.form == "distinct" else 3
    with (
        Reader(_units(job, shards), depth) as units,
        Writer(write, file.close, depth) as writer,
    ):
        for unit in units:
            writer.put((unit, job.compute(unit.inputs)))


def _units(job: Job, shards: Sequence[Shard]) -> Iterator[Unit]:
    cuts = [
        (shard, [(begin, min(begin + BLOCK, shard.end)) for begin in range(shard.begin, shard.end, BLOCK)])
        for shard in shards
    ]
    tables = job.source.blocks([block for _, blocks in cuts for block in blocks])
    for shard, blocks in cuts:
        made = (_encode(job, begin, end, next(tables)) for begin, end in blocks)
        if job.form == "distinct":
            yield _distinct(shard, list(made))
            continue
        for i, (keys, inputs) in enumerate(made):
            yield Unit(shard, keys, inputs, None, i == 0, i == len(blocks) - 1)


def _encode(job: Job, begin: int, end: int, table: pa.Table) -> tuple[pa.Table, Features]:
    where = str(job.source.path)
    keys, features = job.encode(table, first=begin, where=where)
    job.check(features, f"{where}, rows {begin}..{end - 1}")
    return keys, features


def _distinct(shard: Shard, made: list[tuple[pa.Table, Features]]) -> Unit:
    keys = pa.concat_tables([part for part, _ in made])
    inputs = Features(*(np.concatenate(parts) for parts in zip(*(part for _, part in made))))
    codes, first = distinct_rows([np.asarray(part) for part in inputs])
    return Unit(shard, keys, Features(*(column[first] for column in inputs)), codes, True, True)


class _ShardFile:
    """The shard that is being written; used by one thread."""

    def __init__(self, job: Job, done: Callable[[Shard], None]):
        self._job, self._done = job, done
        self._commit: Any = None
        self._file: pq.ParquetWriter | None = None
        self._said: dict[str, Any] = {}

    def write(self, unit: Unit, found: dict[str, np.ndarray]) -> None:
        try:
            self._write(unit, found)
        except BaseException as error:
            self._abandon(error)
            raise

    def close(self, well: bool) -> None:
        """After the last unit; a shard that was not finished leaves nothing."""
        if self._commit is not None:
            self._abandon(RuntimeError("abandoned"))

    def _write(self, unit: Unit, found: dict[str, np.ndarray]) -> None:
        self._check(unit, found)
        if unit.begins:
            self._commit = self._job.ledger.commit(unit.shard)
            self._path, self._say = self._commit.__enter__()
        for begin in range(0, unit.keys.num_rows, BLOCK):
            rows = slice(begin, begin + BLOCK) if unit.codes is None else unit.codes[begin : begin + BLOCK]
            keys = unit.keys.slice(begin, BLOCK)
            table = arrange(keys, {name: found[name][rows] for name in self._job.columns})
            self._append(table.replace_schema_metadata({"fingerprint": self._job.ledger.fingerprint}))
        if unit.ends:
            assert self._file is not None
            self._file.close()
            self._file = None
            self._say(self._said)
            commit, self._commit, self._said = self._commit, None, {}
            commit.__exit__(None, None, None)
            self._done(unit.shard)

    def _append(self, table: pa.Table) -> None:
        if self._file is None:
            self._file = open_parquet(self._path, table.schema)
        self._file.write_table(table, row_group_size=BLOCK)
        for name, row in (("first_id", 0), ("last_id", -1)):
            if name == "last_id" or name not in self._said:
                self._said[name] = table["user_id"][row].as_py()

    def _check(self, unit: Unit, found: dict[str, np.ndarray]) -> None:
        if found[FINITE].all():
            return
        bad = int(np.flatnonzero(~found[FINITE])[0])
        if unit.codes is not None:
            bad = int(np.flatnonzero(unit.codes == bad)[0])
        row = unit.keys["row"][bad].as_py()
        raise DataError(
            "what the model says of a row is not finite",
            where=f"row {row} ({self._job.source.place(row)})",
            why="an embedding beyond float16, or weights that are no numbers",
            do="train the encoder again with a lower distill.learning_rate",
        )

    def _abandon(self, error: BaseException) -> None:
        commit, self._commit, self._said = self._commit, None, {}
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
        if commit is not None:
            with contextlib.suppress(type(error)):
                commit.__exit__(type(error), error, error.__traceback__)


def arrange(keys: pa.Table, columns: dict[str, np.ndarray]) -> pa.Table:
    """Keys and columns as one table; a matrix becomes a fixed-size list."""
    for name, values in columns.items():
        if values.ndim == 2:
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            keys = keys.append_column(name, pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
        else:
            keys = keys.append_column(name, pa.array(values))
    return keys


def open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer whose bytes depend on the rows alone. Halves and floats hardly repeat and hardly shrink: they are stored
    plain; int8, which Parquet holds in four bytes, by dictionary, which is one byte again."""
    plain: list[str] = []
    coded: list[str] = []
    for field in schema:
        nested = pa.types.is_fixed_size_list(field.type)
        kind = field.type.value_type if nested else field.type
        name = f"{field.name}.list.element" if nested else field.name
        (plain if pa.types.is_floating(kind) else coded).append(name)
    coded = [name for name in coded if name not in ("row", "user_id")]
    compression = {
        name: "none" if name in plain and "." in name else "zstd" for name in [*plain, *coded, "row", "user_id"]
    }
    return pq.ParquetWriter(
        path, schema, compression=compression, use_dictionary=coded, write_statistics=["row", "user_id"]
    )
