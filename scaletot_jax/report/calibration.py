"""Calibration by decile: do rows that were promised more come to more, and to as much? Pure, but for one reader of tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.evaluation.bootstrap import bootstrap, percentile_interval

BINS = 10
SYSTEMS = ("profile", "profile_z")  # the head without and with ẑ


def deciles(
    expected: np.ndarray, label: np.ndarray, groups: np.ndarray, *, resamples: int, level: float, seed: int
) -> list[dict[str, Any]]:
    """Mean prediction and mean label of each tenth of the rows by prediction, with intervals by group.

    Rows of equal predictions lie whole in the tenth of their midpoint, so that the order of a file decides nothing; a tenth
    may be empty and is then left out.

    Args:
      expected: ŷ [T]. label: y [T]. groups: [T], resampled together.
      resamples, level, seed: of the bootstrap.

    Returns:
      by rising prediction: decile (1..10), rows, expected, and observed {estimate, low, high}; JSON-able.
    """
    _, place, counts = np.unique(np.asarray(expected, np.float64), return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / max(len(expected), 1)
    bins = np.minimum((middle * BINS).astype(int), BINS - 1)[place]
    label = np.asarray(label, np.float64)

    def mean_in(inside: np.ndarray) -> Any:
        def mean(weights: np.ndarray) -> np.ndarray:
            total = weights[:, inside].sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                return weights[:, inside] @ label[inside] / total

        return mean

    members = {b: bins == b for b in range(BINS) if (bins == b).any()}
    samples = bootstrap({b: mean_in(m) for b, m in members.items()}, groups, resamples=resamples, seed=seed)
    return [
        {
            "decile": b + 1,
            "rows": int(inside.sum()),
            "expected": float(np.mean(np.asarray(expected, np.float64)[inside])),
            "observed": percentile_interval(float(label[inside].mean()), samples[b], level).to_dict(),
        }
        for b, inside in members.items()
    ]


def calibration(predictions: pa.Table, population: pa.Table, features: str, **resampling: Any) -> dict[str, Any]:
    """Deciles of every label, for the heads without and with ẑ on one feature set.

    Args:
      predictions: predictions.parquet of stage ``evaluate``.
      population: row and group.
      features: the feature set.
      resampling: resamples, level, seed.

    Returns:
      label → system → :func:`deciles`.
    """
    group_of = dict(zip(population["row"].to_pylist(), population["group"].to_pylist()))
    chosen = predictions.filter(pc.equal(predictions["features"], features))
    out: dict[str, Any] = {}
    for label in dict.fromkeys(chosen["target"].to_pylist()):
        for system in SYSTEMS:
            part = chosen.filter(pc.and_(pc.equal(chosen["target"], label), pc.equal(chosen["system"], system)))
            if part.num_rows:
                groups = np.array([str(group_of[row]) for row in part["row"].to_pylist()])
                expected, known = (part[name].cast(pa.float64()).to_numpy() for name in ("expected", "label"))
                out.setdefault(label, {})[system] = deciles(expected, known, groups, **resampling)
    return out
