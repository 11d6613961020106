"""Distillation of reasoning states into a profile encoder: close to each state, and alike as a population.

All functions take predictions ẑ and targets z of shape [B, K, d], one vector a segment. Targets are meant to be whitened
(centred, principal components to unit variance) and scaled to unit RMS by statistics of the distillation split: raw
states of a language model share a large common mean, and their cosines are all near 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import divide, floating, require_shape

_EPSILON = 1e-6


def regression_loss(predictions: jax.Array, targets: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Mean squared error a dimension, L_k = (1/N_k) Σ_i v_ik ‖ẑ_ik − z_ik‖² / d.

    In whitened coordinates this is the Mahalanobis distance of the raw states: every direction in which users differ
    counts the same; 1 is what predicting the mean costs.

    Args:
      predictions: ẑ [B, K, d].
      targets: z [B, K, d]; no gradient enters; may hold NaN where not valid.
      valid: bool [B, K]; None: all.

    Returns:
      [K], one loss a segment; 0 for a segment without a valid row.

    Raises:
      ValueError: shapes that disagree (also in the functions below).
    """
    predictions, targets, valid = _check(predictions, targets, valid)
    return _row_mean(jnp.mean((predictions - targets) ** 2, axis=-1), valid)


def cosine_loss(predictions: jax.Array, targets: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """One minus the cosine, L_k = (1/N_k) Σ_i v_ik (1 − cos(ẑ_ik, z_ik)), [K]; in 0..2. Arguments as above."""
    predictions, targets, valid = _check(predictions, targets, valid)
    return _row_mean(1 - jnp.sum(_unit(predictions) * _unit(targets), axis=-1), valid)


def gram_loss(predictions: jax.Array, targets: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Squared distance of the matrices of inner products, L_k = ‖ẐẐᵀ/d − ZZᵀ/d‖²_F / N_k², over valid rows.

    It asks that users who are alike in the student's reasoning are alike in the encoder, whatever the coordinates.

    Returns:
      [K]. Arguments as above. Source: similarity-preserving distillation, arXiv:1907.09682 (there with normalised rows).
    """
    predictions, targets, valid = _check(predictions, targets, valid)
    size = predictions.shape[-1]
    difference = (_inner(predictions, predictions) - _inner(targets, targets)) / size  # [K, B, B]; 0 in invalid rows
    count = valid.sum(axis=0).astype(difference.dtype)
    return divide(jnp.sum(difference**2, axis=(1, 2)), count**2)


def info_nce(
    predictions: jax.Array,
    targets: jax.Array,
    valid: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.07,
    profile_ids: jax.Array | None = None,
) -> jax.Array:
    """Contrast of each prediction against the batch's targets.

        L_k = −(1/N_k) Σ_i v_ik log [ exp(cos(ẑ_ik, z_ik)/τ) / Σ_{j∈N_i} exp(cos(ẑ_ik, z_jk)/τ) ]

    N_i holds i and every valid j with another profile: low-activity users share profiles, and the state of an equal
    profile is no negative.

    Args:
      predictions, targets, valid: as above.
      temperature: τ.
      profile_ids: int [B], equal for equal profiles; None: all differ.

    Returns:
      [K], nats.

    Source: arXiv:1807.03748.
    """
    predictions, targets, valid = _check(predictions, targets, valid)
    rows = predictions.shape[0]
    same = jnp.eye(rows, dtype=bool)
    negative = ~same
    if profile_ids is not None:
        require_shape("profile_ids", profile_ids, (rows,))
        profile_ids = jnp.asarray(profile_ids)
        negative = profile_ids[:, None] != profile_ids[None, :]
    logits = _inner(_unit(predictions), _unit(targets)) / temperature  # [K, i, j]
    kept = same | (negative & valid.T[:, None, :])
    log_total = jax.nn.logsumexp(jnp.where(kept, logits, -jnp.inf), axis=-1)
    return _row_mean((log_total - jnp.diagonal(logits, axis1=1, axis2=2)).T, valid)


def distill_loss(
    predictions: jax.Array,
    targets: jax.Array,
    valid: jax.Array | None = None,
    *,
    segment_weights: jax.Array | None = None,
    cosine_weight: float | jax.Array = 0.5,
    gram_weight: float | jax.Array = 0.5,
    contrast_weight: float | jax.Array = 0.1,
    temperature: float | jax.Array = 0.07,
    profile_ids: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the four losses above.

        L = Σ_k ω_k [ regression_k + λ_cos cosine_k + λ_gram gram_k + λ_nce InfoNCE_k ] / Σ_k ω_k

    Args:
      predictions, targets, valid, temperature, profile_ids: as above.
      segment_weights: ω ≥ 0 [K]; None: equal.
      cosine_weight, gram_weight, contrast_weight: λ_cos, λ_gram, λ_nce.

    Returns:
      The scalar loss and metrics ``regression``, ``cosine``, ``gram``, ``contrast`` (ω-weighted means over segments).

    Raises:
      ValueError: shapes that disagree.
    """
    weights = jnp.ones(jnp.shape(predictions)[1:2]) if segment_weights is None else floating(segment_weights)
    require_shape("segment_weights", weights, jnp.shape(predictions)[1:2])
    by_segment = {
        "regression": regression_loss(predictions, targets, valid),
        "cosine": cosine_loss(predictions, targets, valid),
        "gram": gram_loss(predictions, targets, valid),
        "contrast": info_nce(predictions, targets, valid, temperature=temperature, profile_ids=profile_ids),
    }
    parts = {name: divide((weights * values).sum(), weights.sum()) for name, values in by_segment.items()}
    loss = (
        parts["regression"]
        + cosine_weight * parts["cosine"]
        + gram_weight * parts["gram"]
        + contrast_weight * parts["contrast"]
    )
    return loss, jax.lax.stop_gradient(parts)


def _check(predictions, targets, valid):
    """Float arrays, zero in invalid rows, and the mask [B, K]."""
    require_shape("predictions", predictions, ("B", "K", "d"))
    shape = jnp.shape(predictions)
    require_shape("targets", targets, shape)
    if valid is None:
        valid = jnp.ones(shape[:2], bool)
    require_shape("valid", valid, shape[:2])
    valid = jnp.asarray(valid).astype(bool)
    predictions = jnp.where(valid[..., None], floating(predictions), 0)
    targets = jax.lax.stop_gradient(jnp.where(valid[..., None], floating(targets), 0))
    return predictions, targets, valid


def _row_mean(values, valid):
    """Mean over valid rows, [B, K] -> [K]."""
    return divide(jnp.where(valid, values, 0).sum(axis=0), valid.sum(axis=0).astype(values.dtype))


def _unit(vectors):
    """Vectors of length 1; the zero vector stays 0, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + _EPSILON**2)


def _inner(left, right):
    """Inner products of all pairs of rows, segment by segment, [B, K, d] × [B, K, d] -> [K, B, B]."""
    return jnp.einsum("ikd,jkd->kij", left, right, precision=jax.lax.Precision.HIGHEST)
