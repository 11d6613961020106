"""The layer probe: which layer's reasoning states tell most about the label, by cross-validated ridge regression.

The labels are those of the users whose states are distilled, from the training period; the probe only picks a layer (and
reports how much label skill the states have at all), it trains no part of the encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaletot_jax.errors import DataError

PENALTIES = tuple(10.0**power for power in range(-3, 5))  # × the mean squared norm of a standardised row
MIN_PROBE = 30  # labelled profiles; fewer say nothing about a layer
FRACTIONS = (1 / 2, 2 / 3, 3 / 4, 1.0)


class Probe(NamedTuple):
    """Result of :func:`ridge_probe`."""

    r2: float  # cross-validated coefficient of determination, best penalty
    penalty: float
    predictions: np.ndarray  # [U] out-of-fold predictions at that penalty
    constant: np.ndarray  # [U] mean label of each row's training fold: what is to be beaten


def candidate_layers(num_layers: int) -> tuple[int, ...]:
    """Layers {½, ⅔, ¾, 1}·L, rounded up, without duplicates, ascending."""
    return tuple(sorted({max(1, int(np.ceil(fraction * num_layers - 1e-9))) for fraction in FRACTIONS}))


def folds_of(groups: Sequence[str], folds: int) -> np.ndarray:
    """Fold of each row [U] by a hash of its group: one group never lies in two folds."""
    return np.array([int(hashlib.sha256(f"probe:{group}".encode()).hexdigest()[:8], 16) % folds for group in groups])


def can_probe(labels: np.ndarray, folds: np.ndarray) -> bool:
    """Whether a probe of these labels [U] would say anything."""
    return len(labels) >= MIN_PROBE and len(np.unique(folds)) >= 2 and labels.std() > 0


def ridge_probe(
    states: np.ndarray, labels: np.ndarray, folds: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> Probe:
    """Ridge regression of the label on states, scored out of fold.

    Solved in the dual (U × U), since states are wider than users are many. Columns are standardised and the label
    centred with the statistics of each training fold. R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ_fold)² with the training mean as
    the constant to beat, so 0 means "no better than the constant".

    Args:
      states: [U, P].
      labels: [U].
      folds: [U] fold ids; every fold's complement needs at least two rows.
      penalties: tried; the best one's score is reported, for every layer alike.
    """
    states, labels, folds = np.asarray(states, np.float64), np.asarray(labels, np.float64), np.asarray(folds)
    if len(np.unique(folds)) < 2 or not np.isfinite(states).all() or not np.isfinite(labels).all():
        raise DataError("the probe needs finite states and labels in at least two folds", why=f"{len(labels)} rows")
    predictions = np.zeros((len(penalties), len(labels)))
    constant = np.zeros(len(labels))
    for fold in np.unique(folds):
        test = folds == fold
        train = ~test
        mean, std = states[train].mean(0), states[train].std(0)
        x = (states - mean) / np.where(std > 1e-9 * np.abs(states).max(initial=1e-300), std, np.inf)
        constant[test] = labels[train].mean()
        kernel = x[train] @ x[train].T
        scale = max(np.trace(kernel) / len(kernel), 1e-12)
        values, vectors = np.linalg.eigh(kernel)
        projected = vectors.T @ (labels[train] - labels[train].mean())
        cross = (x[test] @ x[train].T) @ vectors
        for i, penalty in enumerate(penalties):
            predictions[i, test] = constant[test] + cross @ (projected / (np.maximum(values, 0) + penalty * scale))
    total = ((labels - constant) ** 2).sum()
    if not total > 0:
        return Probe(float("nan"), float(penalties[-1]), constant, constant)
    r2 = 1 - ((labels - predictions) ** 2).sum(1) / total
    best = int(np.argmax(r2))
    return Probe(float(r2[best]), float(penalties[best]), predictions[best], constant)
