"""Losses as pure functions of arrays: jit-, grad-, vmap- and shard-safe, on jax and NumPy alone.

For one batch of typed chains (see :mod:`scaletot_jax.losses.segments` for ``segment_ids``)::

    outcomes = rps_outcome(bucket_logits, bucket)
    rewards, valid = segment_rewards(prm_logps, ref_logps, segment_ids, num_segments=5, beta=0.5)
    advantages = osipo_advantages(rewards, valid, outcomes, group_ids, segment_ids)
    loss, metrics = osipo_loss(logps, old_logps, advantages, segment_ids, aggregation="segment_mean", num_segments=5)

RLOO, GRPO, Dr.GRPO, DAPO, GSPO and PRIME are configurations of these: ``docs/recipes.md``.
"""

from scaletot_jax.losses.advantages import osipo_advantages, prefix_critic_advantages
from scaletot_jax.losses.denoise import expected_rps_outcome, pooled_targets
from scaletot_jax.losses.diagnostics import informative_rollouts, within_group_auc, within_group_variance
from scaletot_jax.losses.distill import cosine_loss, distill_loss, gram_loss, info_nce, regression_loss
from scaletot_jax.losses.implicit_reward import implicit_reward_loss, segment_rewards
from scaletot_jax.losses.ltv import hurdle_distribution, hurdle_mean, hurdle_nll, ziln_mean, ziln_nll
from scaletot_jax.losses.osipo import osipo_loss
from scaletot_jax.losses.outcome import ordinal_cross_entropy, rps_outcome
from scaletot_jax.losses.prime import prime_advantages
from scaletot_jax.losses.segments import (
    ANSWER,
    PADDING,
    STRUCTURAL,
    credited_tokens,
    segment_counts,
    segment_mask,
    segment_means,
    segment_sums,
)
from scaletot_jax.losses.sft import mean_loss, soft_cross_entropy, token_cross_entropy
from scaletot_jax.losses.tree import tree_advantages

__all__ = [
    "ANSWER",
    "PADDING",
    "STRUCTURAL",
    "cosine_loss",
    "credited_tokens",
    "distill_loss",
    "expected_rps_outcome",
    "gram_loss",
    "hurdle_distribution",
    "hurdle_mean",
    "hurdle_nll",
    "implicit_reward_loss",
    "info_nce",
    "informative_rollouts",
    "mean_loss",
    "ordinal_cross_entropy",
    "osipo_advantages",
    "osipo_loss",
    "pooled_targets",
    "prefix_critic_advantages",
    "prime_advantages",
    "regression_loss",
    "rps_outcome",
    "segment_counts",
    "segment_mask",
    "segment_means",
    "segment_rewards",
    "segment_sums",
    "soft_cross_entropy",
    "token_cross_entropy",
    "tree_advantages",
    "within_group_auc",
    "within_group_variance",
    "ziln_mean",
    "ziln_nll",
]
