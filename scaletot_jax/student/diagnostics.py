"""What an OSIPO update should be watched by, beside :mod:`scaletot_jax.losses.diagnostics`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def within_group_correlation(values: jax.Array, outcomes: jax.Array) -> jax.Array:
    """Pearson correlation of values and outcomes after subtracting each group's means; 0 where either is constant.

    Args:
      values: V [U, N], one group of N rollouts a row.
      outcomes: R [U, N].
    """
    v = values - jnp.mean(values, axis=1, keepdims=True)
    r = outcomes - jnp.mean(outcomes, axis=1, keepdims=True)
    scale = jnp.sqrt(jnp.sum(v * v) * jnp.sum(r * r))
    return jnp.where(scale > 1e-12, jnp.sum(v * r) / jnp.maximum(scale, 1e-12), 0.0)


def credit_by_segment(rewards: jax.Array, present: jax.Array, advantages: jax.Array, segments: jax.Array) -> dict:
    """What each segment k was credited with in one update: ``credit_k`` and ``process_reward_k``, scalars.

        credit_k = mean |A_t| over the tokens t of segment k
        process_reward_k = mean over the chains that have segment k of its implicit process reward (β · log-ratio)

    Args:
      rewards: [B, K]; present: bool [B, K], the chain has the segment.
      advantages: A, of any shape; segments: int of the same shape, 0..K−1 inside a segment.

    Returns:
      2K entries; 0 where no chain has the segment.
    """
    out = {}
    for k in range(rewards.shape[1]):
        inside = segments == k
        tokens, chains = jnp.sum(inside), jnp.sum(present[:, k])
        out[f"credit_{k}"] = jnp.sum(jnp.abs(advantages) * inside) / jnp.maximum(tokens, 1)
        out[f"process_reward_{k}"] = jnp.sum(rewards[:, k] * present[:, k]) / jnp.maximum(chains, 1)
    return out
