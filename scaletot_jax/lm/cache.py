"""Decoding with a key-value cache: one array a layer, written in place when the caller donates it.

A stacked cache carried through a decode loop is copied at every step; separate arrays are updated where they lie.
The slots of a row need not be contiguous: ``valid`` says which hold a token, and ``count`` gives the next position, so
right-padded prompts, shared prefixes and trees of alternatives all live in the same structure. Models with sliding
windows also need to know where each slot's token stands, which its slot does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.lm import model
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.rope import kind_of, view_at, views


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
      keys: L arrays [B, KV, S, hd] in the weights' dtype, rotary already applied.
      values: L arrays [B, KV, S, hd].
      valid: [B, S] bool, True where a slot holds a token that may be attended to.
      count: [B] int32, tokens seen, which is the position of the next one.
      positions: [B, S] int32, of the token in each slot, for models with sliding windows; None for all others.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a cache
    positions: jax.Array | None = None

    @property
    def size(self) -> int:
        """S, the number of slots."""
        return self.valid.shape[1]


def prefill(
    params: model.Params,
    config: LMConfig,
    tokens: jax.Array,
    valid: jax.Array | None = None,
    *,
    size: int,
    lora: Mapping[str, jax.Array] | None = None,
    lora_scale: float = 1.0,
) -> tuple[jax.Array, Cache]:
    """Runs the prompts and keeps their keys and values in slots 0..T of a new cache.

    Args:
      tokens: [B, T] int32, right-padded.
      valid: [B, T] bool, False at padding, whose slots stay invalid; default all True.
      size: S ≥ T, slots of the cache; static under jit.

    Returns:
      hidden [B, T, D] float32 after the final norm, and the cache.

    Raises:
      ValueError: ``size`` is smaller than T.
    """
    batch, length = tokens.shape
    if size < length:
        raise ValueError(f"a cache of {size} slots cannot hold a prompt of {length} tokens")
    if valid is None:
        valid = jnp.ones((batch, length), bool)
    mask = jnp.tril(jnp.ones((1, length, length), bool)) & valid[:, None, :]
    positions = model.default_positions(valid)
    seen = views(config, mask, positions)
    spare = ((0, 0), (0, 0), (0, size - length), (0, 0))

    x = model.embed(params, tokens, config)
    keys, values = [], []
    for index, kind in enumerate(kind_of(config)):
        view = view_at(seen, kind)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask=view.mask) -> tuple[jax.Array, Any]:
            return model.attention(q, k, v, mask), (jnp.pad(k, spare), jnp.pad(v, spare))

        layer, adapter = model.layer_at(params["layers"], index), model.layer_at(lora, index)
        x, (k, v) = model.block(layer, config, x, view.rotation, attend, adapter, lora_scale)
        keys.append(k)
        values.append(v)
    cache = Cache(
        tuple(keys),
        tuple(values),
        jnp.pad(valid, ((0, 0), (0, size - length))),
        jnp.sum(valid, axis=1, dtype=jnp.int32),
        jnp.pad(positions, ((0, 0), (0, size - length))) if config.windows else None,
    )
    return model.finish(params, config, x), cache


def extend(
    params: model.Params,
    config: LMConfig,
    tokens: jax.Array,
    cache: Cache,
    *,
    valid: jax.Array | None = None,
    offsets: jax.Array | None = None,
    mask: jax.Array | None = None,
    write_at: int | jax.Array | None = None,
    lora: Mapping[str, jax.Array] | None = None,
    lora_scale: float = 1.0,
) -> tuple[jax.Array, Cache]:
    """Runs T more tokens a row after what the cache holds.

    A new token attends to every valid slot of the cache and to the new tokens that ``mask`` allows. With offsets and a
    mask that describe a tree, all alternatives below a shared prefix are scored in one call.

    Args:
      tokens: [B, T] int32.
      valid: [B, T] bool, False at padding among the new tokens; default all True.
      offsets: [B, T] int32, position relative to ``cache.count``; default the count of valid new tokens before each.
      mask: [B, T, T] bool, new token (row) attends to new token (column); default causal.
      write_at: first slot to write, the same for all rows; the keys and values go to slots
        ``write_at .. write_at + T``, the valid ones among them become attendable and are added to ``count``. The slots
        must exist and be unused: a start beyond S − T is moved back by XLA, and a used slot is overwritten. None
        leaves the cache as it is.

    Returns:
      hidden [B, T, D] float32 after the final norm, and the cache (the very same one when ``write_at`` is None).

    Raises:
      ValueError: T is larger than the cache, a concrete ``write_at`` would not fit, or a model with sliding windows
        gets a cache without positions.
    """
    batch, length = tokens.shape
    if isinstance(write_at, int) and not 0 <= write_at <= cache.size - length:
        raise ValueError(f"{length} tokens at slot {write_at} do not fit a cache of {cache.size} slots")
    if config.windows and cache.positions is None:
        raise ValueError("a model with sliding windows needs a cache with positions, as prefill makes it")
    if valid is None:
        valid = jnp.ones((batch, length), bool)
    if offsets is None:
        offsets = model.default_positions(valid)
    if mask is None:
        mask = jnp.tril(jnp.ones((1, length, length), bool))
    mask = jnp.broadcast_to(mask & valid[:, None, :], (batch, length, length))
    old = jnp.broadcast_to(cache.valid[:, None, :], (batch, length, cache.size))
    positions = cache.count[:, None] + offsets
    slots = written = cache.positions
    if write_at is None:
        full = jnp.concatenate([old, mask], axis=2)
        if cache.positions is not None:
            slots = jnp.concatenate([cache.positions, positions], axis=1)
    else:
        full = jax.lax.dynamic_update_slice(old, mask, (0, 0, write_at))
        if cache.positions is not None:
            slots = written = jax.lax.dynamic_update_slice(cache.positions, positions, (0, write_at))
    seen = views(config, full, positions, slots)

    x = model.embed(params, tokens, config)
    keys, values = [], []
    for index, kind in enumerate(kind_of(config)):
        old_k, old_v = cache.keys[index], cache.values[index]
        view = view_at(seen, kind)

        def attend(q, k, v, old_k=old_k, old_v=old_v, full=view.mask):
            if write_at is None:
                return _attend_apart(q, (old_k, old_v), (k, v), full), (old_k, old_v)
            # Write first, then attend to the one array: the old contents are dead, so XLA updates in place.
            k = jax.lax.dynamic_update_slice(old_k, k, (0, 0, write_at, 0))
            v = jax.lax.dynamic_update_slice(old_v, v, (0, 0, write_at, 0))
            return model.attention(q, k, v, full), (k, v)

        layer, adapter = model.layer_at(params["layers"], index), model.layer_at(lora, index)
        x, (k, v) = model.block(layer, config, x, view.rotation, attend, adapter, lora_scale)
        keys.append(k)
        values.append(v)
    hidden = model.finish(params, config, x)
    if write_at is None:
        return hidden, cache
    return hidden, Cache(
        tuple(keys),
        tuple(values),
        jax.lax.dynamic_update_slice(cache.valid, valid, (0, write_at)),
        cache.count + jnp.sum(valid, axis=1, dtype=jnp.int32),
        written,
    )


def repeat(cache: Cache, n: int) -> Cache:
    """Each row n times in place: rows (a, b) become (a, a, …, b, b, …), user-major."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, n, axis=0), cache)


def _attend_apart(q, old, new, mask):
    """Attention over cached and new keys without joining them, which would copy the cache."""
    slots = old[0].shape[2]
    scores = jnp.concatenate(
        [model.attention_scores(q, old[0], mask[..., :slots]), model.attention_scores(q, new[0], mask[..., slots:])],
        axis=-1,
    )
    weights = jax.nn.softmax(scores, axis=-1)
    return model.attention_values(weights[..., :slots], old[1]) + model.attention_values(weights[..., slots:], new[1])
