"""Building blocks of the metrics: weighted sums by groups of tied rows, for one weight vector or a matrix of resamples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from scaletot_jax.errors import DataError

Array = np.ndarray


def prepare(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array, bool]:
    """Checked float64 labels and predictions [U], weights [R, U], and whether there was one weight vector or none."""
    y, prediction = np.asarray(y, np.float64), np.asarray(prediction, np.float64)
    if y.ndim != 1 or prediction.shape != y.shape or not len(y):
        raise DataError(
            "labels and predictions must be vectors of one length above 0", why=f"{y.shape} and {prediction.shape}"
        )
    for name, values in (("label", y), ("prediction", prediction)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise DataError(
                f"a {name} is not finite", where=f"row {bad[0]}", why=f"{values[bad[0]]}; {len(bad)} such rows"
            )
    w = np.ones_like(y) if weights is None else np.asarray(weights, np.float64)
    if w.shape[-1] != len(y) or w.ndim > 2 or (w < 0).any():
        raise DataError("weights must be [rows] or [resamples, rows] and not negative", why=f"shape {w.shape}")
    return y, prediction, np.atleast_2d(w), w.ndim == 1


def ties(values: Array) -> tuple[Array, Array]:
    """The sorting order [U] and the first sorted position [G] of each group of equal values."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return order, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def mid_ranks(values: Array, w: Array) -> Array:
    """Weighted average ranks [R, U], up to the constant ½ that no correlation sees."""
    order, starts = ties(values)
    mass = np.add.reduceat(w[:, order], starts, axis=1)
    middle = np.cumsum(mass, axis=1) - 0.5 * mass
    group = np.empty(len(values), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return middle[:, group]


def weighted_mean(values: Array, w: Array) -> Array:
    """[R]: Σ w v / Σ w of values [U]; NaN where nothing weighs."""
    return divide(w @ values, w.sum(1))


def positive_total(total: Array) -> Array:
    """The total, NaN in place of 0."""
    return np.where(total > 0, total, np.nan)


def divide(numerator: Array, denominator: Array) -> Array:
    """The ratio; NaN where the denominator is not positive."""
    valid = denominator > 0
    return np.where(valid, numerator / np.where(valid, denominator, 1.0), np.nan)


def shape(result: Array, single: bool) -> Array:
    """A scalar for one weight vector, else [R]."""
    return result[0] if single else result
