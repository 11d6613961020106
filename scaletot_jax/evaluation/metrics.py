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
from scaletot_jax.evaluation.weighted import (
    Array,
    divide,
    mid_ranks,
    positive_total,
    prepare,
    shape,
    ties,
    weighted_mean,
)


def spearman(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Spearman's ρ: Pearson correlation of average ranks, ties sharing the mean of their ranks."""
    y, prediction, w, single = prepare(y, prediction, weights)
    a, b = mid_ranks(y, w), mid_ranks(prediction, w)
    total = positive_total(w.sum(1))
    a = a - (np.einsum("rn,rn->r", w, a) / total)[:, None]
    b = b - (np.einsum("rn,rn->r", w, b) / total)[:, None]
    wa = w * a
    covariance = np.einsum("rn,rn->r", wa, b)
    variance = np.einsum("rn,rn->r", wa, a) * np.einsum("rn,rn,rn->r", w, b, b)
    return shape(divide(covariance, np.sqrt(np.maximum(variance, 0.0))), single)


def auc(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None, *, threshold: float = 0.0) -> Array:
    """Area under the ROC curve of the event ``y > threshold``: P(positive above negative) + ½ P(tied)."""
    y, prediction, w, single = prepare(y, prediction, weights)
    positive = y > threshold
    order, starts = ties(prediction)
    negatives = np.add.reduceat((w * ~positive)[:, order], starts, axis=1)
    positives = np.add.reduceat((w * positive)[:, order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = np.einsum("rg,rg->r", positives, below + 0.5 * negatives)
    return shape(divide(wins, positives.sum(1) * negatives.sum(1)), single)


def normalised_gini(
    y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None, *, google_compat: bool = False
) -> Array:
    """Gini of the cumulative gain curve, divided by that of the perfect order.

    Rows are sorted by falling prediction; G = 2·area(share of Σy against share of rows) − 1 by the trapezoid rule, and
    the curve is straight across tied predictions, which is the mean over all orders of the tied rows. Result
    G(prediction)/G(y) in [−1, 1]; labels must be ≥ 0.

    ``google_compat`` gives the figure of Google's ``lifetime_value`` instead, G = 2·mean(gain at rows 1..n) − 1: a
    rectangle sum, ties in the order of the file (stable). It takes no weights and is for comparing with published numbers.
    """
    y, prediction, w, single = prepare(y, prediction, weights)
    if (y < 0).any():
        raise DataError(
            "the Gini coefficient needs labels that are not negative", where="label", why=f"minimum {y.min()}"
        )
    if google_compat:
        if weights is not None:
            raise DataError("the Gini coefficient as Google computes it takes no weights")
        gains = [
            y[np.argsort(-score, kind="stable")].cumsum() / y.sum() if y.sum() > 0 else y * np.nan
            for score in (prediction, y)
        ]
        model, perfect = (2 * gain.mean() - 1 for gain in gains)
        return divide(np.asarray(model), np.asarray(perfect))
    return shape(divide(_gain(y, prediction, w), _gain(y, y, w)), single)


def rmse(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Root mean squared error √E[(ŷ − y)²], in units of the label."""
    y, prediction, w, single = prepare(y, prediction, weights)
    return shape(np.sqrt(weighted_mean((prediction - y) ** 2, w)), single)


def mae(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Mean absolute error E|ŷ − y|. With many zero labels the constant 0 wins it: never judge by it alone."""
    y, prediction, w, single = prepare(y, prediction, weights)
    return shape(weighted_mean(np.abs(prediction - y), w), single)


def ambe(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Absolute mean bias error |E[ŷ − y]|: calibration in the large, in units of the label."""
    y, prediction, w, single = prepare(y, prediction, weights)
    return shape(np.abs(weighted_mean(prediction - y, w)), single)


def r2(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Coefficient of determination 1 − Σ(ŷ − y)²/Σ(y − ȳ)²; below 0 it is worse than the mean of these very labels."""
    y, prediction, w, single = prepare(y, prediction, weights)
    total = weighted_mean(y * y, w) - weighted_mean(y, w) ** 2
    # Var(y) of a constant label is rounding noise, not 0, so compare with the size of y itself.
    total = np.where(total > 1e-12 * np.maximum(weighted_mean(y * y, w), 1e-300), total, 0.0)
    return shape(1.0 - divide(weighted_mean((prediction - y) ** 2, w), total), single)


def rps(y: ArrayLike, distribution: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Mean ranked probability score of predicted distributions over 0..C−1, see :func:`rps_rows`. 0 is best, 1 worst."""
    rows = rps_rows(y, distribution)
    _, rows, w, single = prepare(np.zeros(len(rows)), rows, weights)
    return shape(weighted_mean(rows, w), single)


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


def _gain(y: Array, score: Array, w: Array) -> Array:
    order, starts = ties(-score)
    rows = np.add.reduceat(w[:, order], starts, axis=1)
    value = np.add.reduceat((w * y)[:, order], starts, axis=1)
    reached = np.cumsum(value, axis=1) - 0.5 * value
    area = divide(np.einsum("rg,rg->r", reached, rows), rows.sum(1) * value.sum(1))
    gini = 2.0 * area - 1.0
    return np.where(np.abs(gini) < 1e-12, 0.0, gini)
