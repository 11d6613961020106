"""Profile tables in: Parquet, checked column by column against a schema, returned in canonical form.

Every check is a vectorised Arrow or NumPy expression over a whole column (columns.py). What is wrong is collected over
all columns; the error lists the first bad rows with row number (from 0), field, value and reason (faults.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scaletot_jax.errors import DataError
from scaletot_jax.profiles import columns
from scaletot_jax.profiles.faults import Faults
from scaletot_jax.profiles.schema import Schema

_COPY_ROWS = 10  # a number field equal to the label on at least so many rows is a copy of it


def read_parquet(path: str | Path) -> pa.Table:
    """Reads a Parquet file; DataError where it is missing, not Parquet or truncated."""
    path = Path(path)
    if not path.is_file():
        raise DataError("a table is missing", where=str(path), do="check data.path")
    try:
        table = pq.ParquetFile(path).read()
        table.validate(full=True)  # else words that are no UTF-8 end the run at some later place
        _ = table.column_names
        return table
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            "a table cannot be read as Parquet",
            where=str(path),
            why=" ".join(str(error).split()),
            do="write it again as one Parquet file",
        ) from error


def surplus_columns(table: pa.Table, schema: Schema) -> list[str]:
    """Columns of ``table`` that the schema does not name. They are allowed, and never read."""
    known = set(_named(schema))
    return [name for name in table.column_names if name not in known]


def validate(table: pa.Table, schema: Schema, *, where: str = "table") -> pa.Table:
    """Checks a table and returns its canonical form.

    Returns:
      columns ``user_id`` (string), ``group`` (string), ``snapshot`` (date32, only if the schema has one), every field
      by its name, every label by its column name; rows in the order of the input.

    Raises:
      DataError: no rows; a column missing or of another type; nulls, repeats, NaN, infinities or values outside the
        schema; a user in two groups; a field that repeats the label.
    """
    _check_columns(table, schema, where)
    if table.num_rows == 0:
        raise DataError(
            "a table is empty", where=where, why="it has no rows", do="check the query or filter that wrote it"
        )
    faults = Faults(where)
    checked: dict[str, pa.Array] = {}
    checked["user_id"] = columns.key(columns.array(table, schema.id), schema.id, faults, where)
    checked["group"] = _group(table, schema, checked["user_id"], faults, where)
    if schema.snapshot is not None:
        snapshot = columns.date(columns.array(table, schema.snapshot), schema.snapshot, where)
        faults.add(columns.mask(pc.is_null(snapshot)), schema.snapshot, snapshot, "the snapshot date is missing")
        checked["snapshot"] = snapshot
    _check_unique(checked, schema, faults)
    _check_one_group(checked, schema, faults)
    for field in schema.fields:
        checked[field.name] = columns.canonical(columns.array(table, field.source), field, faults, where)
    checked.update(_labels(table, schema, faults, where))
    faults.check()
    result = pa.table(checked)
    _check_copies(result, schema, where)
    return result


def _named(schema: Schema) -> list[str]:
    names = [schema.id, schema.group.column if schema.group else None, schema.snapshot]
    return list(
        dict.fromkeys([n for n in names if n] + [f.source for f in schema.fields] + list(schema.labels.columns))
    )


def _check_columns(table: pa.Table, schema: Schema, where: str) -> None:
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise DataError("a table has two columns of one name", where=where, why=f"twice: {', '.join(twice)}")
    missing = [name for name in _named(schema) if name not in table.column_names]
    if missing:
        raise DataError(
            "a table lacks columns of the schema",
            where=f"{where}, schema '{schema.name}'",
            why=f"missing: {', '.join(missing)}; surplus: {', '.join(surplus_columns(table, schema)) or 'none'}",
            do="add the columns (null where unknown), or remove the fields from the schema",
        )


def _group(table: pa.Table, schema: Schema, user_id: pa.Array, faults: Faults, where: str) -> pa.Array:
    if schema.group is None:
        return user_id
    name = schema.group.column
    text = columns.key(columns.array(table, name), name, faults, where)
    if not schema.group.pattern:
        return text
    try:
        part = pc.extract_regex(text, schema.group.pattern)
    except pa.ArrowInvalid as error:
        raise DataError(
            "the group pattern is not a regular expression", where="schema group.pattern", why=str(error)
        ) from error
    faults.add(
        columns.mask(pc.is_valid(text)) & columns.mask(pc.is_null(part)),
        name,
        None,
        f"the group pattern {schema.group.pattern} does not match",
    )
    return pc.struct_field(part, "group")


def _check_unique(checked: dict[str, pa.Array], schema: Schema, faults: Faults) -> None:
    # Codes instead of strings: a pair (id, snapshot) becomes one integer.
    codes = (
        pc.fill_null(checked["user_id"].dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    reason = "the user id occurs twice"
    if schema.snapshot is not None:
        days = pc.fill_null(checked["snapshot"].cast(pa.int32()), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        codes, reason = codes * (1 << 33) + days, "the user id occurs twice in one snapshot"
    repeated = np.ones(len(codes), bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    faults.add(repeated & columns.mask(pc.is_valid(checked["user_id"])), schema.id, None, reason)


def _check_one_group(checked: dict[str, pa.Array], schema: Schema, faults: Faults) -> None:
    """Splits part groups, so a user with two of them could be trained on and judged."""
    if schema.group is None:
        return
    users, groups = (
        pc.fill_null(checked[name].dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
        for name in ("user_id", "group")
    )
    _, first, codes = np.unique(users, return_index=True, return_inverse=True)
    other = (groups != groups[first][codes]) & (groups >= 0) & (groups[first][codes] >= 0) & (users >= 0)
    why = "not the group of this user's first row; a user has one group, for groups are what splits part"
    faults.add(other, schema.group.column, None, why)


def _labels(table: pa.Table, schema: Schema, faults: Faults, where: str) -> dict[str, pa.Array]:
    labels = schema.labels
    out = {labels.days.column: _count(table, labels.days.column, labels.days.horizon, faults, where)}
    if labels.value is not None:
        name = labels.value.column
        value = columns.as_number(columns.array(table, name), name, where)
        finite = columns.finite_mask(value, name, faults)
        faults.add(columns.mask(pc.is_null(value)), name, value, "the label is missing")
        faults.add(finite & columns.mask(pc.less(value, 0)), name, value, "label below 0")
        out[name] = value
    for label in labels.horizons:
        days = _count(table, label.column, label.horizon, faults, where)
        more = columns.mask(pc.fill_null(pc.greater(days, out[labels.days.column]), False))
        faults.add(more, label.column, days, f"more than {labels.days.column}, whose days include these")
        out[label.column] = days
    for outcome in labels.binary:
        out[outcome.column] = _count(table, outcome.column, 1, faults, where)
    return out


def _count(table: pa.Table, name: str, most: int, faults: Faults, where: str) -> pa.Array:
    """A label column that counts 0..most, int64."""
    column = columns.array(table, name)
    if pa.types.is_boolean(column.type) and most == 1:
        column = column.cast(pa.int64())
    days = columns.as_number(column, name, where)
    finite = columns.finite_mask(days, name, faults)
    faults.add(columns.mask(pc.is_null(days)), name, days, "the label is missing")
    outside = finite & columns.mask(pc.or_(pc.less(days, 0), pc.greater(days, most)))
    faults.add(outside, name, days, f"label outside 0..{most}")
    if pa.types.is_floating(days.type):
        fraction = finite & columns.mask(pc.not_equal(days, pc.round(days)))
        faults.add(
            fraction, name, days, "the label is a count of days, an integer" if most > 1 else "the label is 0 or 1"
        )
        days = pc.fill_null(pc.if_else(pc.is_finite(days), days, 0.0), 0.0)
        days = pc.round(days).cast(pa.int64(), safe=False)
    return days


def _check_copies(table: pa.Table, schema: Schema, where: str) -> None:
    """A number field that equals a label wherever it is present is that label under another name."""
    for column in schema.labels.columns:
        for field in schema.fields:
            if field.kind != "number":
                continue
            present = table.select([field.name, column]).filter(pc.is_valid(table[field.name]))
            value, label = present.columns
            if present.num_rows < _COPY_ROWS or len(pc.unique(label)) < 2:
                continue
            if pc.all(pc.equal(value, label)).as_py():
                raise DataError(
                    "a field is a copy of the label",
                    where=f"{where}, field '{field.name}'",
                    why=f"it equals '{column}' in all {present.num_rows} rows where it is present",
                    do="remove the field: it will not be known when the profile is taken",
                )
