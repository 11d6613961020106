"""Metrics of ordering, error and calibration that do not depend on the order of tied rows.

Every function takes labels ``y`` [U], predictions [U] (or [U, C]) and optional non-negative weights [U] or [R, U], and
returns a scalar, or [R] for a matrix of weights: one weight row is one bootstrap resample, so 1,000 resamples are one
call. Integer weights give exactly the metric of the table in which each row is repeated that often.

Where a metric does not exist (a constant label, no payer, zero weight) it is NaN, never 0. Labels or predictions that
are not finite raise :class:`~scaletot_jax.errors.DataError`. All arithmetic is float64 NumPy on the host.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from scaletot_jax.errors import DataError

Array = np.ndarray


def spearman(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Spearman's ρ: Pearson correlation of average ranks, ties sharing the mean of their ranks."""
    y, prediction, w, single = _prepare(y, prediction, weights)
    a, b = _mid_ranks(y, w), _mid_ranks(prediction, w)
    total = _positive(w.sum(1))
    a = a - (np.einsum("rn,rn->r", w, a) / total)[:, None]
    b = b - (np.einsum("rn,rn->r", w, b) / total)[:, None]
    wa = w * a
    covariance = np.einsum("rn,rn->r", wa, b)
    variance = np.einsum("rn,rn->r", wa, a) * np.einsum("rn,rn,rn->r", w, b, b)
    return _shape(_divide(covariance, np.sqrt(np.maximum(variance, 0.0))), single)


def auc(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None, *, threshold: float = 0.0) -> Array:
    """Area under the ROC curve of the event ``y > threshold``: P(positive above negative) + ½ P(tied)."""
    y, prediction, w, single = _prepare(y, prediction, weights)
    positive = y > threshold
    order, starts = _ties(prediction)
    negatives = np.add.reduceat((w * ~positive)[:, order], starts, axis=1)
    positives = np.add.reduceat((w * positive)[:, order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = np.einsum("rg,rg->r", positives, below + 0.5 * negatives)
    return _shape(_divide(wins, positives.sum(1) * negatives.sum(1)), single)


def normalised_gini(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Gini of the cumulative gain curve, divided by that of the perfect order.

    Rows are sorted by falling prediction; G = 2·area(share of Σy against share of rows) − 1 by the trapezoid rule, and
    the curve is straight across tied predictions, which is the mean over all orders of the tied rows (Google's
    ``lifetime_value`` takes the order of the file instead). Result G(prediction)/G(y) in [−1, 1]; labels must be ≥ 0.
    """
    y, prediction, w, single = _prepare(y, prediction, weights)
    if (y < 0).any():
        raise DataError(
            "the Gini coefficient needs labels that are not negative", where="label", why=f"minimum {y.min()}"
        )
    return _shape(_divide(_gain(y, prediction, w), _gain(y, y, w)), single)


def rmse(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Root mean squared error √E[(ŷ − y)²], in units of the label."""
    y, prediction, w, single = _prepare(y, prediction, weights)
    return _shape(np.sqrt(_mean((prediction - y) ** 2, w)), single)


def mae(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Mean absolute error E|ŷ − y|. With many zero labels the constant 0 wins it: never judge by it alone."""
    y, prediction, w, single = _prepare(y, prediction, weights)
    return _shape(_mean(np.abs(prediction - y), w), single)


def ambe(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Absolute mean bias error |E[ŷ − y]|: calibration in the large, in units of the label."""
    y, prediction, w, single = _prepare(y, prediction, weights)
    return _shape(np.abs(_mean(prediction - y, w)), single)


def r2(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Coefficient of determination 1 − Σ(ŷ − y)²/Σ(y − ȳ)²; below 0 it is worse than the mean of these very labels."""
    y, prediction, w, single = _prepare(y, prediction, weights)
    total = _mean(y * y, w) - _mean(y, w) ** 2
    # Var(y) of a constant label is rounding noise, not 0, so compare with the size of y itself.
    total = np.where(total > 1e-12 * np.maximum(_mean(y * y, w), 1e-300), total, 0.0)
    return _shape(1.0 - _divide(_mean((prediction - y) ** 2, w), total), single)


def rps(y: ArrayLike, distribution: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Mean ranked probability score of predicted distributions over 0..C−1, see :func:`rps_rows`. 0 is best, 1 worst."""
    rows = rps_rows(y, distribution)
    _, rows, w, single = _prepare(np.zeros(len(rows)), rows, weights)
    return _shape(_mean(rows, w), single)


def rps_rows(y: ArrayLike, distribution: ArrayLike) -> Array:
    """Ranked probability score of each row, strictly proper for ordered classes.

    RPS_u = 1/(C−1) Σ_{c<C−1} (F_u(c) − 1[y_u ≤ c])², F_u the cumulative distribution (Epstein 1969).

    Args:
      y: integer labels [U] in 0..C−1.
      distribution: probabilities [U, C]; each row sums to 1.

    Returns:
      [U], each in [0, 1].
    """
    y, distribution = np.asarray(y), np.asarray(distribution, np.float64)
    if distribution.ndim != 2 or distribution.shape[0] != y.shape[0] or distribution.shape[1] < 2:
        raise DataError(
            "the distribution must be [rows, classes ≥ 2]", why=f"labels {y.shape}, distribution {distribution.shape}"
        )
    classes = distribution.shape[1]
    if not np.isfinite(distribution).all() or np.abs(distribution.sum(1) - 1).max(initial=0) > 1e-3:
        raise DataError("a predicted distribution does not sum to 1 or is not finite", where="distribution")
    if (y != np.floor(y)).any() or (y < 0).any() or (y >= classes).any():
        raise DataError("a label is not one of the classes", where="label", why=f"classes are 0..{classes - 1}")
    cumulative = np.cumsum(distribution, axis=1)[:, :-1]
    reached = np.arange(classes - 1)[None, :] >= y[:, None]
    return np.mean((cumulative - reached) ** 2, axis=1)


# -- weighted building blocks -------------------------------------------------------------------------------------------


def _prepare(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array, bool]:
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


def _ties(values: Array) -> tuple[Array, Array]:
    """The sorting order [U] and the first sorted position [G] of each group of equal values."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return order, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def _mid_ranks(values: Array, w: Array) -> Array:
    """Weighted average ranks [R, U], up to the constant ½ that no correlation sees."""
    order, starts = _ties(values)
    mass = np.add.reduceat(w[:, order], starts, axis=1)
    middle = np.cumsum(mass, axis=1) - 0.5 * mass
    group = np.empty(len(values), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return middle[:, group]


def _gain(y: Array, score: Array, w: Array) -> Array:
    order, starts = _ties(-score)
    rows = np.add.reduceat(w[:, order], starts, axis=1)
    value = np.add.reduceat((w * y)[:, order], starts, axis=1)
    reached = np.cumsum(value, axis=1) - 0.5 * value
    area = _divide(np.einsum("rg,rg->r", reached, rows), rows.sum(1) * value.sum(1))
    gini = 2.0 * area - 1.0
    return np.where(np.abs(gini) < 1e-12, 0.0, gini)


def _mean(values: Array, w: Array) -> Array:
    return _divide(w @ values, w.sum(1))


def _positive(total: Array) -> Array:
    return np.where(total > 0, total, np.nan)


def _divide(numerator: Array, denominator: Array) -> Array:
    valid = denominator > 0
    return np.where(valid, numerator / np.where(valid, denominator, 1.0), np.nan)


def _shape(result: Array, single: bool) -> Array:
    return result[0] if single else result
