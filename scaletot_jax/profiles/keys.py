"""Two content keys of a profile: ``exact`` and ``coarse``.

``exact`` hashes the canonical values of every profile field: equal keys mean that prompt, features and therefore chain
and embedding are equal. ``coarse`` hashes the fields and bins that the schema marks: rows that count as one profile
for averages and for seen/unseen slices. The share of rows that share a profile says how much repetition there is to
use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.profiles.fields import Field

KEY_BYTES = 16


def exact_keys(table: pa.Table, fields: Sequence[Field]) -> np.ndarray:
    """[U] hex keys over the canonical values of ``fields``."""
    return _keys(table, fields, coarse=False)


def coarse_keys(table: pa.Table, fields: Sequence[Field]) -> np.ndarray:
    """[U] hex keys over those of ``fields`` that the schema marks ``coarse``, in the schema's bins.

    With no such field every row has the same key.
    """
    return _keys(table, [field for field in fields if field.coarse is not False], coarse=True)


def share_of_repeats(keys: np.ndarray) -> float:
    """Share of rows whose key occurs at least twice, in [0, 1]; 0 for no rows."""
    if len(keys) == 0:
        return 0.0
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return float((counts[inverse] > 1).mean())


def _keys(table: pa.Table, fields: Sequence[Field], *, coarse: bool) -> np.ndarray:
    """Columns become small integers, rows of integers become distinct rows, and only those are hashed."""
    combined = np.zeros(table.num_rows, np.int64)  # one code per row, over the columns so far
    columns: list[tuple[list[str], np.ndarray]] = []  # canonical text of each distinct value, code of each row
    for field in sorted(fields, key=lambda f: f.name):  # the order of the schema must not matter
        values, codes = _codes(table[field.name], field, coarse=coarse)
        columns.append(([_member(field.name, value) for value in values], codes))
        combined = np.unique(combined * len(values) + codes, return_inverse=True)[1].astype(np.int64)
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    parts = [[texts[code] for code in codes[first].tolist()] for texts, codes in columns]
    keys = np.empty(len(first), dtype=object)
    for index in range(len(first)):
        text = "".join(part[index] for part in parts)
        keys[index] = hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest()
    return keys[inverse]


def _codes(column: pa.ChunkedArray, field: Field, *, coarse: bool) -> tuple[list[Any], np.ndarray]:
    """Distinct canonical values of a column, and the code of each row; a missing value is None and the last code."""
    if field.kind == "multi":
        return _list_codes(column, sort=coarse)
    if coarse and isinstance(field.coarse, tuple):
        present = pc.is_valid(column).to_numpy()
        number = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
        codes = np.searchsorted(np.asarray(field.coarse), number, side="right")
        values: list[Any] = [f"bin{i}" for i in range(len(field.coarse) + 1)]
        return values + [None], np.where(present, codes, len(values))
    encoded = (
        column.combine_chunks().dictionary_encode() if column.num_chunks != 1 else column.chunk(0).dictionary_encode()
    )
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = [_canonical(value) for value in encoded.dictionary.to_pylist()]
    if coarse and isinstance(field.coarse, dict):
        values = [field.coarse.get(value, value) for value in values]
    codes = pc.fill_null(encoded.indices, len(values)).to_numpy(zero_copy_only=False).astype(np.int64)
    return values + [None], codes


def _list_codes(column: pa.ChunkedArray, *, sort: bool) -> tuple[list[Any], np.ndarray]:
    """Lists have no dictionary encoding in Arrow: join them by a character that canonical text cannot hold."""
    joined = pc.binary_join(column, "\x1f")
    encoded = joined.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values: list[Any] = [value.split("\x1f") if value else [] for value in encoded.dictionary.to_pylist()]
    if sort:
        values = [sorted(value) for value in values]
    codes = pc.fill_null(encoded.indices, len(values)).to_numpy(zero_copy_only=False).astype(np.int64)
    return values + [None], codes


def _member(name: str, value: Any) -> str:
    """A field of a profile as a line of JSON; nothing where it is missing. JSON escapes line ends, so lines are unique."""
    if value is None:
        return ""
    return json.dumps([name, value], ensure_ascii=True, separators=(",", ":"), allow_nan=False) + "\n"


def _canonical(value: Any) -> Any:
    """JSON form of a scalar: 3.0 and 3 are one number, -0.0 is 0, a date is its ISO text."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value
