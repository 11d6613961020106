"""Metrics of calibration and of money: do predicted amounts and probabilities add up, and does the top hold the value?

Conventions are those of :mod:`scaletot_jax.evaluation.metrics`: weights None, [U] or [R, U]; NaN where a metric does not
exist; integer weights give the metric of the table with repeated rows. Rows whose predictions tie are never parted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from scaletot_jax.evaluation.weighted import Array, divide, prepare, shape, ties, weighted_mean

_GRID = np.linspace(0, 1, 401)  # where Lorenz curves are compared


def bias_ratio(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Σŷ/Σy, calibration in the large as a ratio: 1 is right, 1.1 promises 10 % too much. NaN where Σy ≤ 0."""
    y, prediction, w, single = prepare(y, prediction, weights)
    return shape(divide(w @ prediction, w @ y), single)


def nrmse(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """√E[(ŷ − y)²] / E[y], without unit. NaN where E[y] ≤ 0."""
    y, prediction, w, single = prepare(y, prediction, weights)
    return shape(divide(np.sqrt(weighted_mean((prediction - y) ** 2, w)), weighted_mean(y, w)), single)


def nmae(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """E|ŷ − y| / E[y], without unit. NaN where E[y] ≤ 0."""
    y, prediction, w, single = prepare(y, prediction, weights)
    return shape(divide(weighted_mean(np.abs(prediction - y), w), weighted_mean(y, w)), single)


def decile_mape(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None, *, bins: int = 10) -> Array:
    """Σ_b |Σ_{u∈b} ŷ_u − Σ_{u∈b} y_u| / Σ_u y_u over deciles b of the prediction: the deciles' absolute percentage errors,
    weighted by the label in each.

    Google's ``lifetime_value`` takes their plain mean, which divides by zero in a decile without a payer and cuts ties by
    the order of the file. Here each group of equal predictions lies whole in the decile of its midpoint. NaN where Σy ≤ 0.
    """
    y, prediction, w, single = prepare(y, prediction, weights)
    mass = _binned(prediction, w, [prediction, y], bins)
    return shape(divide(np.abs(mass[1] - mass[2]).sum(1), mass[2].sum(1)), single)


def ece(y: ArrayLike, probability: ArrayLike, weights: ArrayLike | None = None, *, bins: int = 10) -> Array:
    """Expected calibration error of P(y > 0): Σ_b (n_b/n) |mean p − share of y > 0| over bins of equal mass, ties whole."""
    y, probability, w, single = prepare(y, probability, weights)
    mass = _binned(probability, w, [probability, (y > 0).astype(np.float64)], bins)
    return shape(divide(np.abs(mass[1] - mass[2]).sum(1), mass[0].sum(1)), single)


def capture(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None, *, share: float = 0.1) -> Array:
    """Share of Σy that the ``share`` of rows with the highest predictions holds (top-k capture), ties sharing alike.

    Where the cut falls within tied predictions they count in proportion: the mean over all orders of the tied rows.
    """
    y, prediction, w, single = prepare(y, prediction, weights)
    order, starts = ties(-prediction)
    rows = np.add.reduceat(w[:, order], starts, axis=1)
    value = np.add.reduceat((w * y)[:, order], starts, axis=1)
    before = np.cumsum(rows, axis=1) - rows
    room = np.clip(share * rows.sum(1, keepdims=True) - before, 0, rows)
    taken = np.where(rows > 0, room / np.where(rows > 0, rows, 1.0), 0.0)
    return shape(divide((taken * value).sum(1), value.sum(1)), single)


def mutual_gini(y: ArrayLike, prediction: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Area between the Lorenz curve of the labels and that of the predictions, ∫₀¹ |L_y(x) − L_ŷ(x)| dx; 0 is best.

    L_v(x) is the share of Σv that the x of rows with the least v holds, each curve in its own order: do the predictions
    spread as the labels do? Both curves are read on 401 points and integrated by trapezoids. NaN where a sum is 0 or a
    prediction negative. Source: ODMN (arXiv:2208.13358).
    """
    y, prediction, w, single = prepare(y, prediction, weights)
    if (y < 0).any() or (prediction < 0).any():
        return shape(np.full(len(w), np.nan), single)
    gap = np.abs(_lorenz(y, w) - _lorenz(prediction, w))
    return shape((gap[:, 1:] + gap[:, :-1]).mean(1) / 2, single)


def quantile_crps_rows(y: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> Array:
    """Continuous ranked probability score of each row from quantiles at Q evenly spread levels τ_i = (i − ½)/Q.

        CRPS = 2 ∫₀¹ (1[y < q_τ] − τ)(q_τ − y) dτ ≈ (2/Q) Σ_i (1[y < q_i] − τ_i)(q_i − y)

    In the units of the label, 0 is best, strictly proper in the limit. [U] from labels [U] and quantiles [U, Q].
    """
    y, quantiles = np.asarray(y, np.float64)[:, None], np.asarray(quantiles, np.float64)
    return 2 * np.mean(((y < quantiles) - np.asarray(levels)) * (quantiles - y), axis=1)


def _binned(score: Array, w: Array, values: list[Array], bins: int) -> list[Array]:
    """Weighted sums [R, bins] of 1 and of each of ``values`` by bin of equal mass of the score; ties lie in one bin."""
    order, starts = ties(score)
    rows = np.add.reduceat(w[:, order], starts, axis=1)
    middle = np.cumsum(rows, axis=1) - 0.5 * rows
    total = rows.sum(1, keepdims=True)
    bin_of = np.minimum((bins * middle / np.where(total > 0, total, 1.0) + 1e-9).astype(np.int64), bins - 1)
    flat = (bin_of + bins * np.arange(len(w))[:, None]).ravel()
    sums = [rows, *(np.add.reduceat((w * value)[:, order], starts, axis=1) for value in values)]
    return [np.bincount(flat, weights=s.ravel(), minlength=bins * len(w)).reshape(len(w), bins) for s in sums]


def _lorenz(values: Array, w: Array) -> Array:
    """The Lorenz curve of ``values`` on the grid, [R, len(_GRID)]; NaN where their sum is 0."""
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(w[:, order], axis=1)
    held = np.cumsum((w * values)[:, order], axis=1)
    out = np.full((len(w), len(_GRID)), np.nan)
    for r in range(len(w)):
        if mass[r, -1] > 0 and held[r, -1] > 0:
            out[r] = np.interp(_GRID, np.r_[0, mass[r] / mass[r, -1]], np.r_[0, held[r] / held[r, -1]])
    return out
