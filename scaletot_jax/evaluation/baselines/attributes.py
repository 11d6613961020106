"""Attribute-to-latent mapping: a linear map from profile features to the states of the reasoned users, in place of the encoder.

The classic answer to cold start: where latent factors are known for some users (here the whitened reasoning states of the
distilled profiles), ridge regression maps attributes to factors, and everyone gets the mapped factors; a second ridge
predicts the label from them. What the encoder adds to it is what a network can learn beyond a line.
Source: Gantner et al. (2010), Learning attribute-to-feature mappings for cold-start recommendations.
"""

from __future__ import annotations

import numpy as np

from scaletot_jax.evaluation.baselines.known import Known, NotApplicable
from scaletot_jax.evaluation.heads import Scaler, ridge
from scaletot_jax.evaluation.predictions import Predictions, Target, of_mean

PENALTIES = 10.0 ** np.arange(-3, 4)


def mapped_latent(known: Known, target: Target) -> list[Predictions]:
    """Attributes → latent states → label."""
    if known.latent is None or known.latent_rows is None or len(known.latent) < 20:
        raise NotApplicable("reasoning states of fewer than 20 training profiles")
    x = Scaler.fit(known.dense[known.latent_rows]).apply(known.dense).astype(np.float64)
    mapped = x @ linear_map(x[known.latent_rows], known.latent)
    rows, y = known.rows, target.labels
    mapped = Scaler.fit(mapped[rows.head]).apply(mapped)
    return [of_mean(ridge(mapped[rows.head], y[rows.head], mapped[rows.val], y[rows.val], mapped[rows.test]))]


def linear_map(x: np.ndarray, latent: np.ndarray) -> np.ndarray:
    """W [P, d] of the ridge regression latent ≈ x W, its penalty by generalised cross-validation."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    moved, n = u.T @ latent, len(x)
    scores = []
    for penalty in PENALTIES * n:
        shrink = s**2 / (s**2 + penalty)
        residual = latent - u @ (shrink[:, None] * moved)
        scores.append(np.sum(residual**2) / max(1e-9, 1 - shrink.sum() / n) ** 2)
    penalty = PENALTIES[int(np.argmin(scores))] * n
    return vt.T @ ((s / (s**2 + penalty))[:, None] * moved)
