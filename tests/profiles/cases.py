"""A small schema and tables for the profile tests."""

import datetime

import pyarrow as pa

from scaletot_jax.profiles.schema import Schema

SCHEMA = {
    "name": "shop",
    "id": "uid",
    "group": "house",
    "snapshot": "day",
    "labels": {"days": {"column": "lt30", "horizon": 30}, "value": {"column": "ltv30", "unit": "dollars"}},
    "low_activity": {"field": "visits", "at_most": 2},
    "fields": [
        {"name": "age", "kind": "ordered", "role": "static", "values": ["young", "middle", "old"], "coarse": True},
        {"name": "city", "kind": "enum", "role": "static", "values": ["Arden", "Brook"], "on_unknown": "unknown"},
        {"name": "plan", "kind": "enum", "role": "static", "values": ["free", "paid"], "coarse": {"free": "f", "paid": "p"}},
        {"name": "joined", "kind": "date", "role": "static"},
        {"name": "member", "kind": "boolean", "role": "static"},
        {"name": "likes", "kind": "multi", "role": "static", "max_values": 2},
        {"name": "note", "kind": "text", "role": "static"},
        {"name": "visits", "kind": "number", "role": "early", "range": [0, 30], "coarse": [1, 3]},
        {"name": "spend", "kind": "number", "role": "early", "unit": "dollars", "range": [0, None], "digits": 1},
    ],
}  # fmt: skip


def schema(**changes) -> Schema:
    return Schema.from_dict({**SCHEMA, **changes})


def field_changed(name: str, /, **changes) -> Schema:
    fields = [{**field, **changes} if field["name"] == name else field for field in SCHEMA["fields"]]
    return schema(fields=fields)


def columns(rows: int = 6) -> dict[str, list]:
    """Valid columns; change one to break it."""
    day = datetime.date(2024, 1, 1)
    return {
        "uid": [f"u{i}" for i in range(rows)],
        "house": [f"h{i // 2}" for i in range(rows)],
        "day": [day + datetime.timedelta(days=30 * (i % 3)) for i in range(rows)],
        "lt30": [i % 31 for i in range(rows)],
        "ltv30": [float(i) for i in range(rows)],
        "age": [["young", "middle", "old", None][i % 4] for i in range(rows)],
        "city": [["Arden", "Brook", "Cove"][i % 3] for i in range(rows)],
        "plan": [["free", "paid"][i % 2] for i in range(rows)],
        "joined": [day for _ in range(rows)],
        "member": [[True, False, None][i % 3] for i in range(rows)],
        "likes": [[["b", "a"], [], None, ["c", "c"]][i % 4] for i in range(rows)],
        "note": [["hello", None][i % 2] for i in range(rows)],
        "visits": [(3 * i) % 7 for i in range(rows)],
        "spend": [[0.04, 12.5, None, 80.0][i % 4] for i in range(rows)],
    }


def table(rows: int = 6, **changes) -> pa.Table:
    """A valid table with some columns replaced; a column given as None is left out."""
    data = {**columns(rows), **changes}
    return pa.table({name: values for name, values in data.items() if values is not None})


def changed(name: str, row: int, value, rows: int = 6) -> pa.Table:
    """A valid table with one cell replaced."""
    values = list(columns(rows)[name])
    values[row] = value
    return table(rows, **{name: values})
