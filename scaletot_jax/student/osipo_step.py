"""One OSIPO update after the rollouts, as a pure function.

    1  R      outcome: 1 − RPS of the answer distribution, read at the end of the rollout's own chain, against the label
    2  q      log π_φ − log π_ref of every token, with the reward model φ as it was before this update
    3  A      advantages: leave-one-out outcome plus the leave-one-out implicit reward of each segment
    4  θ      clipped surrogate + KL to the reference + ordinal cross-entropy of the answer + replay of teacher chains
    5  φ      cross-entropy of every chain prefix's value against the outcome

θ (policy), φ (reward model) and the reference are three adapters on one copy of the base weights. All log-probabilities
are of the policy at its sampling temperature. The paper (arXiv:2606.24605) names OSIPO and leaves its equations open; the
losses and their sources are in :mod:`scaletot_jax.losses`.

Shape letters: U prompts, N rollouts a prompt, B = U·N, R tokens a chain, K segments, Kb buckets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.losses import (
    implicit_reward_loss,
    informative_rollouts,
    ordinal_cross_entropy,
    osipo_advantages,
    osipo_loss,
    rps_outcome,
    segment_rewards,
    within_group_auc,
    within_group_variance,
)
from scaletot_jax.parallel.sharding import ShardingRules, constrain
from scaletot_jax.student.adapter import Adapter, TrainState, apply_gradients
from scaletot_jax.student.constrained import GrammarArrays, TokenLogProbs, token_log_probs
from scaletot_jax.student.diagnostics import within_group_correlation
from scaletot_jax.student.packing import Packed, pack, predicting_states
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.sft_step import SFTBatch, sft_loss

INVALID_OUTCOME = -0.1  # of a chain that did not reach its end


class OSIPOState(NamedTuple):
    """What an update changes: the policy's adapter θ and the reward model's adapter φ, each with its optimiser."""

    policy: TrainState
    reward: TrainState


class OSIPOBatch(NamedTuple):
    """Prompts, their rollouts and their labels.

    Attributes:
      prompts: [U, P] int32; prompt_valid: [U, P] bool.
      rollouts: [U, N, ...].
      buckets: [U] int32, label bucket of each prompt's user.
    """

    prompts: Any
    prompt_valid: Any
    rollouts: Rollouts
    buckets: Any


@dataclasses.dataclass(frozen=True)
class OSIPOOptions:
    """Numbers of an update; the names are those of :func:`scaletot_jax.losses.osipo_loss` and its siblings."""

    num_segments: int
    lora_scale: float
    temperature: float = 1.0
    gamma: float = 0.0
    beta: float = 0.5
    min_scale: float = 1e-3
    clip_low: float = 0.2
    clip_high: float = 0.28
    ratio: str = "segment"
    aggregation: str = "segment_mean"
    kl_weight: float = 1e-3
    answer_weight: float = 1.0
    sft_weight: float = 0.05


def outcomes_of(rollouts: Rollouts, buckets: jax.Array) -> jax.Array:
    """R [U, N]: 1 − RPS of each rollout's own answer distribution; :data:`INVALID_OUTCOME` where the chain has no end."""
    count = rollouts.answers.shape[1]
    logits = jnp.log(jnp.maximum(rollouts.answers, 1e-30))
    flat = rps_outcome(logits.reshape(-1, logits.shape[-1]), jnp.repeat(buckets, count))
    return jnp.where(rollouts.complete, flat.reshape(rollouts.complete.shape), INVALID_OUTCOME)


def osipo_step(
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
    rules: ShardingRules | None = None,
    remat: bool = False,
) -> tuple[OSIPOState, dict[str, jax.Array]]:
    """One update of θ and φ.

    Args:
      params: base weights, shared by all three adapters.
      reference: the frozen adapter after SFT.
      replay: teacher chains for the replay term; read only where ``options.sft_weight`` > 0.
      process_weight: λ_p, 0 while the reward model warms up.

    Returns:
      The new state and scalar diagnostics.
    """
    packed = pack(batch.prompts, batch.prompt_valid, batch.rollouts.tokens, batch.rollouts.valid)
    users, count, length = batch.rollouts.tokens.shape
    flat = (users * count, length)
    segments = batch.rollouts.segment_ids.reshape(flat)
    groups = jnp.repeat(jnp.arange(users, dtype=jnp.int32), count)
    outcomes = outcomes_of(batch.rollouts, batch.buckets)
    complete = batch.rollouts.complete.reshape(-1)

    def score(lora: Adapter) -> TokenLogProbs:
        return _score(lora, params, grammar, packed, batch.rollouts, config, options, rules, remat)

    ref_logps = jax.lax.stop_gradient(score(reference).logps.reshape(flat))

    def reward_objective(lora: Adapter) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
        logps = score(lora).logps.reshape(flat)
        loss, metrics = implicit_reward_loss(
            logps,
            ref_logps,
            segments,
            outcomes.reshape(-1),
            groups,
            num_segments=options.num_segments,
            beta=options.beta,
            complete=complete,
        )
        return loss, (logps, metrics)

    # The forward pass of φ's own update scores the chains with φ as it is before that update.
    (reward_loss, (prm_logps, reward_metrics)), reward_gradients = jax.value_and_grad(reward_objective, has_aux=True)(
        state.reward.lora
    )
    rewards, present = segment_rewards(
        prm_logps, ref_logps, segments, num_segments=options.num_segments, beta=options.beta
    )
    advantages = osipo_advantages(
        rewards,
        present,
        outcomes.reshape(-1),
        groups,
        segments,
        process_weight=process_weight,
        gamma=options.gamma,
        min_scale=options.min_scale,
    )

    def policy_objective(lora: Adapter) -> tuple[jax.Array, dict[str, jax.Array]]:
        scores = score(lora)
        surrogate, metrics = osipo_loss(
            scores.logps.reshape(flat),
            batch.rollouts.logps.reshape(flat),
            advantages,
            segments,
            aggregation=options.aggregation,
            num_segments=options.num_segments,
            ratio=options.ratio,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            ref_logps=ref_logps,
            kl_weight=options.kl_weight,
        )
        answer = _answer_loss(scores.answer_logps, batch.buckets, batch.rollouts.complete)
        loss = surrogate + options.answer_weight * answer
        metrics = dict(metrics, surrogate=surrogate, answer_loss=answer)
        if options.sft_weight > 0:
            replayed, _ = sft_loss(
                lora, params, grammar, replay, config=config, lora_scale=options.lora_scale, rules=rules, remat=remat
            )
            loss = loss + options.sft_weight * replayed
            metrics["replay_loss"] = replayed
        return loss, metrics

    (loss, metrics), gradients = jax.value_and_grad(policy_objective, has_aux=True)(state.policy.lora)
    new_state = OSIPOState(
        apply_gradients(state.policy, gradients, policy_optimizer),
        apply_gradients(state.reward, reward_gradients, reward_optimizer, enabled=jnp.any(complete)),
    )
    values = jnp.sum(rewards, axis=1)
    auc, pairs = within_group_auc(values, outcomes.reshape(-1), groups)
    informative = informative_rollouts(outcomes.reshape(-1), groups)
    sampled = jnp.sum(batch.rollouts.valid)
    decisions = jnp.sum(batch.rollouts.entropy > 0)
    diagnostics = {
        "loss": loss,
        "surrogate": metrics["surrogate"],
        "answer_loss": metrics["answer_loss"],
        "replay_loss": metrics.get("replay_loss", jnp.float32(0)),
        "outcome": jnp.mean(outcomes),
        "outcome_variance": within_group_variance(outcomes.reshape(-1), groups),
        "flat_groups": 1 - jnp.mean(informative.astype(jnp.float32)),
        "zero_advantage_groups": jnp.mean(jnp.all(advantages.reshape(users, -1) == 0, axis=1).astype(jnp.float32)),
        "valid_rate": jnp.mean(batch.rollouts.complete.astype(jnp.float32)),
        "chain_tokens": sampled / (users * count),
        "entropy": jnp.sum(batch.rollouts.entropy) / jnp.maximum(decisions, 1),
        "clip_fraction": metrics["clip_fraction"],
        "ratio": metrics["ratio"],
        "kl": metrics["kl"] * metrics["tokens"] / (users * count),
        "grad_norm": optax.tree.norm(gradients),
        "reward_loss": reward_loss,
        "reward_grad_norm": optax.tree.norm(reward_gradients),
        "reward_accuracy": reward_metrics["accuracy"],
        "structural_share": reward_metrics["structural_share"],
        "value_auc": auc,
        "value_pairs": pairs,
        "value_correlation": within_group_correlation(values.reshape(users, count), outcomes),
        "process_weight": jnp.asarray(process_weight, jnp.float32),
    }
    return new_state, diagnostics


def _answer_loss(answer_logps: jax.Array, buckets: jax.Array, complete: jax.Array) -> jax.Array:
    losses = ordinal_cross_entropy(answer_logps, jnp.broadcast_to(buckets[:, None], complete.shape))
    return jnp.sum(jnp.where(complete, losses, 0.0)) / jnp.maximum(jnp.sum(complete), 1)


def _score(
    lora: Adapter,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    packed: Packed,
    rollouts: Rollouts,
    config: LMConfig,
    options: OSIPOOptions,
    rules: ShardingRules | None,
    remat: bool,
) -> TokenLogProbs:
    """Policy log-probabilities of the rollouts under one adapter, [U, N, R]."""
    hidden = predicting_states(params, config, packed, lora=lora, lora_scale=options.lora_scale, remat=remat)
    if rules is not None:
        hidden = constrain(hidden, "batch", None, "tokens", "activation", rules=rules)
    return token_log_probs(
        params,
        config,
        hidden,
        grammar,
        rollouts.states,
        rollouts.tokens,
        rollouts.valid,
        temperature=options.temperature,
    )
