"""Token-level advantages of PRIME (arXiv:2502.01456), as the paper prints them and as its code computes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import all_sum, divide, floating, require_choice, require_shape
from scaletot_jax.losses.groups import AxisName, group_statistics
from scaletot_jax.losses.segments import credited_tokens


def prime_advantages(
    prm_logps: jax.Array,
    ref_logps: jax.Array,
    segment_ids: jax.Array,
    outcomes: jax.Array,
    group_ids: jax.Array,
    *,
    num_segments: int,
    beta: float | jax.Array,
    outcome_weight: float | jax.Array = 1.0,
    process_weight: float | jax.Array = 1.0,
    gamma: float | jax.Array = 1.0,
    formula: str = "paper",
    scale: str | None = None,
    whiten: bool = False,
    answer: str = "zero",
    clip: float | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """PRIME's per-token advantages: leave-one-out outcome plus the return of leave-one-out implicit token rewards.

        r_it = β ( log π_φ − log π_ref ),   r̄_j = mean of r_j over chain j's own tokens,   n chains in the group
        paper:  d_it = r_it − 1/(n−1) Σ_{j≠i} r̄_j                code:  d_it = r_it · n/(n−1) − 1/(n−1) Σ_j r̄_j
        A_it = λ_p Σ_{s≥t} γ^{s−t} d_is + λ_o ( R_i − 1/(n−1) Σ_{j≠i} R_j )

    The two differ by (r_it − r̄_i)/(n−1): the code inflates the contrast within a chain by n/(n−1). Neither sums to 0
    over a group unless the chains are equally long, and on our toy the token form collapsed where OSIPO did not; it is
    here to be compared with. A group of one gets 0.

    Args:
      prm_logps: log π_φ, nats [B, T]. ref_logps: log π_ref, nats [B, T].
      segment_ids: int32 [B, T]; PRIME knows no types, only which tokens count (untyped text: one segment 0).
      outcomes: R [B]. group_ids: int [B].
      num_segments: K, a Python int: which ids are content.
      beta: reward units a nat.
      outcome_weight, process_weight: λ_o and λ_p (5 and 5 in veRL's recipe).
      gamma: γ, counted in tokens; padding between tokens does not discount.
      formula: ``"paper"`` or ``"code"``.
      scale: None, or ``"batch_max"``: token rewards are first divided by max |Σ_{s≥t} r_is| over the batch + 1e-6
        (veRL's ``prime_norm=batch_norm``).
      whiten: subtract the mean and divide by the standard deviation over all tokens of the batch (the code does).
      answer: ``"zero"`` leaves the answer out, ``"outcome"`` treats it as any token; what follows the answer gets 0.
      clip: bound on |A|; None: no bound.
      axis_name: mapped axis of ``jax.shard_map`` the rows are split over.

    Returns:
      A [B, T], without gradient.

    Raises:
      ValueError: shapes that disagree, or an unknown option.
    """
    require_choice("formula", formula, ("paper", "code"))
    require_choice("scale", scale, ("batch_max", None))
    tokens = credited_tokens(segment_ids, num_segments, answer)
    rows = tokens.shape[0]
    require_shape("prm_logps", prm_logps, tokens.shape)
    require_shape("ref_logps", ref_logps, tokens.shape)
    require_shape("outcomes", outcomes, (rows,))
    require_shape("group_ids", group_ids, (rows,))
    rewards = beta * (jnp.where(tokens, floating(prm_logps), 0) - jnp.where(tokens, floating(ref_logps), 0))
    if scale == "batch_max":
        largest = jnp.abs(_returns(rewards, tokens, 1.0)).max()
        largest = largest if axis_name is None else jax.lax.pmax(largest, axis_name)
        rewards = rewards / (largest + 1e-6)

    present = tokens.any(axis=1, keepdims=True)
    length = tokens.sum(axis=1, keepdims=True).astype(rewards.dtype)
    mean = divide(rewards.sum(axis=1, keepdims=True), length)  # r̄ [B, 1]
    group_ids = jnp.asarray(group_ids)
    chains = group_statistics(mean, present, group_ids, axis_name)
    several = chains.size >= 2
    # r − (mean of the others' r̄) = (r − r̄) + (r̄ − mean of the others' r̄); the code inflates the first bracket only.
    inflation = 1.0 if formula == "paper" else divide(chains.size, chains.size - 1)
    contrast = jnp.where(tokens & several, inflation * (rewards - mean) + chains.leave_one_out, 0)

    outcome = group_statistics(floating(outcomes).astype(rewards.dtype)[:, None], present, group_ids, axis_name)
    advantages = process_weight * _returns(contrast, tokens, gamma) + outcome_weight * outcome.leave_one_out
    advantages = jnp.where(tokens, advantages, 0)
    if whiten:
        count = all_sum(tokens.sum().astype(rewards.dtype), axis_name)
        centred = advantages - divide(all_sum(advantages.sum(), axis_name), count)
        squares = all_sum(jnp.where(tokens, centred**2, 0).sum(), axis_name)
        advantages = jnp.where(tokens, centred * jax.lax.rsqrt(divide(squares, count - 1) + 1e-8), 0)
    if clip is not None:
        advantages = jnp.clip(advantages, -clip, clip)
    return jax.lax.stop_gradient(advantages)


def _returns(rewards: jax.Array, tokens: jax.Array, gamma: float | jax.Array) -> jax.Array:
    """Σ_{s≥t} γ^{s−t} x_s over real tokens; padding passes the sum on undiscounted."""
    factors = jnp.where(tokens, jnp.asarray(gamma, rewards.dtype), 1)

    def join(later, earlier):  # composition of the affine maps x ↦ factor · x + sum, from the end backwards
        factor, total = later
        own_factor, own_total = earlier
        return factor * own_factor, own_total + own_factor * total

    return jax.lax.associative_scan(join, (factors, rewards), reverse=True, axis=1)[1]
