"""One OSIPO update after the rollouts, as a pure function.

    1  R      outcome: 1 − RPS of the answer distribution, read at the end of the rollout's own chain, against the label
    2  q      log π_φ − log π_ref of every token, with the reward model φ as it was before this update
    3  A      advantages: leave-one-out outcome plus the leave-one-out implicit reward of each segment
    4  θ      clipped surrogate + KL to the reference + ordinal cross-entropy of the answer + replay of teacher chains
    5  φ      cross-entropy of every chain prefix's value against the outcome

θ (policy), φ (reward model) and the reference are three adapters on one copy of the base weights. All log-probabilities
are of the policy at its sampling temperature.

The update is four passes over the batch: the reference forward only, φ forward and backward, θ forward and backward, and
the replay. Each begins when the one before has ended, so that the update holds one pass's activations, as SFT does; with
``accumulate`` each pass goes by micro-batches, while outcomes, advantages, scales and denominators stay those of the
whole batch. The paper (arXiv:2606.24605) names OSIPO and leaves its equations open; the
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
    PADDING,
    expected_rps_outcome,
    implicit_reward_loss,
    informative_rollouts,
    ordinal_cross_entropy,
    osipo_advantages,
    osipo_loss,
    rps_outcome,
    segment_counts,
    segment_rewards,
    within_group_auc,
    within_group_variance,
)
from scaletot_jax.parallel.sharding import ShardingRules, constrain
from scaletot_jax.student.accumulate import in_turn, over_rows, value_and_grad
from scaletot_jax.student.adapter import Adapter, TrainState, apply_gradients, cast
from scaletot_jax.student.constrained import GrammarArrays, TokenLogProbs, token_log_probs
from scaletot_jax.student.diagnostics import credit_by_segment, within_group_correlation
from scaletot_jax.student.packing import pack, predicting_states
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.sft_step import SFTBatch, loss_weight, sft_part

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
      buckets: [U] int32, label bucket of each prompt's user; or [U, Kb] float32, a distribution over buckets
        (:func:`scaletot_jax.losses.pooled_targets`).
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
    outcome_weight: float = 1.0
    baseline: str = "loo"
    scale: str | None = "batch_rms"
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
    """R [U, N]: 1 − RPS of each rollout's own answer distribution; :data:`INVALID_OUTCOME` where the chain has no end.

    ``buckets``: as in :class:`OSIPOBatch`; against a distribution the outcome is the expected one.
    """
    count = rollouts.answers.shape[1]
    logits = jnp.log(jnp.maximum(rollouts.answers, 1e-30))
    outcome = rps_outcome if buckets.ndim == 1 else expected_rps_outcome
    flat = outcome(logits.reshape(-1, logits.shape[-1]), jnp.repeat(buckets, count, axis=0))
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
    accumulate: int = 1,
    compute_dtype: Any = jnp.float32,
    rules: ShardingRules | None = None,
    remat: bool | str = False,
) -> tuple[OSIPOState, dict[str, jax.Array]]:
    """One update of θ and φ.

    Args:
      params: base weights, shared by all three adapters, in the dtype they are to be multiplied in.
      reference: the frozen adapter after SFT.
      replay: teacher chains for the replay term; read only where ``options.sft_weight`` > 0.
      process_weight: λ_p, 0 while the reward model warms up.
      accumulate: micro-batches of prompts in each pass, see :mod:`scaletot_jax.student.accumulate`.
      compute_dtype: of the adapters' products; their master copies and gradients stay float32.
      remat: what the backward passes compute again, see :mod:`scaletot_jax.lm.remat`.

    Returns:
      The new state and scalar diagnostics.
    """
    users, count, length = batch.rollouts.tokens.shape
    segments = batch.rollouts.segment_ids
    flat = (users * count, length)
    groups = _groups(users, count)
    outcomes = outcomes_of(batch.rollouts, batch.buckets)
    complete = batch.rollouts.complete

    def score(lora: Adapter, micro: OSIPOBatch) -> TokenLogProbs:
        return _score(cast(lora, compute_dtype), params, grammar, micro, config, options, rules, remat)

    ref_logps = over_rows(lambda micro: score(reference, micro).logps, accumulate, batch)

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
            complete=rows.rollouts.complete.reshape(-1),
        )

    judged = jnp.where(complete[..., None], segments, PADDING).reshape(flat)
    chains = jnp.sum(jnp.any(segment_counts(judged, options.num_segments) > 0, axis=1))

    def reward_part(lora: Adapter, micro: OSIPOBatch, ref: jax.Array, outcomes: jax.Array) -> Any:
        logps = score(lora, micro).logps
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
    advantages = osipo_advantages(
        rewards,
        present,
        outcomes.reshape(-1),
        groups,
        segments.reshape(flat),
        outcome_weight=options.outcome_weight,
        process_weight=process_weight,
        baseline=options.baseline,
        scale=options.scale,
        gamma=options.gamma,
        min_scale=options.min_scale,
    ).reshape(segments.shape)

    def surrogate_of(logps: jax.Array, ref: jax.Array, advantages: jax.Array, rows: OSIPOBatch) -> Any:
        flat = (-1, length)
        return osipo_loss(
            logps.reshape(flat),
            rows.rollouts.logps.reshape(flat),
            advantages.reshape(flat),
            rows.rollouts.segment_ids.reshape(flat),
            aggregation=options.aggregation,
            num_segments=options.num_segments,
            ratio=options.ratio,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            ref_logps=ref.reshape(flat),
            kl_weight=options.kl_weight,
        )

    # What a loss is divided by depends on the labels of the tokens alone, so any log-probabilities give it.
    credited = surrogate_of(batch.rollouts.logps, ref_logps, advantages, batch)[1]["count"]
    answered = jnp.sum(complete)

    def policy_part(lora: Adapter, micro: OSIPOBatch, ref: jax.Array, advantages: jax.Array) -> Any:
        scores = score(lora, micro)
        surrogate, metrics = surrogate_of(scores.logps, ref, advantages, micro)
        answer = jnp.sum(_answer_losses(scores.answer_logps, micro)) / jnp.maximum(answered, 1)
        part = surrogate * metrics["count"] / jnp.maximum(credited, 1) + options.answer_weight * answer
        return part, (None, (scores.logps, scores.answer_logps))

    loss, gradients, _, (logps, answer_logps) = in_turn(
        lambda *rows: value_and_grad(policy_part, state.policy.lora, accumulate, *rows),
        reward_gradients, batch, ref_logps, advantages,
    )  # fmt: skip
    surrogate, metrics = surrogate_of(logps, ref_logps, advantages, batch)
    answer_loss = jnp.sum(_answer_losses(answer_logps, batch)) / jnp.maximum(answered, 1)
    replayed = jnp.float32(0)
    if options.sft_weight > 0:
        weight = loss_weight(grammar, replay, 1.0)

        def replay_part(lora: Adapter, micro: SFTBatch) -> Any:
            part, _ = sft_part(
                cast(lora, compute_dtype), params, grammar, micro, weight, config=config,
                lora_scale=options.lora_scale, rules=rules, remat=remat,
            )  # fmt: skip
            return part, (None, None)

        replayed, more, _, _ = in_turn(
            lambda rows: value_and_grad(replay_part, state.policy.lora, accumulate, rows), gradients, replay
        )
        gradients = jax.tree.map(lambda g, m: g + options.sft_weight * m, gradients, more)
        loss = loss + options.sft_weight * replayed

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
        "surrogate": surrogate,
        "answer_loss": answer_loss,
        "replay_loss": replayed,
        "outcome": jnp.mean(outcomes),
        "outcome_variance": within_group_variance(outcomes.reshape(-1), groups),
        "flat_groups": 1 - jnp.mean(informative.astype(jnp.float32)),
        "zero_advantage_groups": jnp.mean(jnp.all(advantages.reshape(users, -1) == 0, axis=1).astype(jnp.float32)),
        "valid_rate": jnp.mean(complete.astype(jnp.float32)),
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
        **credit_by_segment(rewards, present, advantages, segments),
    }
    return new_state, diagnostics


def _groups(users: int, count: int) -> jax.Array:
    """Group label of each rollout, int32 [U·N]."""
    return jnp.repeat(jnp.arange(users, dtype=jnp.int32), count)


def _answer_losses(answer_logps: jax.Array, rows: OSIPOBatch) -> jax.Array:
    """Ordinal cross-entropy of each rollout's answer [U, N]; 0 where the chain has no end."""
    complete = rows.rollouts.complete
    targets = jnp.repeat(rows.buckets[:, None], complete.shape[1], axis=1)
    losses = ordinal_cross_entropy(answer_logps, targets)
    return jnp.where(complete, losses, 0.0)


def _score(
    lora: Adapter,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    rows: OSIPOBatch,
    config: LMConfig,
    options: OSIPOOptions,
    rules: ShardingRules | None,
    remat: bool | str,
) -> TokenLogProbs:
    """Policy log-probabilities of the rollouts under one adapter, [U, N, R]."""
    rollouts = rows.rollouts
    packed = pack(rows.prompts, rows.prompt_valid, rollouts.tokens, rollouts.valid)
    hidden = predicting_states(
        params, config, packed, lora=lora, lora_scale=options.lora_scale, remat=remat, rules=rules
    )
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
        rules=rules,
    )
