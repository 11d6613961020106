"""Seen and unseen profiles: is a gain confined to rows whose profile was known already?

The users of the test rows are new, but their profiles need not be. A test row counts as *seen* if its coarse key (see
:mod:`scaletot_jax.profiles.keys`) occurs among the known rows; what "known" means is stated in :data:`KNOWN`. Each side
is a subpopulation of the test set, judged on the bootstrap resamples of the whole set: whole groups are drawn, and the
rows of the slice keep the weights they got, so that the size of a slice varies as it does in a new sample.

The slices explore: nothing is corrected for their number, and rows that differ in being seen differ in other ways too
(common profiles are seen, rare ones are not).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scaletot_jax.evaluation.bootstrap import paired_difference, percentile_interval, resample_weights
from scaletot_jax.evaluation.catalogue import METRICS, Statistic, metric_functions
from scaletot_jax.evaluation.comparison import difference_row
from scaletot_jax.evaluation.predictions import Predictions, Rows, Target, average
from scaletot_jax.evaluation.verdict import WITH, WITHOUT

MIN_ROWS, MIN_GROUPS = 30, 10  # a smaller slice has no numbers
TOO_FEW, NOT_APPLICABLE = "too few to tell", "not applicable"
SIDES = ("seen", "unseen")
_SLICED = (
    "spearman",
    "auc",
    "normalised_gini",
    "rmse",
    "rps",
    "crps",
)  # the other metrics need more rows than slices have
Slice = tuple[str, str]  # name of the division, side
Measured = tuple[str, str]  # system, metric
KNOWN = {
    "teacher": "the coarse profile is that of a profile the teacher reasoned about",
    "head": "the coarse profile is that of a row the heads were trained on",
}


def sliced(kind: str) -> tuple[str, ...]:
    """The metrics that slices show, for a kind of label."""
    return tuple(name for name in METRICS[kind] if name in _SLICED)


def seen_rows(keys: np.ndarray, known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which of ``rows`` have a key that one of the ``known`` rows has.

    Args:
      keys: coarse key of every row [U].
      known, rows: row numbers.

    Returns:
      bool, one a row of ``rows``.
    """
    return np.isin(keys[rows].astype(str), keys[known].astype(str))


def score_slices(
    target: Target,
    systems: Mapping[str, Sequence[Predictions]],
    rows: Rows,
    groups: np.ndarray,
    seen: Mapping[str, np.ndarray],
    *,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """The heads with and without ẑ on the seen and on the unseen test rows.

    Args:
      target: the label.
      systems: from :func:`~scaletot_jax.evaluation.comparison.predict`.
      rows: the test rows are judged.
      groups: group of every row [U].
      seen: name of :data:`KNOWN` → bool [T].
      resamples, level, seed: of the bootstrap; the resamples are those of
        :func:`~scaletot_jax.evaluation.comparison.score_systems` for the same seed.

    Returns:
      JSON, one entry a name of ``seen``: ``{"seen", "unseen"}`` → ``{rows, groups, systems: system → metric →
      {estimate, low, high}, difference: metric → {estimate, low, high, word}}`` with difference = with ẑ minus without;
      a side below :data:`MIN_ROWS`, :data:`MIN_GROUPS` or with one label value has ``note`` and ``why`` in place of
      numbers. ``seen_minus_unseen``: metric → interval of the difference between the two differences, where both sides
      have numbers. Where all rows are on one side: ``note`` and ``why`` alone.
    """
    labels, members = target.labels[rows.test], groups[rows.test]
    predictions = {name: average(systems[name]) for name in (WITHOUT, WITH)}
    out: dict[str, Any] = {}
    judged: dict[Slice, np.ndarray] = {}  # bool [T]
    for name, mask in seen.items():
        if mask.all() or not mask.any():
            which = "every" if mask.all() else "no"
            out[name] = {"note": NOT_APPLICABLE, "why": f"{which} one of the {len(mask):,} test rows was seen"}
            continue
        out[name] = {}
        for side, inside in zip(SIDES, (mask, ~mask)):
            why = too_few(labels[inside], members[inside])
            size = {"rows": int(inside.sum()), "groups": len(np.unique(members[inside].astype(str)))}
            out[name][side] = {**size, **({"note": TOO_FEW, "why": why} if why else {})}
            if not why:
                judged[name, side] = inside
    points, samples = measure(target, labels, predictions, members, judged, resamples=resamples, seed=seed)
    for name, side in judged:
        out[name][side] |= numbers(points[name, side], samples[name, side], level)
    for name in seen:
        if all((name, side) in judged for side in SIDES):
            sides = [(points[name, side], samples[name, side]) for side in SIDES]
            out[name]["seen_minus_unseen"] = _contrast(sides, level)
    return out


def too_few(labels: np.ndarray, groups: np.ndarray) -> str:
    """Why a slice has no numbers; empty where it has."""
    if len(labels) < MIN_ROWS:
        return f"fewer than {MIN_ROWS} rows"
    if len(np.unique(groups.astype(str))) < MIN_GROUPS:
        return f"fewer than {MIN_GROUPS} groups"
    return "" if np.ptp(labels) > 0 else "all labels are equal"


def measure(
    target: Target,
    labels: np.ndarray,
    predictions: Mapping[str, Predictions],
    groups: np.ndarray,
    slices: Mapping[Slice, np.ndarray],
    *,
    resamples: int,
    seed: int,
    statistics: Callable[[Target, np.ndarray, Predictions], dict[str, Statistic]] | None = None,
) -> tuple[dict[Slice, dict[Measured, float]], dict[Slice, dict[Measured, np.ndarray]]]:
    """Every metric of both systems in every slice: its value, and its bootstrap distribution [R]."""
    functions: dict[Slice, dict[Measured, Statistic]] = {
        key: {
            (system, metric): function
            for system, p in predictions.items()
            for metric, function in (statistics or _shown)(target, labels[inside], p.at(inside)).items()
        }
        for key, inside in slices.items()
    }
    points = {key: {name: float(f(None)) for name, f in found.items()} for key, found in functions.items()}
    blocks: dict[Slice, dict[Measured, list[np.ndarray]]] = {
        key: {name: [] for name in found} for key, found in functions.items()
    }
    for weights in resample_weights(groups, resamples, seed) if slices else ():
        for key, inside in slices.items():
            part = weights[:, inside]  # once for all metrics
            for name, function in functions[key].items():
                blocks[key][name].append(function(part))
    return points, {key: {n: np.concatenate(b) for n, b in found.items()} for key, found in blocks.items()}


def numbers(points: Mapping[Measured, float], samples: Mapping[Measured, np.ndarray], level: float) -> dict[str, Any]:
    """Intervals of both systems, and of their paired difference, as JSON."""
    systems: dict[str, dict[str, Any]] = {WITHOUT: {}, WITH: {}}
    for (system, metric), value in points.items():
        systems[system][metric] = percentile_interval(value, samples[system, metric], level).to_dict()
    difference = {}
    for metric in systems[WITH]:
        a, b = (WITH, metric), (WITHOUT, metric)
        difference[metric], _ = difference_row(metric, points[a], points[b], samples[a], samples[b], level)
    return {"systems": systems, "difference": difference}


def _contrast(
    sides: Sequence[tuple[Mapping[Measured, float], Mapping[Measured, np.ndarray]]], level: float
) -> dict[str, Any]:
    """By metric: (with minus without among the seen) minus (the same among the unseen), paired, as JSON."""
    out = {}
    for metric in [metric for system, metric in sides[0][0] if system == WITH]:
        (a, many_a), (b, many_b) = (
            (points[WITH, metric] - points[WITHOUT, metric], samples[WITH, metric] - samples[WITHOUT, metric])
            for points, samples in sides
        )
        out[metric] = paired_difference(a, b, many_a, many_b, level).to_dict()
    return out


def _shown(target: Target, labels: np.ndarray, p: Predictions) -> dict[str, Statistic]:
    found = metric_functions(target, labels, p)
    return {name: found[name] for name in sliced(target.kind) if name in found}
