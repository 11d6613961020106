"""Files written whole or not at all: JSON, Parquet, safetensors, and their hashes.

Every write goes to a temporary file beside the target, is synced and renamed over it; a full disk is a
:class:`~scaletot_jax.errors.ResourceError` that says what to do. No pickle anywhere. Where several processes run the same
program, the first alone writes: in the others the ``write_`` functions and ``copy_file`` do nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaletot_jax.errors import DataError, ResourceError
from scaletot_jax.parallel.distributed import leads


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                "the disk is full",
                where=str(path),
                why=str(error),
                do="free some space and run the same command again; everything finished so far is kept",
            ) from error
        raise


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is synced and renamed over ``path``.

    A kill at any moment leaves either the old file or the new one, never a part. Raises ResourceError on a full disk.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, data: bytes) -> None:
    if not leads():
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def copy_file(source: str | Path, path: str | Path) -> None:
    """Copies a file as the others are written: whole, synced, renamed into place."""
    if not leads():
        return
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON with sorted keys; NumPy scalars and arrays become numbers and lists, NaN is refused."""
    text = json.dumps(value, indent=2, sort_keys=True, default=plain, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise DataError("a file is missing", where=str(path), do="run the stage that writes it") from error
    except (ValueError, RecursionError) as error:
        raise DataError("a JSON file is damaged", where=str(path), why=str(error)) from error


def write_table(path: str | Path, table) -> None:
    """Writes an Arrow table as Parquet (zstd), atomically and without a timestamp: equal tables give equal bytes.

    Row groups of 65,536 rows, so that a reader of a part of a large table holds a part of it (Arrow's default is a million).
    """
    import pyarrow.parquet as pq

    if not leads():
        return
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=1 << 16)


def read_table(path: str | Path, columns: Sequence[str] | None = None):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError as error:
        raise DataError("a table is missing", where=str(path), do="run the stage that writes it") from error
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError("a table cannot be read", where=str(path), why=str(error)) from error


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as one safetensors file (no pickle)."""
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(value) for name, value in sorted(arrays.items())}))


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file."""
    with open_arrays(path) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (ValueError, TypeError, OverflowError) as error:  # shapes that NumPy has not
            raise DataError("an array file cannot be read", where=str(path), why=str(error)) from error


@contextlib.contextmanager
def open_arrays(path: str | Path) -> Iterator[Any]:
    """A safetensors file, mapped into memory and read where it is asked for (``get_slice(name)[rows]``)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError("an array file is missing", where=str(path), do="run the stage that writes it") from error
    except (SafetensorError, OSError) as error:
        raise DataError("an array file cannot be read", where=str(path), why=str(error)) from error


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seal(path: str | Path) -> None:
    """Says beside a file that is whole, in ``.NAME.sha256``, what it holds; for files that a killed stage goes on from."""
    if leads():
        write_bytes(_seal_of(path), sha256_file(path).encode())


def sealed(path: str | Path) -> bool:
    """Whether a file is there and holds what was sealed; one that was changed since is named on stderr, to be made again."""
    try:
        stated, found = _seal_of(path).read_bytes(), sha256_file(path)
    except FileNotFoundError:
        return False
    if stated != found.encode():
        print(f"{path} is not what was written; it is made again", file=sys.stderr)
    return stated == found.encode()


def _seal_of(path: str | Path) -> Path:
    return Path(path).with_name(f".{Path(path).name}.sha256")


def plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON-able value."""
    text = json.dumps(value, sort_keys=True, default=plain, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
