"""Feature ids and numbers of profiles, fitted on training rows.

Padding, missing, unknown (a value that training never had) and redacted (withheld) are four different ids: a model that
gives them one id cannot tell "does not say" from "is new". A number becomes two columns, a standardised signed
logarithm and its rank among the training rows, beside a missing bit; an ordered value has its place as a further
column. Text fields are not features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.profiles.fields import REDACTED, Field
from scaletot_jax.profiles.render import mid_ranks
from scaletot_jax.profiles.schema import Schema

PADDING, MISSING, UNKNOWN, REDACTED_ID = 0, 1, 2, 3
FIRST_VALUE = 4
_KNOTS = 257  # of a stored rank curve
_CLIP = 5.0  # standardised logarithms beyond it say no more


class Features(NamedTuple):
    """Encoded rows.

    Attributes:
      cat: [U, Fc] int32, one id per enum, ordered or boolean field.
      num: [U, Fn] float32, 0 where missing.
      missing: [U, Fn] bool.
      multi: [U, Fm, M] int32 ids of the values of multi fields, padded with 0.
    """

    cat: np.ndarray
    num: np.ndarray
    missing: np.ndarray
    multi: np.ndarray


@dataclass(frozen=True)
class NumberScale:
    """How one number field becomes columns: log(x) = sign(x)·log1p|x|, standardised; rank by linear interpolation."""

    mean: float
    std: float
    knots: tuple[float, ...]
    ranks: tuple[float, ...]

    @classmethod
    def fit(cls, values: np.ndarray) -> NumberScale:
        if len(values) == 0:
            return cls(0.0, 1.0, (), ())
        logs = _signed_log(values)
        std = float(logs.std())
        distinct, ranks = mid_ranks(values)
        if len(distinct) > _KNOTS:
            keep = np.unique(
                np.round(np.interp(np.linspace(ranks[0], ranks[-1], _KNOTS), ranks, np.arange(len(ranks)))).astype(int)
            )
            distinct, ranks = distinct[keep], ranks[keep]
        return cls(float(logs.mean()), std if std > 1e-12 else 1.0, tuple(distinct.tolist()), tuple(ranks.tolist()))

    def columns(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[U] -> standardised log [U] in ±5 and rank [U] in [-1, 1]."""
        logs = np.clip((_signed_log(values) - self.mean) / self.std, -_CLIP, _CLIP)
        ranks = np.interp(values, self.knots, self.ranks) * 2 - 1 if self.knots else np.zeros_like(values)
        return logs, ranks


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


@dataclass(frozen=True)
class FeatureSpace:
    """Which columns there are, and what their ids mean.

    Attributes:
      cat_fields, number_fields, ordered_fields, multi_fields: names, in the order of the arrays.
      num_columns: names of the columns of ``Features.num``.
      vocabulary: for each cat and multi field its values; value i has the id 4 + i.
      active: for each cat and multi field the ids that training rows had, which :meth:`dense` shows.
      scales: for each number field its :class:`NumberScale`.
      widths: for each multi field the number of values kept.
    """

    fields: tuple[Field, ...]
    vocabulary: Mapping[str, tuple[str, ...]]
    active: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, NumberScale]

    # -- structure ------------------------------------------------------------------------------------------------------

    @property
    def cat_fields(self) -> list[str]:
        return [f.name for f in self.fields if f.kind in ("enum", "ordered", "boolean")]

    @property
    def number_fields(self) -> list[str]:
        return [f.name for f in self.fields if f.kind in ("number", "date")]

    @property
    def ordered_fields(self) -> list[str]:
        return [f.name for f in self.fields if f.kind == "ordered"]

    @property
    def multi_fields(self) -> list[str]:
        return [f.name for f in self.fields if f.kind == "multi"]

    @property
    def num_columns(self) -> list[str]:
        pairs = [f"{name}:{part}" for name in self.number_fields for part in ("log", "rank")]
        return pairs + [f"{name}:order" for name in self.ordered_fields]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of ids, special ones included, of each cat and multi field."""
        return {name: FIRST_VALUE + len(self.vocabulary[name]) for name in [*self.cat_fields, *self.multi_fields]}

    @property
    def multi_width(self) -> int:
        """M: ids a multi field holds."""
        return max([f.max_values for f in self.fields if f.kind == "multi"], default=0)

    # -- fitting and encoding ---------------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, table: pa.Table, schema: Schema, fields: Sequence[Field], *, min_count: int = 2) -> FeatureSpace:
        """Learns vocabularies, scales and active ids from ``table`` (the training rows, canonical); reads no label.

        Args:
          min_count: rows a value of an open list needs; rarer ones count as unknown, which trains that id. A value that
            the schema lists needs one row.
        """
        chosen = {field.name for field in fields}
        kept = tuple(field for field in schema.fields if field.name in chosen and field.kind != "text")
        vocabulary = {
            f.name: _vocabulary(table[f.name], f, min_count) for f in kept if f.kind not in ("number", "date")
        }
        scales = {f.name: NumberScale.fit(_numbers(table[f.name])[0]) for f in kept if f.kind in ("number", "date")}
        bare = cls(kept, vocabulary, {}, scales)
        features = bare.encode(table)
        ids = {name: features.cat[:, i] for i, name in enumerate(bare.cat_fields)}
        ids |= {name: features.multi[:, i] for i, name in enumerate(bare.multi_fields)}
        active = {name: tuple(int(i) for i in np.unique(values) if i != PADDING) for name, values in ids.items()}
        return cls(kept, vocabulary, active, scales)

    def encode(self, table: pa.Table) -> Features:
        """Encodes the rows of a canonical table."""
        count = table.num_rows
        by_name = {field.name: field for field in self.fields}
        cat = [self._ids(table[name], name) for name in self.cat_fields]
        num: list[np.ndarray] = []
        missing: list[np.ndarray] = []
        for name in self.number_fields:
            values, absent = _numbers(table[name], keep_length=True)
            for column in self.scales[name].columns(values):
                num.append(np.where(absent, 0.0, column))
                missing.append(absent)
        for name in self.ordered_fields:
            place, absent = _order(table[name], by_name[name])
            num.append(place)
            missing.append(absent)
        multi = np.zeros((count, len(self.multi_fields), self.multi_width), np.int32)
        for index, name in enumerate(self.multi_fields):
            self._fill_multi(multi[:, index], table[name], by_name[name])
        return Features(
            _stack(cat, count, np.int32), _stack(num, count, np.float32), _stack(missing, count, np.bool_), multi
        )

    def dense(self, features: Features) -> np.ndarray:
        """One matrix for heads and baselines. [U, P] float32.

        Columns: numbers, a missing bit per number or ordered field, one column per id that training rows had, and the
        mean over a multi field's values likewise. An id that training never had has no column: it is all zeros instead
        of an untrained weight.
        """
        numbers, ordered = len(self.number_fields), len(self.ordered_fields)
        bits = [2 * i for i in range(numbers)] + [2 * numbers + i for i in range(ordered)]
        parts = [features.num, features.missing[:, bits].astype(np.float32)]
        for index, name in enumerate(self.cat_fields):
            parts.append((features.cat[:, index, None] == np.asarray(self.active[name], np.int32)).astype(np.float32))
        for index, name in enumerate(self.multi_fields):
            ids = features.multi[:, index]  # [U, M]
            counts = np.maximum(1, (ids != PADDING).sum(1, keepdims=True))
            hits = (ids[:, :, None] == np.asarray(self.active[name], np.int32)).sum(1)
            parts.append((hits / counts).astype(np.float32))
        return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)

    def dense_columns(self) -> list[str]:
        """Names of the columns of :meth:`dense`."""
        names = self.num_columns + [f"{name}:missing" for name in [*self.number_fields, *self.ordered_fields]]
        special = {MISSING: "missing", UNKNOWN: "unknown", REDACTED_ID: "redacted"}
        for name in [*self.cat_fields, *self.multi_fields]:
            names += [f"{name}={special.get(i) or self.vocabulary[name][i - FIRST_VALUE]}" for i in self.active[name]]
        return names

    def _ids(self, column: pa.ChunkedArray | pa.Array, name: str) -> np.ndarray:
        """[U] int32 ids of the values of a string or boolean column."""
        text = column.cast(pa.string())
        table = pa.array([REDACTED, *self.vocabulary[name]], pa.string())
        found = pc.index_in(text, value_set=table)
        ids = pc.if_else(pc.is_null(found), UNKNOWN, pc.add(found, REDACTED_ID))
        ids = pc.if_else(pc.is_null(text), MISSING, ids)
        return (
            ids.to_numpy(zero_copy_only=False).astype(np.int32)
            if isinstance(ids, pa.Array)
            else ids.to_numpy().astype(np.int32)
        )

    def _fill_multi(self, out: np.ndarray, column: pa.ChunkedArray, field: Field) -> None:
        """Writes ids of the first ``max_values`` values into out [U, M]."""
        lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        out[pc.is_null(lists).to_numpy(zero_copy_only=False), 0] = MISSING
        parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        ids = self._ids(pc.list_flatten(lists), field.name)
        starts = np.searchsorted(parents, parents, side="left")
        place = np.arange(len(parents)) - starts
        keep = place < field.max_values
        out[parents[keep], place[keep]] = ids[keep]

    # -- JSON -----------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {
            "fields": [field.model_dump(mode="json", exclude_defaults=True) for field in self.fields],
            "vocabulary": {name: list(values) for name, values in self.vocabulary.items()},
            "active": {name: list(ids) for name, ids in self.active.items()},
            "scales": {
                name: {"mean": s.mean, "std": s.std, "knots": list(s.knots), "ranks": list(s.ranks)}
                for name, s in self.scales.items()
            },
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FeatureSpace:
        scales = {
            n: NumberScale(s["mean"], s["std"], tuple(s["knots"]), tuple(s["ranks"]))
            for n, s in value["scales"].items()
        }
        return cls(
            tuple(Field.model_validate(field) for field in value["fields"]),
            {name: tuple(values) for name, values in value["vocabulary"].items()},
            {name: tuple(ids) for name, ids in value["active"].items()},
            scales,
        )


def _stack(columns: list[np.ndarray], count: int, dtype: type) -> np.ndarray:
    if not columns:
        return np.zeros((count, 0), dtype)
    return np.ascontiguousarray(np.stack(columns, axis=1).astype(dtype))


def _numbers(column: pa.ChunkedArray, *, keep_length: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Values as float64, and which are missing. Without ``keep_length`` the missing ones are left out."""
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    absent = pc.is_null(column).to_numpy()
    values = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
    return (values, absent) if keep_length else (values[~absent], absent)


def _order(column: pa.ChunkedArray, field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Place of an ordered value in [-1, 1], and which are missing, unknown or redacted."""
    found = pc.index_in(column, value_set=pa.array(field.values, pa.string()))
    absent = pc.is_null(found).to_numpy()
    place = pc.fill_null(found, 0).to_numpy() / (len(field.values) - 1) * 2 - 1
    return np.where(absent, 0.0, place), absent


def _vocabulary(column: pa.ChunkedArray, field: Field, min_count: int) -> tuple[str, ...]:
    """Values that training rows have: in the schema's order where it lists them, else sorted."""
    if field.kind == "multi":
        values, counts = _counts(pc.list_flatten(column), field)
    else:
        values, counts = _counts(column.cast(pa.string()), field)
    seen = dict(zip(values, counts))
    seen.pop(REDACTED, None)
    listed = [value for value in field.values if value in seen]
    return (
        tuple(listed) if field.values else tuple(sorted(value for value, count in seen.items() if count >= min_count))
    )


def _counts(column: pa.ChunkedArray, field: Field) -> tuple[list[str], list[int]]:
    table = pc.value_counts(pc.drop_null(column.cast(pa.string())))
    return table.field("values").to_pylist(), table.field("counts").to_pylist()
