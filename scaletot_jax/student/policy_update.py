"""One update of the policy θ on rollouts that have been judged: what every update on the same rollouts has in common.

    L_θ = clipped surrogate + κ · KL to the reference + ordinal cross-entropy of the answer + replay of teacher chains

The ratio is taken against π_old *as this program computes it*: at the first update on a batch of rollouts the old
log-probabilities are the policy's own, without gradient, so the ratio is exactly 1 and the gradient −Σ w A ∇ log π; later
updates are given those of the first. The sampler decodes with the adapter merged into the weights, which rounds in another
way (in bfloat16 visibly); how far its log-probabilities lie from these is logged as ``sampler_gap``.

Shape letters: U prompts, N rollouts a prompt, R tokens a chain, Kb buckets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.losses import ordinal_cross_entropy, osipo_loss
from scaletot_jax.parallel.sharding import ShardingRules, constrain
from scaletot_jax.student.accumulate import in_turn, value_and_grad
from scaletot_jax.student.adapter import Adapter, TrainState, apply_gradients, cast
from scaletot_jax.student.constrained import GrammarArrays, TokenLogProbs, token_log_probs
from scaletot_jax.student.packing import pack, predicting_states
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.sft_step import SFTBatch, loss_weight, sft_part


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


class Judged(NamedTuple):
    """What the first update on a batch of rollouts finds out and the later ones take over.

    Attributes:
      ref_logps: [U, N, R] float32, log π_ref.
      advantages: [U, N, R] float32.
      old_logps: [U, N, R] float32, log π_old of the policy that sampled, by the trainer's own program.
      process_weight: float32 scalar, λ_p of these advantages.
      answer_targets: [U, N] int32 or [U, N, Kb] float32, see :func:`answer_targets`.
    """

    ref_logps: Any
    advantages: Any
    old_logps: Any
    process_weight: Any
    answer_targets: Any


@dataclasses.dataclass(frozen=True)
class OSIPOOptions:
    """Numbers of an update; the names are those of :func:`scaletot_jax.losses.osipo_loss` and its siblings."""

    num_segments: int
    lora_scale: float
    temperature: float = 1.0
    estimator: str = "osipo"
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
    answer_anchor: float = 0.0
    sft_weight: float = 0.05
    replay_answer_weight: float = 1.0


def policy_update(
    policy: TrainState,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    batch: OSIPOBatch,
    ref_logps: jax.Array,
    advantages: jax.Array,
    old_logps: jax.Array | None,
    targets: jax.Array,
    replay: SFTBatch,
    *,
    after: Any,
    config: LMConfig,
    options: OSIPOOptions,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    compute_dtype: Any = jnp.float32,
    rules: ShardingRules | None = None,
    remat: bool | str = False,
) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]:
    """One update of θ.

    Args:
      old_logps: [U, N, R] of the update before on these rollouts; None at the first, whose own they are.
      targets: of the answers, see :func:`answer_targets`.
      after: arrays that must have been computed before this pass begins.
      params, grammar, replay, accumulate, compute_dtype, rules, remat: as in
        :func:`scaletot_jax.student.osipo_step.osipo_first`.

    Returns:
      The new state, log π_old [U, N, R], and scalar diagnostics. ``kl`` (nats a chain) and ``old_kl`` (nats a token) are
      estimates under π_old, whose tokens these are: the first is weighted by each token's ratio.
    """
    users, count, length = batch.rollouts.tokens.shape

    def surrogate_of(logps: jax.Array, ref: jax.Array, advantages: jax.Array, old: Any, rows: OSIPOBatch) -> Any:
        flat = (-1, length)
        return osipo_loss(
            logps.reshape(flat),
            old.reshape(flat),
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
    credited = surrogate_of(ref_logps, ref_logps, advantages, ref_logps, batch)[1]["count"]
    answered = jnp.sum(batch.rollouts.complete)

    def policy_part(
        lora: Adapter, micro: OSIPOBatch, ref: jax.Array, advantages: jax.Array, targets: jax.Array, old: Any
    ) -> Any:
        lora = cast(lora, compute_dtype)
        scores = score(lora, params, grammar, micro, config=config, options=options, rules=rules, remat=remat)
        old = jax.lax.stop_gradient(scores.logps) if old is None else old
        surrogate, metrics = surrogate_of(scores.logps, ref, advantages, old, micro)
        answer = jnp.sum(answer_losses(scores.answer_logps, targets, micro.rollouts.complete)) / jnp.maximum(
            answered, 1
        )
        part = surrogate * metrics["count"] / jnp.maximum(credited, 1) + options.answer_weight * answer
        return part, (None, (scores.logps, scores.answer_logps))

    loss, gradients, _, (logps, answer_logps) = in_turn(
        lambda *rows: value_and_grad(policy_part, policy.lora, accumulate, *rows),
        after, batch, ref_logps, advantages, targets, old_logps,
    )  # fmt: skip
    old_logps = logps if old_logps is None else old_logps
    surrogate, metrics = surrogate_of(logps, ref_logps, advantages, old_logps, batch)
    answer_loss = jnp.sum(answer_losses(answer_logps, targets, batch.rollouts.complete)) / jnp.maximum(answered, 1)
    replayed = jnp.float32(0)
    if options.sft_weight > 0:
        weight = loss_weight(grammar, replay, options.replay_answer_weight)

        def replay_part(lora: Adapter, micro: SFTBatch) -> Any:
            part, _ = sft_part(
                cast(lora, compute_dtype), params, grammar, micro, weight, config=config,
                lora_scale=options.lora_scale, answer_weight=options.replay_answer_weight, rules=rules, remat=remat,
            )  # fmt: skip
            return part, (None, None)

        replayed, more, _, _ = in_turn(
            lambda rows: value_and_grad(replay_part, policy.lora, accumulate, rows), gradients, replay
        )
        gradients = jax.tree.map(lambda g, m: g + options.sft_weight * m, gradients, more)
        loss = loss + options.sft_weight * replayed
    sampled = jnp.sum(batch.rollouts.valid)
    diagnostics = {
        "loss": loss,
        "surrogate": surrogate,
        "answer_loss": answer_loss,
        "replay_loss": replayed,
        "clip_fraction": metrics["clip_fraction"],
        "ratio": metrics["ratio"],
        "kl": metrics["kl"] * metrics["tokens"] / (users * count),
        "old_kl": metrics["old_kl"],
        "sampler_gap": jnp.sum(jnp.abs(old_logps - batch.rollouts.logps)) / jnp.maximum(sampled, 1),
        "grad_norm": optax.tree.norm(gradients),
    }
    return apply_gradients(policy, gradients, optimizer), old_logps, diagnostics


def score(
    lora: Adapter,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    rows: OSIPOBatch,
    *,
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


def answer_targets(batch: OSIPOBatch, ref_answer_logps: jax.Array, anchor: float) -> jax.Array:
    """What each rollout's answer is taught: the label y, and the answer p_ref that the SFT policy gives after the same chain.

        t = (y + a p_ref) / (1 + a)

    A batch has a handful of labels and Adam takes a full step whatever their number, so labels alone move the level of
    everybody's answer to that of the last few users. With the anchor a the SFT policy's answer counts as a labels more.

    Args:
      ref_answer_logps: [U, N, Kb].
      anchor: a ≥ 0.

    Returns:
      [U, N, Kb] float32 distributions; with a = 0 the labels, int32 [U, N] where they are hard.
    """
    count = batch.rollouts.complete.shape[1]
    labels = jnp.repeat(batch.buckets[:, None], count, axis=1)
    if anchor == 0:
        return labels
    if labels.ndim == 2:
        labels = jax.nn.one_hot(labels, ref_answer_logps.shape[-1], dtype=jnp.float32)
    return (labels + anchor * jnp.exp(ref_answer_logps)) / (1 + anchor)


def answer_losses(answer_logps: jax.Array, targets: jax.Array, complete: jax.Array) -> jax.Array:
    """Ordinal cross-entropy of each rollout's answer [U, N]; 0 where the chain has no end."""
    return jnp.where(complete, ordinal_cross_entropy(answer_logps, targets), 0.0)
