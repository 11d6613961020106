"""What a comparison is about: a label, the rows, and what a system says of the test rows. Plain records.

Every system, be it a head, a baseline or a placebo, ends in :class:`Predictions`: an expected label, and where the system has
one a probability of any label at all and a distribution. Metrics that need more than a system says are not computed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.profiles.fields import Labels

LEVELS = tuple((i + 0.5) / 50 for i in range(50))  # at which the quantiles of a value label are kept
DAY_THRESHOLDS = (3, 7, 14)


class Target(NamedTuple):
    """A label to predict."""

    column: str
    kind: str  # "days": hurdle-ordinal over 0..horizon; "value": zero-inflated log-normal; "binary": 0 or 1
    horizon: int  # of days; 1 for a binary label; 0 for a value
    labels: np.ndarray  # [U] float64


def targets_of(labels: Labels, table: pa.Table) -> list[Target]:
    """All labels of a schema with their values in a canonical table; the days label first: the verdict speaks of it."""

    def values(column: str) -> np.ndarray:
        return table[column].cast(pa.float64()).to_numpy()

    days = labels.days
    out = [Target(days.column, "days", days.horizon, values(days.column))]
    if labels.value is not None:
        out.append(Target(labels.value.column, "value", 0, values(labels.value.column)))
    out += [Target(more.column, "days", more.horizon, values(more.column)) for more in labels.horizons]
    return out + [Target(outcome.column, "binary", 1, values(outcome.column)) for outcome in labels.binary]


class Rows(NamedTuple):
    """Which rows serve what, index arrays."""

    head: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Predictions(NamedTuple):
    """Of one system for the test rows."""

    mean: np.ndarray  # [T] expected label
    positive: np.ndarray  # [T] P(y > 0), or a score in its place
    distribution: np.ndarray | None = None  # [T, H + 1] for days and binary labels
    quantiles: np.ndarray | None = None  # [T, len(LEVELS)] for values
    probability: bool = True  # whether ``positive`` is a probability and not only a score

    def at(self, chosen: np.ndarray) -> Predictions:
        """Those of some of the rows: an index array or a mask."""
        return Predictions(
            self.mean[chosen],
            self.positive[chosen],
            None if self.distribution is None else self.distribution[chosen],
            None if self.quantiles is None else self.quantiles[chosen],
            self.probability,
        )


def average(predictions: Sequence[Predictions]) -> Predictions:
    """The mean over seeds of expectations, probabilities, distributions and quantiles (Vincent averaging of the latter)."""
    first = predictions[0]

    def mean(name: str) -> np.ndarray | None:
        found = [getattr(one, name) for one in predictions]
        return None if found[0] is None else np.mean([np.asarray(value, np.float64) for value in found], axis=0)

    return Predictions(
        np.mean([p.mean for p in predictions], 0), np.mean([p.positive for p in predictions], 0),
        mean("distribution"), mean("quantiles"), first.probability,
    )  # fmt: skip


def of_distribution(distribution: np.ndarray) -> Predictions:
    """Predictions of a distribution over 0..H, [T, H + 1]."""
    p = np.asarray(distribution, np.float64)
    p = p / p.sum(1, keepdims=True)
    return Predictions(p @ np.arange(p.shape[1]), 1 - p[:, 0], p)


def of_mean(mean: np.ndarray) -> Predictions:
    """Predictions of a system that says an expected label and nothing else; it also orders payers."""
    return Predictions(mean, mean, probability=False)


def thresholds(target: Target, rows: Rows) -> Mapping[str, float]:
    """Metric name → the label from which a row counts as positive: days by :data:`DAY_THRESHOLDS`, values by the median
    and the .9 quantile of the head split's payers."""
    if target.kind == "days":
        return {f"auc_{day}": float(day) for day in DAY_THRESHOLDS if day <= target.horizon}
    paid = target.labels[rows.head]
    paid = paid[paid > 0]
    if target.kind != "value" or not len(paid):
        return {}
    return {"auc_median": float(np.quantile(paid, 0.5)), "auc_p90": float(np.quantile(paid, 0.9))}
