"""Do the reasoning states themselves know anything of the label? Pure.

A collapsed student is easy to copy: its states are one point, and an encoder reaches their ceiling at once. So transfer
counts as evidence only where a ridge probe on the states beats the constant with an interval above zero.
"""

from __future__ import annotations

import numpy as np

from scaletot_jax.encoder.probe import Probe
from scaletot_jax.evaluation.bootstrap import Interval, bootstrap, percentile_interval


def label_skill(
    probe: Probe, labels: np.ndarray, groups: np.ndarray, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """1 − Σ w (y − ŷ)² / Σ w (y − ȳ_fold)² of out-of-fold predictions, with a bootstrap interval by group.

    The probe's penalty was chosen by the same score, among few: read a value near zero as zero.

    Args:
      probe: of :func:`scaletot_jax.encoder.probe.ridge_probe`.
      labels: [U]; groups: [U], resampled together.
    """
    labels = np.asarray(labels, np.float64)
    error, spread = (labels - probe.predictions) ** 2, (labels - probe.constant) ** 2

    def skill(weights: np.ndarray) -> np.ndarray:
        return 1 - (weights @ error) / np.maximum(weights @ spread, 1e-300)

    if not spread.sum() > 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    samples = bootstrap({"skill": skill}, groups, resamples=resamples, seed=seed)["skill"]
    return percentile_interval(float(skill(np.ones((1, len(labels))))[0]), samples, level)
