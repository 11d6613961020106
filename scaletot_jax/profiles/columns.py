"""One column of a table: type check, value check, canonical form.

Canonical form, on which prompt, features and keys are built: strings are NFC-normalised and trimmed, control characters
become spaces, an empty string is a missing value; numbers are int64 or float64, rounded as the schema says; dates are
date32; multi-values lose repetitions and, unless they are ranked, are sorted.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.errors import DataError
from scaletot_jax.profiles.faults import Faults
from scaletot_jax.profiles.fields import REDACTED, Field


def canonical(array: pa.Array, field: Field, faults: Faults, where: str) -> pa.Array:
    """A field's column in canonical form; what the schema does not allow goes to ``faults``."""
    if field.kind in ("enum", "ordered", "text"):
        return _string(array, field, faults, where)
    if field.kind == "number":
        return _number(array, field, faults, where)
    if field.kind == "date":
        return date(array, field.name, where)
    if field.kind == "boolean":
        if not (pa.types.is_boolean(array.type) or pa.types.is_null(array.type)):
            raise _wrong_type(field.name, array.type, "a boolean", where)
        return array.cast(pa.bool_())
    return _multi(array, field, faults, where)


def _clean(text: pa.Array) -> pa.Array:
    text = pc.replace_substring_regex(pc.utf8_normalize(text, form="NFC"), r"[\x00-\x1f\x7f]+", " ")
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _string(array: pa.Array, field: Field, faults: Faults, where: str) -> pa.Array:
    if not (_is_string(array.type) or pa.types.is_null(array.type)):
        raise _wrong_type(field.name, array.type, "a string", where)
    text = _clean(array.cast(pa.string()))
    _check_values(text, text, None, field, faults)
    return text


def _check_values(text: pa.Array, shown: pa.Array, parents: np.ndarray | None, field: Field, faults: Faults) -> None:
    """Refuses values outside a closed list. ``parents``: the row of each element of a flattened list column."""
    if not field.values or field.on_unknown == "unknown":
        return
    allowed = pa.array([*field.values, REDACTED])
    unknown = mask(pc.and_(pc.is_valid(text), pc.invert(pc.is_in(text, value_set=allowed))))
    if parents is not None:
        rows = np.zeros(len(shown), bool)
        rows[parents[unknown]] = True
        unknown = rows
    allowed_text = ", ".join(field.values[:12]) + (", …" if len(field.values) > 12 else "")
    faults.add(unknown, field.name, shown, f"unknown value; the schema allows {allowed_text}")


def finite_mask(array: pa.Array, name: str, faults: Faults) -> np.ndarray:
    """Refuses NaN and infinities; returns where the value is neither, nor null."""
    if not pa.types.is_floating(array.type):
        return mask(pc.is_valid(array))
    faults.add(mask(pc.is_nan(array)), name, array, "not a number; a missing value is null")
    faults.add(mask(pc.is_inf(array)), name, array, "infinite")
    return mask(pc.is_finite(array))


def as_number(array: pa.Array, name: str, where: str) -> pa.Array:
    """A numeric column as int64, or as float64 if it holds fractions or integers beyond ±2^53."""
    if pa.types.is_null(array.type):
        return array.cast(pa.float64())
    if not _is_number(array.type):
        raise _wrong_type(name, array.type, "a number", where)
    if not pa.types.is_integer(array.type):
        return array.cast(pa.float64(), safe=False)
    bounds = [abs(bound) for bound in pc.min_max(array).as_py().values() if bound is not None]
    return array.cast(pa.int64() if max(bounds, default=0) <= 2**53 else pa.float64(), safe=False)


def _number(array: pa.Array, field: Field, faults: Faults, where: str) -> pa.Array:
    array = as_number(array, field.name, where)
    finite = finite_mask(array, field.name, faults)
    low, high = field.range
    limits = f"outside {'-∞' if low is None else f'{low:g}'}..{'∞' if high is None else f'{high:g}'}"
    outside = np.zeros(len(array), bool)
    if low is not None:
        outside |= mask(pc.less(array, low))
    if high is not None:
        outside |= mask(pc.greater(array, high))
    faults.add(outside & finite, field.name, array, limits)
    if field.digits is not None and pa.types.is_floating(array.type) and finite.sum() == len(array) - array.null_count:
        array = pc.round(array, ndigits=field.digits)
        if field.digits <= 0 and not mask(pc.greater(pc.abs(array), 2.0**53)).any():
            array = array.cast(pa.int64())
    return array


def _multi(array: pa.Array, field: Field, faults: Faults, where: str) -> pa.Array:
    if pa.types.is_null(array.type):
        return array.cast(pa.list_(pa.string()))
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)) or not (
        _is_string(array.type.value_type) or pa.types.is_null(array.type.value_type)
    ):
        raise _wrong_type(field.name, array.type, "a list of strings", where)
    parents = pc.list_parent_indices(array).to_numpy(zero_copy_only=False).astype(np.int64)
    text = _clean(pc.list_flatten(array).cast(pa.string()))
    empty = np.zeros(len(array), bool)
    empty[parents[mask(pc.is_null(text))]] = True
    faults.add(empty, field.name, array, "a value of the list is missing or empty")
    _check_values(text, array, parents, field, faults)
    return _rebuild_lists(array, parents, text, ranked=field.ranked)


def _rebuild_lists(array: pa.Array, parents: np.ndarray, text: pa.Array, *, ranked: bool) -> pa.Array:
    """Lists without repetitions; in their own order where it matters, else sorted by value."""
    codes = text.dictionary_encode()
    order = (
        pc.rank(codes.dictionary, sort_keys="ascending", tiebreaker="dense")
        .to_numpy(zero_copy_only=False)
        .astype(np.int64)
    )
    index = pc.fill_null(codes.indices, 0).to_numpy(zero_copy_only=False)
    value = order[index] if len(order) else np.zeros(len(index), np.int64)
    pair = parents * (len(order) + 1) + value
    first = np.unique(pair, return_index=True)[1]  # sorted by (row, value)
    if ranked:
        first = np.sort(first)
    counts = np.bincount(parents[first], minlength=len(array))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), text.take(pa.array(first)))
    return pc.if_else(pc.is_valid(array), lists, pa.scalar(None, lists.type)) if array.null_count else lists


def array(table: pa.Table, name: str) -> pa.Array:
    """The column as one contiguous array of plain (not dictionary) values."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def mask(bad: pa.Array) -> np.ndarray:
    """A boolean array as NumPy; null is False."""
    return pc.fill_null(bad, False).to_numpy(zero_copy_only=False)


def _wrong_type(name: str, found: pa.DataType, wanted: str, where: str) -> DataError:
    return DataError(
        "a column has the wrong type",
        where=f"{where}, field '{name}'",
        why=f"it is {found}, the schema wants {wanted}",
        do="cast the column",
    )


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def key(array: pa.Array, name: str, faults: Faults, where: str) -> pa.Array:
    """An identifier as a string."""
    if not (_is_string(array.type) or pa.types.is_integer(array.type)):
        raise _wrong_type(name, array.type, "a string or an integer", where)
    text = array.cast(pa.string())
    faults.add(mask(pc.is_null(text)) | mask(pc.equal(text, "")), name, None, "the identifier is missing")
    return text


def date(array: pa.Array, name: str, where: str) -> pa.Array:
    """A date or timestamp column as date32."""
    if pa.types.is_null(array.type):
        return array.cast(pa.date32())
    if not (pa.types.is_date(array.type) or pa.types.is_timestamp(array.type)):
        raise _wrong_type(name, array.type, "a date", where)
    if pa.types.is_timestamp(array.type):  # the day of the instant, in the column's own clock
        array = pc.floor_temporal(array, unit="day")
    return array.cast(pa.date32(), safe=False)
