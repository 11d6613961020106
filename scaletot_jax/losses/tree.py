"""Advantages of rollouts that were drawn as a tree: chains of one prompt that share their first segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaletot_jax.losses.arguments import all_sum, divide, floating, require_choice, require_rollouts
from scaletot_jax.losses.groups import AxisName, group_statistics
from scaletot_jax.losses.scaling import ANSWERS, SCALES, centred, divided, finished, scale_of
from scaletot_jax.losses.segments import response_tokens, spread_segments


def tree_advantages(
    outcomes: jax.Array,
    valid: jax.Array,
    node_ids: jax.Array,
    group_ids: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: str | None = "batch_rms",
    min_scale: float | jax.Array = 1e-3,
    answer: str = "zero",
    clip: float | None = 5.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Per-token advantages of a tree of rollouts: no reward model, the branches say what a segment was worth.

        V_n  = mean of R over the leaves below node n                                        (a leaf mean)
        A_ik = V_n − [ ω · mean of V over the siblings of n + (1 − ω) · mean of V over its cousins ],   n = n(i, k)

    Node n(i, k) is leaf i's prefix up to and with segment k. Its siblings are the other children of its parent, its
    cousins all other nodes of that depth in the group. Siblings estimate the parent's value without bias but are few:
    σ²/#siblings of error, with σ² the variance among the children of one parent. Cousins are many but have other parents,
    which differ by τ²: error τ² (1 + Σ_p m_p² / (Σ_p m_p)²) + σ²/#cousins, m_p the cousins under parent p. ω weighs the
    two inversely to their errors; σ² and τ² are estimated once a depth from the whole batch, as in the analysis of
    variance (empirical Bayes). Without siblings ω = 0, without cousins 1, without both A_ik = 0.

    Chains that share nothing have only cousins after the first segment, and every segment gets the leave-one-out
    outcome: :func:`~scaletot_jax.losses.osipo_advantages` with ``process_weight=0``.

    >>> ids, group = jnp.tile(jnp.array([0, -1, 1]), (4, 1)), jnp.zeros(4, int)
    >>> nodes = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # two first segments, each continued twice
    >>> outcomes = jnp.array([1.0, 1.0, 0.0, 0.0])
    >>> tree_advantages(outcomes, jnp.ones((4, 2), bool), nodes, group, ids, scale=None)[:, ::2].tolist()
    [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]

    Args:
      outcomes: R [B], one a leaf.
      valid: bool [B, K], the leaf has segment k. A leaf without it is no member of any node of that depth.
      node_ids: int [B, K]: leaves of one group share a prefix up to and with segment k where their first k + 1 labels
        agree, so numbering the children of each parent is enough. Leaves that did not branch must not agree.
      group_ids: int [B]; rollouts of one prompt share a label.
      segment_ids: int32 [B, T]. A row of padding alone is no rollout. Tokens of a shared prefix stand in the row of
        every leaf below it; in a balanced tree any mean over rows weighs the nodes of one depth alike.
      scale: ``"batch_rms"`` or ``"group_std"`` of the leave-one-out outcome, or None: one scale for all depths, since all
        are in its units.
      min_scale, answer, clip, axis_name: as in :func:`~scaletot_jax.losses.osipo_advantages`.

    Returns:
      A [B, T], float32 (float64 stays), without gradient. Structural tokens get the leave-one-out outcome of the leaf.

    Raises:
      ValueError: shapes that disagree, or an unknown option.

    Source: leaf means as values of segments: arXiv:2505.23564 (by extra rollouts); moments of one-way analysis of
    variance with uneven groups: Searle, Casella, McCulloch, "Variance Components" (1992). The mix is ours.
    """
    require_choice("scale", scale, SCALES)
    require_choice("answer", answer, ANSWERS)
    num_segments = require_rollouts(segment_ids, outcomes, group_ids, valid, node_ids=node_ids)
    group_ids, node_ids = jnp.asarray(group_ids), jnp.asarray(node_ids)
    present = response_tokens(segment_ids, num_segments).any(axis=1, keepdims=True)
    outcomes = jax.lax.stop_gradient(jnp.where(present, floating(outcomes)[:, None], 0))

    group = group_statistics(outcomes, present, group_ids, axis_name)
    member = jnp.asarray(valid).astype(bool) & present
    per_segment = _mixed(outcomes - group.mean, member, node_ids, group_ids, axis_name)
    difference = centred(group, "loo")
    divisor = scale_of(difference, group, present, scale, min_scale, axis_name)
    per_token = spread_segments(divided(per_segment, divisor), segment_ids, divided(difference, divisor))
    return finished(per_token, segment_ids, num_segments, answer, clip)


def _mixed(outcomes, member, node_ids, group_ids, axis_name):
    """V_n − its mixed baseline [B, K]. Nodes are their leaves: each leaf carries 1/#leaves of its node's weight."""
    everybody = outcomes, member, node_ids, group_ids
    if axis_name is not None:
        everybody = jax.lax.all_gather(everybody, axis_name, tiled=True)
    all_outcomes, all_member, all_nodes, all_groups = everybody
    related = (group_ids[:, None] == all_groups[None, :])[..., None]  # [B, G, 1]
    agree = related & (jnp.cumprod(node_ids[:, None] == all_nodes[None], axis=2, dtype=jnp.int32) > 0)
    node = agree & all_member[None]
    family = jnp.concatenate([related, agree[..., :-1]], axis=2) & all_member[None]  # the node and its siblings
    clan = related & all_member[None]

    leaves = node.sum(axis=1).astype(outcomes.dtype)
    value = jnp.where(member, divide(jnp.where(node, all_outcomes[None], 0).sum(axis=1), leaves), 0)
    share = jnp.where(member, divide(jnp.ones_like(leaves), leaves), 0)
    gathered = value, share
    if axis_name is not None:
        gathered = jax.lax.all_gather(gathered, axis_name, tiled=True)
    all_value, all_share = gathered

    def nodes(members):
        """How many nodes the leaves in ``members`` are, and the mean of their values."""
        weights = jnp.where(members, all_share[None], 0)
        number = jnp.round(weights.sum(axis=1))
        return number, divide((weights * all_value[None]).sum(axis=1), number)

    children, family_mean = nodes(family)
    peers, clan_mean = nodes(clan)
    siblings, sibling_mean = nodes(family & ~node)
    cousins, cousin_mean = nodes(clan & ~family)
    all_children = children if axis_name is None else jax.lax.all_gather(children, axis_name, tiled=True)
    crowding = jnp.where(clan & ~family, (all_share * all_children)[None], 0).sum(axis=1)  # Σ m_p² of the cousins

    per_child, per_peer = divide(share, children), divide(share, peers)
    sums = (
        share * (value - family_mean) ** 2,  # within families
        share - per_child,  # its degrees of freedom
        share * (family_mean - clan_mean) ** 2,  # between families
        per_child - per_peer,
        share - per_peer * children,  # what τ² enters the second sum with
    )
    within, within_free, between, between_free, between_weight = all_sum(
        tuple(jnp.where(member, x, 0).sum(axis=0) for x in sums), axis_name
    )
    child_variance = divide(within, jnp.where(within_free > 0.5, within_free, 0))
    parent_variance = divide(
        jnp.maximum(between - between_free * child_variance, 0), jnp.where(between_weight > 1e-3, between_weight, 0)
    )

    sibling_error = divide(child_variance, siblings)
    cousin_error = parent_variance * (1 + divide(crowding, cousins**2)) + divide(child_variance, cousins)
    # Where both errors are 0 the two means agree, or nothing is known: every node then counts alike.
    trust = jnp.where(
        sibling_error + cousin_error > 0,
        divide(cousin_error, sibling_error + cousin_error),
        divide(siblings, siblings + cousins),
    )
    trust = jnp.where(cousins > 0, jnp.where(siblings > 0, trust, 0), 1)
    baseline = trust * sibling_mean + (1 - trust) * cousin_mean
    return jnp.where(member & (siblings + cousins > 0), value - baseline, 0)
