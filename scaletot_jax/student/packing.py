"""One prompt, N chains: the layout that every training step of the student uses.

A row holds the prompt once and then its N chains side by side. A chain's tokens attend to the prompt and to their own
chain only, and carry the positions they would have had alone, so the outputs equal N separate rows (a test says so)
while the prompt is computed once: with P = 112, R = 40, N = 4 that is 272 tokens instead of 608.

Shape letters: B prompts, P prompt tokens, N chains a prompt, R tokens a chain, T = P + N·R, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import forward
from scaletot_jax.lm.splash import Tree
from scaletot_jax.parallel.sharding import ShardingRules


class Packed(NamedTuple):
    """Prompts and chains in one array.

    Attributes:
      tokens: [B, T] int32.
      valid: [B, T] bool.
      positions: [B, T] int32.
      mask: [B, T, T] bool, row attends to column.
      sources: [B, N, R] int32, the place whose hidden state predicts each chain token: the prompt's last token for
        the first, the token before for the others.
    """

    tokens: jax.Array
    valid: jax.Array
    positions: jax.Array
    mask: jax.Array
    sources: jax.Array


def pack(prompts: jax.Array, prompt_valid: jax.Array, chains: jax.Array, chain_valid: jax.Array) -> Packed:
    """Lays out prompts [B, P] and chains [B, N, R] (right-padded, ``*_valid`` bool of the same shapes).

    Every prompt has at least one token; a chain may be empty (all padding).
    """
    batch, count, length = chains.shape
    width = prompts.shape[1]
    branch = jnp.concatenate([jnp.zeros(width, jnp.int32), jnp.repeat(jnp.arange(1, count + 1), length)])
    order = jnp.arange(width + count * length)
    seen = (order[None, :] <= order[:, None]) & ((branch[None, :] == 0) | (branch[None, :] == branch[:, None]))
    valid = jnp.concatenate([prompt_valid, chain_valid.reshape(batch, -1)], axis=1)
    prompt_length = jnp.sum(prompt_valid, axis=1, dtype=jnp.int32)
    inside = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, count, length))
    positions = jnp.concatenate(
        [
            jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width)),
            (prompt_length[:, None, None] + inside).reshape(batch, -1),
        ],
        axis=1,
    )
    before = width + length * jnp.arange(count, dtype=jnp.int32)[None, :, None] + inside - 1
    sources = jnp.where(inside == 0, prompt_length[:, None, None] - 1, before)
    return Packed(
        jnp.concatenate([prompts, chains.reshape(batch, -1)], axis=1).astype(jnp.int32),
        valid,
        positions,
        seen[None] & valid[:, None, :],
        sources,
    )


def predicting_states(
    params: Mapping[str, Any],
    config: LMConfig,
    packed: Packed,
    *,
    lora: Mapping[str, jax.Array] | None = None,
    lora_scale: float = 1.0,
    remat: bool | str = False,
    rules: ShardingRules | None = None,
) -> jax.Array:
    """Hidden states [B, N, R, D] (after the final norm) that predict the chain tokens, and only those."""
    _, chains, length = packed.sources.shape
    out = forward(
        params,
        config,
        packed.tokens,
        valid=packed.valid,
        positions=packed.positions,
        mask=packed.mask,
        tree=Tree(packed.tokens.shape[1] - chains * length, chains, length),
        lora=lora,
        lora_scale=lora_scale,
        remat=remat,
        rules=rules,
    )
    return gather(out.hidden, packed.sources)


def gather(states: jax.Array, places: jax.Array) -> jax.Array:
    """states [B, T, D] at places [B, ...] gives [B, ..., D]."""
    batch = states.shape[0]
    flat = jnp.take_along_axis(states, places.reshape(batch, -1, 1), axis=1)
    return flat.reshape(*places.shape, states.shape[-1])
