"""Sampling chains from the student under the grammar: one device loop, keys a request.

Each request i draws token t with ``fold_in(keys[i], t)``, so its chain depends on its own prompt and key and on nothing
else in the batch: neither on the batch's size nor on its order.

Shape letters: U prompts, P prompt tokens, N chains a prompt, B = U·N requests (prompt-major), R tokens a chain,
A alternatives, Kb answer buckets, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.lm.cache import Cache, extend, prefill, repeat
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.lora import merge
from scaletot_jax.lm.model import unstack_layers
from scaletot_jax.student.constrained import GrammarArrays, alternative_log_probs, entropy, pick, segment_ids, temper
from scaletot_jax.student.free_text import FreeText, read, text_logits, writes


class Rollouts(NamedTuple):
    """Sampled chains, [U, N, ...].

    Attributes:
      tokens: [U, N, R] int32, 0 after the end.
      valid: [U, N, R] bool.
      states: [U, N, R] int32, grammar state before each token; the end state after the end.
      logps: [U, N, R] float32, log π_τ of the token at the sampling temperature τ; 0 after the end.
      plain_logps: [U, N, R] float32, log π_1 of the same token.
      entropy: [U, N, R] float32 in nats, of π_τ.
      segment_ids: [U, N, R] int32, see :func:`scaletot_jax.student.constrained.segment_ids`.
      answers: [U, N, Kb] float32, distribution of the answer at τ = 1, conditioned on the rollout's own chain.
      complete: [U, N] bool, whether the chain reached its end.
    """

    tokens: jax.Array
    valid: jax.Array
    states: jax.Array
    logps: jax.Array
    plain_logps: jax.Array
    entropy: jax.Array
    segment_ids: jax.Array
    answers: jax.Array
    complete: jax.Array


class _Loop(NamedTuple):
    step: jax.Array
    state: jax.Array  # [B] grammar state
    hidden: jax.Array  # [B, D] predicts the next token
    cache: Cache
    tokens: jax.Array  # [B, R]
    states: jax.Array  # [B, R]
    logps: jax.Array  # [B, R]
    plain: jax.Array  # [B, R]
    entropy: jax.Array  # [B, R]
    answers: jax.Array  # [B, Kb]


def request_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
    """One key a request: ids [...] non-negative integers that name the requests within ``key``'s stream."""
    flat = jax.vmap(lambda number: jax.random.fold_in(key, number))(ids.reshape(-1).astype(jnp.uint32))
    return flat.reshape(ids.shape)


def sample_chains(
    params: Mapping[str, Any],
    config: LMConfig,
    grammar: GrammarArrays,
    prompts: jax.Array,
    prompt_valid: jax.Array,
    keys: jax.Array,
    *,
    max_length: int,
    temperature: float | jax.Array = 1.0,
    lora: Mapping[str, jax.Array] | None = None,
    lora_scale: float = 1.0,
) -> Rollouts:
    """Samples N chains for each prompt.

    Args:
      prompts: [U, P] int32, right-padded; prompt_valid: [U, P] bool.
      keys: [U, N] random keys, see :func:`request_keys`.
      max_length: R, at least the grammar's longest chain; static under jit.
      temperature: τ of the policy that samples.

    Returns:
      Rollouts. Only the logits of the alternatives are computed, and V of them a request only while some request is in a
      slot of free text.
    """
    # Decoding reads every weight at every step: one merged array a layer instead of slices and two more products.
    params = unstack_layers(params if lora is None else merge(params, lora, lora_scale))
    users, width = prompts.shape
    count = keys.shape[1]
    rows = users * count
    flat_keys = keys.reshape(rows)
    states_out, cache = prefill(params, config, prompts, prompt_valid, size=width + max_length)
    last = jnp.sum(prompt_valid, axis=1) - 1
    hidden = jnp.take_along_axis(states_out, last[:, None, None], axis=1)[:, 0]
    zeros = jnp.zeros((rows, max_length), jnp.float32)
    ints = jnp.zeros((rows, max_length), jnp.int32)
    loop = _Loop(
        step=jnp.int32(0),
        state=jnp.full(rows, grammar.start, jnp.int32),
        hidden=jnp.repeat(hidden, count, axis=0),
        cache=repeat(cache, count),
        tokens=ints,
        states=jnp.full((rows, max_length), grammar.end, jnp.int32),
        logps=zeros,
        plain=zeros,
        entropy=zeros,
        answers=jnp.zeros((rows, grammar.answer_places.shape[0]), jnp.float32),
    )

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.step < max_length) & jnp.any(loop.state != grammar.end)

    def body(loop: _Loop) -> _Loop:
        alive = loop.state != grammar.end
        candidates = grammar.tokens[jnp.where(alive, loop.state, grammar.start)]
        plain = alternative_log_probs(params, config, loop.hidden, candidates, chunk=rows)
        tempered = temper(plain, candidates, temperature)
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, loop.step), candidates.shape[1:]))(
            flat_keys
        )
        choice = jnp.argmax(tempered + noise, axis=-1)[:, None]
        token = jnp.where(alive, jnp.take_along_axis(candidates, choice, axis=1)[:, 0], 0)
        following = jnp.take_along_axis(grammar.next_states[loop.state], choice, axis=1)[:, 0]
        drawn = None
        if grammar.free is not None:
            logps, plain_logps = (pick(which, candidates, token, alive) for which in (tempered, plain))
            drawn = _Drawn(token, following, logps, plain_logps, entropy(tempered, candidates, alive))
            drawn = _draw_text(params, config, grammar.free, loop, alive, flat_keys, temperature, drawn)
            token, following = drawn.token, drawn.following
        answering = (loop.state == grammar.answer_state)[:, None]
        answer = jax.nn.softmax(plain[:, grammar.answer_places], axis=-1)
        hidden, cache = extend(
            params,
            config,
            token[:, None],
            loop.cache,
            valid=alive[:, None],
            write_at=width + loop.step,
        )

        def put(into: jax.Array, value: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(into, value[:, None].astype(into.dtype), (0, loop.step))

        return _Loop(
            step=loop.step + 1,
            state=jnp.where(alive, following, grammar.end),
            hidden=hidden[:, 0],
            cache=cache,
            tokens=put(loop.tokens, token),
            states=put(loop.states, loop.state),
            logps=put(loop.logps, pick(tempered, candidates, token, alive) if drawn is None else drawn.logps),
            plain=put(loop.plain, pick(plain, candidates, token, alive) if drawn is None else drawn.plain),
            entropy=put(loop.entropy, entropy(tempered, candidates, alive) if drawn is None else drawn.entropy),
            answers=jnp.where(answering, answer, loop.answers),
        )

    loop = jax.lax.while_loop(unfinished, body, loop)
    valid = loop.states != grammar.end
    ids = segment_ids(grammar, loop.states, loop.tokens, valid)

    def split(array: jax.Array) -> jax.Array:
        return array.reshape(users, count, *array.shape[1:])

    return Rollouts(
        tokens=split(loop.tokens),
        valid=split(valid),
        states=split(loop.states),
        logps=split(loop.logps),
        plain_logps=split(loop.plain),
        entropy=split(loop.entropy),
        segment_ids=split(ids),
        answers=split(loop.answers),
        complete=split(loop.state == grammar.end),
    )


class _Drawn(NamedTuple):
    """One step's outcome, each [B]."""

    token: jax.Array
    following: jax.Array
    logps: jax.Array
    plain: jax.Array
    entropy: jax.Array


def _draw_text(
    params: Mapping[str, Any],
    config: LMConfig,
    free: FreeText,
    loop: _Loop,
    alive: jax.Array,
    keys: jax.Array,
    temperature: float | jax.Array,
    listed: _Drawn,
) -> _Drawn:
    """``listed``, with the requests that write free text drawn from the vocabulary instead.

    In a free state the one listed alternative is the closing token, so where that is drawn ``listed.following`` holds.
    """
    here = writes(free, loop.state, alive)
    number = jnp.maximum(free.number[loop.state], 0)
    closes = free.closes[number]

    def draw() -> _Drawn:
        scores = text_logits(params, config, loop.hidden, free, closes)
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, loop.step), scores.shape[1:]))(keys)
        token = jnp.argmax(scores / temperature + noise, axis=-1).astype(listed.token.dtype)
        text = read(scores, token, temperature)
        following = jnp.where(token == closes, listed.following, free.next_states[number])
        fresh = _Drawn(token, following, text.logps, text.plain_logps, text.entropy)
        return jax.tree.map(lambda new, old: jnp.where(here, new, old), fresh, listed)

    return jax.lax.cond(jnp.any(here), draw, lambda: listed)
