"""The table to score: one Parquet file or a folder of them, read forward in blocks of bounded memory.

Text columns are read as dictionaries: their values are then checked and encoded once each, not once a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scaletot_jax.errors import DataError
from scaletot_jax.files import sha256_file

_HASHED_WHOLE = 256 << 20  # bytes: a table up to this size is identified by its content, a larger one by its footers


class Part(NamedTuple):
    """One file: rows [begin, end) of the table."""

    path: Path
    begin: int
    end: int


class Source:
    """Rows of one or many Parquet files, in the order of the files' names.

    Args:
      path: a Parquet file, or a folder: every ``*.parquet`` below it whose name does not begin with a dot or underscore.
      columns: those to read.
      coded: those of them to read as dictionaries where they hold text (lists cannot be).

    Raises:
      DataError: nothing there, not Parquet, or a column is missing or of another type than in the first file.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], coded: Sequence[str] = ()):
        self.path, self.columns, self.coded = Path(path), list(dict.fromkeys(columns)), frozenset(coded)
        self.parts: list[Part] = []
        self._types: dict[str, tuple[pa.DataType, Path]] = {}  # of each column so far, and the first file that has it
        begin = 0
        for file in _files(self.path):
            metadata = self._check(file)
            self.parts.append(Part(file, begin, begin + metadata.num_rows))
            begin += metadata.num_rows
        self.rows = begin
        if not self.rows:
            raise DataError("the table has no rows", where=str(self.path))

    def _check(self, file: Path) -> pq.FileMetaData:
        try:
            found = pq.ParquetFile(file)
            names = found.schema_arrow.names
            read = pq.ParquetFile(file, metadata=found.metadata, read_dictionary=self._coded_text(found)).schema_arrow
        except MemoryError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                "a table cannot be read as Parquet", where=str(file), why=" ".join(str(error).split())
            ) from error
        missing = [name for name in self.columns if name not in names]
        twice = [name for name in self.columns if names.count(name) > 1]
        if missing or twice:
            raise DataError(
                "a table lacks columns of the model" if missing else "a table has two columns of one name",
                where=str(file),
                why=f"missing: {', '.join(missing)}" if missing else f"twice: {', '.join(twice)}",
                do="add the columns (null where unknown)" if missing else "",
            )
        for name in self.columns:
            self._check_type(name, read.field(name).type, file)
        return found.metadata

    def _check_type(self, name: str, found: pa.DataType, file: Path) -> None:
        """Types may differ where a block can hold both: whole numbers beside fractions, nulls beside anything."""
        before, first = self._types.get(name, (found, file))
        try:
            both = pa.unify_schemas([pa.schema({name: before}), pa.schema({name: found})], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                "a column has another type than in the files before",
                where=f"{file}, column '{name}'",
                why=f"it is {_plain(found)}, and {_plain(before)} in {first.name} and after it",
                do="cast it to one type in all files",
            ) from error
        self._types[name] = (both.field(name).type, first)

    def _coded_text(self, file: pq.ParquetFile) -> list[str]:
        """Those columns that are read as dictionaries. The path of a leaf of a list has dots in it and is no column's name."""
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
        return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.path in self.coded]

    def identity(self) -> list[dict[str, Any]]:
        """What names the table's content: of each file its name below the folder, rows, bytes and a SHA-256.

        Of a table of at most 256 MiB the hash is of whole files; of a larger one of the Parquet footers, which hold every
        column chunk's size, place and statistics (a value changed inside of its column's range and page sizes escapes).
        """
        root = self.path if self.path.is_dir() else self.path.parent
        sizes = [part.path.stat().st_size for part in self.parts]
        whole = sum(sizes) <= _HASHED_WHOLE
        out = []
        for part, size in zip(self.parts, sizes):
            digest = sha256_file(part.path) if whole else _sha256_footer(part.path, size)
            name = part.path.relative_to(root).as_posix()
            out.append({"file": name, "rows": part.end - part.begin, "bytes": size, "sha256": digest})
        return out

    def blocks(self, ranges: Sequence[tuple[int, int]]) -> Iterator[pa.Table]:
        """The tables of ascending row ranges. Ranges that touch are read in one go, so that a row group is decoded once."""
        position, stream = -1, self._from(0)
        held: list[pa.Table] = []  # already read, from `position` on
        for begin, end in ranges:
            if begin != position:
                stream, held, position = self._from(begin), [], begin
            size = sum(table.num_rows for table in held)
            while size < end - begin:
                table = next(stream, None)
                if table is None:
                    raise DataError(
                        "a table ends before its last row", where=str(self.path),
                        why=f"it says that it has {self.rows} rows", do="write the table again",
                    )  # fmt: skip
                held.append(table)
                size += table.num_rows
            table = pa.concat_tables(held, promote_options="permissive")
            held = [table.slice(end - begin)] if table.num_rows > end - begin else []
            position = end
            yield table.slice(0, end - begin)

    def place(self, row: int) -> str:
        """File and row of a row of the table, for messages."""
        part = next(part for part in self.parts if part.begin <= row < part.end)
        return f"{part.path}, row {row - part.begin}"

    def _from(self, row: int) -> Iterator[pa.Table]:
        """Small tables from ``row`` to the end."""
        for part in self.parts:
            if part.end <= row:
                continue
            try:
                yield from self._read(part, max(0, row - part.begin))
            except MemoryError:
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(
                    "a table cannot be read as Parquet", where=str(part.path), why=" ".join(str(error).split())
                ) from error

    def _read(self, part: Part, skip: int) -> Iterator[pa.Table]:
        text = self._coded_text(pq.ParquetFile(part.path))
        with pq.ParquetFile(part.path, read_dictionary=text) as file:
            bounds = np.cumsum([0] + [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)])
            groups = [i for i in range(len(bounds) - 1) if bounds[i + 1] > skip]
            skip -= int(bounds[groups[0]]) if groups else 0
            for batch in file.iter_batches(1 << 15, row_groups=groups, columns=self.columns):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                yield pa.Table.from_batches([batch.slice(skip)]).select(self.columns)
                skip = 0


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    hidden = (".", "_")
    found = [
        file
        for file in path.rglob("*.parquet")
        if file.is_file() and not any(part.startswith(hidden) for part in file.relative_to(path).parts)
    ]
    if not found:
        raise DataError("a table is missing", where=str(path), why="no file and no folder with Parquet files in it")
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _sha256_footer(path: Path, size: int) -> str:
    import hashlib

    with open(path, "rb") as handle:
        handle.seek(size - 8)
        length = int.from_bytes(handle.read(4), "little")
        handle.seek(max(0, size - 8 - length))
        return hashlib.sha256(handle.read()).hexdigest()
