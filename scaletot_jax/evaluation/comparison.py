"""One fair comparison: the same heads on the same rows, with and without ẑ, with placebos, intervals and paired differences.

Systems of this module (the networks are one and the same, see :mod:`scaletot_jax.evaluation.heads`; the rest are in
:mod:`scaletot_jax.evaluation.baselines`):

    constant                 the distribution of the head split's labels, for everyone
    ridge                    ridge regression on the profile features
    profile                  head on the profile features; ẑ's columns are zeros: the hurdle-ordinal network for days, the
                             zero-inflated log-normal one for values
    profile_z                head on the profile features and ẑ
    profile_z_shuffled       placebo: each row gets another row's ẑ
    profile_z_untrained      placebo: ẑ of the encoder's initial, undistilled weights
    encoder_MODE             rivals: ẑ of the same encoder trained on other targets, see scaletot_jax.encoder.placebos

Predictions of a system are averaged over its seeds before any metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.evaluation.bootstrap import Interval, bootstrap, paired_difference, percentile_interval
from scaletot_jax.evaluation.catalogue import CATALOGUE, LOWER_IS_BETTER, METRICS, metric_functions
from scaletot_jax.evaluation.family import holm
from scaletot_jax.evaluation.heads import Fitted, Scaler, fit_heads, free_mixing, hurdle_mixing, predict_heads, ridge
from scaletot_jax.evaluation.kept_heads import KeptHead
from scaletot_jax.evaluation.predictions import LEVELS, Predictions, Rows, Target, average, of_mean, thresholds
from scaletot_jax.evaluation.verdict import REQUIRED, WITH, WITHOUT, Gain, word
from scaletot_jax.losses.ltv import hurdle_distribution, hurdle_nll, ziln_mean, ziln_nll
from scaletot_jax.population.quantiles import ziln_quantiles

__all__ = ["METRICS", "PLACEBOS", "WITH", "WITHOUT", "Predictions", "Rows", "Target", "average", "metric_functions"]

PLACEBOS = ("profile_z_shuffled", "profile_z_untrained")


def variants(
    dense: np.ndarray,
    z: np.ndarray,
    untrained: np.ndarray,
    rows: Rows,
    seed: int,
    rivals: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The inputs of the networks, each [U, P + E], standardised with the head rows' statistics.

    Args:
      dense: [U, P] profile features. z, untrained: [U, E].
      rows: rows are shuffled within each part.
      seed: of the shuffling.
      rivals: name → [U, E], other embeddings in ẑ's place.
    """
    rng = np.random.default_rng(seed)
    shuffled = np.array(z)
    for part in rows:
        shuffled[part] = z[rng.permutation(part)]
    parts = {WITHOUT: np.zeros_like(z), WITH: z, PLACEBOS[0]: shuffled, PLACEBOS[1]: untrained, **(rivals or {})}
    stacked = {name: np.concatenate([dense, extra], axis=1) for name, extra in parts.items()}
    return {name: Scaler.fit(x[rows.head]).apply(x) for name, x in stacked.items()}


def predict(
    target: Target,
    inputs: Mapping[str, np.ndarray],
    dense: np.ndarray,
    rows: Rows,
    head: Mapping[str, Any],
    seed: int,
    *,
    shared_penalty: bool = False,
) -> tuple[dict[str, list[Predictions]], Predictions, KeptHead]:
    """Fits every system on the head rows and predicts the test rows.

    Args:
      target: the label.
      inputs: from :func:`variants`.
      dense: [U, P] profile features, for ridge.
      rows: head trains, val selects, test is predicted.
      head: the configuration's ``head`` section.
      seed: of the heads; their number is ``head["seeds"]``.
      shared_penalty: see :func:`scaletot_jax.evaluation.heads.fit_heads`.

    Returns:
      system → predictions of each seed for the test rows (one entry for constant and ridge); the predictions of
      ``profile_z``, averaged over its seeds, for every row; and its heads.
    """
    y = target.labels
    everyone: list[Predictions] = []
    out = {"constant": [_constant(target, rows)]}
    x = Scaler.fit(dense[rows.head]).apply(dense)
    out["ridge"] = [of_mean(ridge(x[rows.head], y[rows.head], x[rows.val], y[rows.val], x[rows.test]))]
    for name, x in inputs.items():
        fitted, heads = fit_target(target, x, rows, head, seed, shared_penalty=shared_penalty)
        mixing = heads.mixing
        logits = predict_heads(fitted, x[rows.test], width=head["width"], mixing=mixing)
        out[name] = [read_logits(target, one, rows) for one in logits]
        if name == WITH:
            everyone = [
                read_logits(target, one, rows, quantiles=False)
                for one in predict_heads(fitted, x, width=head["width"], mixing=mixing)
            ]
            kept = heads
    return out, average(everyone), kept


def fit_target(
    target: Target, x: np.ndarray, rows: Rows, head: Mapping[str, Any], seed: int, *, shared_penalty: bool = False
) -> tuple[Fitted, KeptHead]:
    """The heads of one label on standardised inputs x [U, P]: head rows train, val rows select. Else as :func:`predict`."""
    y = target.labels
    mixing = free_mixing(3) if target.kind == "value" else hurdle_mixing(target.horizon)
    fitted = fit_heads(
        x[rows.head], y[rows.head], x[rows.val], y[rows.val],
        loss=ziln_nll if target.kind == "value" else hurdle_nll, mixing=mixing,
        seeds=[seed + i for i in range(head["seeds"])], bias=base_rate(target, rows), shared_penalty=shared_penalty,
        **{key: head[key] for key in ("width", "steps", "batch_size", "learning_rate", "penalties")},
    )  # fmt: skip
    cap = float(y[rows.head].max())
    kind = "value" if target.kind == "value" else "days"  # a binary label is a day of one: served as such
    return fitted, KeptHead(target.column, kind, target.horizon, cap, head["width"], mixing, fitted.params)


def score_systems(
    target: Target,
    systems: Mapping[str, Sequence[Predictions]],
    rows: Rows,
    groups: np.ndarray,
    *,
    resamples: int,
    level: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Gain]]]:
    """Metrics with intervals, and paired differences of ``profile_z`` from every other system.

    Args:
      target: the label.
      systems: from :func:`predict`, and more.
      rows: the test rows are judged.
      groups: group of every row [U]; resampled as wholes.
      resamples, level, seed: of the bootstrap.

    Returns:
      systems as JSON: system → metric → {estimate, low, high}, and ``by_seed`` → metric → list;
      differences as JSON: ``profile_z - other`` → metric → {estimate, low, high, word, p, p_holm, word_holm}, estimate = with minus
      other, Holm's correction over the family that :func:`family_of` says;
      gains: other → metric → :class:`~scaletot_jax.evaluation.verdict.Gain`, turned so that positive is better.
    """
    y = target.labels[rows.test]
    edges = thresholds(target, rows)
    base = None if target.kind == "value" else base_distribution(target, rows)
    functions = {name: metric_functions(target, y, average(found), edges, base) for name, found in systems.items()}
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
            by_seed = [metric_functions(target, y, one, edges, base) for one in found]
            table[name]["by_seed"] = {
                metric: [_or_none(one[metric](None)) for one in by_seed] for metric in functions[name]
            }

    differences: dict[str, Any] = {}
    gains: dict[str, dict[str, Gain]] = {}
    for other in [name for name in systems if name != WITH]:
        gains[other], row = {}, {}
        for metric in functions[WITH]:
            if metric not in functions[other] or CATALOGUE[metric].better == "one":
                continue
            a, b = (WITH, metric), (other, metric)
            row[metric], turned = difference_row(metric, points[a], points[b], samples[a], samples[b], level)
            gains[other][metric] = Gain.of(turned, samples[a] - samples[b], level)
        differences[f"{WITH} - {other}"] = row
    _correct(differences, gains, level)
    return table, differences, gains


def family_of(other: str) -> str:
    """The family of comparisons that Holm's correction is made over: ``required`` rivals of the verdict, or all ``other`` systems."""
    return "required" if other in REQUIRED else "other"


def difference_row(
    metric: str, a: float, b: float, samples_a: np.ndarray, samples_b: np.ndarray, level: float
) -> tuple[dict[str, Any], Interval]:
    """The paired difference a − b of a metric as JSON {estimate, low, high, word}, and turned so that positive is better."""
    difference = paired_difference(a, b, samples_a, samples_b, level)
    turned = difference
    if metric in LOWER_IS_BETTER:
        turned = Interval(-difference.estimate, -difference.high, -difference.low)
    return {**difference.to_dict(), "word": word(turned)}, turned


def _correct(differences: dict[str, Any], gains: Mapping[str, Mapping[str, Gain]], level: float) -> None:
    """Adds p, p_holm and word_holm to every difference."""
    for family in ("required", "other"):
        members = [other for other in gains if family_of(other) == family]
        for metric in {metric for other in members for metric in gains[other]}:
            p = {other: gains[other][metric].p for other in members if metric in gains[other]}
            for other, adjusted in holm(p).items():
                row = differences[f"{WITH} - {other}"][metric]
                sure = adjusted <= 1 - level
                row |= {"p": _or_none(p[other]), "p_holm": _or_none(adjusted)}
                row["word_holm"] = row["word"] if sure else word(Interval(0.0, 0.0, 0.0))


def _constant(target: Target, rows: Rows) -> Predictions:
    y, size = target.labels[rows.head], len(rows.test)
    distribution = quantiles = None
    if target.kind == "value":
        quantiles = np.tile(np.quantile(y, LEVELS), (size, 1))
    else:
        distribution = np.tile(base_distribution(target, rows), (size, 1))
    return Predictions(np.full(size, y.mean()), np.full(size, (y > 0).mean()), distribution, quantiles)


def base_distribution(target: Target, rows: Rows) -> np.ndarray:
    """Share of each label 0..horizon among the head rows, [horizon + 1]."""
    y = target.labels[rows.head].astype(np.int64)
    return np.bincount(y, minlength=target.horizon + 1) / len(y)


def base_rate(target: Target, rows: Rows) -> np.ndarray:
    """The output bias at which a head says the base rate (with a pseudo-count, so that it is finite)."""
    y = target.labels[rows.head]
    positive = ((y > 0).sum() + 0.5) / (len(y) + 1)
    start = [np.log(positive / (1 - positive))]
    if target.kind == "value":
        logs = np.log(y[y > 0]) if (y > 0).any() else np.zeros(1)
        start += [logs.mean(), np.log(np.expm1(max(logs.std(), 0.1)))]
    else:
        for day in range(1, target.horizon):
            hazard = ((y == day).sum() + 0.5) / ((y >= day).sum() + 1)
            start.append(np.log(hazard / (1 - hazard)))
    return np.asarray(start, np.float32)


def read_logits(target: Target, logits: np.ndarray, rows: Rows, *, quantiles: bool = True) -> Predictions:
    """What the outputs [T, O] of one head say; of a value its quantiles only where asked for."""
    if target.kind != "value":
        distribution = np.asarray(_distribution(logits), np.float64)
        distribution /= distribution.sum(1, keepdims=True)
        return Predictions(distribution @ np.arange(target.horizon + 1), 1 - distribution[:, 0], distribution)
    # The mean of a log-normal explodes with its σ; no expected value above the largest one ever seen is believed.
    cap = target.labels[rows.head].max()
    mean = np.minimum(np.asarray(ziln_mean(jnp.asarray(logits)), np.float64), cap)
    spread = np.minimum(np.asarray(_quantiles(logits), np.float64), cap) if quantiles else None
    return Predictions(mean, np.asarray(jax.nn.sigmoid(logits[:, 0]), np.float64), None, spread)


_distribution = jax.jit(hurdle_distribution)


@jax.jit
def _quantiles(logits: jax.Array) -> jax.Array:
    """[T, len(LEVELS)] of zero-inflated log-normals with logits [T, 3]."""
    return ziln_quantiles(logits[:, None], LEVELS)


def _or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
