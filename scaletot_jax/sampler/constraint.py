"""What may follow: token automata of several requests joined into one table on the device.

State 0 is the end, shared by all. In any other state the listed alternatives may follow; in a *free* state every token may
follow that the state does not ban. A chain grammar, free text up to a stop token, and unconstrained text are all automata,
so one compiled program serves them side by side.

Shape letters: S states, A alternatives, F alternatives of a free state, Z ban lists, V vocabulary, B rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.chains.automaton import CompiledChain
from scaletot_jax.errors import DataError

END = 0


class Automaton(NamedTuple):
    """One automaton in NumPy, before it is joined with others; its own state 0 is the end.

    Attributes:
      tokens: [S, A] int32 alternatives, −1 = none.
      next_states: [S, A] int32 where each leads.
      free: [S] bool.
      free_next: [S] int32 where an unlisted token leads; read in free states only.
      banned: ids that no free state takes unless it lists them.
      start: the state before the first token.
    """

    tokens: np.ndarray
    next_states: np.ndarray
    free: np.ndarray
    free_next: np.ndarray
    banned: tuple[int, ...]
    start: int


class Constraint(NamedTuple):
    """Joined automata on the device.

    Attributes:
      tokens: [S, A] int32; next_states: [S, A] int32; free: [S] bool; free_next: [S] int32.
      free_tokens: [S, F] int32, the alternatives of free states, −1 = none.
      ban_list: [S] int32, which row of ``banned`` holds in this state.
      banned: [Z, V] bool.
    """

    tokens: jax.Array
    next_states: jax.Array
    free: jax.Array
    free_next: jax.Array
    free_tokens: jax.Array
    ban_list: jax.Array
    banned: jax.Array


class Kinds(NamedTuple):
    """Which kinds of state exist at all: what is absent is not compiled."""

    free: bool
    listed: bool


def free_text(stop_tokens: Sequence[int], *, banned: Collection[int] = ()) -> Automaton:
    """Any text; the first of ``stop_tokens`` ends it. Without any, only the budget does."""
    stops = [int(token) for token in stop_tokens]
    table = np.full((2, max(1, len(stops))), -1, np.int32)
    table[1, : len(stops)] = stops
    return Automaton(
        tokens=table,
        next_states=np.zeros_like(table),
        free=np.asarray([False, True]),
        free_next=np.asarray([0, 1], np.int32),
        banned=tuple(sorted({int(token) for token in banned} - set(stops))),
        start=1,
    )


def chain_automaton(chain: CompiledChain) -> tuple[Automaton, np.ndarray]:
    """A compiled chain as an automaton, and the renumbering [S] int32 from the chain's states to the automaton's."""
    grammar = chain.grammar
    count = len(grammar.token)
    number = np.empty(count, np.int32)
    number[[s for s in range(count) if s != chain.end]] = np.arange(1, count)
    number[chain.end] = END
    order = np.argsort(number)
    used = grammar.token >= 0
    return Automaton(
        tokens=grammar.token[order].astype(np.int32),
        next_states=np.where(used, number[np.where(used, grammar.next_state, chain.end)], END)[order].astype(np.int32),
        free=grammar.free[order],
        free_next=np.where(grammar.free, number[np.where(grammar.free, grammar.free_next, 0)], END)[order].astype(
            np.int32
        ),
        banned=tuple(int(token) for token in grammar.stop),
        start=int(number[chain.start]),
    ), number


def join(automata: Sequence[Automaton], vocab_size: int) -> tuple[Constraint, Kinds, tuple[int, ...]]:
    """Joins automata over one vocabulary.

    Returns:
      The table, which kinds of state it has, and each automaton's offset: its state s > 0 becomes ``s + offset``.

    Raises:
      DataError: a token lies outside the vocabulary.
    """
    width = max((a.tokens.shape[1] for a in automata), default=1)
    tokens, following = [np.full((1, width), -1, np.int32)], [np.zeros((1, width), np.int32)]
    free, free_next, lists = [np.asarray([False])], [np.zeros(1, np.int32)], [np.zeros(1, np.int32)]
    bans: dict[tuple[int, ...], int] = {}
    offsets, size = [], 1
    for automaton in automata:
        highest = max(int(automaton.tokens.max(initial=0)), *automaton.banned, 0)
        if highest >= vocab_size:
            raise DataError(
                "a token of the constraint is not in the vocabulary",
                where=f"token {highest}",
                why=f"the model has {vocab_size} tokens",
                do="compile the chain with the tokenizer of this model",
            )
        offset = size - 1
        offsets.append(offset)
        spare = ((0, 0), (0, width - automaton.tokens.shape[1]))
        shifted = np.where(automaton.next_states > 0, automaton.next_states + offset, END)
        tokens.append(np.pad(automaton.tokens, spare, constant_values=-1)[1:])
        following.append(np.pad(shifted, spare)[1:])
        free.append(automaton.free[1:])
        free_next.append(np.where(automaton.free_next > 0, automaton.free_next + offset, END)[1:])
        lists.append(np.full(len(automaton.tokens) - 1, bans.setdefault(automaton.banned, len(bans)), np.int32))
        size += len(automaton.tokens) - 1
    table, is_free = np.concatenate(tokens), np.concatenate(free)
    banned = np.zeros((max(1, len(bans)), vocab_size), bool)
    for ids, row in bans.items():
        banned[row, list(ids)] = True
    most = int((table[is_free] >= 0).sum(-1).max(initial=0))
    constraint = Constraint(
        tokens=jnp.asarray(table),
        next_states=jnp.asarray(np.concatenate(following), jnp.int32),
        free=jnp.asarray(is_free),
        free_next=jnp.asarray(np.concatenate(free_next), jnp.int32),
        # Alternatives stand at the front of their row.
        free_tokens=jnp.asarray(np.where(is_free[:, None], table, -1)[:, :most]),
        ban_list=jnp.asarray(np.concatenate(lists)),
        banned=jnp.asarray(banned),
    )
    return constraint, Kinds(bool(is_free.any()), bool((~is_free[1:]).any())), tuple(offsets)


def allowed_tokens(constraint: Constraint, states: jax.Array) -> jax.Array:
    """[B, V] bool: what may follow in free states [B]."""
    allowed = ~constraint.banned[constraint.ban_list[states]]
    listed = constraint.free_tokens[states]
    places = jnp.arange(allowed.shape[1])
    for column in range(listed.shape[1]):
        allowed = allowed | (places == listed[:, column, None])
    return allowed


def advance(constraint: Constraint, states: jax.Array, tokens: jax.Array) -> jax.Array:
    """The states [B] after tokens [B] that were allowed."""
    hit = constraint.tokens[states] == tokens[:, None]
    place = jnp.argmax(hit, axis=-1)
    listed = jnp.take_along_axis(constraint.next_states[states], place[:, None], axis=1)[:, 0]
    return jnp.where(
        jnp.any(hit, axis=-1), listed, jnp.where(constraint.free[states], constraint.free_next[states], END)
    )
