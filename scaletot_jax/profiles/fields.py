"""The parts of a profile schema: one field, the labels, the group, the low-activity rule. See schema.py for the whole."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

Kind = Literal["enum", "ordered", "number", "date", "boolean", "multi", "text"]
REDACTED = "[redacted]"  # the value that marks a withheld answer in a string column


class Strict(BaseModel):
    """Unknown keys and values of another type are errors; instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def as_float(value: Any) -> Any:
    """A whole number as YAML and JSON write it becomes a float; anything else is left for the check of its type."""
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("the number is too large") from error


class DaysLabel(Strict):
    """Number of active days in the ``horizon`` days after the snapshot, 0..horizon."""

    column: str
    horizon: int

    @field_validator("horizon")
    @classmethod
    def _positive(cls, horizon: int) -> int:
        if horizon < 1:
            raise ValueError("the horizon must be at least one day")
        return horizon


class ValueLabel(Strict):
    """A value (spend, clicks, minutes) over the same days, at least 0."""

    column: str
    unit: str = ""


class BinaryLabel(Strict):
    """An outcome of the same days, 0 or 1: a conversion, a default."""

    column: str


class Labels(Strict):
    """What is predicted.

    Attributes:
      days: the main label, which the teacher is asked for and OSIPO is rewarded by.
      value: a second label of the heads.
      horizons: further days labels of the heads over shorter horizons; a row's count is at most its main one.
      binary: further outcomes of the heads.
    """

    days: DaysLabel
    value: ValueLabel | None = None
    horizons: tuple[DaysLabel, ...] = ()
    binary: tuple[BinaryLabel, ...] = ()

    @field_validator("horizons", "binary", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("horizons")
    @classmethod
    def _nested(cls, horizons: tuple[DaysLabel, ...], info: ValidationInfo) -> tuple[DaysLabel, ...]:
        main = info.data.get("days")
        days = [label.horizon for label in horizons]
        if main is not None and (len(set(days)) < len(days) or any(horizon >= main.horizon for horizon in days)):
            raise ValueError(f"further horizons differ and are shorter than the main one of {main.horizon} days")
        return horizons

    @property
    def columns(self) -> tuple[str, ...]:
        value = (self.value.column,) if self.value else ()
        horizons, binary = (label.column for label in self.horizons), (label.column for label in self.binary)
        return (self.days.column, *value, *horizons, *binary)


class LowActivity(Strict):
    """The low-activity population: rows whose ``field`` is at most ``at_most``."""

    field: str
    at_most: float

    _number = field_validator("at_most", mode="before")(as_float)


class Group(Strict):
    """The column that keeps rows in one split; ``pattern`` takes its part named ``group`` (RE2 syntax)."""

    column: str
    pattern: str = ""

    @field_validator("pattern")
    @classmethod
    def _named(cls, pattern: str) -> str:
        if pattern and "(?P<group>" not in pattern:
            raise ValueError("the pattern needs a part (?P<group>...)")
        return pattern


class Field(Strict):
    """One profile field.

    Attributes:
      name: how every artifact calls it.
      kind: enum, ordered (an enum whose ``values`` ascend), number, date, boolean, multi (a list of words) or text.
      role: ``static`` (stable, known at the snapshot) or ``early`` (known at the snapshot, but behaviour).
      column: the table's column; the name where empty.
      title: what the prompt calls it; the name in words where empty.
      unit: of a number, in the plural.
      scale: factor of a number for the prompt, e.g. 100 with the unit ``%`` for a share.
      values: the allowed values of an enum or multi field; empty means open. Required for ``ordered``.
      on_unknown: a value outside ``values`` is an ``error``, or is kept and counts as ``unknown``.
      words: what the prompt says for a value, e.g. ``{"55<=": "55 or older"}``; an empty word leaves the line out.
      quintile: whether the prompt adds a word for a number's quintile; a count below ten says enough by itself.
      levels: words for the quintiles of a number, lowest first; empty: the renderer's own.
      range: least and greatest allowed number; null is open.
      digits: decimals to which a number is rounded when the table is read; null keeps it as it is.
      coarse: whether the coarse key has the field; for a number ascending inner bin edges, for an enum a mapping from
        value to class.
      ranked: the order of a multi field's values carries meaning (most important first).
      max_values: most values of a multi field that features and prompt keep.
      max_chars: length cap of a text field in the prompt.
      render: whether the prompt shows it; text fields only where it is true, all others unless it is false.
    """

    name: str
    kind: Kind
    role: Literal["static", "early"]
    column: str = ""
    title: str = ""
    unit: str = ""
    scale: float = 1.0
    values: tuple[str, ...] = ()
    on_unknown: Literal["error", "unknown"] = "error"
    words: dict[str, str] = {}
    quintile: bool = True
    levels: tuple[str, ...] = ()
    range: tuple[float | None, float | None] = (None, None)
    digits: int | None = None
    coarse: bool | tuple[float, ...] | dict[str, str] = False
    ranked: bool = False
    max_values: int = 3
    max_chars: int = 80
    render: bool | None = None

    _number = field_validator("scale", mode="before")(as_float)

    @field_validator("values", "levels", "range", "coarse", mode="before")
    @classmethod
    def _tuples(cls, value: Any) -> Any:
        if isinstance(value, list):  # YAML and JSON know lists only
            return tuple(map(as_float, value))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Field:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise ValueError(f"'{self.name}' is not a name: letters, digits and _ only, a letter first")
        if self.kind == "ordered" and len(self.values) < 2:
            raise ValueError("an ordered field needs its values, in ascending order")
        if self.values and self.kind not in ("enum", "ordered", "multi"):
            raise ValueError(f"a {self.kind} field has no list of values")
        if len(set(self.values)) != len(self.values):
            raise ValueError("a value is listed twice")
        if REDACTED in self.values:
            raise ValueError(f"{REDACTED!r} is reserved for withheld answers")
        if self.kind != "number" and (
            self.range != (None, None) or self.unit or self.levels or self.digits is not None
        ):
            raise ValueError(f"range, unit, levels and digits belong to numbers, not to a {self.kind} field")
        if self.levels and len(self.levels) != 5:
            raise ValueError("levels are five words, for the quintiles from the lowest to the highest")
        low, high = self.range
        if low is not None and high is not None and low > high:
            raise ValueError("the range is empty")
        self._check_coarse()
        return self

    def _check_coarse(self) -> None:
        if isinstance(self.coarse, tuple):
            if self.kind != "number" or any(a >= b for a, b in zip(self.coarse, self.coarse[1:])) or not self.coarse:
                raise ValueError("coarse bin edges are ascending numbers, and for number fields only")
        elif isinstance(self.coarse, dict):
            if self.kind not in ("enum", "ordered"):
                raise ValueError("a coarse mapping is for enum and ordered fields only")
        elif self.coarse and self.kind == "text":
            raise ValueError("a text field cannot enter the coarse key")

    @property
    def source(self) -> str:
        """The column of the input table."""
        return self.column or self.name

    @property
    def label(self) -> str:
        """What the prompt calls the field."""
        return self.title or self.name.replace("_", " ")

    @property
    def shown(self) -> bool:
        """Whether the prompt shows the field: text only on request, everything else unless refused."""
        return self.render is True if self.kind == "text" else self.render is not False
