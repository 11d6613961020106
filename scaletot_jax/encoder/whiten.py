"""Whitening of reasoning states: raw LLM states share a huge common mean, so distances between them say nothing.

For each segment: subtract the mean, project on the leading principal axes, divide by their standard deviations, and scale
to unit RMS. All statistics come from the distillation's *training* profiles; everything is float64 on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scaletot_jax.errors import DataError

_FLOOR = 1e-6  # of the largest variance: directions below it are rounding noise, and are dropped


class Whitening(NamedTuple):
    """Statistics of one segment."""

    mean: np.ndarray  # [D] float64
    axes: np.ndarray  # [D, d] float64 principal axes, each divided by its standard deviation and the final scale
    variance: np.ndarray  # [d] float64 variance along each axis before whitening, falling


def fit_whitening(states: np.ndarray, dim: int) -> Whitening:
    """Fits one segment.

    z = (h − μ) V Λ^{−½} / s with the eigenvectors V [D, d] and eigenvalues Λ of the covariance of h, d = min(dim, rank),
    and s so that the mean of z² over rows and columns is 1.

    Args:
      states: [U, D] states of training profiles, U ≥ 2.
      dim: most directions kept.

    Raises:
      DataError: fewer than two rows, values that are not finite, or states that do not vary at all.
    """
    states = np.asarray(states, np.float64)
    if states.ndim != 2 or len(states) < 2:
        raise DataError("whitening needs at least two states", why=f"shape {states.shape}")
    if not np.isfinite(states).all():
        raise DataError("a reasoning state is not finite", where=f"row {np.argwhere(~np.isfinite(states))[0][0]}")
    mean = states.mean(0)
    _, singular, axes = np.linalg.svd(states - mean, full_matrices=False)
    variance = singular**2 / len(states)
    scale = np.abs(states).max() ** 2
    rank = int((variance > max(_FLOOR * variance[0], 1e-20 * scale)).sum())
    if rank == 0:
        raise DataError(
            "the reasoning states do not vary between profiles", do="check that the student reads the profile"
        )
    kept = min(dim, rank)
    axes, variance = _orient(axes[:kept]), variance[:kept]
    columns = (axes / np.sqrt(variance)[:, None]).T
    rms = np.sqrt(np.mean(((states - mean) @ columns) ** 2))
    return Whitening(mean, columns / rms, variance)


def whiten(whitening: Whitening, states: np.ndarray) -> np.ndarray:
    """States [..., D] → whitened [..., d] float64."""
    return (np.asarray(states, np.float64) - whitening.mean) @ whitening.axes


def effective_rank(states: np.ndarray) -> float:
    """exp of the entropy of the normalised covariance spectrum (Roy & Vetterli 2007): 1 if all rows lie on a line."""
    states = np.asarray(states, np.float64)
    variance = np.linalg.svd(states - states.mean(0), compute_uv=False) ** 2
    if not variance.sum() > 0:
        return 0.0
    share = variance / variance.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def _orient(axes: np.ndarray) -> np.ndarray:
    """Fixes the sign of each axis by its largest entry, which the SVD leaves open."""
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1)
    return axes * np.where(largest < 0, -1.0, 1.0)
