"""From hidden states to log-probabilities, without an array of N × V.

    log p(t | h) = h · w_t − logsumexp_j (h · w_j)

Rows are processed in chunks; each chunk's logits live only while it is processed, and are computed again in the
backward pass (``jax.checkpoint``), so that memory is chunk × V however many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import Params

_LOW = -1e30  # stands for -inf inside a softmax: finite, so that no gradient becomes NaN


def logits(params: Params, config: LMConfig, hidden: jax.Array) -> jax.Array:
    """All logits: hidden [..., D] (after the final norm) to [..., V] float32."""
    if config.tie_embeddings:
        weight = params["embed"]
        return jnp.einsum("...d,vd->...v", hidden.astype(weight.dtype), weight, preferred_element_type=jnp.float32)
    weight = params["head"]
    return jnp.einsum("...d,dv->...v", hidden.astype(weight.dtype), weight, preferred_element_type=jnp.float32)


def token_log_probs(
    params: Params, config: LMConfig, hidden: jax.Array, targets: jax.Array, *, chunk: int = 256
) -> jax.Array:
    """Log-probability of one token a row.

    Args:
      hidden: [N, D] states after the final norm.
      targets: [N] int32 token ids.
      chunk: rows whose logits exist at a time; static under jit.

    Returns:
      [N] float32, ≤ 0 up to rounding.
    """

    def rows(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        scores = logits(params, config, hidden)
        # A masked sum instead of a gather: it fuses with the logsumexp, and its gradient is no scatter.
        chosen = jnp.arange(config.vocab_size)[None, :] == targets[:, None]
        return jnp.sum(jnp.where(chosen, scores, 0.0), axis=-1) - jax.nn.logsumexp(scores, axis=-1)

    return in_chunks(rows, chunk, hidden, targets)


def candidate_log_probs(
    params: Params,
    config: LMConfig,
    hidden: jax.Array,
    candidates: jax.Array,
    *,
    normalise: Literal["full", "candidates"],
    chunk: int = 256,
) -> jax.Array:
    """Log-probabilities of listed tokens.

    Args:
      hidden: [N, D] states after the final norm.
      candidates: [N, A] int32 token ids; −1 marks an unused place.
      normalise: ``"full"`` over the vocabulary; ``"candidates"`` over the listed tokens of the row only, which is the
        policy under a grammar and needs no V-sized array (but gathers [chunk, A, D] rows of the head).
      chunk: rows processed at a time; static under jit.

    Returns:
      [N, A] float32, −inf at unused places. The gradient is finite and passes nothing through unused places.

    Raises:
      ValueError: ``normalise`` is neither.
    """
    if normalise not in ("full", "candidates"):
        raise ValueError(f"normalise must be 'full' or 'candidates', got {normalise!r}")

    def rows(hidden: jax.Array, candidates: jax.Array) -> jax.Array:
        used = candidates >= 0
        ids = jnp.where(used, candidates, 0)
        if normalise == "full":
            scores = logits(params, config, hidden)
            out = jnp.take_along_axis(scores, ids, axis=1) - jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        else:
            weight = params["embed"][ids] if config.tie_embeddings else jnp.moveaxis(params["head"][:, ids], 0, -1)
            scores = jnp.einsum("nd,nad->na", hidden.astype(weight.dtype), weight, preferred_element_type=jnp.float32)
            out = jax.nn.log_softmax(jnp.where(used, scores, _LOW), axis=-1)
        return jnp.where(used, out, -jnp.inf)

    return in_chunks(rows, chunk, hidden, candidates)


def in_chunks(function: Callable[..., jax.Array], chunk: int, *arrays: Any) -> jax.Array:
    """Applies a row-wise function to chunks of rows, one after another, recomputed in the backward pass.

    A chunk takes every (N / chunk)-th row rather than a block of neighbours, so that rows sharded over devices leave
    each chunk sharded in the same way.
    """
    rows = arrays[0].shape[0]
    if rows <= chunk:
        return jax.checkpoint(function)(*arrays)
    count = -(-rows // chunk)
    padded = [jnp.pad(a, ((0, count * chunk - rows),) + ((0, 0),) * (a.ndim - 1)) for a in arrays]
    split = [jnp.moveaxis(a.reshape(chunk, count, *a.shape[1:]), 1, 0) for a in padded]
    out = jax.lax.map(lambda part: jax.checkpoint(function)(*part), tuple(split))
    return jnp.moveaxis(out, 0, 1).reshape(count * chunk, *out.shape[2:])[:rows]
