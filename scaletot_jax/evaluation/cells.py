"""Cells of the test rows: by how much a profile tells, and by the value of each field; and how unequal the cells fare.

Every cell shows the head with and without ẑ; a cell with fewer rows or groups than :mod:`scaletot_jax.evaluation.slices` asks
for has no numbers, and of its size only that it is below the limit: a value that three test users have may name them. ``bias`` is mean(ŷ) − mean(y): above 0 the cell is promised too much.

The *gap* of a field is the largest minus the smallest figure among its cells, for the head with ẑ, and what ẑ changes of it.
A gap is never negative and grows with the noise of small cells: only its change says something of ẑ. As in the other slices
nothing is corrected for their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scaletot_jax.evaluation import metrics
from scaletot_jax.evaluation.bootstrap import Interval, paired_difference, percentile_interval
from scaletot_jax.evaluation.catalogue import Statistic
from scaletot_jax.evaluation.predictions import Predictions, Rows, Target, average
from scaletot_jax.evaluation.slices import MIN_GROUPS, MIN_ROWS, TOO_FEW, Measured, Slice, measure, too_few
from scaletot_jax.evaluation.verdict import WITH, WITHOUT, word
from scaletot_jax.evaluation.weighted import weighted_mean

SPARSITY = "sparsity"
COHORTS = ("sparse", "middle", "rich")
MOST_VALUES = 20  # a field with more values among the test rows makes no cells
GAPS = ("bias", "auc")


def sparsity(present: np.ndarray, rows: Rows) -> np.ndarray:
    """Cohort of each test row by the number of known fields, cut at the terciles of the head rows.

    Args:
      present: [U] number of profile fields that are there.
    """
    low, high = np.quantile(present[rows.head], [1 / 3, 2 / 3])
    place = np.where(present <= low, 0, np.where(present <= high, 1, 2))
    return np.asarray(COHORTS, object)[place[rows.test]]


def score_cells(
    target: Target,
    systems: Mapping[str, Sequence[Predictions]],
    rows: Rows,
    groups: np.ndarray,
    cells: Mapping[str, np.ndarray],
    *,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """The heads with and without ẑ in every cell.

    Args:
      target: the label.
      systems: of the comparison.
      rows: the test rows are judged. groups: group of every row [U].
      cells: division (:data:`SPARSITY` or a field) → value of each test row [T].
      resamples, level, seed: of the bootstrap.

    Returns:
      JSON, division → {cells: value → {rows, groups, systems: system → figure → {estimate, low, high}, difference: figure →
      {estimate, low, high, word}} or {rows, groups, note, why}, where rows and groups are "< limit" or None; gaps: figure → {with, without, change: each {estimate, low,
      high}, cells}}. Figures: spearman (of a binary label none), auc and bias; the change of bias has no word.
    """
    labels, members = target.labels[rows.test], groups[rows.test]
    predictions = {name: average(systems[name]) for name in (WITHOUT, WITH)}
    out: dict[str, Any] = {}
    judged: dict[Slice, np.ndarray] = {}
    for name, values in cells.items():
        found = sorted(set(values.astype(str)))
        if len(found) < 2 or len(found) > MOST_VALUES:
            continue
        out[name] = {"cells": {}, "gaps": {}}
        for value in found:
            inside = values.astype(str) == value
            why = too_few(labels[inside], members[inside])
            size = {"rows": int(inside.sum()), "groups": len(np.unique(members[inside].astype(str)))}
            out[name]["cells"][value] = {**size, **({"note": TOO_FEW, "why": why} if why else {})}
            if not why:
                judged[name, value] = inside
        _withhold(out[name]["cells"])
    points, samples = measure(
        target, labels, predictions, members, judged, resamples=resamples, seed=seed, statistics=_figures
    )
    for name, value in judged:
        key = (name, value)
        out[name]["cells"][value] |= _cell(points[key], samples[key], level)
    for name in out:
        kept = [key for key in judged if key[0] == name]
        if len(kept) > 1:
            out[name]["gaps"] = {
                figure: _gap([points[key] for key in kept], [samples[key] for key in kept], figure, level)
                for figure in GAPS
            }
    return out


def _withhold(found: Mapping[str, dict[str, Any]]) -> None:
    """Sizes below the limits become "< limit", None where the other one is. With the number of all test rows the other cells would
    tell what is left: so where that is one cell, or fewer rows than the limit, the next larger cell's sizes become None."""
    order = sorted(
        found.values(), key=lambda cell: (cell["rows"] >= MIN_ROWS and cell["groups"] >= MIN_GROUPS, cell["rows"])
    )
    small = [cell for cell in order if cell["rows"] < MIN_ROWS or cell["groups"] < MIN_GROUPS]
    if small and len(order) > len(small) and (len(small) == 1 or sum(cell["rows"] for cell in small) < MIN_ROWS):
        order[len(small)].update(rows=None, groups=None)
    for cell in small:
        for what, least in (("rows", MIN_ROWS), ("groups", MIN_GROUPS)):
            cell[what] = f"< {least}" if cell[what] < least else None


def _figures(target: Target, labels: np.ndarray, p: Predictions) -> dict[str, Statistic]:
    error = p.mean - labels
    found: dict[str, Statistic] = {
        "spearman": lambda w: metrics.spearman(labels, p.mean, w),
        "auc": lambda w: metrics.auc(labels, p.positive, w),
        "bias": lambda w: error.mean() if w is None else weighted_mean(error, w),
    }
    return {name: f for name, f in found.items() if name != "spearman" or target.kind != "binary"}


def _cell(points: Mapping[Measured, float], samples: Mapping[Measured, np.ndarray], level: float) -> dict[str, Any]:
    systems: dict[str, dict[str, Any]] = {WITHOUT: {}, WITH: {}}
    for (system, figure), value in points.items():
        systems[system][figure] = percentile_interval(value, samples[system, figure], level).to_dict()
    difference = {}
    for figure in systems[WITH]:
        found = _change(points, samples, figure, level)
        difference[figure] = {**found.to_dict(), **({} if figure == "bias" else {"word": word(found)})}
    return {"systems": systems, "difference": difference}


def _change(
    points: Mapping[Measured, float], samples: Mapping[Measured, np.ndarray], figure: str, level: float
) -> Interval:
    a, b = (WITH, figure), (WITHOUT, figure)
    return paired_difference(points[a], points[b], samples[a], samples[b], level)


def _gap(
    points: Sequence[Mapping[Measured, float]],
    samples: Sequence[Mapping[Measured, np.ndarray]],
    figure: str,
    level: float,
) -> dict[str, Any]:
    """Largest minus smallest figure over cells, with ẑ, without, and the change."""
    spread, spreads = {}, {}
    for system in (WITH, WITHOUT):
        spread[system] = float(np.ptp([one[system, figure] for one in points]))
        many = np.stack([one[system, figure] for one in samples])  # [cells, R]; NaN where a cell drew no such rows
        spreads[system] = many.max(0) - many.min(0)
    change = paired_difference(spread[WITH], spread[WITHOUT], spreads[WITH], spreads[WITHOUT], level)
    return {
        "with": percentile_interval(spread[WITH], spreads[WITH], level).to_dict(),
        "without": percentile_interval(spread[WITHOUT], spreads[WITHOUT], level).to_dict(),
        "change": change.to_dict(),
        "cells": len(points),
    }
