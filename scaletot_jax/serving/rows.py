"""Rows of a request, as JSON or as an Arrow IPC stream → a table with the model's columns. Pure.

A request holds the columns that the model reads and no others: one that is missing would be guessed, one that is misspelt
would be ignored, and an identifier is of no use here. A value that is not known is null. What a cell may hold is checked as
``scaletot score`` does it, by :mod:`scaletot_jax.profiles.columns`; here only its type is.
"""

from __future__ import annotations

import datetime
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic_core import from_json

from scaletot_jax.errors import DataError
from scaletot_jax.profiles import columns
from scaletot_jax.profiles.faults import Faults
from scaletot_jax.profiles.fields import Field
from scaletot_jax.serving.arrow_bytes import check_stream
from scaletot_jax.serving.arrow_size import stated_bytes, written_out_bytes
from scaletot_jax.serving.failures import RequestError

_KINDS = {"number": "a number", "boolean": "true or false", "date": "a date such as \"2026-05-31\"", "multi": "a list of strings"}  # fmt: skip
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_WHOLE = 2**53  # integers beyond it are read as float64, as a table's are
_SEE = "GET /v1/model says what a row holds"


def read_json_rows(body: bytes, fields: Mapping[str, Field], most: int) -> pa.Table:
    """``{"rows": [{column: value, …}, …]}`` → a table of the fields' columns.

    Args:
      body: of the request.
      fields: column → field, of the model.
      most: rows that a request may hold.

    Raises:
      RequestError: 400 it is not JSON, 413 too many rows, 422 it is not of this form.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(
            "the body is not JSON", status=400, why=str(error), do='send {"rows": [{…}, …]} in UTF-8'
        ) from error
    if not isinstance(value, dict) or set(value) != {"rows"} or not isinstance(value["rows"], list):
        raise RequestError(
            "the body has another form", why='it is not an object with the one key "rows", a list', do=_SEE
        )
    rows = value["rows"]
    check_count(len(rows), most)
    names = fields.keys()
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError("a row is not an object", row=number, why=f"it is {_name(row)}", do=_SEE)
        if row.keys() != names:
            raise _other_columns(list(row), list(names), number)
    return pa.table({name: _column([row[name] for row in rows], name, field) for name, field in fields.items()})


def read_arrow_rows(body: bytes, fields: Mapping[str, Field], most: int, most_bytes: int = 8 << 20) -> pa.Table:
    """An Arrow IPC stream → the same; arguments and errors as of :func:`read_json_rows`.

    Args:
      most_bytes: that its values may come to written out, however few they are sent in; 413 beyond. The limit of a body
        fits: what a plain one holds is never more.
    """
    check_stream(body)
    batches, count, stated, written_out = [], 0, 0, 0
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            schema = stream.schema
            if sorted(schema.names) != sorted(fields):
                raise _other_columns(schema.names, list(fields), None)
            _check_types(schema, fields)
            for batch in stream:
                count += batch.num_rows
                check_count(count, most)
                if not batch.num_rows:
                    continue
                batch.validate()  # buffers hold what the lengths say
                stated += stated_bytes(batch)
                _check_bytes(stated, most_bytes)
                batch.validate(full=True)  # offsets, indices and UTF-8 are the client's until here
                written_out += written_out_bytes(batch)
                _check_bytes(written_out, most_bytes)
                batches.append(batch)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            "the body is not an Arrow IPC stream",
            status=400,
            why=" ".join(str(error).split())[:300],
            do="write it with pyarrow.ipc.new_stream, uncompressed",
        ) from error
    check_count(count, most)
    return pa.Table.from_batches(batches, schema).select(list(fields))


def check_count(rows: int, most: int) -> None:
    """RequestError unless 1 ≤ rows ≤ most."""
    if rows == 0:
        raise RequestError("a request has no rows", why="the list is empty", do="send at least one row")
    if rows > most:
        raise RequestError(
            "a request has too many rows",
            status=413,
            why=f"more than {most}",
            do=f"send at most {most} rows a request, or score a table with 'scaletot score --model'",
        )


def _check_bytes(found: int, most: int) -> None:
    """Before anything is decoded: rows that share one long value would each get a copy of it."""
    if found > most:
        raise RequestError(
            "the values of a request are too large",
            status=413,
            why=f"written out they take {found} bytes, {most} are allowed",
            do="send fewer rows, or shorter values, in one record batch",
        )


def _other_columns(found: Sequence[str], wanted: Sequence[str], row: int | None) -> RequestError:
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted]
    if surplus:
        close = difflib.get_close_matches(surplus[0], missing, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        why = f"the model does not read it; its columns are {', '.join(wanted)}"
        return RequestError(
            f"unknown column '{surplus[0][:80]}'", row=row, field=surplus[0][:80], why=why,
            do=f"{hint}leave it out: nothing that names a user is needed",
        )  # fmt: skip
    if not missing:
        return RequestError("a column occurs twice", row=row, why="names repeat", do=_SEE)
    return RequestError(
        f"column '{missing[0]}' is missing", row=row, field=missing[0],
        why=f"missing: {', '.join(missing)}", do="send null where a value is not known",
    )  # fmt: skip


def _check_types(schema: pa.Schema, fields: Mapping[str, Field]) -> None:
    for name, field in fields.items():
        kind = schema.field(name).type
        coded = pa.types.is_dictionary(kind)
        plain = kind.value_type if coded else kind
        try:
            if _holds_no_bytes(plain, coded):
                raise pa.ArrowTypeError(
                    "nulls have a length and no bytes, so that a body of any size may hold any number"
                )
            columns.canonical(pa.array([], plain), field, Faults(""), "")
        except (DataError, pa.ArrowException, NotImplementedError) as error:
            wanted = _KINDS.get(field.kind, "a string")
            raise RequestError(
                "a column has the wrong type", field=name, why=f"it is {str(kind)[:80]}, the model wants {wanted}",
                do="cast the column",
            ) from error  # fmt: skip


def _holds_no_bytes(plain: pa.DataType, coded: bool) -> bool:
    """Whether a column may have more nulls than rows: as elements of lists, or as words of a dictionary."""
    if pa.types.is_list(plain) or pa.types.is_large_list(plain):
        return coded or pa.types.is_null(plain.value_type)  # no dictionary of lists can be decoded
    return coded and pa.types.is_null(plain)


def _column(values: list[Any], name: str, field: Field) -> pa.Array:
    """One column; RequestError with the row of the first value that is of another type."""
    if field.kind == "number":
        kinds = set(map(type, values))
        if not kinds <= {int, float, type(None)}:
            raise _wrong(values, name, field, lambda v: v is None or type(v) in (int, float))
        if float not in kinds and all(v is None or -_WHOLE <= v <= _WHOLE for v in values):
            return pa.array(values, pa.int64())
        return pa.array([None if v is None else _real(v, row, name) for row, v in enumerate(values)], pa.float64())
    if field.kind == "boolean":
        if not set(map(type, values)) <= {bool, type(None)}:
            raise _wrong(values, name, field, lambda v: v is None or type(v) is bool)
        return pa.array(values, pa.bool_())
    if field.kind == "date":
        dates = [None if v is None else _day(v) for v in values]
        if any(day is None and v is not None for day, v in zip(dates, values)):
            raise _wrong(values, name, field, lambda v: v is None or _day(v) is not None)
        return pa.array(dates, pa.date32())
    if field.kind == "multi":

        def words(v: Any) -> bool:
            return v is None or (isinstance(v, list) and all(type(item) is str for item in v))

        if not all(map(words, values)):
            raise _wrong(values, name, field, words)
        return pa.array(values, pa.list_(pa.string()))
    if not set(map(type, values)) <= {str, type(None)}:
        raise _wrong(values, name, field, lambda v: v is None or type(v) is str)
    return pa.array(values, pa.string())


def _real(value: int | float, row: int, name: str) -> float:
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise RequestError("a number is too large", row=row, field=name, why="it is beyond float64", do=_SEE)
    return real


def _day(value: Any) -> datetime.date | None:
    if type(value) is not str or not _DATE.fullmatch(value):
        return None
    try:
        return datetime.date.fromisoformat(value)
    except ValueError:
        return None


def _wrong(values: Sequence[Any], name: str, field: Field, right: Any) -> RequestError:
    row, value = next((i, v) for i, v in enumerate(values) if not right(v))
    wanted = _KINDS.get(field.kind, "a string")
    return RequestError(
        "a value has the wrong type", row=row, field=name, why=f"it is {_name(value)}, the model wants {wanted}",
        do="send null where a value is not known",
    )  # fmt: skip


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
