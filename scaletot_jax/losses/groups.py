"""Statistics over groups of rollouts: the chains sampled for one prompt share a ``group_ids`` label.

Labels are arbitrary integers, so nothing is indexed by them: rollouts are compared pairwise ([B, B] booleans, B the
rollouts of one batch), which needs no data-dependent shape and no order of rows. Under ``jax.shard_map`` the numbers of
the other devices are gathered first, so a group may lie across devices.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import divide

AxisName = str | tuple[str, ...] | None


class GroupStatistics(NamedTuple):
    """Statistics of each rollout's own group, column by column, over the group's valid entries."""

    size: jax.Array  # [B, K] valid rollouts of the group, as a float
    mean: jax.Array  # [B, K] 0 where the group has no valid entry
    deviation: jax.Array  # [B, K] value − mean of the group; 0 at invalid entries
    leave_one_out: jax.Array  # [B, K] value − mean of the others; 0 at invalid entries
    std: jax.Array  # [B, K] unbiased (n − 1); 0 for fewer than two


def group_statistics(
    values: jax.Array, valid: jax.Array, group_ids: jax.Array, axis_name: AxisName = None
) -> GroupStatistics:
    """Mean, deviation, leave-one-out deviation and standard deviation within each group.

    With G = {j : group_j = group_i, valid_jk} and n = |G|, where n ≥ 2:

        deviation_ik = x_ik − (1/n) Σ_{j∈G} x_jk,    leave_one_out_ik = x_ik − (1/(n−1)) Σ_{j∈G, j≠i} x_jk

    A group of one has deviation, leave-one-out and standard deviation 0: without a second rollout there is no evidence
    whether this one was better. All numbers are taken relative to the group's maximum, so equal values give exactly 0.

    Args:
      values: float [B, K]; may hold NaN where not valid.
      valid: bool [B, K].
      group_ids: int [B].
      axis_name: the mapped axis or axes of ``jax.shard_map`` over which the rows are split.
    """
    if axis_name is None:
        all_values, all_valid, all_ids = values, valid, group_ids
    else:
        all_values, all_valid, all_ids = jax.lax.all_gather((values, valid, group_ids), axis_name, tiled=True)
    member = (group_ids[:, None] == all_ids[None, :])[..., None] & all_valid[None]  # [B, G, K]
    count = member.sum(axis=1).astype(values.dtype)
    top = jnp.where(member, all_values[None], -jnp.inf).max(axis=1)
    top = jnp.where(count > 0, top, 0)
    below = jnp.where(member, all_values[None] - top[:, None], 0)
    total = below.sum(axis=1)
    centre = divide(total, count)
    own = jnp.where(valid, values - top, 0)
    several = valid & (count >= 2)
    spread = jnp.where(member, (below - centre[:, None]) ** 2, 0).sum(axis=1)
    return GroupStatistics(
        size=count,
        mean=top + centre,
        deviation=jnp.where(several, own - centre, 0),
        leave_one_out=jnp.where(several, own - divide(total - own, count - 1), 0),
        std=jnp.sqrt(divide(spread, count - 1)),
    )
