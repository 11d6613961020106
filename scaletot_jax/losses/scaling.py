"""What every advantage ends with: the baseline, the scale, and the tokens that get credit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import all_sum, divide
from scaletot_jax.losses.groups import AxisName, GroupStatistics
from scaletot_jax.losses.segments import credited_tokens

BASELINES = ("loo", "group_mean")
SCALES = ("batch_rms", "group_std", None)
ANSWERS = ("zero", "outcome")


def centred(group: GroupStatistics, baseline: str) -> jax.Array:
    """Value − baseline, [B, K]: of the others with ``"loo"``, of the whole group with ``"group_mean"``."""
    return group.leave_one_out if baseline == "loo" else group.deviation


def scale_of(
    values: jax.Array,
    group: GroupStatistics,
    valid: jax.Array,
    scale: str | None,
    min_scale: float | jax.Array,
    axis_name: AxisName,
) -> jax.Array:
    """What centred ``values`` [B, K] are divided by, broadcastable to [B, K]; RMS over ``valid``, or by group."""
    if scale is None:
        return jnp.ones_like(values)
    if scale == "group_std":
        return group.std + min_scale
    squares = all_sum(jnp.where(valid, values**2, 0).sum(), axis_name)
    count = all_sum(valid.sum().astype(values.dtype), axis_name)
    return jnp.maximum(jnp.sqrt(divide(squares, count)), min_scale)


def divided(values: jax.Array, divisor: jax.Array) -> jax.Array:
    """``values / divisor``, and 0 where the divisor is 0."""
    return jnp.where(divisor > 0, values, 0) / jnp.where(divisor > 0, divisor, 1)


def finished(
    per_token: jax.Array, segment_ids: jax.Array, num_segments: int, answer: str, clip: float | None
) -> jax.Array:
    """The bound, zero on tokens without credit, and no gradient, [B, T]."""
    if clip is not None:
        per_token = jnp.clip(per_token, -clip, clip)
    return jax.lax.stop_gradient(jnp.where(credited_tokens(segment_ids, num_segments, answer), per_token, 0))
