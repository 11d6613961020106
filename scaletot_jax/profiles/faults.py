"""Bad cells of a table, collected over all columns and reported together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.errors import DataError

SHOWN = 5  # bad rows an error lists
_WORDS = 200  # characters of a value it quotes: a cell may hold megabytes


class BadCells(DataError):
    """Values that the schema does not allow. ``cells``: of the first of them row, field and reason."""

    cells: tuple[tuple[int, str, str], ...] = ()


class Faults:
    """Bad cells found so far; :meth:`check` raises them together.

    Args:
      where: what the error calls the table.
      first: number of the first row looked at.
      codes: [rows] the place of each row among the values that are looked at; None where each is a row of its own.
    """

    def __init__(self, where: str, first: int = 0, codes: np.ndarray | None = None):
        self.where, self.first, self.codes = where, first, codes
        self.count = 0
        self._cells: list[tuple[int, str, str, str]] = []

    def add(self, bad: np.ndarray, field: str, values: pa.Array | None, reason: str | Callable[[Any], str]) -> None:
        """Records the rows where ``bad`` [U] is true. ``values``: None where they must not be shown, as of identifiers."""
        rows = np.flatnonzero(bad if self.codes is None else bad[self.codes])
        self.count += len(rows)
        for row in rows[:SHOWN].tolist():
            place = row if self.codes is None else int(self.codes[row])
            value = None if values is None else values[place].as_py()
            shown = "" if values is None else f", value {_quoted(value)}"
            self._cells.append((self.first + row, field, shown, reason if isinstance(reason, str) else reason(value)))

    def check(self) -> None:
        if self.count:
            first = sorted(self._cells)[:SHOWN]
            lines = [f"row {row}, field '{field}'{shown}: {reason}" for row, field, shown, reason in first]
            more = f"; and {self.count - len(first)} more" if self.count > len(first) else ""
            error = BadCells(
                f"{self.count} value{'s' if self.count > 1 else ''} of a table {'are' if self.count > 1 else 'is'} not allowed (rows count from 0)",
                where=self.where,
                why="; ".join(lines) + more,
                do="repair these rows, or widen the schema where it is too narrow",
            )
            error.cells = tuple((row, field, reason) for row, field, _, reason in first)
            raise error


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _WORDS else f"{text[:_WORDS]}… ({len(text)} characters)"
