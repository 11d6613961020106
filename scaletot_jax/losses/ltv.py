"""Lifetime-value heads as distributions: days active (0..H) by hurdle and hazard, money by zero-inflated log-normal.

Each loss is a negative log-likelihood an example; mask and average outside, dividing once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import floating, require_shape

_MIN_SIGMA = 1e-7**0.5  # as the published code: the square root of Keras's epsilon


def hurdle_nll(logits: jax.Array, days: jax.Array) -> jax.Array:
    """Negative log-likelihood of a count in 0..H under a hurdle and discrete hazards.

        P(y > 0) = σ(l_0),     h_j = σ(l_j) = P(y = j | y ≥ j)  for j = 1..H−1,   h_H = 1
        P(y = j) = σ(l_0) · h_j · Π_{1≤i<j} (1 − h_i)

    H logits for H + 1 values: "active at all" is apart from "how long", the order of days is built in, and any
    distribution on 0..H can be fitted (Poisson and its zero-inflated forms cannot hold a peak at H).

    Args:
      logits: l [..., H], H ≥ 1: the hurdle, then the hazards of days 1..H−1.
      days: y [...], integers in 0..H; another value gives NaN, so that a bad label is heard.

    Returns:
      −log P(y), nats [...].

    Raises:
      ValueError: no logit, or shapes that disagree.

    Source: Cragg (1971) for the hurdle; Singer & Willett (1993) for discrete-time hazards.
    """
    logits = _check(logits)
    require_shape("days", days, logits.shape[:-1])
    horizon = logits.shape[-1]
    days = jnp.asarray(days)
    log_probs = _hurdle_log_distribution(logits)
    chosen = jnp.take_along_axis(log_probs, jnp.clip(days, 0, horizon).astype(jnp.int32)[..., None], axis=-1)[..., 0]
    return jnp.where((days >= 0) & (days <= horizon), -chosen, jnp.nan)


def hurdle_distribution(logits: jax.Array) -> jax.Array:
    """P(y = 0..H), [..., H + 1], of the logits of :func:`hurdle_nll`; sums to 1.

    >>> hurdle_distribution(jnp.zeros(2)).tolist()
    [0.5, 0.25, 0.25]
    """
    return jnp.exp(_hurdle_log_distribution(_check(logits)))


def hurdle_mean(logits: jax.Array) -> jax.Array:
    """E[y] = Σ_{j≥1} P(y ≥ j) = σ(l_0) · Σ_{j=1..H} Π_{1≤i<j} (1 − h_i), days [...].

    >>> float(hurdle_mean(jnp.zeros(2)))
    0.75
    """
    logits = _check(logits)
    survival = jnp.cumsum(jax.nn.log_sigmoid(-logits[..., 1:]), axis=-1)  # log P(y > j | y > 0), j = 1..H−1
    return jax.nn.sigmoid(logits[..., 0]) * (1 + jnp.exp(survival).sum(axis=-1))


def ziln_nll(logits: jax.Array, value: jax.Array) -> jax.Array:
    """Negative log-likelihood of a value under a zero-inflated log-normal.

        −log p(y) = −log σ(−l_0)                                          for y = 0
        −log p(y) = −log σ(l_0) + log y + log σ' + ½ log 2π + (log y − μ)²/(2σ'²)   for y > 0
        μ = l_1,   σ' = max( softplus(l_2), √1e−7 )

    Where y = 0 the logarithm sees a label of 1, so neither loss nor gradient is ever NaN.

    Args:
      logits: [..., 3].
      value: y ≥ 0 [...], in units of money; a negative or NaN value gives NaN.

    Returns:
      Nats [...].

    Raises:
      ValueError: not three logits, or shapes that disagree.

    Source: arXiv:1912.07753 and ``google/lifetime_value``.
    """
    logits = _check(logits, 3)
    require_shape("value", value, logits.shape[:-1])
    value = floating(value)
    positive = value > 0
    log_value = jnp.log(jnp.where(positive, value, 1))
    sigma = jnp.maximum(jax.nn.softplus(logits[..., 2]), _MIN_SIGMA)
    normal = jnp.log(sigma) + 0.5 * jnp.log(2 * jnp.pi) + 0.5 * ((log_value - logits[..., 1]) / sigma) ** 2
    hurdle = jnp.where(positive, jax.nn.softplus(-logits[..., 0]), jax.nn.softplus(logits[..., 0]))
    loss = hurdle + jnp.where(positive, normal + log_value, 0)
    return jnp.where(value >= 0, loss, jnp.nan)


def ziln_mean(logits: jax.Array, *, max_sigma: float = 5.0, max_exponent: float = 20.0) -> jax.Array:
    """Mean of the zero-inflated log-normal, E[y] = σ(l_0) · exp( min( μ + ½ min(σ', σ_max)², e_max ) ).

    The caps keep one user with a wide tail from having the mean of a nation; the loss is not capped, so that its gradient
    brings such a σ' back.

    Args:
      logits: [..., 3], as in :func:`ziln_nll`.
      max_sigma: σ_max. max_exponent: e_max, log of the largest mean of payers (20 is 4.9e8).

    Returns:
      [...], in the units of the value.

    Raises:
      ValueError: not three logits.
    """
    logits = _check(logits, 3)
    sigma = jnp.clip(jax.nn.softplus(logits[..., 2]), _MIN_SIGMA, max_sigma)
    return jax.nn.sigmoid(logits[..., 0]) * jnp.exp(jnp.minimum(logits[..., 1] + 0.5 * sigma**2, max_exponent))


def _hurdle_log_distribution(logits: jax.Array) -> jax.Array:
    """log P(y = 0..H), [..., H + 1]."""
    hurdle, hazards = logits[..., :1], logits[..., 1:]
    reached = jnp.cumsum(jax.nn.log_sigmoid(-hazards), axis=-1)  # log P(y > j | y > 0), j = 1..H−1
    before = jnp.concatenate([jnp.zeros_like(hurdle), reached], axis=-1)  # log P(y ≥ j | y > 0), j = 1..H
    stops = jnp.concatenate([jax.nn.log_sigmoid(hazards), jnp.zeros_like(hurdle)], axis=-1)  # log h_j, j = 1..H
    return jnp.concatenate([jax.nn.log_sigmoid(-hurdle), jax.nn.log_sigmoid(hurdle) + before + stops], axis=-1)


def _check(logits: jax.Array, size: int | None = None) -> jax.Array:
    logits = floating(logits)
    if logits.ndim < 1 or logits.shape[-1] < 1 or (size is not None and logits.shape[-1] != size):
        raise ValueError(f"logits must have shape [..., {size or 'H'}], not {list(logits.shape)}")
    return logits
