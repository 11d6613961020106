"""From hidden states to log-probabilities, without an array of N × V.

    log p(t | h) = h · w_t − logsumexp_j (h · w_j)

Rows and the vocabulary are processed in chunks; a chunk's logits live only while it is processed, and are computed again
in the backward pass (:mod:`scaletot_jax.lm.fused_head`), so that memory is chunk × columns however many rows and words
there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.fused_head import LOW, Blocks, Sums, head_sums, join_rows, split_rows
from scaletot_jax.lm.model import Params
from scaletot_jax.lm.sharded_head import sharded_scores, sharded_sums, split_on_mesh
from scaletot_jax.parallel.sharding import ShardingRules

ROWS, COLUMNS = 2048, 4096  # 32 MiB of float32 logits


def logits(params: Params, config: LMConfig, hidden: jax.Array) -> jax.Array:
    """All logits: hidden [..., D] (after the final norm) to [..., V] float32."""
    if config.tie_embeddings:
        weight = params["embed"]
        return jnp.einsum("...d,vd->...v", hidden.astype(weight.dtype), weight, preferred_element_type=jnp.float32)
    weight = params["head"]
    return jnp.einsum("...d,dv->...v", hidden.astype(weight.dtype), weight, preferred_element_type=jnp.float32)


def token_log_probs(
    params: Params,
    config: LMConfig,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    chunk: int = ROWS,
    columns: int = COLUMNS,
    softcap: float | None = None,
    rules: ShardingRules | None = None,
) -> jax.Array:
    """Log-probability of one token a row.

    Args:
      hidden: [N, D] states after the final norm.
      targets: [N] int32 token ids.
      chunk, columns: rows and words of the vocabulary whose logits exist at a time; static under jit.
      softcap: c of logits capped as c tanh(z / c); None for none.
      rules: with rules, rows and vocabulary are split over the active mesh (:mod:`scaletot_jax.lm.sharded_head`) and
        ``chunk`` and ``columns`` cut what a device has; None leaves placement to XLA.

    Returns:
      [N] float32, ≤ 0 up to rounding.

    Raises:
      ConfigError: rules without an active mesh.
    """
    sums = _sums(params, config, hidden, targets[:, None], Blocks(chunk, columns, softcap=softcap), rules)
    return sums.chosen[:, 0] - sums.lse


def token_statistics(
    params: Params,
    config: LMConfig,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    chunk: int = ROWS,
    columns: int = COLUMNS,
    softcap: float | None = None,
    rules: ShardingRules | None = None,
) -> tuple[jax.Array, jax.Array]:
    """:func:`token_log_probs`, and the entropy of each row's distribution −Σ_j p_j log p_j in nats: [N], [N] float32."""
    sums = _sums(params, config, hidden, targets[:, None], Blocks(chunk, columns, softcap=softcap, mean=True), rules)
    return sums.chosen[:, 0] - sums.lse, sums.lse - sums.mean


def candidate_log_probs(
    params: Params,
    config: LMConfig,
    hidden: jax.Array,
    candidates: jax.Array,
    *,
    normalise: Literal["full", "candidates"],
    chunk: int = ROWS,
    columns: int = COLUMNS,
    softcap: float | None = None,
    rules: ShardingRules | None = None,
) -> jax.Array:
    """Log-probabilities of listed tokens.

    Args:
      hidden: [N, D] states after the final norm.
      candidates: [N, A] int32 token ids; −1 marks an unused place.
      normalise: ``"full"`` over the vocabulary; ``"candidates"`` over the listed tokens of the row only, which is the
        policy under a grammar and needs no V-sized array (but gathers [chunk, A, D] rows of the head).
      chunk, columns, softcap, rules: as in :func:`token_log_probs`.

    Returns:
      [N, A] float32, −inf at unused places. The gradient is finite and passes nothing through unused places.

    Raises:
      ValueError: ``normalise`` is neither.
      ConfigError: rules without an active mesh.
    """
    if normalise not in ("full", "candidates"):
        raise ValueError(f"normalise must be 'full' or 'candidates', got {normalise!r}")
    used = candidates >= 0
    if normalise == "full":
        sums = _sums(params, config, hidden, candidates, Blocks(chunk, columns, softcap=softcap), rules)
        return jnp.where(used, sums.chosen - sums.lse[:, None], -jnp.inf)
    weight, layout = head_weight(params, config)

    def score(hidden: jax.Array, weight: jax.Array, ids: jax.Array, here: jax.Array) -> jax.Array:
        rows = weight[ids] if layout == "vd" else jnp.moveaxis(weight[:, ids], 0, -1)
        scores = jnp.einsum("nd,nad->na", hidden.astype(rows.dtype), rows, preferred_element_type=jnp.float32)
        return jnp.where(here, scores, 0.0)

    def in_parts(hidden: jax.Array, weight: jax.Array, ids: jax.Array, here: jax.Array) -> jax.Array:
        return in_chunks(lambda *rows: score(rows[0], weight, *rows[1:]), chunk, hidden, ids, here)

    if not split_on_mesh(rules):
        scores = in_parts(hidden, weight, jnp.where(used, candidates, 0), used)
    else:
        assert rules is not None
        scores = sharded_scores(hidden.astype(weight.dtype), weight, candidates, layout, rules, in_parts)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(used, jax.nn.log_softmax(jnp.where(used, scores, LOW), axis=-1), -jnp.inf)


def head_weight(params: Params, config: LMConfig) -> tuple[jax.Array, Literal["vd", "dv"]]:
    """The head's weight and its layout: the embedding [V, D] where they are tied, else [D, V]."""
    return (params["embed"], "vd") if config.tie_embeddings else (params["head"], "dv")


def _sums(
    params: Params, config: LMConfig, hidden: jax.Array, ids: jax.Array, blocks: Blocks, rules: ShardingRules | None
) -> Sums:
    weight, layout = head_weight(params, config)
    blocks = blocks._replace(layout=layout)
    hidden = hidden.astype(weight.dtype)
    if not split_on_mesh(rules):
        return head_sums(hidden, weight, ids, config.vocab_size, blocks)
    assert rules is not None
    return sharded_sums(hidden, weight, ids, blocks, rules)


def in_chunks(function: Callable[..., jax.Array], chunk: int, *arrays: Any) -> jax.Array:
    """Applies a row-wise function to chunks of rows, one after another, recomputed in the backward pass.

    A chunk takes every (N / chunk)-th row rather than a block of neighbours, so that rows sharded over devices leave
    each chunk sharded in the same way.
    """
    rows = arrays[0].shape[0]
    if rows <= chunk:
        return jax.checkpoint(function)(*arrays)
    _, split = split_rows(chunk, *arrays)
    return join_rows(rows, jax.lax.map(lambda part: jax.checkpoint(function)(*part), tuple(split)))
