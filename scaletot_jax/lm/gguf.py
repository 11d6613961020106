"""A GGUF file, memory-mapped: metadata and dequantised tensors, without torch.

The header is read here (the ``gguf`` package's reader takes seconds for a vocabulary of 49,152 and cannot name the
tensor that a truncated file lacks); block formats are dequantised by ``gguf.quants``, one tensor at a time.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.errors import DataError
from scaletot_jax.lm.safetensors_file import release_pages

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class _Tensor(NamedTuple):
    shape: tuple[int, ...]  # slowest axis first, as in NumPy
    kind: int  # ggml type number
    offset: int  # bytes from the start of the file
    size: int  # bytes


class GGUFFile:
    """An open GGUF file; ``lm.placement.Tensors``.

    Args:
      path: the file.

    Attributes:
      metadata: key -> number, bool, string, or list of these.
      tensors: name -> where its bytes lie.

    Raises:
      DataError: not a GGUF file, a version other than 2 or 3, or truncated (naming the first tensor that is cut).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as handle:
                self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise DataError("a weights file cannot be opened", where=str(path), why=str(error)) from error
        if self._bytes[:4] != b"GGUF":
            raise DataError("not a GGUF file", where=str(path), why="it does not begin with 'GGUF'")
        self._at = 4
        try:
            self._read_header()
        except (struct.error, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise DataError(
                "the header of a GGUF file is damaged or truncated",
                where=f"{path}, byte {self._at}",
                why=f"{type(error).__name__}: {error}",
                do="download or install the file again",
            ) from error
        for name, tensor in self.tensors.items():
            if tensor.offset + tensor.size > len(self._bytes):
                raise DataError(
                    "a GGUF file is truncated",
                    where=f"{path}, tensor '{name}'",
                    why=f"it ends at byte {tensor.offset + tensor.size}, the file has {len(self._bytes)}",
                    do="download or install the file again",
                )

    def value(self, key: str, default: Any = None) -> Any:
        """Metadata ``key``; without a default, a missing key is a DataError."""
        if key in self.metadata:
            return self.metadata[key]
        if default is None:
            raise DataError("a GGUF file lacks a metadata key", where=str(self.path), why=f"no '{key}'")
        return default

    def count(self, key: str, default: int | None = None) -> int:
        """Metadata ``key`` as a whole number of at least 1, or DataError."""
        number = self.value(key, default)
        if not isinstance(number, int) or number < 1:
            raise DataError("a GGUF file has an impossible size", where=f"{self.path}, {key}", why=f"{number!r}")
        return number

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor ``name``, slowest axis first, or DataError where it is missing."""
        if name not in self.tensors:
            raise DataError("a GGUF file lacks a tensor", where=str(self.path), why=f"no '{name}'")
        return self.tensors[name].shape

    @property
    def place(self) -> str:
        return str(self.path)

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def release(self, name: str) -> None:
        release_pages(self._bytes, self.tensors[name].offset, self.tensors[name].size)

    def read(self, name: str) -> np.ndarray:
        """Tensor ``name`` as float32 (a view where it is stored so), or DataError where it is missing or of an unknown
        format."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        shape = self.shape(name)
        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        raw = np.frombuffer(self._bytes, np.uint8, tensor.size, tensor.offset)
        if kind == GGMLQuantizationType.F32:
            return raw.view(np.float32).reshape(shape)
        if kind == GGMLQuantizationType.F16:
            return raw.view(np.float16).reshape(shape).astype(np.float32)
        try:
            return dequantize(raw.reshape(*shape[:-1], -1), kind).reshape(shape)
        except (NotImplementedError, ValueError) as error:  # ValueError: a row is not a whole number of blocks
            raise DataError(
                "a tensor is stored in a format that cannot be read",
                where=f"{self.path}, tensor '{name}'",
                why=f"no dequantisation for {kind.name}",
                do="use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or a K-quant",
            ) from error

    # -- header -----------------------------------------------------------------------------------------------------

    def _read_header(self) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported (2 and 3 are)")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"))
        infos = []
        for _ in range(tensor_count):
            name = self._string()
            shape = tuple(self._number("Q") for _ in range(self._number("I")))[::-1]
            infos.append((name, shape, self._number("I"), self._number("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, _Tensor] = {}
        for name, shape, kind, offset in infos:
            if 0 in shape:
                raise ValueError(f"tensor '{name}' has no values")
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            self.tensors[name] = _Tensor(shape, kind, start + offset, math.prod(shape) // block * block_bytes)

    def _number(self, code: str) -> Any:
        (number,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return number

    def _string(self) -> str:
        length = self._number("Q")
        if self._at + length > len(self._bytes):
            raise ValueError(f"a string of {length} bytes runs past the end of the file")
        self._at += length
        return self._bytes[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_SCALARS[kind])
        item, count = self._number("I"), self._number("Q")
        if item in (_STRING, _ARRAY):
            return [self._value(item) for _ in range(count)]
        code = f"<{count}{_SCALARS[item]}"
        values = list(struct.unpack_from(code, self._bytes, self._at))
        self._at += struct.calcsize(code)
        return values
