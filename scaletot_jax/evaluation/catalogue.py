"""The metrics of the comparison: for each its definition, its direction, and when it exists. ``metrics.json`` carries them.

A metric is computed for a system where the system says what it needs: a mean always, a probability of any label, or a
distribution. Paired differences leave out metrics whose best value lies in between (``better`` = "one").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from scaletot_jax.evaluation import calibration, metrics
from scaletot_jax.evaluation.predictions import LEVELS, Predictions, Target
from scaletot_jax.evaluation.weighted import divide

Statistic = Callable[[np.ndarray | None], np.ndarray]  # weights (None, [T] or [R, T]) → a scalar or [R]


class Metric(NamedTuple):
    """One figure of merit."""

    title: str
    definition: str
    better: str  # "higher", "lower", or "one": a ratio whose best value is 1


CATALOGUE: Mapping[str, Metric] = {
    "spearman": Metric("Spearman's ρ", "rank correlation of label and expected label, average ranks", "higher"),
    "spearman_positive": Metric("Spearman's ρ, y > 0", "the same among rows with a label above 0", "higher"),
    "auc": Metric("AUC of any", "probability that a row with y > 0 is ranked above one with y = 0 by P(y > 0), ties half", "higher"),
    "auc_3": Metric("AUC of ≥ 3", "AUC of y ≥ 3 by P(y ≥ 3), or by the expected label", "higher"),
    "auc_7": Metric("AUC of ≥ 7", "AUC of y ≥ 7 by P(y ≥ 7), or by the expected label", "higher"),
    "auc_14": Metric("AUC of ≥ 14", "AUC of y ≥ 14 by P(y ≥ 14), or by the expected label", "higher"),
    "auc_median": Metric("AUC of ≥ median payer", "AUC of y at or above the median of the training payers, by the expected label", "higher"),
    "auc_p90": Metric("AUC of top payers", "AUC of y at or above the .9 quantile of the training payers, by the expected label", "higher"),
    "normalised_gini": Metric("Normalised Gini", "Gini of the gain curve over that of the perfect order, trapezoid, ties averaged", "higher"),
    "capture_10": Metric("Top 10 % capture", "share of Σy held by the tenth of rows with the highest expected label, ties in proportion", "higher"),
    "rps": Metric("RPS", "mean ranked probability score of the distribution over 0..horizon; 0 is best", "lower"),
    "rps_skill": Metric("RPS skill", "1 − RPS / RPS of the distribution of the training rows' labels; 1 is best, 0 no better than it", "higher"),
    "crps": Metric("CRPS", "mean continuous ranked probability score by 50 quantiles, in units of the label; 0 is best", "lower"),
    "rmse": Metric("RMSE", "root mean squared error of the expected label, in its units", "lower"),
    "nrmse": Metric("RMSE/mean", "RMSE over the mean label", "lower"),
    "mae": Metric("MAE", "mean absolute error of the expected label, in its units; with many zeros the constant 0 wins it", "lower"),
    "nmae": Metric("MAE/mean", "MAE over the mean label", "lower"),
    "r2": Metric("R²", "1 − squared error over that of the mean of the test labels", "higher"),
    "mutual_gini": Metric("Mutual Gini", "area between the Lorenz curves of labels and of expected labels; 0 is best", "lower"),
    "decile_mape": Metric("Decile MAPE", "Σ over deciles of the expected label of |Σŷ − Σy|, over Σy; ties whole", "lower"),
    "ambe": Metric("AMBE", "absolute mean bias |E[ŷ] − E[y]|, in units of the label", "lower"),
    "bias_ratio": Metric("Bias ratio", "Σŷ/Σy; 1 is right", "one"),
    "ece": Metric("ECE of P(y > 0)", "mean gap between P(y > 0) and the share of y > 0, over ten bins of equal mass, ties whole", "lower"),
}  # fmt: skip
LOWER_IS_BETTER = frozenset(name for name, metric in CATALOGUE.items() if metric.better == "lower")
_MONEY = ("rmse", "nrmse", "mae", "nmae", "r2", "mutual_gini", "decile_mape", "ambe", "bias_ratio", "ece")
METRICS = {
    "days": ("spearman", "spearman_positive", "auc", "auc_3", "auc_7", "auc_14", "normalised_gini", "capture_10", "rps", "rps_skill", *_MONEY),
    "value": ("spearman", "spearman_positive", "auc", "auc_median", "auc_p90", "normalised_gini", "capture_10", "crps", *_MONEY),
    "binary": ("auc", "normalised_gini", "capture_10", "rps", "rps_skill", "r2", "ambe", "bias_ratio", "ece"),
}  # fmt: skip


def metric_functions(
    target: Target,
    y: np.ndarray,
    p: Predictions,
    thresholds: Mapping[str, float] | None = None,
    base: np.ndarray | None = None,
) -> dict[str, Statistic]:
    """Metric name → function of weights; only those that exist for these predictions.

    Args:
      target: the label, for its kind.
      y: labels of the rows judged [T].
      p: what a system says of them.
      thresholds: of the AUCs at thresholds, see :func:`scaletot_jax.evaluation.predictions.thresholds`.
      base: the base rate [horizon + 1] that the skill is measured against; without it there is none.
    """
    found: dict[str, Statistic] = {
        "spearman": lambda w: metrics.spearman(y, p.mean, w),
        "spearman_positive": _among(y > 0, lambda some, w: metrics.spearman(y[some], p.mean[some], w)),
        "auc": lambda w: metrics.auc(y, p.positive, w),
        "normalised_gini": lambda w: metrics.normalised_gini(y, p.mean, w),
        "capture_10": lambda w: calibration.capture(y, p.mean, w),
        "rmse": lambda w: metrics.rmse(y, p.mean, w),
        "nrmse": lambda w: calibration.nrmse(y, p.mean, w),
        "mae": lambda w: metrics.mae(y, p.mean, w),
        "nmae": lambda w: calibration.nmae(y, p.mean, w),
        "r2": lambda w: metrics.r2(y, p.mean, w),
        "mutual_gini": lambda w: calibration.mutual_gini(y, p.mean, w),
        "decile_mape": lambda w: calibration.decile_mape(y, p.mean, w),
        "ambe": lambda w: metrics.ambe(y, p.mean, w),
        "bias_ratio": lambda w: calibration.bias_ratio(y, p.mean, w),
    }
    for name, edge in (thresholds or {}).items():
        found[name] = _at_threshold(y, p, edge)
    if p.probability:
        found["ece"] = lambda w: calibration.ece(y, p.positive, w)
    if p.distribution is not None:
        rps = metrics.rps_rows(y, p.distribution)
        found["rps"] = _mean_of(rps)
        if base is not None:
            found["rps_skill"] = _skill(rps, metrics.rps_rows(y, np.broadcast_to(base, p.distribution.shape)))
    if p.quantiles is not None:
        found["crps"] = _mean_of(calibration.quantile_crps_rows(y, p.quantiles, LEVELS))
    return {name: found[name] for name in METRICS[target.kind] if name in found}


def _at_threshold(y: np.ndarray, p: Predictions, edge: float) -> Statistic:
    score = p.mean if p.distribution is None else p.distribution[:, int(np.ceil(edge)) :].sum(1)
    return lambda w: metrics.auc(y, score, w, threshold=float(np.nextafter(edge, -np.inf)))


def _among(some: np.ndarray, function: Callable[[np.ndarray, np.ndarray | None], np.ndarray]) -> Statistic:
    if not some.any():
        return lambda w: np.full(() if w is None else w.shape[:-1], np.nan)
    return lambda w: function(some, None if w is None else w[..., some])


def _mean_of(values: np.ndarray) -> Statistic:
    """Weighted mean of row scores; NaN where a resample drew none of these rows."""
    return lambda w: values.mean() if w is None else divide(w @ values, w.sum(-1))


def _skill(rps: np.ndarray, base: np.ndarray) -> Statistic:
    """1 − Σ w RPS / Σ w RPS of the base rate; NaN where that is 0."""
    return lambda w: 1 - divide(rps.sum() if w is None else w @ rps, base.sum() if w is None else w @ base)
