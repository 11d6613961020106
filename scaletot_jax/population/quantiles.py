"""Quantiles of the seed-averaged label distributions: days by their distribution, money by the inverse of a mixture's CDF.

Heads of S seeds are averaged as distributions, P(y) = 1/S Σ_s P_s(y), so a quantile is that of the mixture and not the mean
of S quantiles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from scaletot_jax.losses.ltv import _MIN_SIGMA

_HALVINGS = 24  # a bracket of 10 in log money ends 6e-7 wide: the precision of float32


def hurdle_survival(logits: jax.Array) -> jax.Array:
    """P(y > j) for j = 0..H−1 of the heads of :func:`scaletot_jax.losses.ltv.hurdle_nll`, averaged over seeds.

        P(y > j) = σ(l_0) Π_{1≤i≤j} σ(−l_i)

    The expectation is its sum, and no distribution need be formed. The sums of logarithms are a product with a triangle of
    ones: a running sum costs a CPU six times as much.

    Args:
      logits: [B, S, H].

    Returns:
      [B, H] float32.
    """
    hazards = logits.shape[-1] - 1
    logs = jax.nn.log_sigmoid(-logits[..., 1:]) @ jnp.triu(jnp.ones((hazards, hazards), jnp.float32))
    longer = jnp.exp(jnp.concatenate([jnp.zeros_like(logits[..., :1]), logs], axis=-1))
    return jnp.mean(jax.nn.sigmoid(logits[..., :1]) * longer, axis=1)


def hurdle_quantiles(survival: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """Smallest day j with P(y ≤ j) ≥ q: the number of days with P(y > j) > 1 − q.

    Args:
      survival: P(y > 0..H−1) [B, H].
      levels: Q numbers in (0, 1).

    Returns:
      [B, Q] float32 whole days.
    """
    above = 1 - jnp.asarray(levels, survival.dtype)
    return jnp.sum(survival[:, None, :] > above[:, None], axis=-1).astype(jnp.float32)


def ziln_quantiles(logits: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """Quantiles of a mixture of S zero-inflated log-normals.

        F(y) = 1/S Σ_s [ 1 − p_s + p_s Φ((log y − μ_s)/σ_s) ]  for y > 0,    F(0) = 1/S Σ_s (1 − p_s)

    0 where F(0) ≥ q. Else log y solves Σ_s p_s Φ((log y − μ_s)/σ_s) = r Σ_s p_s with r = (q − F(0)) / (1 − F(0)); it lies
    between the least and the greatest component quantile μ_s + σ_s Φ⁻¹(r), and is found by halving. With one seed the
    bracket is a point: the closed form.

    Args:
      logits: [B, S, 3] as in :func:`scaletot_jax.losses.ltv.ziln_nll`.
      levels: Q numbers in (0, 1).

    Returns:
      [B, Q] float32, in the units of the value.
    """
    # Rows last: a CPU computes along the last axis side by side, and there are many rows but few seeds and levels.
    hurdle, mean, spread = (logits[..., i].T for i in range(3))  # [S, B]
    q = jnp.asarray(levels, jnp.float32)[:, None]  # [Q, 1]
    positive, sigma = jax.nn.sigmoid(hurdle), jnp.maximum(jax.nn.softplus(spread), _MIN_SIGMA)
    zero = jnp.mean(jax.nn.sigmoid(-hurdle), axis=0)  # [B]
    target = jnp.clip((q - zero) / (1 - zero), 1e-7, 1 - 1e-7)  # r [Q, B]
    parts = mean[:, None] + sigma[:, None] * ndtri(target)  # [S, Q, B]
    weights = (positive / jnp.sum(positive, axis=0))[:, None] / 2
    steep = 1 / (2**0.5 * sigma[:, None])

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = jnp.sum(weights * jax.lax.erf((middle - mean[:, None]) * steep), axis=0) + 0.5
        return jnp.where(below < target, middle, low), jnp.where(below < target, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (parts.min(0), parts.max(0)))
    return jnp.where(zero >= q, 0.0, jnp.exp((low + high) / 2)).T
