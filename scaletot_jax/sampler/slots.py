"""The state of the sampler: P prompts, n branches each, all storage allocated once.

The branches of a prompt read its keys and values from one shared copy and own only what they wrote themselves, so memory
traffic does not grow with n where it matters. One array a layer: a stacked cache carried through a loop is copied at every
step. Suffix columns form a ring that all rows write at the same place: a branch lives at most as many steps as the ring
has columns, so what it wrote is never overwritten while it lives, and a write is one slice, not a scatter.

Shape letters: P prompts (groups), n branches, B = P · n rows (prompt-major), Sp prompt slots, Ss suffix columns,
L layers, KV key-value heads, hd head width, D model width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.sampler.constraint import END

RUNNING, CLOSED, BUDGET, STOPPED = 0, 1, 2, 3  # why a branch ended: its state, its budget, a stop string


class Sizes(NamedTuple):
    """What is allocated. Hashable, static under jit.

    Attributes:
      groups: P, prompts served at the same time.
      branches: n, branches a prompt.
      prompt: Sp, the longest prompt, adopted text included.
      new: Ss, the largest budget of a branch.
    """

    groups: int
    branches: int
    prompt: int
    new: int


class Settings(NamedTuple):
    """How one prompt's branches are sampled; all branches of a prompt share it but for their keys.

    Attributes:
      state: scalar int32, state of the constraint before the first token.
      goal: scalar int32, a state at which a branch has closed what was asked, besides the end; −1 = only the end.
      limit: scalar int32, tokens a branch may write, at most Ss.
      temperature: scalar float32 ≥ 0; top_k: scalar int32, 0 = off; top_p: scalar float32, 1 = off.
      stops: scalar int32, which set of stop strings ends it; −1 = none.
      key: random key: token t of branch i is drawn with ``fold_in(fold_in(key, i), t)``.
    """

    state: jax.Array
    goal: jax.Array
    limit: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    stops: jax.Array
    key: jax.Array


class Trace(NamedTuple):
    """What is kept of every token, each [B, Ss]; columns beyond ``written`` hold zeros.

    Attributes:
      tokens: int32.
      logps: float32 in nats, of the distribution that was sampled: constraint, temperature, top-k and top-p.
      model_logps: float32 in nats, the model's own at τ = 1 over the vocabulary.
      model_entropy: float32 in nats, of the same.
      entropy: float32 in nats, of the model at τ = 1 under the constraint.
    """

    tokens: jax.Array
    logps: jax.Array
    model_logps: jax.Array
    model_entropy: jax.Array
    entropy: jax.Array


class Slots(NamedTuple):
    """Everything a running sampler holds.

    Attributes:
      prompt_keys, prompt_values: L arrays [P, KV, Sp, hd], rotary applied.
      prompt_length: [P] int32.
      prompt_hidden: [P, D] float32, predicts the token after the prompt.
      suffix_keys, suffix_values: L arrays [B, KV, Ss, hd], a ring.
      clock: scalar int32, decode steps made; step c writes column c mod Ss.
      hidden: [B, D] float32, predicts the next token.
      state: [B] int32, of the constraint; match: [B] int32, of the stop strings.
      written: [B] int32; first: [B] int32, ring column of a branch's first token.
      reason: [B] int32, :data:`RUNNING` or why it ended.
      goal, limit, top_k, stops: [B] int32; temperature, top_p: [B] float32; keys: [B].
      trace: what is kept of every token.
    """

    prompt_keys: tuple[jax.Array, ...]
    prompt_values: tuple[jax.Array, ...]
    prompt_length: jax.Array
    prompt_hidden: jax.Array
    suffix_keys: tuple[jax.Array, ...]
    suffix_values: tuple[jax.Array, ...]
    clock: jax.Array
    hidden: jax.Array
    state: jax.Array
    match: jax.Array
    written: jax.Array
    first: jax.Array
    reason: jax.Array
    goal: jax.Array
    limit: jax.Array
    top_k: jax.Array
    stops: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    keys: jax.Array
    trace: Trace


def empty(config: LMConfig, sizes: Sizes, dtype: Any) -> Slots:
    """Slots in which nothing runs; ``dtype`` is that of the keys and values."""
    rows = sizes.groups * sizes.branches

    def cache(count: int, length: int) -> tuple[jax.Array, ...]:
        shape = (count, config.num_kv_heads, length, config.head_dim)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

    def ints(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    def floats(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    kept = (rows, sizes.new)
    return Slots(
        prompt_keys=cache(sizes.groups, sizes.prompt),
        prompt_values=cache(sizes.groups, sizes.prompt),
        prompt_length=ints(sizes.groups),
        prompt_hidden=floats(sizes.groups, config.hidden_size),
        suffix_keys=cache(rows, sizes.new),
        suffix_values=cache(rows, sizes.new),
        clock=jnp.int32(0),
        hidden=floats(rows, config.hidden_size),
        state=ints(rows),
        match=ints(rows),
        written=ints(rows),
        first=ints(rows),
        reason=jnp.full(rows, CLOSED, jnp.int32),
        goal=jnp.full(rows, -1, jnp.int32),
        limit=ints(rows),
        top_k=ints(rows),
        stops=jnp.full(rows, -1, jnp.int32),
        temperature=floats(rows),
        top_p=jnp.ones(rows, jnp.float32),
        keys=jax.random.split(jax.random.key(0), rows),
        trace=Trace(ints(*kept), floats(*kept), floats(*kept), floats(*kept), floats(*kept)),
    )


def begin(slots: Slots, group: jax.Array, settings: Settings) -> Slots:
    """Forks the branches of one prompt: they start from its last hidden state and own nothing yet."""
    branches = slots.hidden.shape[0] // slots.prompt_length.shape[0]
    at = group * branches
    keys = jax.vmap(jax.random.fold_in, (None, 0))(settings.key, jnp.arange(branches))

    def put(into: jax.Array, value: jax.Array) -> jax.Array:
        rows = jnp.broadcast_to(value, (branches, *into.shape[1:])).astype(into.dtype)
        return jax.lax.dynamic_update_slice_in_dim(into, rows, at, axis=0)

    ended = jnp.where(settings.state == END, CLOSED, jnp.where(settings.limit > 0, RUNNING, BUDGET))
    return slots._replace(
        hidden=put(slots.hidden, slots.prompt_hidden[group]),
        state=put(slots.state, settings.state),
        match=put(slots.match, jnp.int32(0)),
        written=put(slots.written, jnp.int32(0)),
        first=put(slots.first, slots.clock % slots.trace.tokens.shape[1]),
        reason=put(slots.reason, ended),
        goal=put(slots.goal, settings.goal),
        limit=put(slots.limit, settings.limit),
        top_k=put(slots.top_k, settings.top_k),
        stops=put(slots.stops, settings.stops),
        temperature=put(slots.temperature, settings.temperature),
        top_p=put(slots.top_p, settings.top_p),
        keys=jax.lax.dynamic_update_slice_in_dim(slots.keys, keys, at, axis=0),
        trace=Trace(*(put(kept, jnp.zeros((), kept.dtype)) for kept in slots.trace)),
    )


def adopt(slots: Slots, group: jax.Array, branch: jax.Array) -> Slots:
    """Appends what one branch wrote to its prompt, keys and values included: nothing is computed again.

    The prompt needs Ss free slots behind its present length; the caller checks that, nothing here can.
    """
    branches = slots.hidden.shape[0] // slots.prompt_length.shape[0]
    row = group * branches + branch
    columns = slots.trace.tokens.shape[1]
    ring = (slots.first[row] + jnp.arange(columns)) % columns

    def append(prompt: jax.Array, suffix: jax.Array) -> jax.Array:
        block = jnp.take(suffix[row], ring, axis=1)[None]
        return jax.lax.dynamic_update_slice(prompt, block, (group, 0, slots.prompt_length[group], 0))

    return slots._replace(
        prompt_keys=tuple(append(*pair) for pair in zip(slots.prompt_keys, slots.suffix_keys)),
        prompt_values=tuple(append(*pair) for pair in zip(slots.prompt_values, slots.suffix_values)),
        prompt_length=slots.prompt_length.at[group].add(slots.written[row]),
        prompt_hidden=slots.prompt_hidden.at[group].set(slots.hidden[row]),
    )


def copy_prompt(slots: Slots, source: jax.Array, target: jax.Array) -> Slots:
    """Makes another group start from the same prompt: how a beam splits in two."""

    def copy(array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(array, array[source], target, axis=0)

    return slots._replace(
        prompt_keys=tuple(copy(array) for array in slots.prompt_keys),
        prompt_values=tuple(copy(array) for array in slots.prompt_values),
        prompt_length=copy(slots.prompt_length),
        prompt_hidden=copy(slots.prompt_hidden),
    )
