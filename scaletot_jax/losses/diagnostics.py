"""What tells whether the signals of OSIPO carry information: within-group spread, and agreement of values with outcomes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import divide, floating, require_shape
from scaletot_jax.losses.groups import group_statistics


def within_group_auc(
    values: jax.Array, outcomes: jax.Array, group_ids: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Share of pairs of one group that ``values`` put in the order of ``outcomes``.

        AUC = Σ_{i,j: u_i=u_j, R_i>R_j} ( 1[V_i > V_j] + ½·1[V_i = V_j] ) / #pairs

    Comparing only within a group leaves out how easy prompts are. Judge it against ½ with an interval over many batches
    (add up AUC · pairs and pairs): one batch says little.

    Args:
      values: V [B], e.g. the sum of a chain's segment rewards.
      outcomes: R [B]. group_ids: int [B].
      valid: bool [B]; None: all.

    Returns:
      AUC in [0, 1] (½ without a pair) and the number of pairs, two scalars.

    Raises:
      ValueError: shapes that disagree.
    """
    values, outcomes, group_ids, valid = _check(values, outcomes, group_ids, valid)
    pair = (group_ids[:, None] == group_ids[None, :]) & valid[:, None] & valid[None, :]
    pair &= outcomes[:, None] > outcomes[None, :]
    gap = values[:, None] - values[None, :]
    right = jnp.where(pair, (gap > 0) + 0.5 * (gap == 0), 0).sum()
    pairs = pair.sum().astype(values.dtype)
    return jnp.where(pairs > 0, divide(right, pairs), 0.5), pairs


def within_group_variance(outcomes: jax.Array, group_ids: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Mean over rollouts of (R_i − mean of the group)², a scalar.

    Near 0 every chain of a prompt is worth the same, and no policy gradient can learn which to prefer.
    """
    _, outcomes, group_ids, valid = _check(outcomes, outcomes, group_ids, valid)
    deviation = group_statistics(outcomes[:, None], valid[:, None], group_ids).deviation
    return divide((deviation**2).sum(), valid.sum().astype(deviation.dtype))


def informative_rollouts(outcomes: jax.Array, group_ids: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Rollouts whose group has at least two different outcomes, bool [B]: what DAPO's dynamic sampling keeps.

    >>> informative_rollouts(jnp.array([1.0, 0.0, 1.0, 1.0]), jnp.array([3, 3, 5, 5])).tolist()
    [True, True, False, False]
    """
    _, outcomes, group_ids, valid = _check(outcomes, outcomes, group_ids, valid)
    return (group_statistics(outcomes[:, None], valid[:, None], group_ids).std[:, 0] > 0) & valid


def _check(values, outcomes, group_ids, valid):
    require_shape("values", values, ("B",))
    shape = jnp.shape(values)
    require_shape("outcomes", outcomes, shape)
    require_shape("group_ids", group_ids, shape)
    valid = jnp.ones(shape, bool) if valid is None else jnp.asarray(valid).astype(bool)
    require_shape("valid", valid, shape)
    values, outcomes = (jnp.where(valid, floating(x), 0) for x in (values, outcomes))
    return values, outcomes, jnp.asarray(group_ids), valid
