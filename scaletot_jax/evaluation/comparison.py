"""One fair comparison: the same heads on the same rows, with and without ẑ, with placebos, intervals and paired differences.

Systems (the last four are the same network, see :mod:`scaletot_jax.evaluation.heads`):

    constant                 the distribution of the head split's labels, for everyone
    ridge                    ridge regression on the profile features
    profile                  head on the profile features; ẑ's columns are zeros
    profile_z                head on the profile features and ẑ
    profile_z_shuffled       placebo: each row gets another row's ẑ
    profile_z_untrained      placebo: ẑ of the encoder's initial, undistilled weights

Predictions of a system are averaged over its seeds before any metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.evaluation import metrics
from scaletot_jax.evaluation.bootstrap import Interval, bootstrap, paired_difference, percentile_interval
from scaletot_jax.evaluation.heads import Scaler, fit_heads, free_mixing, hurdle_mixing, predict_heads, ridge
from scaletot_jax.evaluation.kept_heads import KeptHead
from scaletot_jax.evaluation.verdict import word
from scaletot_jax.losses.ltv import hurdle_distribution, hurdle_nll, ziln_mean, ziln_nll

WITH, WITHOUT = "profile_z", "profile"
PLACEBOS = ("profile_z_shuffled", "profile_z_untrained")
METRICS = {
    "days": ("spearman", "auc", "normalised_gini", "rmse", "rps"),
    "value": ("spearman", "auc", "normalised_gini", "rmse"),
}
LOWER_IS_BETTER = frozenset({"rmse", "rps"})
DEFINITIONS = {
    "spearman": "rank correlation of label and expected label, average ranks",
    "auc": "probability that an active user is ranked above an inactive one by P(y > 0), ties half",
    "normalised_gini": "Gini of the gain curve over that of the perfect order, ties averaged",
    "rmse": "root mean squared error of the expected label, in its units",
    "rps": "mean ranked probability score of the predicted distribution over 0..horizon; 0 is best",
}


class Target(NamedTuple):
    """A label to predict."""

    column: str
    kind: str  # "days": hurdle-ordinal over 0..horizon; "value": zero-inflated log-normal
    horizon: int  # of days; 0 for a value
    labels: np.ndarray  # [U] float64


class Rows(NamedTuple):
    """Which rows serve what, index arrays."""

    head: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Predictions(NamedTuple):
    """Of one system for the test rows."""

    mean: np.ndarray  # [T] expected label
    positive: np.ndarray  # [T] P(y > 0), or a score in its place
    distribution: np.ndarray | None  # [T, H + 1] for days


def variants(dense: np.ndarray, z: np.ndarray, untrained: np.ndarray, rows: Rows, seed: int) -> dict[str, np.ndarray]:
    """The inputs of the four networks, each [U, P + E], standardised with the head rows' statistics."""
    rng = np.random.default_rng(seed)
    shuffled = np.array(z)
    for part in rows:
        shuffled[part] = z[rng.permutation(part)]
    parts = {WITHOUT: np.zeros_like(z), WITH: z, PLACEBOS[0]: shuffled, PLACEBOS[1]: untrained}
    stacked = {name: np.concatenate([dense, extra], axis=1) for name, extra in parts.items()}
    return {name: Scaler.fit(x[rows.head]).apply(x) for name, x in stacked.items()}


def predict(
    target: Target, inputs: Mapping[str, np.ndarray], dense: np.ndarray, rows: Rows, head: Mapping[str, Any], seed: int
) -> tuple[dict[str, list[Predictions]], Predictions, KeptHead]:
    """Fits every system on the head rows and predicts the test rows.

    Args:
      target: the label.
      inputs: from :func:`variants`.
      dense: [U, P] profile features, for ridge.
      rows: head trains, val selects, test is predicted.
      head: the configuration's ``head`` section.
      seed: of the heads; their number is ``head["seeds"]``.

    Returns:
      system → predictions of each seed for the test rows (one entry for constant and ridge); the predictions of
      ``profile_z``, averaged over its seeds, for every row; and its heads.
    """
    y = target.labels
    everyone: list[Predictions] = []
    out = {"constant": [_constant(target, rows)]}
    x = Scaler.fit(dense[rows.head]).apply(dense)
    linear = ridge(x[rows.head], y[rows.head], x[rows.val], y[rows.val], x[rows.test])
    out["ridge"] = [Predictions(linear, linear, None)]
    mixing = hurdle_mixing(max(target.horizon, 1)) if target.kind == "days" else free_mixing(3)
    for name, x in inputs.items():
        fitted = fit_heads(
            x[rows.head], y[rows.head], x[rows.val], y[rows.val],
            loss=hurdle_nll if target.kind == "days" else ziln_nll, mixing=mixing,
            seeds=[seed + i for i in range(head["seeds"])], bias=_base_rate(target, rows),
            **{key: head[key] for key in ("width", "steps", "batch_size", "learning_rate", "penalties")},
        )  # fmt: skip
        logits = predict_heads(fitted, x[rows.test], width=head["width"], mixing=mixing)
        out[name] = [_read(target, one, rows) for one in logits]
        if name == WITH:
            everyone = [
                _read(target, one, rows) for one in predict_heads(fitted, x, width=head["width"], mixing=mixing)
            ]
            cap = float(y[rows.head].max())
            kept = KeptHead(target.column, target.kind, target.horizon, cap, head["width"], mixing, fitted.params)
    return out, average(everyone), kept


def average(predictions: Sequence[Predictions]) -> Predictions:
    """The mean over seeds of expectations, probabilities and distributions."""
    first = predictions[0]
    distribution = (
        None if first.distribution is None else np.mean([np.asarray(p.distribution) for p in predictions], axis=0)
    )
    return Predictions(
        np.mean([p.mean for p in predictions], 0), np.mean([p.positive for p in predictions], 0), distribution
    )


def metric_functions(
    target: Target, y: np.ndarray, p: Predictions
) -> dict[str, Callable[[np.ndarray | None], np.ndarray]]:
    """Metric name → function of weights (None, [T] or [R, T]); only those that exist for these predictions."""
    found: dict[str, Callable[[np.ndarray | None], np.ndarray]] = {
        "spearman": lambda w: metrics.spearman(y, p.mean, w),
        "auc": lambda w: metrics.auc(y, p.positive, w),
        "normalised_gini": lambda w: metrics.normalised_gini(y, p.mean, w),
        "rmse": lambda w: metrics.rmse(y, p.mean, w),
    }
    if p.distribution is not None:
        scores = metrics.rps_rows(y, p.distribution)
        found["rps"] = lambda w: _weighted_mean(scores, w)
    return {name: found[name] for name in METRICS[target.kind] if name in found}


def score_systems(
    target: Target,
    systems: Mapping[str, Sequence[Predictions]],
    rows: Rows,
    groups: np.ndarray,
    *,
    resamples: int,
    level: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Interval]]]:
    """Metrics with intervals, and paired differences of ``profile_z`` from the systems it must beat.

    Args:
      target: the label.
      systems: from :func:`predict`.
      rows: the test rows are judged.
      groups: group of every row [U]; resampled as wholes.
      resamples, level, seed: of the bootstrap.

    Returns:
      systems as JSON: system → metric → {estimate, low, high}, and ``by_seed`` → metric → list;
      differences as JSON: ``profile_z - other`` → metric → {estimate, low, high, word}, estimate = with minus other;
      gains: other → metric → Interval turned so that positive is better.
    """
    y = target.labels[rows.test]
    functions = {name: metric_functions(target, y, average(found)) for name, found in systems.items()}
    flat = {(name, metric): function for name, found in functions.items() for metric, function in found.items()}
    points = {key: float(function(None)) for key, function in flat.items()}
    samples = bootstrap(flat, groups[rows.test], resamples=resamples, seed=seed)

    table: dict[str, Any] = {}
    for name, found in systems.items():
        table[name] = {
            metric: percentile_interval(points[name, metric], samples[name, metric], level).to_dict()
            for metric in functions[name]
        }
        if len(found) > 1:
            by_seed = [metric_functions(target, y, one) for one in found]
            table[name]["by_seed"] = {
                metric: [_or_none(one[metric](None)) for one in by_seed] for metric in functions[name]
            }

    differences: dict[str, Any] = {}
    gains: dict[str, dict[str, Interval]] = {}
    for other in (WITHOUT, *PLACEBOS):
        gains[other], row = {}, {}
        for metric in functions[WITH]:
            a, b = (WITH, metric), (other, metric)
            row[metric], gains[other][metric] = difference_row(
                metric, points[a], points[b], samples[a], samples[b], level
            )
        differences[f"{WITH} - {other}"] = row
    return table, differences, gains


def difference_row(
    metric: str, a: float, b: float, samples_a: np.ndarray, samples_b: np.ndarray, level: float
) -> tuple[dict[str, Any], Interval]:
    """The paired difference a − b of a metric as JSON {estimate, low, high, word}, and turned so that positive is better."""
    difference = paired_difference(a, b, samples_a, samples_b, level)
    turned = difference
    if metric in LOWER_IS_BETTER:
        turned = Interval(-difference.estimate, -difference.high, -difference.low)
    return {**difference.to_dict(), "word": word(turned)}, turned


def _constant(target: Target, rows: Rows) -> Predictions:
    y, size = target.labels[rows.head], len(rows.test)
    distribution = None
    if target.kind == "days":
        share = np.bincount(y.astype(np.int64), minlength=target.horizon + 1) / len(y)
        distribution = np.tile(share, (size, 1))
    return Predictions(np.full(size, y.mean()), np.full(size, (y > 0).mean()), distribution)


def _base_rate(target: Target, rows: Rows) -> np.ndarray:
    """The output bias at which a head says the base rate (with a pseudo-count, so that it is finite)."""
    y = target.labels[rows.head]
    positive = ((y > 0).sum() + 0.5) / (len(y) + 1)
    start = [np.log(positive / (1 - positive))]
    if target.kind == "days":
        for day in range(1, target.horizon):
            hazard = ((y == day).sum() + 0.5) / ((y >= day).sum() + 1)
            start.append(np.log(hazard / (1 - hazard)))
    else:
        logs = np.log(y[y > 0]) if (y > 0).any() else np.zeros(1)
        start += [logs.mean(), np.log(np.expm1(max(logs.std(), 0.1)))]
    return np.asarray(start, np.float32)


def _read(target: Target, logits: np.ndarray, rows: Rows) -> Predictions:
    if target.kind == "days":
        distribution = np.asarray(hurdle_distribution(jnp.asarray(logits)), np.float64)
        distribution /= distribution.sum(1, keepdims=True)
        return Predictions(distribution @ np.arange(target.horizon + 1), 1 - distribution[:, 0], distribution)
    # The mean of a log-normal explodes with its σ; no expected value above the largest one ever seen is believed.
    mean = np.minimum(np.asarray(ziln_mean(jnp.asarray(logits)), np.float64), target.labels[rows.head].max())
    return Predictions(mean, np.asarray(jax.nn.sigmoid(logits[:, 0]), np.float64), None)


def _weighted_mean(values: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    """NaN where a resample drew none of these rows."""
    if w is None:
        return values.mean()
    total = w.sum(-1)
    return np.where(total > 0, w @ values / np.where(total > 0, total, 1.0), np.nan)


def _or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
