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
