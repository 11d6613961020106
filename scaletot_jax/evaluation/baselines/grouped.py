"""Means and distributions of labels by group of rows, shrunk towards those of everyone: what several baselines are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaletot_jax.evaluation.predictions import Predictions, Target, of_distribution

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # pseudo-rows of the population mean, candidates


def codes_of(keys: np.ndarray) -> np.ndarray:
    """Keys of any kind as integers 0..G−1, equal where the keys are."""
    return np.unique(np.asarray(keys).astype(str), return_inverse=True)[1].reshape(-1)


def shrunk_mean(codes: np.ndarray, y: np.ndarray, asked: np.ndarray, strength: float) -> np.ndarray:
    """(Σ_g y + k ȳ) / (n_g + k) for each of ``asked``; ȳ for a group without rows.

    Args:
      codes: [N] group of each labelled row. y: [N]. asked: [M] groups. strength: k.
    """
    size = int(max(codes.max(initial=-1), asked.max(initial=-1))) + 1
    count, total = np.bincount(codes, minlength=size), np.bincount(codes, weights=y, minlength=size)
    return ((total + strength * y.mean()) / (count + strength))[asked]


def shrunk_predictions(
    target: Target, codes: np.ndarray, labelled: np.ndarray, asked: np.ndarray, strength: float
) -> Predictions:
    """Predictions by group: for days and binary labels the shrunk shares of each label, for values mean and P(y > 0).

    Args:
      target: the label.
      codes: [U] group of every row.
      labelled, asked: row numbers.
      strength: k, see :func:`shrunk_mean`.
    """
    y, known, wanted = target.labels[labelled], codes[labelled], codes[asked]
    if target.kind == "value":
        mean, positive = (shrunk_mean(known, v, wanted, strength) for v in (y, (y > 0).astype(float)))
        return Predictions(mean, positive)
    classes = range(target.horizon + 1)
    return of_distribution(np.stack([shrunk_mean(known, (y == c).astype(float), wanted, strength) for c in classes], 1))


def choose_strength(
    codes: np.ndarray, y: np.ndarray, groups: np.ndarray, strengths: Sequence[float] = STRENGTHS
) -> float:
    """The k with the least squared error of means that leave the row's own group (household, person) out.

    Args:
      codes: [N] group of rows whose mean is taken. y: [N] labels. groups: [N] who the rows belong to.
    """
    own = codes_of(np.char.add(np.char.add(codes.astype(str), "|"), groups.astype(str)))
    count = np.bincount(codes)[codes] - np.bincount(own)[own]
    total = np.bincount(codes, weights=y)[codes] - np.bincount(own, weights=y)[own]
    errors = [np.mean(((total + k * y.mean()) / (count + k) - y) ** 2) for k in strengths]
    return float(strengths[int(np.argmin(errors))])
