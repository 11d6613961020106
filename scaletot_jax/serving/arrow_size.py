"""How much an Arrow batch says it holds, which can be far more than it has bytes. Pure.

Rows may share one long value, by a dictionary's index or by a view, and one buffer can be the data of many columns. What such
a batch comes to when each value is written out is counted here without writing any out, so that a reader can refuse it first.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_VIEW = np.dtype([("length", "<i4"), ("rest", "V12")])  # of Arrow's layout of a string view
_CELL = 4  # bytes that a value takes at least, so that values without bytes (nulls, bits) count too


def stated_bytes(batch: pa.RecordBatch) -> int:
    """What a reader walks through: buffers, list elements and dictionaries whole, text of views by their stated lengths.

    Reads lengths alone, so a batch need have passed no more than ``batch.validate()``.
    """
    return sum(map(_stated, batch.columns))


def written_out_bytes(batch: pa.RecordBatch) -> int:
    """The same with the value in the place of each index of a dictionary. The batch has passed ``validate(full=True)``."""
    return sum(map(_written_out, batch.columns))


def _stated(array: pa.Array) -> int:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _CELL * len(array) + _stated(array.dictionary)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _CELL * len(array) + _stated(array.values)
    if pa.types.is_string_view(kind):
        return _CELL * len(array) + int(np.maximum(_view_lengths(array), 0).sum())
    return max(_CELL * len(array), array.get_total_buffer_size())


def _written_out(array: pa.Array) -> int:
    if not pa.types.is_dictionary(array.type):
        return _stated(array)
    words, codes = array.dictionary, array.indices.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_string_view(words.type):
        lengths = _view_lengths(words)
    elif pa.types.is_string(words.type) or pa.types.is_large_string(words.type):
        lengths = pc.fill_null(pc.binary_length(words), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        return 2 * _CELL * len(array)  # numbers, dates
    return _CELL * len(array) + int(lengths[codes].sum())


def _view_lengths(array: pa.Array) -> np.ndarray:
    """int64 [U]; of a null whatever its view says."""
    views = np.frombuffer(array.buffers()[1] or b"", _VIEW)
    return views["length"][array.offset : array.offset + len(array)].astype(np.int64)
