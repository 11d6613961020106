"""Prompt text of a profile: one line a field, missing fields omitted, behaviour last.

A number is written as rounded value, unit and a word for its quintile among the training rows, because a small language
model reads the word where it cannot judge the number. The words are fitted on feature columns alone, never on labels.
Only fields of the schema can appear: identifiers and labels are not among them. Text that people typed is shown only
where the schema asks for it, in quotation marks, on one line and capped, so that it reads as data and cannot imitate
the structure around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.profiles.fields import REDACTED, Field

LEVELS = ("far below typical", "below typical", "typical", "above typical", "far above typical")
QUANTILES = (0.2, 0.4, 0.6, 0.8)
NOTHING = "Nothing is known.\n"
_MAX_WORD = 40
_OPENER = re.compile(r"[<](?=[^\s\d=])|\[(?=[A-Z@/])")


@dataclass(frozen=True)
class Renderer:
    """Turns a record into prompt text.

    Attributes:
      fields: the fields shown, in the order of the text.
      cuts: for each number field with quintile words four ascending numbers; the quintile of x is the count of cuts ≤ x.
    """

    fields: tuple[Field, ...]
    cuts: Mapping[str, tuple[float, ...]]

    @classmethod
    def fit(cls, table: pa.Table, fields: Sequence[Field]) -> Renderer:
        """Finds the quintile cuts of every number field from the rows of ``table`` (the training rows)."""
        shown = tuple(field for field in fields if field.shown)
        cuts = {f.name: quantile_cuts(table[f.name]) for f in shown if f.kind == "number" and f.quintile}
        return cls(shown, cuts)

    def text(self, record: Mapping[str, Any]) -> str:
        """The prompt text of one record (field name -> value or None). Ends with a newline."""
        return "".join(f"{field.label}: {text}\n" for field, text in self.pairs(record)) or NOTHING

    def pairs(self, record: Mapping[str, Any]) -> list[tuple[Field, str]]:
        """The fields that the prompt shows of a record, each with what it says of them."""
        found = []
        for field in self.fields:
            value = record.get(field.name)
            if value is None or value == REDACTED:
                continue
            text = self._value(field, value)
            if text:  # the schema's word for a value may be empty, or all of a list withheld: say nothing
                found.append((field, text))
        return found

    def texts(self, table: pa.Table) -> list[str]:
        """The prompt text of every row of a canonical table."""
        return [self.text(record) for record in table.select([field.name for field in self.fields]).to_pylist()]

    def _value(self, field: Field, value: Any) -> str:
        if field.kind == "number":
            return self._number(field, value)
        if field.kind == "boolean":
            return "yes" if value else "no"
        if field.kind == "date":
            return value if isinstance(value, str) else value.isoformat()
        if field.kind == "text":
            return quote(str(value), field.max_chars)
        if field.kind == "multi":
            told = [item for item in value if item != REDACTED]
            return ", ".join(_word(field, item) for item in told[: field.max_values]) or ("" if value else "none")
        return _word(field, value)

    def _number(self, field: Field, value: float) -> str:
        text = rounded(value * field.scale)
        unit = field.unit
        if unit == "%":
            text += "%"
        elif unit:
            text += " " + (re.sub(r"s\b", "", unit, count=1) if text == "1" else unit)  # 1 day ago, 2 days ago
        cuts = self.cuts.get(field.name, ())
        if not cuts:
            return text
        level = int(np.searchsorted(cuts, value, side="right"))
        return f"{text} ({(field.levels or LEVELS)[level]})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "fields": [field.model_dump(mode="json", exclude_defaults=True) for field in self.fields],
            "cuts": {name: list(cuts) for name, cuts in self.cuts.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Renderer:
        fields = tuple(Field.model_validate(field) for field in value["fields"])
        return cls(fields, {name: tuple(cuts) for name, cuts in value["cuts"].items()})


def mid_ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values [M] and their mid-ranks [M] = P(X < x) + P(X = x) / 2, so that ties get one rank."""
    distinct, counts = np.unique(values, return_counts=True)
    return distinct, (np.cumsum(counts) - counts / 2) / max(1, len(values))


def quantile_cuts(column: pa.ChunkedArray) -> tuple[float, ...]:
    """Where the mid-rank of a column's values passes .2, .4, .6 and .8; none where the column does not vary.

    A level that no training value reaches repeats the next cut, and is never said.
    """
    values = pc.drop_null(column).cast(pa.float64()).to_numpy()
    distinct, ranks = mid_ranks(values)
    if len(distinct) < 2:
        return ()
    first = np.searchsorted(ranks, QUANTILES, side="left")
    beyond = np.append(distinct, np.nextafter(distinct[-1], np.inf))  # a level only greater values reach
    return tuple(float(x) for x in beyond[first])


def rounded(value: float) -> str:
    """Three significant digits without an exponent; whole numbers below 10,000 as they are."""
    value = float(value)
    if value == 0 or (abs(value) < 10_000 and value == int(value)):
        return str(int(value))
    digits = 2 - int(np.floor(np.log10(abs(value))))
    value = round(value, digits)
    if digits <= 0 or value == int(value):
        return str(int(value))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def without_control(text: str) -> str:
    """Text in which nothing is the name of a control token, whatever the model: ``</s>`` becomes ``< /s>``, ``[INST]``
    ``[ INST]``. The local tokenizers are told the same, but a server reads such names wherever they stand."""
    return _OPENER.sub(lambda found: found[0] + " ", text)


def quote(text: str, max_chars: int) -> str:
    """Text as data: one line, no quotation marks or names of control tokens of its own, capped, in quotation marks."""
    plain = " ".join(re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", text).split())
    plain = without_control(plain.replace('"', "'").replace("\\", "/"))
    if len(plain) > max_chars:
        plain = plain[: max(0, max_chars - 1)].rstrip() + "…"
    return f'"{plain}"'


def _word(field: Field, value: str) -> str:
    """A value of an enum. One that the schema lists is trusted; any other keeps word characters only, and is capped."""
    if value in field.words:
        return field.words[value]
    if value in field.values:
        return value
    plain = without_control(re.sub(r"[^\w\s.,&'/%+<=>()-]+|<\|", " ", value))
    return " ".join(plain.split())[:_MAX_WORD].strip() or "other"
