"""From rows of a table to the model's inputs, each distinct value of a column checked and encoded once.

    column ─► codes [U] and distinct values ─► canonical form, ids and numbers of the distinct values ─► gathered by code

The result is that of ``profiles.columns.canonical`` and ``FeatureSpace.encode`` on all rows, bit for bit: both work value
by value. Labels are neither read nor needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.errors import DataError
from scaletot_jax.profiles import columns
from scaletot_jax.profiles.faults import Faults
from scaletot_jax.profiles.features import Features, FeatureSpace
from scaletot_jax.profiles.fields import Field

_SAMPLE = 2048  # rows looked at before numbers are coded: coding columns without repetition would cost and save nothing
_LONGEST = 12  # values of a list that is coded; longer ones are encoded row by row


class Layout(NamedTuple):
    """Where a table has what the model needs.

    Attributes:
      keys: name in the output (``user_id``, ``snapshot``) → column of the table.
      fields: name of the field → column of the table.
    """

    keys: Mapping[str, str]
    fields: Mapping[str, str]

    @property
    def columns(self) -> list[str]:
        return [*self.keys.values(), *self.fields.values()]


class RowEncoder:
    """Encodes blocks of rows. ``space``: of the model; ``layout``: of the table."""

    def __init__(self, space: FeatureSpace, layout: Layout):
        self.space, self.layout = space, layout
        self._alone = {field.name: replace(space, fields=(field,)) for field in space.fields}
        self._places = {name: j for j, name in enumerate(space.num_columns)}
        self._numbers = {name: [self._places[part] for part in one.num_columns] for name, one in self._alone.items()}
        self._cats = {name: j for j, name in enumerate(space.cat_fields)}
        self._multis = {name: j for j, name in enumerate(space.multi_fields)}

    def __call__(self, table: pa.Table, *, first: int, where: str) -> tuple[pa.Table, Features]:
        """Keys and inputs of a block.

        Args:
          table: of the layout's columns.
          first: number of its first row, for messages.
          where: what messages call the table.

        Returns:
          a table of the keys (row int64, user_id string, snapshot date32 if any), and :class:`Features`.

        Raises:
          DataError: nulls in a key, or values the schema does not allow, with row, field, value and reason; or words that are
            no UTF-8.
        """
        try:
            return self._encode_block(table, first, where)
        except (pa.ArrowInvalid, UnicodeError) as error:  # what a damaged file may hold
            raise DataError(
                "a table cannot be read", where=where, why=" ".join(str(error).split()), do="write the table again"
            ) from error

    def _encode_block(self, table: pa.Table, first: int, where: str) -> tuple[pa.Table, Features]:
        faults = Faults(where, first)
        keys = {"row": pa.array(np.arange(first, first + table.num_rows, dtype=np.int64))}
        for name, column in self.layout.keys.items():
            array = columns.array(table, column)
            if name == "snapshot":
                keys[name] = columns.date(array, column, where)
                faults.add(columns.mask(pc.is_null(keys[name])), column, array, "the snapshot date is missing")
            else:
                keys[name] = columns.key(array, column, faults, where)
                keys[name].validate(full=True)
        faults.check()
        return pa.table(keys), self._features(table, first, where)

    def _features(self, table: pa.Table, first: int, where: str) -> Features:
        out = self.blank(table.num_rows)
        for field in self.space.fields:
            part, codes = self.encode_field(table[self.layout.fields[field.name]], field, first, where)
            self.place(out, field, part, codes)
        return out

    def blank(self, rows: int) -> Features:
        """Features of so many rows, for :meth:`place` to fill."""
        space, numbers = self.space, len(self._places)
        return Features(
            np.empty((rows, len(self._cats)), np.int32),
            np.empty((rows, numbers), np.float32),
            np.empty((rows, numbers), np.bool_),
            np.zeros((rows, len(self._multis), space.multi_width), np.int32),
        )

    def place(self, out: Features, field: Field, part: Features, codes: np.ndarray | None) -> None:
        """Writes a field's features into those of all: ``part`` row by row, or its rows ``codes``."""
        name = field.name

        def of_rows(values: np.ndarray) -> np.ndarray:
            return values if codes is None else values[codes]

        for j, column in enumerate(self._numbers[name]):
            out.num[:, column] = of_rows(part.num[:, j])
            out.missing[:, column] = of_rows(part.missing[:, j])
        if name in self._cats:
            out.cat[:, self._cats[name]] = of_rows(part.cat[:, 0])
        if name in self._multis:
            width = part.multi.shape[2]
            out.multi[:, self._multis[name], :width] = of_rows(part.multi[:, 0])

    def encode_field(
        self, column: pa.ChunkedArray, field: Field, first: int, where: str
    ) -> tuple[Features, np.ndarray | None]:
        """The encoded distinct values and each row's code, or all rows and None."""
        found = distinct(column, field)
        if found is not None:
            codes, values = found
            try:
                return self._encode(values, field, Faults(where), where), codes
            except DataError:  # a value is not allowed: the rows that have it are named, if any has it
                codes, values = _used(codes, values)
                return self._encode(values, field, Faults(where, first, codes), where), codes
        table = pa.table({field.name: column})
        return self._encode(columns.array(table, field.name), field, Faults(where, first), where), None

    def _encode(self, values: pa.Array, field: Field, faults: Faults, where: str) -> Features:
        if pa.types.is_list(values.type) and pa.types.is_dictionary(values.type.value_type):
            values = values.cast(pa.list_(values.type.value_type.value_type))
        checked = columns.canonical(values, field, faults, where)
        faults.check()
        return self._alone[field.name].encode(pa.table({field.name: pa.chunked_array([checked])}))


def distinct(column: pa.ChunkedArray, field: Field) -> tuple[np.ndarray, pa.Array] | None:
    """Codes [U] into an array of distinct values, the last of which is null; None where coding would not pay."""
    if field.kind == "multi":
        return _distinct_lists(column)
    if field.kind in ("number", "date") and not pa.types.is_dictionary(column.type):
        sample = column.slice(0, _SAMPLE)
        if len(sample) < _SAMPLE or pc.count_distinct(sample).as_py() > _SAMPLE // 4:
            return None
    return _codes(column)


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array = coded.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], coded.type)
    values = pa.concat_arrays([array.dictionary, pa.nulls(1, array.dictionary.type)])
    codes = pc.fill_null(array.indices.cast(pa.int32()), len(values) - 1).to_numpy(zero_copy_only=False)
    return codes, values


def _used(codes: np.ndarray, values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """The same rows without the values that none of them has, as a dictionary may hold."""
    held = np.bincount(codes, minlength=len(values)) > 0
    return (np.cumsum(held) - 1)[codes], values.take(pa.array(np.flatnonzero(held)))


def _distinct_lists(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array] | None:
    """Lists are equal where their padded rows of element codes are."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)) or not len(column):
        return None
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    longest = int(lengths.max(initial=0))
    if longest > _LONGEST:
        return None
    codes, _ = _codes(pa.chunked_array([pc.list_flatten(lists)]))
    padded = np.full((len(lists), longest + 1), -1, np.int32)
    padded[:, -1] = lengths  # tells a null list from an empty one
    padded[:, :-1][np.arange(longest) < lengths[:, None]] = codes
    rows, first = distinct_rows([padded])
    return rows, lists.take(pa.array(first))


def distinct_rows(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Codes [U] of rows that are equal byte for byte in every part, and where each distinct row first is, in that order."""
    count = len(parts[0])
    data = np.concatenate([np.ascontiguousarray(part).reshape(count, -1).view(np.uint8) for part in parts], axis=1)
    width = data.shape[1]
    if not width or not count:
        return np.zeros(count, np.int32), np.zeros(min(count, 1), np.int64)
    array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(data)])
    codes = array.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    newest = np.maximum.accumulate(codes)
    return codes, np.flatnonzero(np.r_[True, newest[1:] > newest[:-1]])
