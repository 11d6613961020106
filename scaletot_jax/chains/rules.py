"""Slot values that are facts: rules from profile fields to enum values.

A rule reads one profile record (field name -> value, ``None`` or NaN where the field is missing) and names one value of
its slot. A field that is absent from the record, or that the run does not use, gives :data:`UNKNOWN`: a small language
model cannot be trusted with that decision, because it copies the word "unknown" from the prompt.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from scaletot_jax.errors import DataError

UNKNOWN = "unknown"

Record = Mapping[str, Any]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_cuts(cuts: tuple[float, ...]) -> tuple[float, ...]:
    if any(not math.isfinite(cut) for cut in cuts) or any(low >= high for low, high in pairwise(cuts)):
        raise ValueError("cuts must be finite and strictly ascending")
    return cuts


Cuts = Annotated[tuple[float, ...], Field(min_length=1), AfterValidator(_check_cuts)]


def _bin(record: Record, field: str, cuts: Cuts) -> int | None:
    """i = #{cuts ≤ x} of a number x: bin 0 lies below the first cut. ``None`` where the field has no value."""
    number = _number(record, field)
    return None if number is None else bisect_right(cuts, number)


class Presence(Strict):
    """``present`` if the field has a value, else ``absent`` (default: unknown)."""

    kind: Literal["presence"]
    field: str
    present: str
    absent: str = UNKNOWN

    def values(self) -> Iterator[str]:
        yield from (self.present, self.absent)

    def fields(self) -> Iterator[str]:
        yield self.field

    def apply(self, record: Record) -> str:
        if self.field not in record:
            return UNKNOWN
        return self.absent if is_missing(record[self.field]) else self.present


class Thresholds(Strict):
    """``names[i]`` of a number x, with i = #{cuts ≤ x}: the first name lies below the first cut."""

    kind: Literal["thresholds"]
    field: str
    cuts: Cuts
    names: tuple[str, ...]

    @model_validator(mode="after")
    def _one_more_name(self) -> Thresholds:
        if len(self.names) != len(self.cuts) + 1:
            raise ValueError(
                f"{len(self.cuts)} cuts make {len(self.cuts) + 1} ranges, but there are {len(self.names)} names"
            )
        return self

    def values(self) -> Iterator[str]:
        yield from self.names

    def fields(self) -> Iterator[str]:
        yield self.field

    def apply(self, record: Record) -> str:
        place = _bin(record, self.field, self.cuts)
        return UNKNOWN if place is None else self.names[place]


class Mapped(Strict):
    """Translates the values of an enum or boolean field; of a multi-value field, its first value that has an entry.

    Keys are compared as lower-case text (``true``/``false`` for booleans). A value without an entry gives ``default``.
    """

    kind: Literal["mapping"]
    field: str
    map: dict[str, str] = Field(min_length=1)
    default: str = UNKNOWN

    @field_validator("map", mode="before")
    @classmethod
    def _plain_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        plain = {plain_text(key): item for key, item in value.items()}
        if len(plain) != len(value):
            raise ValueError("two keys are equal when written in lower case")
        return plain

    def values(self) -> Iterator[str]:
        yield from self.map.values()
        yield self.default

    def fields(self) -> Iterator[str]:
        yield self.field

    def apply(self, record: Record) -> str:
        texts = _texts(record, self.field)
        if not texts:
            return UNKNOWN
        return next((self.map[text] for text in texts if text in self.map), self.default)


class Keywords(Strict):
    """The value of the first listed keyword that starts a word of the field's text, else ``default``."""

    kind: Literal["keywords"]
    field: str
    words: dict[str, str] = Field(min_length=1)
    default: str = UNKNOWN

    def values(self) -> Iterator[str]:
        yield from self.words.values()
        yield self.default

    def fields(self) -> Iterator[str]:
        yield self.field

    def apply(self, record: Record) -> str:
        texts = _texts(record, self.field)
        if not texts:
            return UNKNOWN
        # The leading value of a multi-value field speaks first; within it, the order of the specification decides.
        for text in texts:
            for word, value in self.words.items():
                if re.search(rf"\b{re.escape(plain_text(word))}", text):
                    return value
        return self.default


class Axis(Strict):
    """One side of a grid: bin i = #{cuts ≤ x}. ``when_missing`` is the bin of a used field without a value
    (e.g. "no last visit" counts as "long ago"); without it the slot is unknown."""

    field: str
    cuts: Cuts
    when_missing: int | None = None

    @model_validator(mode="after")
    def _bin_exists(self) -> Axis:
        if self.when_missing is not None and not 0 <= self.when_missing <= len(self.cuts):
            raise ValueError(f"when_missing must be a bin 0..{len(self.cuts)}")
        return self

    def bin(self, record: Record) -> int | None:
        place = _bin(record, self.field, self.cuts)
        return self.when_missing if place is None and self.field in record else place


class Grid(Strict):
    """Two numbers at once, such as recency × frequency: ``names[row bin][column bin]``."""

    kind: Literal["grid"]
    rows: Axis
    columns: Axis
    names: tuple[tuple[str, ...], ...]

    @model_validator(mode="after")
    def _full_grid(self) -> Grid:
        shape = (len(self.rows.cuts) + 1, len(self.columns.cuts) + 1)
        if len(self.names) != shape[0] or any(len(row) != shape[1] for row in self.names):
            raise ValueError(
                f"the cuts make a grid of {shape[0]} rows by {shape[1]} columns, but the names do not fill it"
            )
        return self

    def values(self) -> Iterator[str]:
        for row in self.names:
            yield from row

    def fields(self) -> Iterator[str]:
        yield from (self.rows.field, self.columns.field)

    def apply(self, record: Record) -> str:
        row, column = self.rows.bin(record), self.columns.bin(record)
        return UNKNOWN if row is None or column is None else self.names[row][column]


class First(Strict):
    """The first of several rules whose answer is not unknown."""

    kind: Literal["first"]
    of: tuple[RuleSpec, ...] = Field(min_length=1)

    def values(self) -> Iterator[str]:
        for rule in self.of:
            yield from rule.values()

    def fields(self) -> Iterator[str]:
        for rule in self.of:
            yield from rule.fields()

    def apply(self, record: Record) -> str:
        return next((value for rule in self.of if (value := rule.apply(record)) != UNKNOWN), UNKNOWN)


RuleSpec = Annotated[Presence | Thresholds | Mapped | Keywords | Grid | First, Field(discriminator="kind")]
First.model_rebuild()


def evaluate(rule: RuleSpec, record: Record, fields: Collection[str] | None = None) -> str:
    """The value that ``rule`` gives to one profile.

    Args:
      rule: one of the rule models of this module.
      record: field name -> value; ``None``, NaN, empty text and empty lists count as missing.
      fields: the profile fields in use; ``None``: all of the record's. Values of other fields are not looked at.

    Returns:
      A value of the slot's enum; :data:`UNKNOWN` where the fields it needs are missing or not in use.

    Raises:
      DataError: a number is needed and the record holds something else.
    """
    if fields is not None:
        record = {name: value for name, value in record.items() if name in fields}
    return rule.apply(record)


def all_missing(names: Collection[str], record: Record, fields: Collection[str] | None = None) -> bool:
    """Whether none of the named fields is both in use and present."""
    return all(is_missing(record.get(name)) or (fields is not None and name not in fields) for name in names)


def is_missing(value: Any) -> bool:
    """``None``, NaN, empty text and empty collections are missing values."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    try:
        if len(value) == 0:
            return True
    except TypeError:  # a scalar
        pass
    return bool(isinstance(value, float) and math.isnan(value))


def plain_text(value: Any) -> str:
    """The form in which field values are compared: lower case, stripped, booleans as ``true``/``false``, 3.0 as ``3``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def _texts(record: Record, field: str) -> list[str]:
    value: Any = record.get(field)
    if is_missing(value):
        return []
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return [plain_text(value)]
    return [plain_text(item) for item in value if not is_missing(item)]


def _number(record: Record, field: str) -> float | None:
    value: Any = record.get(field)
    if is_missing(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            "a chain rule needs a number",
            where=f"profile field '{field}'",
            why=f"its value is {value!r}",
            do="use a mapping rule for this field, or declare it as a number in the schema",
        ) from None
    return None if math.isnan(number) else number
