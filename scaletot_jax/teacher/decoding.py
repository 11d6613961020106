"""Greedy text after cached profiles, under the grammar's free state: one device loop.

At each step every token is allowed but the reserved ones, and the closing token, which ends the text; so does the bound.

    v_t = argmax_{v allowed} z_tv        kept with  log p_t(v_t) and H_t = −Σ_v p_t(v) log p_t(v),   p_t = softmax(z_t)

Both are of the model's own distribution over the whole vocabulary, so they say how sure the model was, not the mask.
Shapes are few, because each compiles all layers one by one: as many rows as the prefixes hold, leads and texts padded to
powers of two. A row's text depends on that row alone.

Shape letters: B rows of the prefixes, T tokens of a lead, M places of a text, V vocabulary, L layers, S slots.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.lm.cache import Cache, extend
from scaletot_jax.lm.head import logits
from scaletot_jax.lm.model import default_positions, unstack_layers

_LOW = -1e30  # logit of a token that is not allowed


class Decoded(NamedTuple):
    """Texts of B rows.

    Attributes:
      tokens: [B, M] int32; only the first ``length`` of a row count.
      log_probs, entropies: [B, M] float32, nats.
      length: [B] int32, tokens written.
      closed: [B] bool, the model wrote the closing token.
    """

    tokens: jax.Array
    log_probs: jax.Array
    entropies: jax.Array
    length: jax.Array
    closed: jax.Array


class _Loop(NamedTuple):
    step: jax.Array
    hidden: jax.Array  # [B, D] predicts the next token
    cache: Cache
    out: Decoded


@partial(jax.jit, static_argnames=("config", "room"))
def decode_texts(params, config, prefixes, take, lead, valid, close, reserved, limit, *, room):
    """Decodes one text a row.

    Args:
      params, config: the model, layers stacked.
      prefixes: :class:`scaletot_jax.teacher.scoring.Prefixes`.
      take: [B] int32, the row of the prefixes that each text continues.
      lead: [B, T] int32, what stands between the profile and the text, right-padded; valid: [B, T] bool, at least one.
      close: scalar int32, the token that ends a text. reserved: [V] bool, ids that are no text.
      limit: scalar int32, most tokens of a text; room: M, at least that, static.

    Returns:
      Decoded.
    """
    params = unstack_layers(params)
    batch, length = lead.shape
    slots = prefixes.valid.shape[1]
    hidden, cache = extend(
        params, config, lead, _cache(config, prefixes, take, length + room), valid=valid, write_at=slots
    )
    last = jnp.sum(valid, axis=1) - 1
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    allowed = ~reserved | (jnp.arange(config.vocab_size) == close)
    numbers = jnp.zeros((batch, room), jnp.float32)
    nothing = Decoded(numbers.astype(jnp.int32), numbers, numbers, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool))

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.step < limit) & ~jnp.all(loop.out.closed)

    def body(loop: _Loop) -> _Loop:
        scores = logits(params, config, loop.hidden)
        own = jax.nn.log_softmax(scores, axis=-1)
        choice = jnp.argmax(jnp.where(allowed, scores, _LOW), axis=-1).astype(jnp.int32)
        closed = loop.out.closed | (choice == close)

        def put(into: jax.Array, value: jax.Array) -> jax.Array:
            column = jnp.where(closed, 0, value).astype(into.dtype)
            return jax.lax.dynamic_update_slice(into, column[:, None], (0, loop.step))

        hidden, cache = extend(
            params, config, choice[:, None], loop.cache, valid=~closed[:, None], write_at=slots + length + loop.step
        )
        out = Decoded(
            put(loop.out.tokens, choice),
            put(loop.out.log_probs, jnp.take_along_axis(own, choice[:, None], axis=-1)[:, 0]),
            put(loop.out.entropies, -jnp.sum(jnp.exp(own) * own, axis=-1)),
            loop.out.length + ~closed,
            closed,
        )
        return _Loop(loop.step + 1, hidden[:, 0], cache, out)

    return jax.lax.while_loop(unfinished, body, _Loop(jnp.int32(0), hidden, cache, nothing)).out


def _cache(config, prefixes, take, room: int) -> Cache:
    """The prefixes' rows as a cache with ``room`` more slots."""
    more = ((0, 0), (0, 0), (0, room), (0, 0))
    keys, values = (
        tuple(jnp.pad(stacked[layer][take], more) for layer in range(config.num_layers))
        for stacked in (prefixes.keys, prefixes.values)
    )
    known = prefixes.valid[take]
    positions, valid = (jnp.pad(part, ((0, 0), (0, room))) for part in (default_positions(known), known))
    return Cache(keys, values, valid, prefixes.seen[take], positions if config.windows else None)
