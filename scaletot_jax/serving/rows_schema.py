"""What a row of a request holds, as JSON Schema: from the fields of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaletot_jax.profiles.fields import REDACTED, Field


def row_schema(fields: Mapping[str, Field]) -> dict[str, Any]:
    """The schema of an object with one property for each column; every one is required, null is "not known"."""
    return {
        "type": "object",
        "title": "Row",
        "properties": {name: cell_schema(field) for name, field in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def cell_schema(field: Field) -> dict[str, Any]:
    """The schema of one value. A closed list is taken literally here, though space around a word is forgiven."""
    out: dict[str, Any] = {"title": field.label}
    closed = bool(field.values) and field.on_unknown == "error"
    if field.kind == "number":
        out["type"] = ["number", "null"]
        low, high = field.range
        out |= {} if low is None else {"minimum": low}
        out |= {} if high is None else {"maximum": high}
    elif field.kind == "boolean":
        out["type"] = ["boolean", "null"]
    elif field.kind == "date":
        out |= {"type": ["string", "null"], "format": "date", "pattern": r"^\d{4}-\d{2}-\d{2}$"}
    elif field.kind == "multi":
        # A word is more than space and control characters.
        word: dict[str, Any] = {"type": "string", "pattern": r"[^\s\u0000-\u001f\u007f-\u00a0]"}
        if closed:
            word = {"enum": [*field.values, REDACTED]}
        out |= {"type": ["array", "null"], "items": word}
    elif closed:
        out["enum"] = [*field.values, REDACTED, None]
    else:
        out["type"] = ["string", "null"]
    return out
