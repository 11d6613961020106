"""The head's sums over the vocabulary, a block of rows and a chunk of columns at a time, forward and backward.

For logits z = cap(h Wᵀ), where cap(u) = c tanh(u / c) if the model soft-caps and u otherwise, each row gets

    lse = log Σ_j exp z_j,    chosen_a = z at listed token a,    mean = Σ_j p_j z_j,    p = exp(z − lse)

from which log p(a) = chosen_a − lse and the entropy −Σ_j p_j log p_j = lse − mean. The maximum and the sums are kept while
the chunks pass (as in arXiv 2411.09009), so that the largest array is rows × columns. The backward pass computes each
chunk's logits again:

    ∂L/∂z_j = g_lse p_j + Σ_a g_a 1[j = a] + g_mean p_j (1 + z_j − mean)

The sums of several shards of one vocabulary combine by addition of exp(lse), chosen and exp(lse) mean
(:mod:`scaletot_jax.lm.sharded_head`). Letters: N rows, V columns of this shard, A listed tokens a row, D width.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

LOW = -1e30  # stands for -inf inside a softmax: finite, so that no gradient becomes NaN
_TINY = 1e-37  # the least sum of exponentials: that of a shard without any real column
_LANES = 128  # chunk widths are multiples of it


class Sums(NamedTuple):
    """What the module's first lines define, all float32.

    Attributes:
      lse: [N].
      chosen: [N, A]; 0 where the listed token is not among these columns.
      mean: [N]; 0 where it was not asked for.
    """

    lse: jax.Array
    chosen: jax.Array
    mean: jax.Array


class Blocks(NamedTuple):
    """How the work is cut; static under jit.

    Attributes:
      rows, columns: the most rows and columns whose logits exist at a time.
      layout: ``"vd"``: the weight is [V, D] (an embedding); ``"dv"``: [D, V].
      softcap: c of the soft cap; None for none.
      mean: whether :attr:`Sums.mean` is wanted.
    """

    rows: int
    columns: int
    layout: Literal["vd", "dv"] = "vd"
    softcap: float | None = None
    mean: bool = False


def head_sums(hidden: jax.Array, weight: jax.Array, ids: jax.Array, limit: Any, blocks: Blocks) -> Sums:
    """The sums of every row.

    Args:
      hidden: [N, D], of the weight's dtype.
      weight: [V, D] or [D, V]; products accumulate in float32.
      ids: [N, A] int32 columns; any number outside 0..limit−1 is not among these columns.
      limit: how many of the V columns are real; the others are padding.
      blocks: how to cut.

    Returns:
      Sums. Differentiable in ``hidden`` and ``weight``; a weight that is not differentiated costs nothing backward.
    """

    @jax.custom_vjp
    def run(hidden: jax.Array, weight: jax.Array, ids: jax.Array, limit: jax.Array) -> Sums:
        return _forward(hidden, weight, ids, limit, blocks)

    def forward(hidden: Any, weight: Any, ids: Any, limit: Any) -> tuple[Sums, tuple]:
        sums = _forward(hidden.value, weight.value, ids.value, limit.value, blocks)
        of_weight = () if weight.perturbed else None  # a choice in the tree's shape, which stays static
        return sums, (hidden.value, weight.value, ids.value, limit.value, sums, of_weight)

    def backward(kept: tuple, cotangents: Sums) -> tuple:
        hidden, weight, ids, limit, sums, of_weight = kept
        absent = jax.custom_derivatives.SymbolicZero
        given = Sums(*(like(g.aval, sums.lse) if isinstance(g, absent) else g for g in cotangents))
        to_hidden, to_weight = _backward(hidden, weight, ids, limit, sums, given, blocks, of_weight is not None)
        return to_hidden, to_weight, None, None

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run(hidden, weight, ids, jnp.asarray(limit, jnp.int32))


def like(aval: Any, reference: jax.Array) -> jax.Array:
    """Zeros of a shape and dtype that vary over the manual mesh axes that ``reference`` varies over."""
    zeros = jnp.zeros(aval.shape, aval.dtype)
    axes = tuple(varying(reference))
    return jax.lax.pcast(zeros, axes, to="varying") if axes else zeros


def varying(array: jax.Array) -> frozenset[str]:
    """Manual mesh axes over which an array differs; none outside ``shard_map``."""
    return jax.typeof(array).manual_axis_type.varying


def split_rows(rows: int, *arrays: jax.Array) -> tuple[int, list[jax.Array]]:
    """Arrays [N, ...] as [blocks, rows, ...] of even blocks of at most ``rows``, padded with zeros.

    A block takes every (N / rows)-th row rather than neighbours, so that rows sharded over devices leave each block
    sharded in the same way.
    """
    total = arrays[0].shape[0]
    count = max(1, -(-total // rows))
    size = -(-total // count)
    padded = [jnp.pad(a, ((0, count * size - total),) + ((0, 0),) * (a.ndim - 1)) for a in arrays]
    return count, [jnp.moveaxis(a.reshape(size, count, *a.shape[1:]), 1, 0) for a in padded]


def join_rows(total: int, array: jax.Array) -> jax.Array:
    """[blocks, rows, ...] of :func:`split_rows` as [N, ...] again."""
    joined = jnp.moveaxis(array, 0, 1)
    return joined.reshape(-1, *joined.shape[2:])[:total]


class _Chunk(NamedTuple):
    """One chunk of columns: its weights, its logits, and which columns belong to it."""

    weight: jax.Array
    scores: jax.Array  # [n, c] float32, capped; meaningless where not fresh
    columns: jax.Array  # [c]
    fresh: jax.Array  # [c]


def _chunk(index: jax.Array, hidden: jax.Array, weight: jax.Array, limit: jax.Array, blocks: Blocks) -> _Chunk:
    """Chunk ``index``. The last one starts early, to be whole; columns that were there before are not fresh."""
    axis = blocks.layout.index("v")
    width = chunk_width(weight.shape[axis], blocks.columns)
    start = jnp.minimum(index * width, weight.shape[axis] - width)
    part = jax.lax.dynamic_slice_in_dim(weight, start, width, axis)
    scores = jnp.einsum(f"nd,{blocks.layout}->nv", hidden, part, preferred_element_type=jnp.float32)
    if blocks.softcap is not None:
        scores = blocks.softcap * jnp.tanh(scores / blocks.softcap)
    columns = start + jnp.arange(width, dtype=jnp.int32)
    return _Chunk(part, scores, columns, (columns >= index * width) & (columns < limit))


def chunk_width(vocabulary: int, columns: int) -> int:
    """Width of even chunks of at most about ``columns``."""
    count = -(-vocabulary // columns)
    width = -(-vocabulary // count)
    return min(vocabulary, -(-width // _LANES) * _LANES)


def _chunks(weight: jax.Array, blocks: Blocks) -> jax.Array:
    vocabulary = weight.shape[blocks.layout.index("v")]
    return jnp.arange(-(-vocabulary // chunk_width(vocabulary, blocks.columns)), dtype=jnp.int32)


def _forward(hidden: jax.Array, weight: jax.Array, ids: jax.Array, limit: jax.Array, blocks: Blocks) -> Sums:
    def block(part: tuple[jax.Array, jax.Array]) -> Sums:
        rows, listed = part
        struct = jax.ShapeDtypeStruct((rows.shape[0],), jnp.float32)
        zero = like(struct, rows)
        none = like(jax.ShapeDtypeStruct(listed.shape, jnp.float32), rows)

        def add(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
            highest, total, mixed, chosen = carry
            chunk = _chunk(index, rows, weight, limit, blocks)
            scores = jnp.where(chunk.fresh, chunk.scores, LOW)
            peak = jnp.maximum(highest, jnp.max(scores, axis=1))
            weights = jnp.where(chunk.fresh, jnp.exp(scores - peak[:, None]), 0.0)
            fade = jnp.exp(highest - peak)
            total = total * fade + jnp.sum(weights, axis=1)
            if blocks.mean:
                mixed = mixed * fade + jnp.sum(weights * jnp.where(chunk.fresh, scores, 0.0), axis=1)
            place = jnp.clip(listed - chunk.columns[0], 0, scores.shape[1] - 1)
            here = (chunk.columns[place] == listed) & chunk.fresh[place]
            found = jnp.take_along_axis(chunk.scores, place, axis=1)
            return (peak, total, mixed, chosen + jnp.where(here, found, 0.0)), None

        (highest, total, mixed, chosen), _ = jax.lax.scan(add, (zero + LOW, zero, zero, none), _chunks(weight, blocks))
        total = jnp.maximum(total, _TINY)
        return Sums(highest + jnp.log(total), chosen, mixed / total)

    count, parts = split_rows(blocks.rows, hidden, ids)
    if count == 1:
        return block((hidden, ids))
    return jax.tree.map(lambda leaf: join_rows(len(hidden), leaf), jax.lax.map(block, tuple(parts)))


def _backward(
    hidden: jax.Array,
    weight: jax.Array,
    ids: jax.Array,
    limit: jax.Array,
    sums: Sums,
    given: Sums,
    blocks: Blocks,
    of_weight: bool,
) -> tuple[jax.Array, jax.Array | None]:
    axis = blocks.layout.index("v")
    count, parts = split_rows(blocks.rows, hidden, ids, *sums, *given)
    # Sums over blocks of rows are kept in float32; with one block nothing is added to anything but zeros.
    kept = jax.ShapeDtypeStruct(weight.shape, jnp.float32 if count > 1 else weight.dtype)
    start = like(kept, hidden) if of_weight else None

    def block(by_weight: Any, part: list[jax.Array]) -> tuple[Any, jax.Array]:
        rows, listed = part[:2]
        sums, given = Sums(*part[2:5]), Sums(*part[5:8])

        def add(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
            by_rows, by_weight = carry
            chunk = _chunk(index, rows, weight, limit, blocks)
            p = jnp.where(chunk.fresh, jnp.exp(chunk.scores - sums.lse[:, None]), 0.0)
            slope = given.lse[:, None]
            if blocks.mean:
                slope = slope + given.mean[:, None] * (1 + chunk.scores - sums.mean[:, None])
            by_score = p * slope
            for place in range(listed.shape[1]):  # compared, not scattered: it fuses with the line above
                hit = (listed[:, place, None] == chunk.columns) & chunk.fresh
                by_score = by_score + jnp.where(hit, given.chosen[:, place, None], 0.0)
            if blocks.softcap is not None:
                by_score = by_score * (1 - jnp.square(chunk.scores / blocks.softcap))
            by_score = by_score.astype(weight.dtype)
            letters = blocks.layout
            by_rows = by_rows + jnp.einsum(
                f"nv,{letters}->nd", by_score, chunk.weight, preferred_element_type=jnp.float32
            )
            if of_weight:
                new = jnp.einsum(f"nv,nd->{letters}", by_score, rows, preferred_element_type=jnp.float32)
                at = chunk.columns[0]
                old = jax.lax.dynamic_slice_in_dim(by_weight, at, new.shape[axis], axis)
                new = (old + new).astype(by_weight.dtype)
                by_weight = jax.lax.dynamic_update_slice_in_dim(by_weight, new, at, axis)
            return (by_rows, by_weight), None

        zero = like(jax.ShapeDtypeStruct(rows.shape, jnp.float32), rows)
        (by_rows, by_weight), _ = jax.lax.scan(add, (zero, by_weight), _chunks(weight, blocks))
        return by_weight, by_rows.astype(hidden.dtype)

    if count == 1:
        by_weight, by_rows = block(start, [hidden, ids, *sums, *given])
    else:
        by_weight, by_blocks = jax.lax.scan(block, start, parts)
        by_rows = join_rows(len(hidden), by_blocks)
    return by_rows, None if by_weight is None else by_weight.astype(weight.dtype)
