"""Token sequences through a chain grammar, on the device: pure functions of arrays.

Shapes: B sequences, T tokens, S states, A alternatives a state.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from scaletot_jax.chains.automaton import AFTER_END, STRUCTURAL, Grammar


class Trace(NamedTuple):
    """What each token of [B, T] is to the grammar."""

    states: Array  # int32: the state before the token; the end state after leaving
    inside: (
        Array  # bool: the token continues the chain (false after the end and after the first token that is not allowed)
    )
    alternative: Array  # int32: which alternative of its state it is; -1 outside and for free text
    segment: (
        Array  # int32: 0..K-1 content, -1 structural and after a token that is not allowed, -2 answer, -3 after the end
    )
    closes: Array  # int32: the segment that this token closes, else -1; reasoning states are read where it is not -1


def trace(grammar: Grammar, start: ArrayLike, tokens: ArrayLike) -> Trace:
    """Runs ``tokens`` [B, T] through the grammar from the state(s) ``start`` (a scalar or [B]).

    Any integer is a legal token; ids that the grammar does not allow leave it for good. Differs from
    :func:`scaletot_jax.chains.parser.parse` only where a chain is damaged: the content of a segment that is cut off or goes
    wrong later still counts as content here, because its fate is not known yet.
    """
    grammar = jax.tree.map(jnp.asarray, grammar)
    tokens = jnp.asarray(tokens, jnp.int32)
    end = grammar.token.shape[0] - 1  # by construction, the last state
    first = jnp.broadcast_to(jnp.asarray(start, jnp.int32), tokens.shape[:1])

    def step(carry: tuple[Array, Array], token: Array):
        state, left = carry
        match = (grammar.token[state] == token[:, None]) & (token >= 0)[:, None]
        listed = match.any(-1)
        alternative = jnp.where(listed, match.argmax(-1), -1).astype(jnp.int32)
        stopped = (token[:, None] == grammar.stop).any(-1)
        free = grammar.free[state] & ~listed & ~stopped & (token >= 0)
        inside = listed | free
        chosen = jnp.maximum(alternative, 0)
        after = jnp.where(listed, grammar.next_state[state, chosen], jnp.where(free, grammar.free_next[state], end))
        outside = jnp.where((state == end) & ~left, AFTER_END, STRUCTURAL)
        segment = jnp.where(
            listed, grammar.alternative_segment[state, chosen], jnp.where(free, grammar.segment[state], outside)
        )
        closes = jnp.where(listed, grammar.closes[state, chosen], -1)
        left |= ~inside & (state != end)
        return (after.astype(jnp.int32), left), (state, inside, alternative, segment, closes)

    _, outputs = jax.lax.scan(step, (first, jnp.zeros(first.shape, bool)), tokens.T)
    return Trace(*(output.T for output in outputs))


def walk(grammar: Grammar, start: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
    """States before each token, int32 [B, T], and whether the token continues the chain, bool [B, T].

    See :class:`Trace`; this is its first two fields.
    """
    states, inside, *_ = trace(grammar, start, tokens)
    return states, inside
