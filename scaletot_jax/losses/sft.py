"""Supervised fine-tuning: cross-entropy of chain tokens, as sums and counts that are divided once.

A mean of means is not a mean: accumulated over micro-batches, devices or packed sequences of uneven length it weighs
tokens unequally. So the losses return a sum and a count; add both up, then :func:`mean_loss`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import all_sum, divide, floating, require_shape
from scaletot_jax.losses.groups import AxisName


def soft_cross_entropy(log_probs: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy against a target distribution over the alternatives of each token.

        S = −Σ_it m_it Σ_a q_ita log p_ita,     C = Σ_it m_it

    For the typed chains: the teacher's distribution over the values of a slot, instead of the one value written down.

    >>> log_probs, targets = jnp.log(jnp.array([[[0.5, 0.5, 0.0]]])), jnp.array([[[0.25, 0.75, 0.0]]])
    >>> total, count = soft_cross_entropy(log_probs, targets, jnp.ones((1, 1), bool))
    >>> print(total, count)
    0.6931472 1.0

    Args:
      log_probs: log p, nats [B, T, A]. Where the target is 0 or the mask is 0 it may be −inf or NaN.
      targets: q [B, T, A], each row of a counted token summing to 1.
      mask: [B, T], bool, or weights ≥ 0 (an answer token may count for more).

    Returns:
      The sum and the count, two scalars; :func:`mean_loss` divides.

    Raises:
      ValueError: shapes that disagree.
    """
    require_shape("log_probs", log_probs, ("B", "T", "A"))
    shape = jnp.shape(log_probs)
    require_shape("targets", targets, shape)
    require_shape("mask", mask, shape[:2])
    weights = floating(mask)
    targets = jnp.where(weights[..., None] > 0, floating(targets), 0)
    cross_entropy = -(targets * jnp.where(targets > 0, floating(log_probs), 0)).sum(axis=-1)
    return (weights * cross_entropy).sum(), weights.sum()


def token_cross_entropy(logps: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the tokens that were written, S = −Σ_it m_it log p(y_it), C = Σ_it m_it.

    Args:
      logps: log-probabilities of the target tokens, nats [B, T]; anything where the mask is 0.
      mask: label mask [B, T]: bool, or weights ≥ 0. 0 on the prompt and on padding.

    Returns:
      The sum and the count, two scalars.

    Raises:
      ValueError: shapes that disagree.
    """
    require_shape("logps", logps, ("B", "T"))
    require_shape("mask", mask, jnp.shape(logps))
    weights = floating(mask)
    return -(weights * jnp.where(weights > 0, floating(logps), 0)).sum(), weights.sum()


def mean_loss(total: jax.Array, count: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Σ S / Σ C over the devices of ``axis_name``; 0, with gradient 0, where nothing counts."""
    total, count = all_sum((total, count), axis_name)
    return divide(total, count)
