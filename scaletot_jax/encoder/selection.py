"""Which profiles are distilled, and which of them train, choose the step, or stay held out as evidence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.errors import DataError
from scaletot_jax.profiles.split import unit_hash

HELD_OUT, SELECT = 0.10, 0.20  # hash below: held out for the evidence; below: chooses the step; else trains


class Profiles(NamedTuple):
    """The distilled profiles, probe candidates (distill split) first. One entry a distinct profile."""

    rows: np.ndarray  # [U] row of the population that stands for the profile
    keys: np.ndarray  # [U] exact key
    groups: np.ndarray  # [U] group of that row
    source: np.ndarray  # [U] "distill" or "teacher"
    part: np.ndarray  # [U] "train", "select" or "held_out", by hash of the group
    labels: np.ndarray  # [U] mean days label over the profile's distill rows; NaN for the teacher's


def choose_profiles(table: pa.Table, reasoned: list[str], label: str, num_profiles: int, seed: int) -> Profiles:
    """Chooses the profiles to distil. Pure.

    Args:
      table: the population.
      reasoned: exact keys that the teacher reasoned about.
      label: the days column.
      num_profiles: most profiles taken from the distill split.
      seed: of the choice and of the division into parts.

    Raises:
      DataError: a reasoned profile that no row of the teacher split has, or nothing to train on.
    """
    keys = table["exact_key"].to_numpy(zero_copy_only=False).astype(object)
    split = table["split"].to_numpy(zero_copy_only=False).astype(object)
    groups = table["group"].to_numpy(zero_copy_only=False).astype(object)
    days = table[label].cast(pa.float64()).to_numpy()
    first: dict[str, dict[str, int]] = {"teacher": {}, "distill": {}}
    sums: dict[str, list[float]] = {}
    for row in np.flatnonzero((split == "teacher") | (split == "distill")):
        first[split[row]].setdefault(keys[row], int(row))
        if split[row] == "distill":
            sums.setdefault(keys[row], []).append(float(days[row]))
    foreign = [key for key in reasoned if key not in first["teacher"]]
    if foreign:
        raise DataError(
            "a reasoned profile belongs to no user of the teacher split",
            where=f"teach/chains.parquet, {foreign[0]}",
            why=f"{len(foreign)} such profiles",
        )
    taught = sorted(set(reasoned))
    fresh = sorted(set(first["distill"]) - set(taught))
    order = np.argsort(unit_hash(fresh, seed, "distill"), kind="stable") if fresh else np.zeros(0, int)
    fresh = [fresh[i] for i in order[:num_profiles]]
    chosen = [(key, "distill") for key in fresh] + [(key, "teacher") for key in taught]
    rows = np.array([first[source][key] for key, source in chosen], np.int64)
    if not len(rows):
        raise DataError("there is no profile to distil", where="prepare/population.parquet", do="use more users")
    place = unit_hash(list(groups[rows]), seed, "distill parts")
    part = np.where(place < HELD_OUT, "held_out", np.where(place < SELECT, "select", "train")).astype(object)
    labels = np.array([np.mean(sums[key]) if source == "distill" else np.nan for key, source in chosen])
    return Profiles(rows, keys[rows], groups[rows], np.array([s for _, s in chosen], object), part, labels)


def profile_table(profiles: Profiles) -> pa.Table:
    """The profiles as a table, without their labels."""
    return pa.table(
        {
            "exact_key": pa.array(profiles.keys, pa.string()),
            "row": pa.array(profiles.rows, pa.int64()),
            "group": pa.array(profiles.groups, pa.string()),
            "source": pa.array(profiles.source, pa.string()),
            "part": pa.array(profiles.part, pa.string()),
        }
    )
