"""Filling prompts in and decoding their branches, entirely on the device.

One decode step of all B rows: logits of the last hidden states, one drawn token a row, its keys and values into the ring,
and the hidden states that predict the next. The attention of a row is over two places, merged by their normalisers:

    out = (e^{m_p − m} Σ_p w_p v_p + e^{m_s − m} Σ_s w_s v_s) / (e^{m_p − m} Σ_p w_p + e^{m_s − m} Σ_s w_s)

p over the slots of the shared prompt, where the n branches of a prompt are n · G queries of one matrix product and read its
keys and values once; s over the branch's own columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from scaletot_jax.lm import cache, head, model
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.rope import kind_of, view_at, views
from scaletot_jax.sampler import constraint as automata
from scaletot_jax.sampler import draw
from scaletot_jax.sampler.constraint import END, Constraint, Kinds
from scaletot_jax.sampler.slots import BUDGET, CLOSED, RUNNING, STOPPED, Slots, Trace

_LOW = -1e30


class Features(NamedTuple):
    """What is compiled. Static under jit; what is off costs nothing.

    Attributes:
      kinds: which kinds of constraint states exist.
      top_k, top_p: whether any request may ask for them.
      stops: whether there are stop strings.
      statistics: whether the model's own log-probability and entropy are kept; both stay 0 otherwise.
    """

    kinds: Kinds
    top_k: bool = False
    top_p: bool = False
    stops: bool = False
    statistics: bool = True


def fill(
    params: model.Params, config: LMConfig, slots: Slots, group: jax.Array, tokens: jax.Array, length: jax.Array
) -> Slots:
    """Runs one prompt and puts it into a group.

    Args:
      tokens: [T] int32, right-padded, T ≤ Sp; one program a T, so round it up to a bucket.
      length: scalar int32, 1..T.
    """
    valid = (jnp.arange(tokens.shape[0]) < length)[None]
    hidden, filled = cache.prefill(params, config, tokens[None], valid, size=tokens.shape[0])

    def put(into: jax.Array, block: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(into, block.astype(into.dtype), (group, 0, 0, 0))

    return slots._replace(
        prompt_keys=tuple(put(*pair) for pair in zip(slots.prompt_keys, filled.keys)),
        prompt_values=tuple(put(*pair) for pair in zip(slots.prompt_values, filled.values)),
        prompt_length=slots.prompt_length.at[group].set(length),
        prompt_hidden=slots.prompt_hidden.at[group].set(hidden[0, length - 1]),
    )


def decode(
    params: model.Params,
    config: LMConfig,
    constraint: Constraint,
    stops: jax.Array,
    slots: Slots,
    occupied: jax.Array,
    *,
    features: Features,
    until_group: bool,
) -> Slots:
    """Decodes until every branch has ended, or with ``until_group`` until all branches of some occupied group have.

    Args:
      stops: [Z, M, V] int16, tables of :func:`~scaletot_jax.sampler.stop_strings.stop_table`, padded; ignored unless
        ``features.stops``.
      occupied: [P] bool, groups whose end is waited for. A free group runs nothing.
    """
    groups = slots.prompt_length.shape[0]

    def unfinished(slots: Slots) -> jax.Array:
        running = (slots.reason == RUNNING).reshape(groups, -1)
        go_on = jnp.any(running)
        if until_group:
            go_on = go_on & ~jnp.any(occupied & ~jnp.any(running, axis=1))
        return go_on

    def body(slots: Slots) -> Slots:
        return step(params, config, constraint, stops, slots, features=features)

    return jax.lax.while_loop(unfinished, body, slots)


def step(
    params: model.Params,
    config: LMConfig,
    constraint: Constraint,
    stops: jax.Array,
    slots: Slots,
    *,
    features: Features,
) -> Slots:
    """One token for every running row; the others stand still."""
    running = slots.reason == RUNNING
    token, kept = _next_token(params, config, constraint, slots, features)
    token = jnp.where(running, token, 0)
    hidden, slots = _extend(params, config, token, running, slots)

    state = jnp.where(running, automata.advance(constraint, slots.state, token), slots.state)
    written = slots.written + running
    match, matched = slots.match, jnp.zeros_like(running)
    if features.stops:
        watched = running & (slots.stops >= 0)
        match = jnp.where(
            watched, stops[jnp.maximum(slots.stops, 0), slots.match, token].astype(jnp.int32), slots.match
        )
        matched = watched & (match == stops.shape[1] - 1)
    ended = jnp.where((state == END) | (state == slots.goal), CLOSED, jnp.where(matched, STOPPED, RUNNING))
    ended = jnp.where((ended == RUNNING) & (written >= slots.limit), BUDGET, ended)

    # A row writes its own place, so the trace needs a row-wise update; it is small.
    here = jnp.arange(slots.trace.tokens.shape[1]) == slots.written[:, None]
    here = here & running[:, None]
    trace = Trace(*(jnp.where(here, new[:, None].astype(old.dtype), old) for old, new in zip(slots.trace, kept)))
    return slots._replace(
        hidden=jnp.where(running[:, None], hidden, slots.hidden),
        state=state,
        match=match,
        written=written,
        reason=jnp.where(running, ended, slots.reason),
        clock=slots.clock + 1,
        trace=trace,
    )


def _next_token(params, config, constraint: Constraint, slots: Slots, features: Features) -> tuple[jax.Array, Trace]:
    """One token a row, and what is kept of it."""
    logits = head.logits(params, config, slots.hidden)
    keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.written)
    sample = functools.partial(
        draw.draw,
        uniform=jax.vmap(jax.random.uniform)(keys),
        temperature=slots.temperature,
        top_k=slots.top_k if features.top_k else None,
        top_p=slots.top_p if features.top_p else None,
    )
    candidates = constraint.tokens[slots.state]

    def from_list() -> tuple[jax.Array, jax.Array, jax.Array]:
        scores = jnp.take_along_axis(logits, jnp.maximum(candidates, 0), axis=1)
        drawn = sample(scores, candidates >= 0)
        return jnp.take_along_axis(candidates, drawn.place[:, None], axis=1)[:, 0], drawn.logp, drawn.entropy

    allowed = automata.allowed_tokens(constraint, slots.state) if features.kinds.free else jnp.ones_like(logits, bool)
    measured = draw.measure(logits, allowed)

    def from_vocabulary() -> tuple[jax.Array, jax.Array, jax.Array]:
        drawn = sample(logits, allowed, allowed_entropy=measured.allowed_entropy)
        return drawn.place, drawn.logp, drawn.entropy

    if features.kinds.free and features.kinds.listed:
        free = constraint.free[slots.state]
        token, logp, entropy = (jnp.where(free, *both) for both in zip(from_vocabulary(), from_list()))
    else:
        token, logp, entropy = from_vocabulary() if features.kinds.free else from_list()
    zeros = jnp.zeros_like(slots.temperature)
    own, own_entropy = zeros, zeros
    if features.statistics:
        own = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - measured.normaliser
        own_entropy = measured.entropy
    return token, Trace(token, logp, own, own_entropy, entropy)


def _extend(params, config: LMConfig, token: jax.Array, running: jax.Array, slots: Slots) -> tuple[jax.Array, Slots]:
    """Runs one token a row: hidden [B, D] and the slots with its keys and values."""
    groups, columns = slots.prompt_length.shape[0], slots.trace.tokens.shape[1]
    rows = token.shape[0]
    branches = rows // groups
    column = slots.clock % columns
    length = jnp.repeat(slots.prompt_length, branches)[:, None]
    age = (jnp.arange(columns) - slots.first[:, None]) % columns
    places = jnp.arange(slots.prompt_keys[0].shape[2])
    seen = views(
        config,
        jnp.concatenate([places < length, (age < slots.written[:, None]) | (jnp.arange(columns) == column)], axis=1)[
            :, None
        ],
        length + slots.written[:, None],
        jnp.concatenate([jnp.broadcast_to(places, (rows, len(places))), length + age], axis=1),
    )

    x = model.embed(params, token[:, None], config)
    suffix_keys, suffix_values = [], []
    for index, kind in enumerate(kind_of(config)):
        view = view_at(seen, kind)
        old = (slots.suffix_keys[index], slots.suffix_values[index])
        shared = (slots.prompt_keys[index], slots.prompt_values[index])

        def attend(q, k, v, old=old, shared=shared, mask=view.mask):
            keys, values = (_write(a, b, column, running) for a, b in zip(old, (k, v)))
            kv, group, width = q.shape[1:]
            merged = q.reshape(groups, branches, kv, group, width).transpose(0, 2, 1, 3, 4)
            prompt_mask = jnp.repeat(mask[..., : len(places)].reshape(groups, 1, branches, -1), group, axis=2)
            far = _partial(merged.reshape(groups, kv, branches * group, width), shared[0], shared[1], prompt_mask)
            own = [
                part.reshape(groups, kv, branches, group, -1).transpose(0, 2, 1, 3, 4).reshape(rows, kv, group, -1)
                for part in far
            ]
            return _merge(own, _partial(q, keys, values, mask[:, None, :, len(places) :])), (keys, values)

        layer = model.layer_at(params["layers"], index)
        x, (keys, values) = model.block(layer, config, x, view.rotation, attend, None, 0.0)
        suffix_keys.append(keys)
        suffix_values.append(values)
    hidden = model.finish(params, config, x)[:, 0]
    return hidden, slots._replace(suffix_keys=tuple(suffix_keys), suffix_values=tuple(suffix_values))


def _write(ring: jax.Array, new: jax.Array, column: jax.Array, running: jax.Array) -> jax.Array:
    """One column of the ring, in place. A resting row keeps its own, which may still be adopted."""
    old = jax.lax.dynamic_slice_in_dim(ring, column, 1, axis=2)
    ring = jax.lax.dynamic_update_slice(ring, jnp.where(running[:, None, None, None], new, old), (0, 0, column, 0))
    # Left to itself the TPU compiler keeps the ring in another order inside the loop, and copies it at every step.
    return with_layout_constraint(ring, Layout(major_to_minor=(0, 1, 2, 3)))


def _partial(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unnormalised attention over one place: Σ w v [..., R, hd], Σ w [..., R, 1] and the maximum m [..., R, 1]."""
    scores = jnp.einsum("bkrd,bksd->bkrs", q.astype(k.dtype), k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, _LOW)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.where(mask, jnp.exp(scores - highest), 0.0)
    mixed = jnp.einsum("bkrs,bksd->bkrd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return mixed, jnp.sum(weights, axis=-1, keepdims=True), highest


def _merge(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> jax.Array:
    highest = jnp.maximum(one[2], other[2])
    left, right = jnp.exp(one[2] - highest), jnp.exp(other[2] - highest)
    return (left * one[0] + right * other[0]) / (left * one[1] + right * other[1])
