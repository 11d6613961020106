"""The tensors of a Hugging Face directory: one safetensors file or shards with an index, memory-mapped.

The header is read here: NumPy knows no bfloat16, and a damaged file must be named. Format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from scaletot_jax.errors import DataError

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
INDEX = "model.safetensors.index.json"
_TOO_LARGE = 2**60  # values of an array, those of its other axes where one of them is empty


class _Place(NamedTuple):
    file: mmap.mmap
    dtype: Any
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


class SafetensorsDirectory:
    """All tensors of a directory; ``lm.placement.Tensors``.

    Args:
      directory: with ``model.safetensors`` or its index and shards.

    Raises:
      DataError: a file is missing, damaged or truncated (naming the tensor), or two files hold the same tensor.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._places: dict[str, _Place] = {}
        for file in weight_files(directory):
            for name, place in _map(file).items():
                if name in self._places:
                    raise DataError("two weights files hold the same tensor", where=str(file), why=f"'{name}'")
                self._places[name] = place

    @property
    def place(self) -> str:
        return str(self.directory)

    def names(self) -> Collection[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._places:
            raise DataError("a weights directory lacks a tensor", where=self.place, why=f"no '{name}'")
        return self._places[name].shape

    def read(self, name: str) -> np.ndarray:
        """A view into the file, in the file's type."""
        place = self._places[name]
        return np.frombuffer(place.file, place.dtype, math.prod(place.shape), place.offset).reshape(place.shape)

    def release(self, name: str) -> None:
        place = self._places[name]
        release_pages(place.file, place.offset, math.prod(place.shape) * np.dtype(place.dtype).itemsize)


def release_pages(file: mmap.mmap, offset: int, size: int) -> None:
    """Tells the kernel that these bytes of a mapped file may leave memory; they are read again when asked for."""
    if hasattr(mmap, "MADV_DONTNEED"):
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        file.madvise(mmap.MADV_DONTNEED, start, offset + size - start)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, in a fixed order; DataError where one is missing."""
    index = directory / INDEX
    names = ["model.safetensors"]
    if index.exists():
        named = read_description(index).get("weight_map")
        if not isinstance(named, dict) or not all(Path(str(name)).name == name for name in named.values()):
            raise DataError("an index of weights files is damaged", where=f"{index}, weight_map")
        names = sorted(set(named.values()))
    files = [directory / name for name in names]
    for file in files:
        if not file.is_file():
            raise DataError("a weights file is missing", where=str(file))
    return files


def read_description(file: Path) -> dict[str, Any]:
    """A JSON file that describes a model, as a dict; anything else is a DataError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("a model configuration cannot be read", where=str(file), why=str(error)) from error
    if not isinstance(value, dict):
        raise DataError("a model configuration cannot be read", where=str(file), why="not a JSON object")
    return value


def _map(file: Path) -> dict[str, _Place]:
    try:
        with open(file, "rb") as handle:
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(data[:8], "little")
        if start > len(data):
            raise ValueError(f"its header claims {start - 8} bytes, the file has {len(data)}")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        entries = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            entries.append((name, str(entry["dtype"]), tuple(entry["shape"]), begin, end))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError("a safetensors file is damaged", where=str(file), why=why) from error
    places = {}
    for name, kind, shape, begin, end in entries:
        where = f"{file}, tensor '{name}'"
        if kind not in DTYPES:
            raise DataError("a tensor has an unsupported type", where=where, why=str(kind))
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        if not whole or math.prod(max(1, number) for number in shape) >= _TOO_LARGE:
            raise DataError("a safetensors file is damaged", where=where, why=f"{shape} at {begin}..{end}")
        if end - begin != math.prod(shape) * np.dtype(DTYPES[kind]).itemsize:
            raise DataError("a safetensors file is damaged", where=where, why=f"{end - begin} bytes for {list(shape)}")
        if start + end > len(data):
            why = f"it ends at byte {end} of {len(data) - start}"
            raise DataError("a safetensors file is truncated", where=where, why=why)
        places[name] = _Place(data, DTYPES[kind], shape, start + begin)
    return places
