"""The OSIPO update after the rollouts, as pure functions.

    1  R      outcome: 1 − RPS of the answer distribution, read at the end of the rollout's own chain, against the label
    2  q      log π_φ − log π_ref of every token, with the reward model φ as it was before this update
    3  A      advantages: leave-one-out outcome plus the leave-one-out implicit reward of each segment; or PRIME's, of each token
    4  θ      clipped surrogate + KL to the reference + ordinal cross-entropy of the answer, anchored + replay of teacher chains
    5  φ      cross-entropy of every chain prefix's value against the outcome

θ (policy), φ (reward model) and the reference are three adapters on one copy of the base weights. All log-probabilities
are of the policy at its sampling temperature.

The update is four passes over the batch: the reference forward only, φ forward and backward, θ forward and backward, and
the replay. Each begins when the one before has ended, so that the update holds one pass's activations, as SFT does; with
``accumulate`` each pass goes by micro-batches, while outcomes, advantages, scales and denominators stay those of the
whole batch.

Rollouts may serve several updates: the first, :func:`osipo_first`, does all of the above; in the others, :func:`osipo_again`,
step 4 alone is repeated, with A and log π_old as they were. φ learns from a batch of rollouts once: its labels are the
outcomes, which do not change, and a second pass over the same few would fit their noise.

The paper (arXiv:2606.24605) names OSIPO and leaves its equations open; the losses and their sources are in
:mod:`scaletot_jax.losses`.

Shape letters: U prompts, N rollouts a prompt, B = U·N, R tokens a chain, K segments, Kb buckets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.losses import (
    PADDING,
    expected_rps_outcome,
    implicit_reward_loss,
    informative_rollouts,
    osipo_advantages,
    prime_advantages,
    rps_outcome,
    segment_counts,
    segment_rewards,
    within_group_auc,
    within_group_variance,
)
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.student.accumulate import in_turn, over_rows, value_and_grad
from scaletot_jax.student.adapter import Adapter, TrainState, apply_gradients, cast
from scaletot_jax.student.constrained import GrammarArrays, TokenLogProbs
from scaletot_jax.student.diagnostics import credit_by_segment, within_group_correlation
from scaletot_jax.student.policy_update import (
    Judged,
    OSIPOBatch,
    OSIPOOptions,
    answer_targets,
    policy_update,
    score,
)
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.sft_step import SFTBatch

__all__ = [
    "Judged",
    "OSIPOBatch",
    "OSIPOOptions",
    "OSIPOState",
    "osipo_again",
    "osipo_first",
    "osipo_step",
    "outcomes_of",
]

INVALID_OUTCOME = -0.1  # of a chain that did not reach its end


class OSIPOState(NamedTuple):
    """What an update changes: the policy's adapter θ and the reward model's adapter φ, each with its optimiser."""

    policy: TrainState
    reward: TrainState


def outcomes_of(rollouts: Rollouts, buckets: jax.Array) -> jax.Array:
    """R [U, N]: 1 − RPS of each rollout's own answer distribution; :data:`INVALID_OUTCOME` where the chain has no end.

    ``buckets``: as in :class:`OSIPOBatch`; against a distribution the outcome is the expected one.
    """
    count = rollouts.answers.shape[1]
    logits = jnp.log(jnp.maximum(rollouts.answers, 1e-30))
    outcome = rps_outcome if buckets.ndim == 1 else expected_rps_outcome
    flat = outcome(logits.reshape(-1, logits.shape[-1]), jnp.repeat(buckets, count, axis=0))
    return jnp.where(rollouts.complete, flat.reshape(rollouts.complete.shape), INVALID_OUTCOME)


def osipo_first(
    state: OSIPOState,
    params: Mapping[str, Any],
    reference: Adapter,
    grammar: GrammarArrays,
    batch: OSIPOBatch,
    replay: SFTBatch,
    process_weight: jax.Array | float,
    *,
    config: LMConfig,
    options: OSIPOOptions,
    policy_optimizer: optax.GradientTransformation,
    reward_optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    compute_dtype: Any = jnp.float32,
    rules: ShardingRules | None = None,
    remat: bool | str = False,
) -> tuple[OSIPOState, Judged, dict[str, jax.Array]]:
    """One update of θ and φ on fresh rollouts.

    Args:
      params: base weights, shared by all three adapters, in the dtype they are to be multiplied in.
      reference: the frozen adapter after SFT.
      replay: teacher chains for the replay term; read only where ``options.sft_weight`` > 0.
      process_weight: λ_p, 0 while the reward model warms up.
      accumulate: micro-batches of prompts in each pass, see :mod:`scaletot_jax.student.accumulate`.
      compute_dtype: of the adapters' products; their master copies and gradients stay float32.
      remat: what the backward passes compute again, see :mod:`scaletot_jax.lm.remat`.

    Returns:
      The new state, what :func:`osipo_again` needs for further updates on the same rollouts, and scalar diagnostics.
    """
    users, count, length = batch.rollouts.tokens.shape
    segments = batch.rollouts.segment_ids
    flat = (users * count, length)
    groups = _groups(users, count)
    outcomes = outcomes_of(batch.rollouts, batch.buckets)
    complete = batch.rollouts.complete

    def scores_of(lora: Adapter, micro: OSIPOBatch) -> TokenLogProbs:
        lora = cast(lora, compute_dtype)
        return score(lora, params, grammar, micro, config=config, options=options, rules=rules, remat=remat)

    def referred(micro: OSIPOBatch) -> tuple[jax.Array, jax.Array]:
        scores = scores_of(reference, micro)
        return scores.logps, answer_targets(micro, scores.answer_logps, options.answer_anchor)

    ref_logps, targets = over_rows(referred, accumulate, batch)

    prime = options.estimator == "prime"

    def reward_loss_of(logps: jax.Array, ref: jax.Array, rows: OSIPOBatch, outcomes: jax.Array) -> Any:
        flat = (-1, length)
        return implicit_reward_loss(
            logps.reshape(flat),
            ref.reshape(flat),
            rows.rollouts.segment_ids.reshape(flat),
            outcomes.reshape(-1),
            _groups(*outcomes.shape),
            num_segments=options.num_segments,
            beta=options.beta,
            boundary_weights="last" if prime else "uniform",
            shift=not prime,
            complete=rows.rollouts.complete.reshape(-1),
        )

    judged = jnp.where(complete[..., None], segments, PADDING).reshape(flat)
    chains = jnp.sum(jnp.any(segment_counts(judged, options.num_segments) > 0, axis=1))

    def reward_part(lora: Adapter, micro: OSIPOBatch, ref: jax.Array, outcomes: jax.Array) -> Any:
        logps = scores_of(lora, micro).logps
        loss, metrics = reward_loss_of(logps, ref, micro, outcomes)
        return loss * metrics["count"] / jnp.maximum(chains, 1), (None, logps)

    # The forward pass of φ's own update scores the chains with φ as it is before that update.
    _, reward_gradients, _, prm_logps = in_turn(
        lambda *rows: value_and_grad(reward_part, state.reward.lora, accumulate, *rows),
        ref_logps, batch, ref_logps, outcomes,
    )  # fmt: skip
    reward_loss, reward_metrics = reward_loss_of(prm_logps, ref_logps, batch, outcomes)
    rewards, present = segment_rewards(
        prm_logps.reshape(flat),
        ref_logps.reshape(flat),
        segments.reshape(flat),
        num_segments=options.num_segments,
        beta=options.beta,
    )
    if prime:  # as its code has it
        advantages = prime_advantages(
            prm_logps.reshape(flat),
            ref_logps.reshape(flat),
            segments.reshape(flat),
            outcomes.reshape(-1),
            groups,
            num_segments=options.num_segments,
            beta=options.beta,
            formula="code",
            scale="batch_max",
            whiten=True,
            outcome_weight=options.outcome_weight,
            process_weight=process_weight,
        )
    else:
        advantages = osipo_advantages(
            rewards,
            present,
            outcomes.reshape(-1),
            groups,
            segments.reshape(flat),
            baseline=options.baseline,
            scale=options.scale,
            gamma=options.gamma,
            min_scale=options.min_scale,
            outcome_weight=options.outcome_weight,
            process_weight=process_weight,
        )
    advantages = advantages.reshape(segments.shape)

    policy, old_logps, improved = policy_update(
        state.policy, params, grammar, batch, ref_logps, advantages, None, targets, replay, after=reward_gradients, config=config,
        options=options, optimizer=policy_optimizer, accumulate=accumulate, compute_dtype=compute_dtype, rules=rules,
        remat=remat,
    )  # fmt: skip
    reward = apply_gradients(state.reward, reward_gradients, reward_optimizer, enabled=jnp.any(complete))
    values = jnp.sum(rewards, axis=1)
    auc, pairs = within_group_auc(values, outcomes.reshape(-1), groups)
    informative = informative_rollouts(outcomes.reshape(-1), groups)
    sampled = jnp.sum(batch.rollouts.valid)
    decisions = jnp.sum(batch.rollouts.entropy > 0)
    diagnostics = improved | {
        "outcome": jnp.mean(outcomes),
        "outcome_variance": within_group_variance(outcomes.reshape(-1), groups),
        "flat_groups": 1 - jnp.mean(informative.astype(jnp.float32)),
        "zero_advantage_groups": jnp.mean(jnp.all(advantages.reshape(users, -1) == 0, axis=1).astype(jnp.float32)),
        "valid_rate": jnp.mean(complete.astype(jnp.float32)),
        "chain_tokens": sampled / (users * count),
        "entropy": jnp.sum(batch.rollouts.entropy) / jnp.maximum(decisions, 1),
        "reward_loss": reward_loss,
        "reward_grad_norm": optax.tree.norm(reward_gradients),
        "reward_accuracy": reward_metrics["accuracy"],
        "structural_share": reward_metrics["structural_share"],
        "value_auc": auc,
        "value_pairs": pairs,
        "value_correlation": within_group_correlation(values.reshape(users, count), outcomes),
        "process_weight": jnp.asarray(process_weight, jnp.float32),
        **credit_by_segment(rewards, present, advantages, segments),
    }
    found = Judged(ref_logps, advantages, old_logps, diagnostics["process_weight"], targets)
    return OSIPOState(policy, reward), found, diagnostics


def osipo_step(*arguments: Any, **options: Any) -> tuple[OSIPOState, dict[str, jax.Array]]:
    """:func:`osipo_first` for rollouts that serve one update: state and diagnostics alone."""
    state, _, diagnostics = osipo_first(*arguments, **options)
    return state, diagnostics


def osipo_again(
    state: OSIPOState,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    batch: OSIPOBatch,
    judged: Judged,
    replay: SFTBatch,
    *,
    policy_optimizer: optax.GradientTransformation,
    **options: Any,
) -> tuple[OSIPOState, dict[str, jax.Array]]:
    """One more update of θ on rollouts that an earlier :func:`osipo_first` has judged; φ stays as it is.

    Args:
      judged: what that update returned. Advantages and log π_old are fixed; the ratio and its clipping bound how far the
        policy moves from the one that sampled.
      options: as those of :func:`osipo_first` that :func:`~scaletot_jax.student.policy_update.policy_update` takes.

    Returns:
      The new state and the policy's scalar diagnostics.
    """
    policy, _, improved = policy_update(
        state.policy, params, grammar, batch, judged.ref_logps, judged.advantages, judged.old_logps,
        judged.answer_targets, replay, after=judged, optimizer=policy_optimizer, **options,
    )  # fmt: skip
    return OSIPOState(policy, state.reward), improved | {"process_weight": judged.process_weight}


def _groups(users: int, count: int) -> jax.Array:
    """Group label of each rollout, int32 [U·N]."""
    return jnp.repeat(jnp.arange(users, dtype=jnp.int32), count)
