"""Advantages of OSIPO: the outcome of a chain and the implicit reward of its segments, as one number a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import floating, require_choice, require_rollouts, require_shape
from scaletot_jax.losses.groups import AxisName, group_statistics
from scaletot_jax.losses.implicit_reward import group_log_odds
from scaletot_jax.losses.scaling import ANSWERS, BASELINES, SCALES, centred, divided, finished, scale_of
from scaletot_jax.losses.segments import response_tokens, spread_segments


def osipo_advantages(
    rewards: jax.Array,
    valid: jax.Array,
    outcomes: jax.Array,
    group_ids: jax.Array,
    segment_ids: jax.Array,
    *,
    outcome_weight: float | jax.Array = 1.0,
    process_weight: float | jax.Array = 0.1,
    gamma: float | jax.Array = 0.0,
    segment_weights: jax.Array | None = None,
    baseline: str = "loo",
    scale: str | None = "batch_rms",
    min_scale: float | jax.Array = 1e-3,
    answer: str = "zero",
    clip: float | None = 5.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Per-token advantages from outcomes and segment rewards.

        Â^o_i = R_i − baseline_u(R)_i            ã_ik = r_ik − baseline_{u, v_·k = 1}(r_·k)_i     (0 where v_ik = 0)
        A_ik  = λ_o Â^o_i / s_o + λ_p Σ_{l≥k} γ^{l−k} w_l ã_il / s_p
        A_it  = clip(A_{i, seg_it}) on content,  clip(λ_o Â^o_i / s_o) on structural tokens,  0 elsewhere

    Each segment type has its own baseline, taken over the chains of the group that have the segment, so a missing
    segment changes nothing in the others. ``"loo"`` subtracts the mean of the *other* chains, ``"group_mean"`` of all; in
    a group of one both give 0. Sums over a group are 0: nothing is whitened afterwards.

    >>> ids = jnp.array([[0, -1, 1, -2, -1], [0, -1, 1, -2, -3]])
    >>> rewards, valid = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.ones((2, 2), bool)
    >>> osipo_advantages(rewards, valid, jnp.array([1.0, 0.0]), jnp.array([7, 7]), ids, process_weight=0.5, scale=None).tolist()
    [[2.0, 1.0, 0.5, 0.0, 0.0], [-2.0, -1.0, -0.5, 0.0, 0.0]]

    Args:
      rewards: r [B, K], from :func:`~scaletot_jax.losses.segment_rewards`; may hold NaN where not valid.
      valid: v bool [B, K].
      outcomes: R [B], e.g. from :func:`~scaletot_jax.losses.rps_outcome`.
      group_ids: int [B], arbitrary labels, rollouts of one prompt share one.
      segment_ids: int32 [B, T]. A row of padding alone is no rollout and enters no baseline and no scale.
      outcome_weight: λ_o.
      process_weight: λ_p. Above about 0.1 it hurt wherever we measured it; 0 is the plain outcome estimator.
      gamma: γ in [0, 1], how far a segment is credited for later ones, counted in segment types.
      segment_weights: w [K]; None: ones.
      baseline: ``"loo"`` or ``"group_mean"``.
      scale: ``"batch_rms"``: s_o = max(RMS of Â^o over rollouts, min_scale), s_p = max(RMS of ã over valid (i, k),
        min_scale), one shared process scale. ``"group_std"``: s = standard deviation (n − 1) of the group's own values
        + min_scale, as in GRPO; continuous outcomes make it explode. None: nothing is divided.
      min_scale: see ``scale``; unused with None.
      answer: ``"zero"``, where the outcome was read from the answer's distribution: the answer token gets 0.
        ``"outcome"``, where it was read from the sampled answer: the answer is treated as structural. What follows the
        answer gets 0 either way.
      clip: bound on |A|; None: no bound.
      axis_name: mapped axis of ``jax.shard_map`` the rows are split over; baselines and scales are then global.

    Returns:
      A [B, T], float32 (float64 stays), without gradient.

    Raises:
      ValueError: shapes that disagree, or an unknown option.

    Source: leave-one-out: arXiv:2402.14740; group standard deviation: arXiv:2402.03300; outcome plus implicit process
    reward: arXiv:2502.01456. One baseline per segment type and the shared scale are ours.
    """
    require_choice("baseline", baseline, BASELINES)
    require_choice("scale", scale, SCALES)
    require_choice("answer", answer, ANSWERS)
    rewards, valid, outcomes, group_ids = _check(rewards, valid, outcomes, group_ids, segment_ids)
    num_segments = rewards.shape[1]
    if segment_weights is not None:
        require_shape("segment_weights", segment_weights, (num_segments,))
    present = response_tokens(segment_ids, num_segments).any(axis=1, keepdims=True)

    outcome = _advantage(outcomes[:, None], present, group_ids, baseline, scale, min_scale, axis_name)
    process = _advantage(rewards, valid & present, group_ids, baseline, scale, min_scale, axis_name)
    if segment_weights is not None:
        process = process * floating(segment_weights)
    per_segment = outcome_weight * outcome + process_weight * _discounted(process, gamma)
    per_token = spread_segments(per_segment, segment_ids, outcome_weight * outcome)
    return finished(per_token, segment_ids, num_segments, answer, clip)


def prefix_critic_advantages(
    rewards: jax.Array,
    valid: jax.Array,
    outcomes: jax.Array,
    group_ids: jax.Array,
    segment_ids: jax.Array,
    *,
    trace: float | jax.Array = 0.9,
    residual_weight: float | jax.Array = 1.0,
    shift: bool = True,
    complete: jax.Array | None = None,
    baseline: str = "loo",
    scale: str | None = "batch_rms",
    min_scale: float | jax.Array = 1e-3,
    answer: str = "zero",
    clip: float | None = 5.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Per-token advantages with the implicit reward model as a critic of chain prefixes.

        P_k  = σ( Σ_{l≤k} r_il + b_u ),  P_0 = σ(b_u)                                (expected outcome after segment k)
        A_ik = Σ_{l≥k} λ^{l−k} (P_l − P_{l−1}) + κ λ^{K−k} (R_i − P_K),   then minus its baseline per segment type

    This is generalised advantage estimation over segments in units of the outcome, so one scale, that of the outcome,
    divides everything; structural tokens get the outcome's advantage. b_u are the group's log-odds, as in
    :func:`~scaletot_jax.losses.implicit_reward_loss`.

    Args:
      trace: λ in [0, 1]. 1: A_ik = R_i − P_{k−1}; 0: one-step differences of the critic.
      residual_weight: κ in [0, 1], the weight of what no segment explains. 1: the estimator of the source; with a critic
        that knows nothing it is then the plain outcome. Below 1 noise in the outcome counts less, and so does
        everything the critic has not learned yet.
      shift, complete: whether to add b_u, and the chains (bool [B]) whose mean it is; as the reward model was trained.
      rewards, valid, outcomes, group_ids, segment_ids, baseline, scale, min_scale, answer, clip, axis_name: as in
        :func:`osipo_advantages`.

    Returns:
      A [B, T], without gradient.

    Raises:
      ValueError: shapes that disagree, or an unknown option.

    Source: arXiv:1506.02438 for the estimator; arXiv:2604.13197 for values of prefixes from an implicit reward model.
    """
    require_choice("baseline", baseline, BASELINES)
    require_choice("scale", scale, SCALES)
    require_choice("answer", answer, ANSWERS)
    rewards, valid, outcomes, group_ids = _check(rewards, valid, outcomes, group_ids, segment_ids)
    num_segments = rewards.shape[1]
    present = response_tokens(segment_ids, num_segments).any(axis=1, keepdims=True)
    outcomes = jnp.where(present[:, 0], outcomes, 0)

    offset = jnp.zeros_like(outcomes)
    if shift:
        counted = valid.any(axis=1) & present[:, 0]
        if complete is not None:
            require_shape("complete", complete, outcomes.shape)
            counted &= jnp.asarray(complete).astype(bool)
        offset = group_log_odds(jnp.clip(outcomes, 0, 1), counted, group_ids, axis_name)
    values = jnp.cumsum(jnp.where(valid, rewards, 0), axis=1)
    prefix = jax.nn.sigmoid(jnp.pad(values, ((0, 0), (1, 0))) + offset[:, None])  # [B, K + 1], P_0 … P_K
    residual = residual_weight * (outcomes - prefix[:, -1])
    steps = jnp.diff(prefix, axis=1).at[:, -1].add(residual)  # κ λ^{K−k}(R − P_K) rides on the last step
    estimate = _discounted(steps, trace)

    outcome = group_statistics(outcomes[:, None], present, group_ids, axis_name)
    content = group_statistics(estimate, valid & present, group_ids, axis_name)
    divisor = scale_of(centred(outcome, baseline), outcome, present, scale, min_scale, axis_name)
    structural = divided(centred(outcome, baseline), divisor)
    per_token = spread_segments(divided(centred(content, baseline), divisor), segment_ids, structural)
    return finished(per_token, segment_ids, num_segments, answer, clip)


def _check(rewards, valid, outcomes, group_ids, segment_ids):
    """The inputs as arrays of one float type without gradient; NaN is removed from invalid entries."""
    require_rollouts(segment_ids, outcomes, group_ids, valid, rewards=rewards)
    valid = jnp.asarray(valid).astype(bool)
    rewards, outcomes = floating(rewards), floating(outcomes)
    rewards, outcomes = jax.lax.stop_gradient((jnp.where(valid, rewards, 0), outcomes))
    dtype = jnp.promote_types(rewards.dtype, outcomes.dtype)
    return rewards.astype(dtype), valid, outcomes.astype(dtype), jnp.asarray(group_ids)


def _advantage(values, valid, group_ids, baseline, scale, min_scale, axis_name):
    """(x − baseline) / scale, [B, K]; 0 where not valid."""
    group = group_statistics(values, valid, group_ids, axis_name)
    difference = centred(group, baseline)
    return divided(difference, scale_of(difference, group, valid, scale, min_scale, axis_name))


def _discounted(values, gamma):
    """Σ_{l≥k} γ^{l−k} x_l along the last axis; γ may be traced, and 0⁰ = 1."""
    segments = values.shape[1]
    ahead = jnp.arange(segments)[None, :] - jnp.arange(segments)[:, None]  # [k, l] = l − k
    factors = jnp.where(ahead >= 0, jnp.asarray(gamma, values.dtype) ** jnp.maximum(ahead, 0), 0)
    return (values[:, None, :] * factors[None]).sum(axis=-1)
