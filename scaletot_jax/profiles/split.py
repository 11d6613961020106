"""User-disjoint, time-forward splits by hash.

A group (a user, a household) belongs to one split for every seed, whatever rows the table has: its hash decides. With
snapshot dates, the latest ones are for validation and test; training rows are those whose label window has closed by
the first of them. Rows of a training group on a late snapshot, and of an evaluation group on an early one, are
``unused``: they are scored, but nothing is fitted or judged on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from scaletot_jax.errors import ConfigError, DataError

TRAIN = ("teacher", "distill", "head")
EVALUATION = ("val", "test")
SPLITS = TRAIN + EVALUATION
UNUSED = "unused"


def unit_hash(values: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """Uniform numbers in [0, 1), one per string, from BLAKE2b of (seed, purpose, string). [N] -> [N] float64.

    Loops over distinct strings only. The value of a string never depends on the others.
    """
    distinct, inverse = _codes(values)
    prefix = f"{seed}:{purpose}:".encode()
    digests = b"".join(hashlib.blake2b(prefix + value.encode(), digest_size=8).digest() for value in distinct)
    return (np.frombuffer(digests, ">u8") >> np.uint64(11)).astype(np.float64)[inverse] / 2.0**53


def _codes(values: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct strings, and the place of each value among them."""
    encoded = pa.array(values, pa.string()).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def assign(
    groups: Sequence[str],
    fractions: Mapping[str, float],
    *,
    seed: int,
    days: np.ndarray | None = None,
    horizon: int = 0,
    evaluation_share: float = 0.4,
) -> np.ndarray:
    """The split of every row.

    Args:
      groups: [N] group of each row.
      fractions: share of groups for each of :data:`SPLITS`; they sum to 1.
      seed: another seed gives another, independent assignment.
      days: [N] snapshot as a day number, or None for splits by hash alone.
      horizon: days of the label window (day, day + horizon].
      evaluation_share: share of the distinct snapshots, the latest ones, on which val and test lie.

    Returns:
      [N] object array of split names, or ``unused``.

    Raises:
      ConfigError: the snapshots are too close together for a training row to remain.
    """
    bounds = np.cumsum([fractions[name] for name in SPLITS])
    which = np.searchsorted(bounds / bounds[-1], unit_hash(groups, seed, "split"), side="right")
    split = np.array(SPLITS, dtype=object)[np.minimum(which, len(SPLITS) - 1)]
    if days is not None:
        first = first_evaluation_day(days, horizon, evaluation_share)
        late = days >= first
        closed = days + horizon <= first  # a snapshot is taken at the end of its day
        train = np.isin(split, TRAIN)
        split[train & ~closed] = UNUSED
        split[~train & ~late] = UNUSED
    return split


def assign_shifted(
    groups: Sequence[str],
    values: Sequence[str | None],
    fractions: Mapping[str, float],
    *,
    seed: int,
    field: str,
    train: str,
    test: str,
) -> np.ndarray:
    """The split of every row where training and test are two values of one field: how far does what was learnt carry?

    Rows of ``train`` go to teacher, distill, head and val by the hash of their group, in the proportion of those
    fractions; val stays on this side, so that nothing is chosen by labels of the other. Rows of ``test`` are the test
    split, but for those of a group that has rows on both sides: these, and rows of any other value, are ``unused``.

    Args:
      groups: [N] group of each row.
      values: [N] the field.
      fractions: as in :func:`assign`; that of test is not used.
      seed: another seed gives another, independent assignment.
      field: its name, for errors.
      train, test: two values.

    Returns:
      [N] object array of split names, or ``unused``.

    Raises:
      ConfigError: no row has one of the values.
    """
    domain = np.asarray([value if value is not None else "" for value in values], object)
    for key, value in (("shift_train", train), ("shift_test", test)):
        if not (domain == value).any():
            known = sorted({str(item) for item in domain if item != ""})
            raise ConfigError(
                "no row has this value",
                where=f"split.{key}",
                why=f"'{value}' is not a value of '{field}'",
                do=f"it has {', '.join(known[:12])}{' …' if len(known) > 12 else ''}",
            )
    learnt = [name for name in SPLITS if name != "test"]
    bounds = np.cumsum([fractions[name] for name in learnt])
    which = np.searchsorted(bounds / bounds[-1], unit_hash(groups, seed, "split"), side="right")
    split = np.array(learnt, dtype=object)[np.minimum(which, len(learnt) - 1)]
    split[domain != train] = UNUSED
    _, codes = _codes(groups)
    trained = np.zeros(codes.max(initial=-1) + 1, bool)
    trained[codes[domain == train]] = True
    split[(domain == test) & ~trained[codes]] = "test"
    return split


def first_evaluation_day(days: np.ndarray, horizon: int, share: float) -> int:
    """The earliest snapshot of the evaluation period: the latest ``share`` of the distinct days, at least one."""
    distinct = np.unique(days)
    count = min(max(1, round(len(distinct) * share)), len(distinct))
    first = int(distinct[-count])
    if not (distinct + horizon <= first).any():
        raise ConfigError(
            "no training snapshot is left before the evaluation period",
            where="split.time_forward",
            why=f"{len(distinct)} snapshots, label window {horizon} days, evaluation from day {first - int(distinct[0])} on",
            do="use more or earlier snapshots, a smaller split.evaluation_share, or set split.time_forward=False",
        )
    return first


def assert_disjoint(
    groups: Sequence[str], split: np.ndarray, *, days: np.ndarray | None = None, horizon: int = 0
) -> None:
    """Raises DataError if a group lies in two splits, or a training label window passes an evaluation snapshot.

    Checks the outcome, not the way it was made; ``unused`` rows are exempt.
    """
    used = split != UNUSED
    _, codes = _codes(groups)
    low = np.full(codes.max(initial=-1) + 1, len(SPLITS))
    high = np.full(len(low), -1)
    place = np.argmax(split[used][:, None] == np.array(SPLITS, dtype=object), axis=1)
    np.minimum.at(low, codes[used], place)
    np.maximum.at(high, codes[used], place)
    shared = np.flatnonzero(high > low)
    if len(shared):
        row = int(np.flatnonzero(codes == shared[0])[0])
        raise DataError("a group lies in two splits", where=f"row {row}", why=f"{len(shared)} groups")
    if days is None:
        return
    evaluation, train = np.isin(split, EVALUATION), np.isin(split, TRAIN)
    if evaluation.any() and train.any() and days[train].max() + horizon > days[evaluation].min():
        row = int(np.flatnonzero(train)[np.argmax(days[train])])
        raise DataError("a training label window reaches into the evaluation period", where=f"row {row}")
