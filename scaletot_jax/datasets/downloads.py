"""Official downloads that a user fetched by hand, and ready per-user tables.

A data set that may not be copied into the package is looked for in two places: ``data.manual_dir``, which holds the
official archive or its unpacked files, and the folder that the environment variable SCALETOT_DATA names, which holds
one finished Parquet table per data set.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv

from scaletot_jax.errors import DataError

ENVIRONMENT = "SCALETOT_DATA"


def find(manual_dir: str | Path, archives: tuple[str, ...], member: str, ready: str, *, name: str, url: str) -> Path:
    """Where a data set lies.

    Args:
      manual_dir: the user's folder; empty to look for the ready table.
      archives: file names of the official archive.
      member: a file that an unpacked download has.
      ready: path of the ready table below SCALETOT_DATA.
      name, url: of the data set, for the error.

    Returns:
      the archive, the folder that holds ``member``, or the ready table (``.parquet``).
    """
    if manual_dir:
        folder = Path(manual_dir)
        for archive in archives:
            if (folder / archive).is_file():
                return folder / archive
        if (folder / member).is_file():
            return folder
        raise DataError(
            f"the official download of {name} is not there",
            where=str(folder),
            why=f"neither {' nor '.join(archives)} nor {member} is in the folder",
            do=f"download it from {url} and set data.manual_dir to its folder",
        )
    root = os.environ.get(ENVIRONMENT, "")
    if root and (Path(root) / ready).is_file():
        return Path(root) / ready
    raise DataError(
        f"no data for {name}",
        where="data.manual_dir",
        why=f"it is empty, and {ENVIRONMENT} names no folder with {ready}",
        do=f"download the data from {url} and pass --config.data.manual_dir=FOLDER",
    )


@contextlib.contextmanager
def open_member(source: Path, member: str) -> Iterator[pa.NativeFile]:
    """A file of a zip, of a tar.gz or of a folder, as an Arrow stream; found by its name, in whatever folder it lies."""
    try:
        if source.is_dir():
            with pa.OSFile(str(source / member)) as stream:
                yield stream
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                name = _one(archive.namelist(), member, source)
                with archive.open(name) as handle:
                    yield pa.PythonFile(handle, mode="r")
        else:
            with tarfile.open(source, "r:*") as archive:
                found = archive.extractfile(_one(archive.getnames(), member, source))
                assert found is not None
                yield pa.PythonFile(found, mode="r")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, FileNotFoundError, OSError) as error:
        raise _broken(source, member, error) from error


def read_csv(
    source: Path, member: str, types: dict[str, pa.DataType], *, null_values: tuple[str, ...] = ("", "?")
) -> pa.Table:
    """The columns of ``types`` of one CSV file; DataError names the file and what is wrong with it."""
    options = csv.ConvertOptions(
        column_types=types, include_columns=list(types), null_values=list(null_values), strings_can_be_null=True
    )
    with open_member(source, member) as stream:
        try:
            return csv.read_csv(stream, convert_options=options)
        except (pa.ArrowInvalid, KeyError) as error:
            raise _broken(source, member, error) from error


def cast(table: pa.Table, types: dict[str, pa.DataType], *, where: str) -> pa.Table:
    """The columns of ``types``, in their order and types; DataError where one is missing or does not fit."""
    missing = [name for name in types if name not in table.column_names]
    if missing:
        raise DataError("a table lacks columns", where=where, why=f"missing: {', '.join(missing)}")
    columns = {}
    for name, kind in types.items():
        try:
            columns[name] = table[name].cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            why = f"it is {table[name].type}, not {kind}: {error}"
            raise DataError("a column has the wrong type", where=f"{where}, field '{name}'", why=why) from error
    return pa.table(columns)


def _one(names: list[str], member: str, source: Path) -> str:
    found = [name for name in names if name == member or name.endswith("/" + member)]
    if len(found) != 1:
        why = f"{len(found)} files of that name; it holds {', '.join(sorted(names)[:8])}"
        raise DataError(
            "an archive is not the official download", where=f"{source}: {member}", why=why, do="download it again"
        )
    return found[0]


def _broken(source: Path, member: str, error: BaseException) -> DataError:
    why = " ".join(str(error).split())
    return DataError(
        "a file of a download cannot be read", where=f"{source}: {member}", why=why, do="download it again"
    )
