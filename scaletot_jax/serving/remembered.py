"""Rows encoded from values that were encoded before: what a request of few rows costs is looking them up.

A column is encoded value by value (:mod:`scaletot_jax.population.rows`), so a row's features are those of its values side by
side, and values repeat from request to request:

    value of a field ─► its number in the store ─► features gathered;   new values ─► RowEncoder ─► store

The result is :class:`RowEncoder`'s, bit for bit (a negative zero is a zero here). A store is emptied when it is full, which
bounds its memory; what it cannot hold, other types than those of a JSON request, long values and values that are not
allowed, is left to the encoder, which names the row at fault.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.errors import DataError
from scaletot_jax.population.rows import RowEncoder
from scaletot_jax.profiles.features import Features
from scaletot_jax.profiles.fields import Field

_TYPES = (pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.date32(), pa.list_(pa.string()))
_LONGEST = 128  # characters of a value that is kept, over all elements of a list


class RememberingEncoder:
    """The features of small tables. For one thread.

    Args:
      encoder: for what is not remembered.
      rows: largest table that is looked up; a larger one is encoded, each distinct value once.
      values: kept of each field and type.
    """

    def __init__(self, encoder: RowEncoder, *, rows: int = 256, values: int = 4096):
        self._encoder, self._rows, self._values = encoder, rows, values
        self._stores: dict[tuple[str, pa.DataType], _Store] = {}

    def __call__(self, table: pa.Table) -> Features:
        """Features of the rows.

        Raises:
          DataError: a value is not allowed; rows counted from 0.
        """
        if 0 < table.num_rows <= self._rows:
            features = self._look_up(table)
            if features is not None:
                return features
        return self._encoder(table, first=0, where="request")[1]

    def _look_up(self, table: pa.Table) -> Features | None:
        out = self._encoder.blank(table.num_rows)
        for field in self._encoder.space.fields:
            column = table[self._encoder.layout.fields[field.name]]
            if column.type not in _TYPES:
                return None
            store = self._stores.get((field.name, column.type))
            if store is None:
                store = self._stores[field.name, column.type] = _Store(self._encoder, field, self._values)
            codes = store.codes(column)
            if codes is None or store.features is None:
                return None
            self._encoder.place(out, field, store.features, codes)
        return out


class _Store:
    """Features of one field's values of one type, a row each."""

    def __init__(self, encoder: RowEncoder, field: Field, size: int):
        self._encoder, self._field, self._size = encoder, field, size
        self._numbers: dict[Any, int] = {}
        self.features: Features | None = None  # of ``size`` rows, the first ones used

    def codes(self, column: pa.ChunkedArray) -> np.ndarray | None:
        """[U] rows of the store, or None where it cannot hold a value."""
        try:
            keys = column.to_pylist()
        except (OverflowError, ValueError):  # a date that Python has no name for
            return None
        if pa.types.is_list(column.type):
            keys = [key if key is None else tuple(key) for key in keys]
        numbers = self._numbers
        new = [row for row, key in enumerate(keys) if key not in numbers]
        if new and not self._add(column, keys, new):
            return None
        return np.fromiter(map(self._numbers.__getitem__, keys), np.int64, len(keys))

    def _add(self, column: pa.ChunkedArray, keys: list[Any], new: list[int]) -> bool:
        if not all(map(_short, (keys[row] for row in new))):
            return False
        if len(self._numbers) + len(new) > self._size:
            self._numbers.clear()
            new = list(range(len(keys)))
        firsts = list({keys[row]: row for row in reversed(new)}.values())
        try:
            part, codes = self._encoder.encode_field(column.take(pa.array(firsts)), self._field, 0, "request")
        except (DataError, pa.ArrowInvalid, UnicodeError):
            return False
        if codes is not None:
            part = Features(*(array[codes] for array in part))
        if self.features is None:
            self.features = Features(*(np.zeros((self._size, *a.shape[1:]), a.dtype) for a in part))
        begin = len(self._numbers)
        for kept, found in zip(self.features, part):
            kept[begin : begin + len(firsts)] = found
        self._numbers |= {keys[row]: begin + place for place, row in enumerate(firsts)}
        return True


def _short(key: Any) -> bool:
    if isinstance(key, str):
        return len(key) <= _LONGEST
    if isinstance(key, tuple):
        return None not in key and len(key) + sum(map(len, key)) <= _LONGEST
    return key == key  # no NaN, which would never be found again
