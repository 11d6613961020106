"""Quality watch: is the table that is scored still like the one the model learnt from? Pure.

Of every field: the share of rows that are missing, that hold a value training never had (unknown), and that lie outside
training's least and greatest value; and the population stability index over bins fixed at training,

    PSI = Σ_k (a_k − e_k) ln(a_k / e_k)        a, e: shares of bin k now and in training, each at least 1e-4

≥ 0, and 0 where the shares are equal. The same index of the scores tells whether what the model says has moved. Tallies
add up, so a table of any size is read in blocks.

An alarm needs size and evidence: the limit is the threshold or, of few rows, what chance alone exceeds once in a thousand
times: for PSI χ²_{K−1}(0.999) · (1/N + 1/M), as under no change PSI · NM/(N+M) is about χ² with K − 1 degrees of freedom
(Yurdakul 2018, "Statistical properties of population stability index"); for a share 3.09 standard errors of a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.errors import DataError
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.fields import REDACTED, Field

FORMAT = 1
FLOOR = 1e-4  # of a bin's share: an empty bin must not make the index infinite
WORDS, BINS = 50, 10  # most values of a field that get a bin of their own; bins of a number
_SPECIAL = ("missing", "unknown", "redacted", "none", "rest")  # bins of a field of words, before its values
_Z = 3.0902  # Φ⁻¹(0.999)


class Thresholds(NamedTuple):
    """Smallest change that matters: of PSI, of the share missing (either way), unknown and out of range (upwards)."""

    psi: float = 0.25
    missing: float = 0.10
    unknown: float = 0.05
    out_of_range: float = 0.05


class Tally(NamedTuple):
    """Counts of one column. ``bins`` counts rows, of a multi field values (and rows without any)."""

    rows: int
    missing: int
    unknown: int
    out_of_range: int
    bins: np.ndarray  # [K] int64

    def plus(self, other: Tally) -> Tally:
        return Tally(
            self.rows + other.rows,
            self.missing + other.missing,
            self.unknown + other.unknown,
            self.out_of_range + other.out_of_range,
            self.bins + other.bins,
        )


def psi(expected: np.ndarray, actual: np.ndarray) -> float:
    """Population stability index of two lists of counts [K]; NaN where one has none."""
    expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if expected.shape != actual.shape or expected.ndim != 1:
        raise ValueError(f"counts must have one shape [K], not {expected.shape} and {actual.shape}")
    if not (expected.sum() > 0 and actual.sum() > 0):
        return float("nan")
    e, a = np.maximum(expected / expected.sum(), FLOOR), np.maximum(actual / actual.sum(), FLOOR)
    return float(np.sum((a - e) * np.log(a / e)))


def psi_by_chance(bins: int, expected: int, actual: int) -> float:
    """What PSI of K bins exceeds once in a thousand times when nothing changed (Wilson and Hilferty's χ² quantile)."""
    free = max(bins - 1, 1)
    chi_squared = free * (1 - 2 / (9 * free) + _Z * (2 / (9 * free)) ** 0.5) ** 3
    return chi_squared * (1 / max(expected, 1) + 1 / max(actual, 1))


# -- the reference: what training rows look like -----------------------------------------------------------------------------


def reference(space: FeatureSpace, table: pa.Table, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Statistics of the training rows, JSON-able.

    Args:
      space: the model's feature space.
      table: canonical training rows.
      scores: name → what the model says of them [U].
    """
    fields = {}
    for field in space.fields:
        column = table[field.name]
        bins = _word_bins(space, field, column) if field.name in space.vocabulary else _number_bins(_numbers(column))
        fields[field.name] = bins | _counts(tally_field(space, field, bins, column))
    of_scores = {}
    for name, values in scores.items():
        bins = _number_bins(np.asarray(values, np.float64))
        of_scores[name] = bins | _counts(tally_numbers(bins, np.asarray(values, np.float64)))
    return {"format": FORMAT, "rows": table.num_rows, "fields": fields, "scores": of_scores}


def check_reference(known: Mapping[str, Any]) -> None:
    """Raises DataError where a model has no reference, or one of another format."""
    if known.get("format") != FORMAT:
        raise DataError(
            "the model has no reference of this format for a quality watch",
            where="reference.json",
            why=f"format {known.get('format')!r}, not {FORMAT}",
            do="run 'scaletot export' again",
        )


def _counts(tally: Tally) -> dict[str, Any]:
    return {**tally._asdict(), "bins": tally.bins.tolist()}


def _read_counts(entry: Mapping[str, Any]) -> Tally:
    return Tally(**{name: entry[name] for name in Tally._fields} | {"bins": np.asarray(entry["bins"], np.int64)})


def _word_bins(space: FeatureSpace, field: Field, column: pa.ChunkedArray) -> dict[str, Any]:
    """The commonest values of the vocabulary, in its order."""
    counts = dict(_value_counts(_words(column, field)))
    common = sorted(space.vocabulary[field.name], key=lambda value: -counts.get(value, 0))[:WORDS]
    return {"values": [value for value in space.vocabulary[field.name] if value in set(common)]}


def _number_bins(values: np.ndarray) -> dict[str, Any]:
    """Inner edges at the deciles, repeated ones once; least and greatest value."""
    known = np.sort(values[np.isfinite(values)])
    if not len(known):
        return {"edges": [], "low": None, "high": None}
    inner = known[(np.arange(1, BINS) * len(known) + BINS - 1) // BINS - 1]  # the ⌈k n / BINS⌉-th, in whole numbers
    edges = np.unique(inner[inner < known[-1]])  # a last edge at the greatest value would leave an empty bin
    return {"edges": edges.tolist(), "low": float(known[0]), "high": float(known[-1])}


# -- tallies ------------------------------------------------------------------------------------------------------------------


def tally_field(space: FeatureSpace, field: Field, bins: Mapping[str, Any], column: pa.ChunkedArray) -> Tally:
    """Counts of a field's column (canonical type; values may be any). ``bins``: its entry of the reference."""
    if field.name in space.vocabulary:
        return _tally_words(frozenset(space.vocabulary[field.name]), bins["values"], column, field)
    return tally_numbers(bins, _numbers(column))


def tally_numbers(bins: Mapping[str, Any], values: np.ndarray) -> Tally:
    """Counts of numbers [U] float64, NaN where missing: bins (−∞, e_0], (e_0, e_1], …, (e_last, ∞), then missing."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    edges = np.asarray(bins["edges"], np.float64)
    found = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    low, high = (np.nan if bins[name] is None else bins[name] for name in ("low", "high"))
    outside = ~((known >= low) & (known <= high))  # all of them where training knew none
    missing = len(values) - len(known)
    return Tally(len(values), missing, 0, int(outside.sum()), np.append(found, missing).astype(np.int64))


def _tally_words(known: frozenset[str], values: Sequence[str], column: pa.ChunkedArray, field: Field) -> Tally:
    place = {value: len(_SPECIAL) + i for i, value in enumerate(values)}
    bins = np.zeros(len(_SPECIAL) + len(values), np.int64)
    missing, none, strange = column.null_count, 0, 0
    for value, count in _value_counts(_words(column, field)):
        name = "redacted" if value == REDACTED else "rest" if value in known else "unknown"
        bins[place.get(value, _SPECIAL.index(name))] += count
        strange += count if name == "unknown" else 0
    if field.kind == "multi":
        none = pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0
        strange = _rows_with_unknown(known, column) if strange else 0
    bins[_SPECIAL.index("missing")], bins[_SPECIAL.index("none")] = missing, none
    return Tally(len(column), missing, strange, 0, bins)


def _rows_with_unknown(known: frozenset[str], column: pa.ChunkedArray) -> int:
    lists = column.combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    strange = pc.invert(pc.is_in(pc.list_flatten(lists), value_set=pa.array([*known, REDACTED], pa.string())))
    return len(pc.unique(pc.list_parent_indices(lists).filter(strange)))


def _words(column: pa.ChunkedArray, field: Field) -> pa.ChunkedArray:
    return (pc.list_flatten(column) if field.kind == "multi" else column).cast(pa.string())


def _value_counts(words: pa.ChunkedArray) -> list[tuple[str, int]]:
    found = pc.value_counts(pc.drop_null(words))
    return list(zip(found.field("values").to_pylist(), found.field("counts").to_pylist()))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """[U] float64, NaN where missing."""
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    return pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()


# -- the judgement --------------------------------------------------------------------------------------------------------------


def judge(
    known: Mapping[str, Any],
    fields: Mapping[str, Tally],
    scores: Mapping[str, Tally],
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Compares tallies with the reference.

    Args:
      known: the reference.
      fields, scores: name → :class:`Tally` of the table; those that the reference lacks are refused.
      thresholds: smallest changes that matter.

    Returns:
      ``{"rows", "training_rows", "columns": [{"name", "of", "psi", "psi_limit", "missing": {"share", "training", "limit"},
      "unknown": …, "out_of_range": …, "alarms": [names]}], "alarms": count}``, JSON-able; a share of no rows and the PSI of
      no counts are None.

    Raises:
      DataError: the reference has another format, or lacks a column.
    """
    check_reference(known)
    out = []
    for of, tallies in (("fields", fields), ("scores", scores)):
        for name, now in tallies.items():
            if name not in known[of]:
                raise DataError(f"the reference lacks '{name}' of the {of}", where="reference.json")
            then = _read_counts(known[of][name])
            out.append({"name": name, "of": of, **_compare(then, now, thresholds or Thresholds())})
    rows = max((tally.rows for tally in fields.values()), default=0)
    alarms = sum(len(column["alarms"]) for column in out)
    return {"rows": rows, "training_rows": known["rows"], "columns": out, "alarms": alarms}


def _compare(then: Tally, now: Tally, thresholds: Thresholds) -> dict[str, Any]:
    index = psi(then.bins, now.bins)
    chance = psi_by_chance(int(((then.bins + now.bins) > 0).sum()), int(then.bins.sum()), int(now.bins.sum()))
    limit = max(thresholds.psi, chance)
    out: dict[str, Any] = {"psi": None if np.isnan(index) else index, "psi_limit": limit}
    alarms = ["psi"] if index > limit else []
    for name in ("missing", "unknown", "out_of_range"):
        counts = getattr(then, name), getattr(now, name)
        a, b = (count / rows if rows else float("nan") for count, rows in zip(counts, (then.rows, now.rows)))
        pooled = sum(counts) / max(then.rows + now.rows, 1)
        error = (pooled * (1 - pooled) * (1 / max(then.rows, 1) + 1 / max(now.rows, 1))) ** 0.5
        largest = max(getattr(thresholds, name), _Z * error)
        out[name] = {"share": None if np.isnan(b) else b, "training": None if np.isnan(a) else a, "limit": largest}
        if (abs(b - a) if name == "missing" else b - a) > largest:
            alarms.append(name)
    return out | {"alarms": alarms}


def show(found: Mapping[str, Any]) -> str:
    """The judgement as a table of text."""
    lines = [
        f"{found['rows']:,} rows against {found['training_rows']:,} of training",
        f"{'':28}{'missing':>9}{'(before)':>10}{'unknown':>9}{'(before)':>10}{'outside':>9}{'PSI':>9}{'limit':>8}  alarms",
    ]
    for column in found["columns"]:
        missing, unknown, outside = (column[name] for name in ("missing", "unknown", "out_of_range"))
        shares = (missing["share"], missing["training"], unknown["share"], unknown["training"], outside["share"])
        cells = "".join(f"{_percent(share):>{width}}" for share, width in zip(shares, (9, 10, 9, 10, 9)))
        index = "-" if column["psi"] is None else f"{column['psi']:.4f}"
        alarms = ", ".join(name.replace("_", " ") for name in column["alarms"])
        lines.append(f"{column['name']:28}{cells}{index:>9}{column['psi_limit']:8.2f}  {alarms}".rstrip())
    count = found["alarms"]
    return "\n".join([*lines, "no alarm" if not count else f"{count} alarm{'s' if count > 1 else ''}"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"
