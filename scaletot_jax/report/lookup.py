"""Looking numbers up in artifacts that may lack them: a missing part gives None, never a made-up number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dig(value: Any, path: str) -> Any:
    """``dig({"a": {"b": 1}}, "a.b")`` is 1; None where a part is missing."""
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def ratio(part: Any, whole: Any) -> float | None:
    """part / whole; None where either is missing or the whole is 0."""
    return part / whole if part is not None and whole else None


def product(*values: Any) -> Any:
    """The product; None where a factor is."""
    out = 1
    for value in values:
        if value is None:
            return None
        out *= value
    return out
