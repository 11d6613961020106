"""Supervised fine-tuning on teacher chains: the loss and one update, as pure functions.

At every token of a chain the teacher gives a distribution p over the alternatives of the grammar state (one-hot where
the text is forced, and one-hot at the written token where a slot is free text), and the student minimises

    L = Σ_bnr w_bnr · ( −Σ_a p_bnra log π(c_a | prefix) ) / Σ_bnr w_bnr

where π is normalised over the whole vocabulary, so that the student also learns the form. The prompt carries no loss.
w is the chain's weight, times ``answer_weight`` at the answer. Only the hidden states that predict chain tokens reach the
head: no [B, T, V] array exists. Accumulated over micro-batches the sum and the weight are those of the whole batch.
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
from scaletot_jax.student.accumulate import value_and_grad
from scaletot_jax.student.adapter import Adapter, TrainState, apply_gradients, cast
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


def loss_weight(grammar: GrammarArrays, batch: SFTBatch, answer_weight: float) -> jax.Array:
    """Σ_bnr w_bnr, what the loss is divided by: known before any model runs."""
    return jnp.sum(_token_weights(grammar, batch, answer_weight)[0])


def sft_part(
    lora: Adapter | None,
    params: Mapping[str, Any],
    grammar: GrammarArrays,
    batch: SFTBatch,
    weight: jax.Array,
    *,
    config: LMConfig,
    lora_scale: float = 1.0,
    answer_weight: float = 1.0,
    rules: ShardingRules | None = None,
    remat: bool | str = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What some rows contribute to a loss whose whole weight is ``weight``: Σ over their tokens, divided by it.

    Args:
      lora: None for a model without an adapter, whose own parameters are trained.
      weight: Σ w over the whole batch, see :func:`loss_weight`.
      rules: with rules, activations are constrained on the active mesh; None leaves placement to XLA.
      remat: what the backward pass computes again, see :mod:`scaletot_jax.lm.remat`.

    Returns:
      The part, and sums without gradient: ``answer`` (Σ of nats at answer tokens) and ``answers`` (their Σ w).
    """
    packed = pack(batch.prompts, batch.prompt_valid, batch.chains, batch.chain_valid)
    hidden = predicting_states(params, config, packed, lora=lora, lora_scale=lora_scale, remat=remat, rules=rules)
    if rules is not None:
        hidden = constrain(hidden, "batch", None, "tokens", "activation", rules=rules)
    candidates = taught_tokens(grammar, batch.states, batch.chains, batch.chain_valid)
    log_probs = candidate_log_probs(
        params,
        config,
        hidden.reshape(-1, hidden.shape[-1]),
        candidates.reshape(-1, candidates.shape[-1]),
        normalise="full",
        rules=rules,
    ).reshape(candidates.shape)
    rows = (-1, candidates.shape[-2])
    inputs = (log_probs.reshape(*rows, candidates.shape[-1]), batch.targets.reshape(*rows, candidates.shape[-1]))
    counted, answering = (leaf.reshape(rows) for leaf in _token_weights(grammar, batch, answer_weight))
    total, _ = soft_cross_entropy(*inputs, counted)
    answer, answers = jax.lax.stop_gradient(soft_cross_entropy(*inputs, answering))
    return mean_loss(total, weight), {"answer": answer, "answers": answers}


def sft_loss(
    lora: Adapter | None, params: Mapping[str, Any], grammar: GrammarArrays, batch: SFTBatch, **options: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss above in nats a token, and metrics. ``options``: as for :func:`sft_part`.

    Returns:
      The loss, and ``loss``, ``answer_loss`` (nats at the answer token alone), ``weight`` (Σ w, to combine batches).
    """
    weight = loss_weight(grammar, batch, options.get("answer_weight", 1.0))
    loss, sums = sft_part(lora, params, grammar, batch, weight, **options)
    return loss, {"loss": loss, "answer_loss": mean_loss(sums["answer"], sums["answers"]), "weight": weight}


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
    accumulate: int = 1,
    compute_dtype: Any = jnp.float32,
    rules: ShardingRules | None = None,
    remat: bool | str = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the adapter.

    Args:
      params: the frozen base weights, in the dtype they are to be multiplied in.
      accumulate: micro-batches; losses and gradients are those of the whole batch, see
        :mod:`scaletot_jax.student.accumulate`.
      compute_dtype: of the adapter's products; its master copy and the gradient stay float32.

    Returns:
      The new state, and the loss's metrics with ``grad_norm`` (before clipping).
    """
    weight = loss_weight(grammar, batch, answer_weight)

    def part(lora: Adapter, micro: SFTBatch) -> tuple[jax.Array, tuple[dict[str, jax.Array], None]]:
        loss, sums = sft_part(
            cast(lora, compute_dtype), params, grammar, micro, weight, config=config, lora_scale=lora_scale,
            answer_weight=answer_weight, rules=rules, remat=remat,
        )  # fmt: skip
        return loss, (sums, None)

    loss, gradients, sums, _ = value_and_grad(part, state.lora, accumulate, batch)
    metrics = sft_metrics(loss, sums, weight, gradients)
    return apply_gradients(state, gradients, optimizer), metrics


def sft_metrics(loss: jax.Array, sums: dict[str, jax.Array], weight: jax.Array, gradients: Any) -> dict[str, jax.Array]:
    """What a step logs: ``loss``, ``answer_loss``, ``weight`` and ``grad_norm``."""
    answer = mean_loss(sums["answer"], sums["answers"])
    return {"loss": loss, "answer_loss": answer, "weight": weight, "grad_norm": optax.tree.norm(gradients)}


def _token_weights(grammar: GrammarArrays, batch: SFTBatch, answer_weight: float) -> tuple[jax.Array, jax.Array]:
    """w [B, N, R], and the chain's weight at answer tokens alone."""
    answering = batch.chain_valid & (batch.states == grammar.answer_state)
    plain = jnp.where(batch.chain_valid, batch.weights[..., None], 0.0)
    return jnp.where(answering, answer_weight * plain, plain), jnp.where(answering, plain, 0.0)
