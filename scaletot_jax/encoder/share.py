"""The share of the noise ceiling that the encoder reaches, over all segments, with its interval by group. Pure.

Of segment k, in the states' own units (each direction counts by its variance), over U held-out profiles with N chains:

    R²_k = 1 − Σ_u ‖z̄_uk − ẑ_uk‖² / Σ_u ‖z̄_uk − z̄_k‖²,    ceiling_k = 1 − (W_k / N) / T_k

W_k is the mean variance within a profile, T_k the variance of the chain means z̄_uk. The share is the mean over segments of
R²_k / ceiling_k. The ceiling knows the noise of sampling alone: what a state holds of the very tokens of a profile is "between
profiles" to it, whether a function of the fields can learn it or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scaletot_jax.evaluation.bootstrap import Interval, bootstrap, percentile_interval

GOAL = 0.9
MIN_CEILING = 0.05  # a segment that hardly varies between profiles has nothing to reach


def share_of_ceiling(
    chains: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    groups: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """The share with its bootstrap interval; None for fewer than two profiles or chains, or where no segment varies.

    Args:
      chains: for each segment [U, N, d], in units whose squares are to be summed.
      predicted: for each segment [U, d].
      groups: [U], resampled together.
    """
    if len(groups) < 2 or chains[0].shape[1] < 2:
        return None
    parts = [_Sums(chain, prediction) for chain, prediction in zip(chains, predicted)]
    everyone = np.ones((1, len(groups)))
    parts = [part for part in parts if part.ceiling(everyone)[0] > MIN_CEILING]
    if not parts:
        return None

    def share(weights: np.ndarray) -> np.ndarray:
        return np.mean([part.r2(weights) / np.maximum(part.ceiling(weights), MIN_CEILING) for part in parts], axis=0)

    samples = bootstrap({"share": share}, groups, resamples=resamples, seed=seed)["share"]
    return percentile_interval(float(share(everyone)[0]), samples, level)


def goal(share: Interval | None, label_skill: dict[str, Any] | None) -> dict[str, Any]:
    """Whether :data:`GOAL` is reached, and whether that counts: a collapsed student is easy to copy.

    Args:
      share: of :func:`share_of_ceiling`.
      label_skill: of the states themselves, as JSON.

    Returns:
      share, goal, reached (the estimate), surely (the lower end), and counts: the states know the label, with an interval
      above zero.
    """
    return {
        "share": share.to_dict() if share else None,
        "goal": GOAL,
        "reached": bool(share and share.estimate >= GOAL),
        "surely": bool(share and share.low >= GOAL),
        "counts": bool(label_skill and label_skill["low"] is not None and label_skill["low"] > 0),
    }


class _Sums:
    """What R² and ceiling of one segment need of each profile, so that a resample is a product with weights [R, U]."""

    def __init__(self, chains: np.ndarray, predicted: np.ndarray):
        self.count = chains.shape[1]
        self.mean = chains.mean(1)  # [U, d]
        self.square = (self.mean**2).sum(1)
        self.error = ((self.mean - predicted) ** 2).sum(1)
        self.within = chains.var(axis=1, ddof=1).sum(1)

    def _spread(self, weights: np.ndarray) -> np.ndarray:
        size = weights.sum(1)
        middle = weights @ self.mean / size[:, None]
        return np.maximum(weights @ self.square - size * (middle**2).sum(1), 1e-12 * (weights @ self.square) + 1e-300)

    def r2(self, weights: np.ndarray) -> np.ndarray:
        return 1 - weights @ self.error / self._spread(weights)

    def ceiling(self, weights: np.ndarray) -> np.ndarray:
        size = weights.sum(1)
        total = self._spread(weights) / np.maximum(size - 1, 1)
        between = np.maximum(1 - weights @ self.within / size / self.count / total, 0.0)
        return np.where(
            total * size > 2e-12 * (weights @ self.square) + 2e-300, between, 0.0
        )  # all alike: nothing to tell
