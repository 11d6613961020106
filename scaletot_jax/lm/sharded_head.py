"""The head on a mesh: which device has which rows and which part of the vocabulary, stated with ``shard_map``.

The head's weight lies in parts: its columns of the vocabulary over the ``vocab`` axis and its width over the ``embed``
axis, over which the rows of a batch are split too. Left to the compiler, chunks of the head's work each gather their
weights and reduce their gradient, 1 GiB a chunk for a model of 8B parameters. Here everything is exchanged once, before
and after the loop over chunks, which then runs without communication:

* few rows (no more on the ``embed`` axis than this part of the vocabulary has columns): parts of the *width* are exchanged
  for parts of the *vocabulary* (one all-to-all of the weight's own size), and the rows are gathered. No device ever
  holds the whole head or its gradient.
* many rows: the weight is gathered along its width, and its gradient is scattered back.

Gradients take the same ways back: gather ↔ reduce-scatter, all-to-all ↔ all-to-all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaletot_jax.errors import ConfigError
from scaletot_jax.lm.fused_head import Blocks, Sums, head_sums, varying
from scaletot_jax.parallel.sharding import Axis, ShardingRules


def mesh_sizes() -> dict[str, int]:
    """Axis → size of the active mesh (``jax.set_mesh``).

    Raises:
      ConfigError: no mesh is active.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ConfigError(
            "a sharded head without a mesh",
            where="sharding rules given to lm.head",
            do="wrap the call in 'with jax.set_mesh(make_mesh(...))', or give no rules",
        )
    return dict(zip(mesh.axis_names, mesh.axis_sizes))


def split_on_mesh(rules: ShardingRules | None) -> bool:
    """Whether there is anything to split: rules, and a mesh of more than one device.

    Raises:
      ConfigError: rules without an active mesh.
    """
    return rules is not None and math.prod(mesh_sizes().values()) > 1


def sharded_sums(hidden: jax.Array, weight: jax.Array, ids: jax.Array, blocks: Blocks, rules: ShardingRules) -> Sums:
    """:func:`scaletot_jax.lm.fused_head.head_sums` over the active mesh: sums of the whole vocabulary.

    Args:
      hidden: [N, D], ids: [N, A], rows split as ``rules.batch``; a number of rows that does not divide is padded.
      weight: split as ``rules.vocab`` and ``rules.embed``, which must divide it.
      blocks: cuts what each device has.

    Raises:
      ConfigError: no mesh is active.
    """
    sizes = mesh_sizes()
    batch, vocab, embed = (_axes(axis) for axis in (rules.batch, rules.vocab, rules.embed))
    v, d = blocks.layout.index("v"), blocks.layout.index("d")
    parts, shared = _product(sizes, embed), bool(set(embed) & set(batch))
    if shared and not set(embed) <= set(batch):
        raise ConfigError("the rows are split by a part of the axes that split the width", where="sharding rules")
    columns = weight.shape[v] // _product(sizes, vocab)  # of one part of the vocabulary
    exchange = parts > 1 and (not shared or hidden.shape[0] * parts // _product(sizes, batch) <= columns)
    across = (*vocab, *embed) if exchange else vocab  # the axes over which the vocabulary is split inside

    def local(hidden: jax.Array, weight: jax.Array, ids: jax.Array) -> Sums:
        first = jax.lax.axis_index(vocab) * columns if vocab else 0
        limit: Any = columns
        mine = hidden.shape[0]
        if exchange:
            width = -(-columns // parts)
            padding = [(0, 0), (0, 0)]
            padding[v] = (0, width * parts - columns)
            weight = jax.lax.all_to_all(jnp.pad(weight, padding), embed, split_axis=v, concat_axis=d, tiled=True)
            first = first + jax.lax.axis_index(embed) * width
            limit = jnp.clip(columns - jax.lax.axis_index(embed) * width, 0, width)
            if shared:
                hidden, ids = (jax.lax.all_gather(part, embed, axis=0, tiled=True) for part in (hidden, ids))
        elif parts > 1:
            weight = jax.lax.all_gather(weight, embed, axis=d, tiled=True)
        hidden, weight, ids = _vary_alike(hidden, weight, ids - first)
        sums = head_sums(hidden, weight, ids, limit, blocks)

        peak = jax.lax.stop_gradient(sums.lse)
        peak = jax.lax.pmax(peak, across) if across else peak
        share = jnp.exp(sums.lse - peak)
        total, chosen, mixed = share, sums.chosen, share * sums.mean
        if exchange and shared:  # every device gets the sums of its own rows
            total, chosen, mixed = (
                jax.lax.psum_scatter(part, embed, scatter_dimension=0, tiled=True) for part in (total, chosen, mixed)
            )
            peak = jax.lax.dynamic_slice_in_dim(peak, jax.lax.axis_index(embed) * mine, mine)
        elif exchange:
            total, chosen, mixed = (jax.lax.psum(part, embed) for part in (total, chosen, mixed))
        if vocab:
            total, chosen, mixed = (jax.lax.psum(part, vocab) for part in (total, chosen, mixed))
        return Sums(peak + jnp.log(total), chosen, mixed / total)

    spec = rules.spec("vocab", "embed") if v == 0 else rules.spec("embed", "vocab")
    rows = PartitionSpec(rules.batch)
    return _over_rows(local, [hidden, ids], weight, (rows, spec, rows), _product(sizes, batch))


def sharded_scores(
    hidden: jax.Array,
    weight: jax.Array,
    ids: jax.Array,
    layout: str,
    rules: ShardingRules,
    score: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Logits of listed tokens alone, [N, A] float32, without gathering any weight.

    Every device scores all rows of its group with its part of the width (the rows' own parts are exchanged, and their
    tokens gathered), and the partial sums are scattered back to the rows' owners.

    Args:
      score: (hidden [n, d], weight part, ids [n, A] in this part, here [n, A]) → [n, A] float32, 0 where not here.
    """
    sizes = mesh_sizes()
    batch, vocab, embed = (_axes(axis) for axis in (rules.batch, rules.vocab, rules.embed))
    v = layout.index("v")
    parts, shared = _product(sizes, embed), bool(set(embed) & set(batch))
    columns = weight.shape[v] // _product(sizes, vocab)

    def local(hidden: jax.Array, weight: jax.Array, ids: jax.Array) -> jax.Array:
        first = jax.lax.axis_index(vocab) * columns if vocab else 0
        width = hidden.shape[1] // parts
        if embed and shared:
            hidden = jax.lax.all_to_all(hidden, embed, split_axis=1, concat_axis=0, tiled=True)
            ids = jax.lax.all_gather(ids, embed, axis=0, tiled=True)
        elif embed:
            hidden = jax.lax.dynamic_slice_in_dim(hidden, jax.lax.axis_index(embed) * width, width, axis=1)
        hidden, weight, ids = _vary_alike(hidden, weight, ids - first)
        here = (ids >= 0) & (ids < columns)
        scores = score(hidden, weight, jnp.where(here, ids, 0), here)
        if embed and shared:
            scores = jax.lax.psum_scatter(scores, embed, scatter_dimension=0, tiled=True)
        elif embed:
            scores = jax.lax.psum(scores, embed)
        return jax.lax.psum(scores, vocab) if vocab else scores

    spec = rules.spec("vocab", "embed") if v == 0 else rules.spec("embed", "vocab")
    rows = PartitionSpec(rules.batch)
    return _over_rows(local, [hidden, ids], weight, (rows, spec, rows), _product(sizes, batch))


def _over_rows(local: Callable[..., Any], arrays: Sequence[jax.Array], weight: jax.Array, specs: tuple, parts: int):
    """Runs ``local(hidden, weight, ids)`` on every device, rows padded to divide."""
    total = arrays[0].shape[0]
    spare = -total % parts
    hidden, ids = (jnp.pad(a, ((0, spare), (0, 0))) if spare else a for a in arrays)
    out = jax.shard_map(local, in_specs=specs, out_specs=specs[0])(hidden, weight, ids)
    return jax.tree.map(lambda leaf: leaf[:total], out) if spare else out


def _vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, marked to differ over every axis over which one of them does: gradients are then summed once, at the
    mark, and not inside what follows."""
    axes = frozenset().union(*map(varying, arrays))
    out = []
    for array in arrays:
        missing = tuple(axes - varying(array))
        out.append(jax.lax.pcast(array, missing, to="varying") if missing else array)
    return out


def _axes(axis: Axis) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else tuple(axis or ())


def _product(sizes: dict[str, int], axes: tuple[str, ...]) -> int:
    return math.prod(sizes[axis] for axis in axes)
