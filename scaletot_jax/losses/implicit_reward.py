"""Implicit process rewards of typed segments, and the loss that trains the model they are read from.

Implicit process reward models: arXiv:2412.01981. Online use (PRIME): arXiv:2502.01456. Supervising every prefix, so that
reward cannot hide on delimiters, and the group's difficulty as an offset (IPVRM): arXiv:2604.13197. Moving both from
tokens to typed segments is ours.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import (
    all_sum,
    divide,
    floating,
    require_choice,
    require_segments,
    require_shape,
)
from scaletot_jax.losses.groups import AxisName, group_statistics
from scaletot_jax.losses.segments import PADDING, response_tokens, segment_counts, segment_sums

_EQUAL = 1e-6  # outcomes of one prompt that differ by less are one: rounding


def segment_rewards(
    prm_logps: jax.Array, ref_logps: jax.Array, segment_ids: jax.Array, *, num_segments: int, beta: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Implicit reward of each typed segment.

        r_ik = β · Σ_{t: seg_it = k} ( log π_φ(y_it | ·) − log π_ref(y_it | ·) )

    Delimiters and the answer belong to no segment: a model supervised on whole sequences hides its reward on fixed tags
    (arXiv:2604.13197). Gradients flow (:func:`implicit_reward_loss` needs them); the advantages stop them.

    >>> logps = jnp.array([[-1.0, -2.0, -1.0, -9.0]])
    >>> rewards, valid = segment_rewards(logps, logps - 1, jnp.array([[0, 0, -1, 2]]), num_segments=3, beta=0.5)
    >>> rewards.tolist(), valid.tolist()
    ([[1.0, 0.0, 0.5]], [[True, False, True]])

    Args:
      prm_logps: log π_φ of the tokens under the implicit reward model, nats [B, T].
      ref_logps: log π_ref of the same tokens, nats [B, T].
      segment_ids: int32 [B, T], see :mod:`scaletot_jax.losses.segments`.
      num_segments: K, a Python int.
      beta: reward units a nat. PRIME's 0.05 suits answers of 1–3 thousand tokens; about 0.5 suits 150.

    Returns:
      rewards [B, K] (0 for a missing segment) and valid bool [B, K] (the segment has a token).

    Raises:
      ValueError: shapes that disagree, or ``num_segments`` no positive int.
    """
    require_segments(num_segments)
    require_shape("segment_ids", segment_ids, ("B", "T"))
    shape = jnp.shape(segment_ids)
    require_shape("prm_logps", prm_logps, shape)
    require_shape("ref_logps", ref_logps, shape)
    difference = _log_ratio(prm_logps, ref_logps, response_tokens(segment_ids, num_segments))
    return beta * segment_sums(difference, segment_ids, num_segments), segment_counts(segment_ids, num_segments) > 0


def implicit_reward_loss(
    prm_logps: jax.Array,
    ref_logps: jax.Array,
    segment_ids: jax.Array,
    outcomes: jax.Array,
    group_ids: jax.Array,
    *,
    num_segments: int,
    beta: float | jax.Array,
    boundary_weights: str = "uniform",
    shift: bool = True,
    complete: jax.Array | None = None,
    axis_name: AxisName = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of the value of every chain prefix against the chain's outcome.

        L = (1/Σ_i c_i) Σ_i c_i · Σ_k ω_k v_ik BCE( σ(V_ik + b_u), s_i ) / Σ_k ω_k v_ik
        V_ik = Σ_{l≤k} r_il,   s_i = clip(R_i, 0, 1),   b_u = stop_gradient( logit( clip( s̄_u, 0.05, 0.95 ) ) )

    s̄_u is the mean of s over the complete chains of the group: easy and hard prompts get their offset for free, and V
    has to explain only the difference between the chains of one prompt. ``boundary_weights="last"`` without shift is the
    loss of PRIME and of implicit process reward models, on the segments' tokens.

    Args:
      prm_logps: log π_φ, nats [B, T]. ref_logps: log π_ref, nats [B, T]; no gradient enters it.
      segment_ids: int32 [B, T].
      outcomes: R_i [B]; soft labels are welcome, values outside [0, 1] are clipped.
      group_ids: int [B], rollouts of one prompt share a label.
      num_segments: K, a Python int.
      beta: reward units a nat.
      boundary_weights: ω: ``"uniform"`` supervises every present boundary, ``"last"`` only each chain's last one.
      shift: whether to add the group's log-odds b_u.
      complete: bool [B], c_i: whole, valid chains; the others teach nothing. None: all. A chain without a content token
        has no prefix value and is left out as well.
      axis_name: mapped axis of ``jax.shard_map`` the rows are split over; sums, counts and groups are then global.

    Returns:
      The scalar loss (0 if no chain counts) and metrics: ``count`` (chains counted; multiply the loss by it to accumulate
      over micro-batches), ``value`` (mean of the last V), ``probability`` (mean of σ(V + b)), ``accuracy`` (how often V > 0
      where s lies above s̄_u, without shift above ½, and V < 0 where below; V = 0 counts half, chains with s = s̄_u do not, and
      with no other chain it is 0), ``structural_share`` (share of |β·Σ log-ratio| that lies outside the segments: on delimiters
      that were not forced, and on the answer).

    Raises:
      ValueError: shapes that disagree, or an unknown ``boundary_weights``.
    """
    require_choice("boundary_weights", boundary_weights, ("uniform", "last"))
    require_segments(num_segments)
    require_shape("segment_ids", segment_ids, ("B", "T"))
    rows = jnp.shape(segment_ids)[0]
    require_shape("outcomes", outcomes, (rows,))
    require_shape("group_ids", group_ids, (rows,))
    if complete is not None:
        require_shape("complete", complete, (rows,))
        segment_ids = jnp.where(jnp.asarray(complete).astype(bool)[:, None], segment_ids, PADDING)
    rewards, valid = segment_rewards(
        prm_logps, jax.lax.stop_gradient(jnp.asarray(ref_logps)), segment_ids, num_segments=num_segments, beta=beta
    )
    counted = valid.any(axis=1)
    labels = jax.lax.stop_gradient(jnp.clip(jnp.where(counted, floating(outcomes), 0), 0, 1))

    values = jnp.cumsum(rewards, axis=1)
    mean = _group_mean(labels, counted, group_ids, axis_name)
    logits = values + (_log_odds(mean)[:, None] if shift else 0)
    cross_entropy = labels[:, None] * jax.nn.softplus(-logits) + (1 - labels)[:, None] * jax.nn.softplus(logits)
    later = jnp.flip(jnp.cumsum(jnp.flip(valid, 1), axis=1), 1) - valid  # present segments after k
    weights = (valid if boundary_weights == "uniform" else valid & (later == 0)).astype(logits.dtype)
    chain_loss = divide((weights * cross_entropy).sum(axis=1), weights.sum(axis=1))

    whole = beta * _log_ratio(prm_logps, ref_logps, response_tokens(segment_ids, num_segments)).sum(axis=1)
    content = jnp.where(counted, jnp.abs(values[:, -1]), 0)
    structural = jnp.where(counted, jnp.abs(whole - values[:, -1]), 0)
    probability = jax.nn.sigmoid(logits[:, -1])
    better = labels - (mean if shift else 0.5)
    told = counted & (jnp.abs(better) > _EQUAL)  # one of equals is neither better nor worse
    agrees = jnp.where(told, 0.5 + 0.5 * jnp.sign(values[:, -1]) * jnp.sign(better), 0)
    columns = (jnp.where(counted, x, 0).sum() for x in (chain_loss, values[:, -1], probability))
    sums = jnp.stack([*columns, agrees.sum(), content.sum(), structural.sum(), told.sum().astype(logits.dtype)])
    count = all_sum(counted.sum().astype(logits.dtype), axis_name)
    sums = all_sum(sums, axis_name)
    loss, value, mean_probability = (divide(sums[n], count) for n in range(3))
    metrics = {
        "count": count,
        "value": value,
        "probability": mean_probability,
        "accuracy": divide(sums[3], sums[6]),
        "structural_share": divide(sums[5], sums[4] + sums[5]),
    }
    return loss, jax.lax.stop_gradient(metrics)


def group_log_odds(
    labels: jax.Array, counted: jax.Array, group_ids: jax.Array, axis_name: AxisName = None
) -> jax.Array:
    """Log-odds of the group's mean label, b_u = logit(clip(s̄_u, 0.05, 0.95)), without gradient.

    Args:
      labels: s in [0, 1], [B].
      counted: bool [B], the chains the mean is taken over; a group without any has b = 0.
      group_ids: int [B].
      axis_name: mapped axis of ``jax.shard_map`` the rows are split over.

    Returns:
      [B]; every rollout of a group gets the group's number.
    """
    return _log_odds(_group_mean(labels, counted, group_ids, axis_name))


def _group_mean(labels: jax.Array, counted: jax.Array, group_ids: jax.Array, axis_name: AxisName) -> jax.Array:
    """[B]: s̄_u over the group's counted chains, ½ where there is none."""
    group = group_statistics(labels[:, None], counted[:, None], jnp.asarray(group_ids), axis_name)
    return jnp.where(group.size > 0, group.mean, 0.5)[:, 0]


def _log_odds(mean: jax.Array) -> jax.Array:
    mean = jnp.clip(mean, 0.05, 0.95)
    return jax.lax.stop_gradient(jnp.log(mean) - jnp.log1p(-mean))


def _log_ratio(prm_logps: jax.Array, ref_logps: jax.Array, tokens: jax.Array) -> jax.Array:
    """log π_φ − log π_ref on ``tokens``, 0 elsewhere; cleaned before the subtraction, so that no NaN has a gradient."""
    return jnp.where(tokens, floating(prm_logps), 0) - jnp.where(tokens, floating(ref_logps), 0)
