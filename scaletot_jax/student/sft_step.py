"""Supervised fine-tuning on teacher chains: the loss and one update, as pure functions.

At every token of a chain the teacher gives a distribution p over the alternatives of the grammar state (one-hot where
the text is forced, and one-hot at the written token where a slot is free text), and the student minimises

    L = Σ_bnr w_bnr · ( −Σ_a p_bnra log π(c_a | prefix) ) / Σ_bnr w_bnr

where π is normalised over the whole vocabulary, so that the student also learns the form. The prompt carries no loss.
w is the chain's weight, times ``answer_weight`` at the answer. Only the hidden states that predict chain tokens reach the
head: no [B, T, V] array exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import candidate_log_probs
from scaletot_jax.losses import mean_loss, soft_cross_entropy
from scaletot_jax.parallel.sharding import ShardingRules, constrain
from scaletot_jax.student.adapter import Adapter, TrainState, apply_gradients
from scaletot_jax.student.constrained import GrammarArrays, taught_tokens
from scaletot_jax.student.packing import pack, predicting_states


class SFTBatch(NamedTuple):
    """Profiles with their teacher chains; a profile with fewer than N chains has empty ones of weight 0.

    Attributes:
      prompts: [B, P] int32, right-padded.
      prompt_valid: [B, P] bool.
      chains: [B, N, R] int32.
      chain_valid: [B, N, R] bool.
      states: [B, N, R] int32, grammar state before each token.
      targets: [B, N, R, A] float32, the teacher's distribution over the alternatives of each state, or 1 in the first
        column for the token itself where the state is free, see :func:`scaletot_jax.student.constrained.taught_tokens`.
      weights: [B, N] float32, weight of each chain.
    """

    prompts: Any
    prompt_valid: Any
    chains: Any
    chain_valid: Any
    states: Any
    targets: Any
    weights: Any


def sft_loss(
    lora: Adapter,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    batch: SFTBatch,
    *,
    config: LMConfig,
    lora_scale: float,
    answer_weight: float = 1.0,
    rules: ShardingRules | None = None,
    remat: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss above in nats a token, and metrics.

    Args:
      rules: with rules, activations are constrained on the active mesh; None leaves placement to XLA.
      remat: recompute layers in the backward pass.

    Returns:
      The loss, and ``loss``, ``answer_loss`` (nats at the answer token alone), ``weight`` (Σ w, to combine batches).
    """
    packed = pack(batch.prompts, batch.prompt_valid, batch.chains, batch.chain_valid)
    hidden = predicting_states(params, config, packed, lora=lora, lora_scale=lora_scale, remat=remat)
    if rules is not None:
        hidden = constrain(hidden, "batch", None, "tokens", "activation", rules=rules)
    candidates = taught_tokens(grammar, batch.states, batch.chains, batch.chain_valid)
    log_probs = candidate_log_probs(
        params,
        config,
        hidden.reshape(-1, hidden.shape[-1]),
        candidates.reshape(-1, candidates.shape[-1]),
        normalise="full",
    ).reshape(candidates.shape)
    answering = batch.chain_valid & (batch.states == grammar.answer_state)
    plain = jnp.where(batch.chain_valid, batch.weights[..., None], 0.0)
    rows = (-1, candidates.shape[-2])
    inputs = (log_probs.reshape(*rows, candidates.shape[-1]), batch.targets.reshape(*rows, candidates.shape[-1]))
    total, weight = soft_cross_entropy(*inputs, jnp.where(answering, answer_weight * plain, plain).reshape(rows))
    answer = mean_loss(*soft_cross_entropy(*inputs, jnp.where(answering, plain, 0.0).reshape(rows)))
    loss = mean_loss(total, weight)
    return loss, {"loss": loss, "answer_loss": jax.lax.stop_gradient(answer), "weight": weight}


def sft_step(
    state: TrainState,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    batch: SFTBatch,
    *,
    config: LMConfig,
    optimizer: optax.GradientTransformation,
    lora_scale: float,
    answer_weight: float = 1.0,
    rules: ShardingRules | None = None,
    remat: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the adapter. Returns the new state and the loss's metrics with ``grad_norm`` (before clipping)."""
    (_, metrics), gradients = jax.value_and_grad(sft_loss, has_aux=True)(
        state.lora,
        params,
        grammar,
        batch,
        config=config,
        lora_scale=lora_scale,
        answer_weight=answer_weight,
        rules=rules,
        remat=remat,
    )
    metrics["grad_norm"] = optax.tree.norm(gradients)
    return apply_gradients(state, gradients, optimizer), metrics
