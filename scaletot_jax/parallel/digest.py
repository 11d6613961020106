"""A checksum of a tree of arrays that does not depend on how they are split over devices and processes.

For an array x of shape [n_1, …, n_m], whose elements' bits are read as unsigned integers,

    h(x) = Σ_{i_1 … i_m}  x[i_1, …, i_m] · r_1[i_1] ⋯ r_m[i_m]   mod 2⁶⁴

with fixed odd pseudo-random numbers r_d. A sum can be taken shard by shard, in any order; and since a product of odd
numbers is odd, a change of any single element always changes it. (Changes of several cancel with probability about 2⁻⁶⁴;
this guards against damage, not against forgery.) The digest is the SHA-256 over paths, types, shapes and all h.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from scaletot_jax.parallel import distributed

_ROWS = 1 << 20  # elements widened to 64 bits at a time


def digest(tree: Any) -> str:
    """The digest of a tree of arrays, as 64 hexadecimal digits; every process must call it, and all get the same."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    mine = np.asarray([_sum(leaf) for _, leaf in leaves], np.uint64)
    totals = np.atleast_1d(np.sum(distributed.exchange(mine), axis=0, dtype=np.uint64))
    out = hashlib.sha256()
    for (path, leaf), total in zip(leaves, totals):
        out.update(f"{jax.tree_util.keystr(path)}:{np.dtype(leaf.dtype)}:{np.shape(leaf)}:{int(total)};".encode())
    return out.hexdigest()


def _sum(leaf: Any) -> int:
    """h of the shards that this process answers for, each of the array's elements being some process's."""
    parts = [part_sum(data, start, np.shape(leaf)) for data, start in _shards(leaf)]
    return sum(parts) % 2**64


def _shards(leaf: Any) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    if not isinstance(leaf, jax.Array):
        if distributed.leads():
            yield np.asarray(leaf), (0,) * np.ndim(leaf)
        return
    if leaf.is_fully_addressable and distributed.count() > 1 and not distributed.leads():
        return  # each process has the whole of it
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield np.asarray(shard.data), tuple(piece.start or 0 for piece in shard.index)


def part_sum(data: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The part of h that the block ``data`` contributes, which begins at ``start`` in an array of ``shape``."""
    if not data.size:
        return 0
    if not shape:
        data, start = data.reshape(1), (0,)
    bits = np.ascontiguousarray(data).view(np.dtype(f"u{data.dtype.itemsize}"))
    weights = [_odd_numbers(axis, begin, size) for axis, (begin, size) in enumerate(zip(start, data.shape))]
    rows = bits.reshape(-1, bits.shape[-1])
    step = max(1, _ROWS // rows.shape[1])
    pieces = [rows[i : i + step].astype(np.uint64) @ weights[-1] for i in range(0, len(rows), step)]
    total = np.concatenate(pieces).reshape(bits.shape[:-1])
    for weight in reversed(weights[:-1]):
        total = total @ weight
    return int(total)


def _odd_numbers(axis: int, begin: int, count: int) -> np.ndarray:
    """r_d at ``count`` places from ``begin``: the mixing function of SplitMix64 (Steele, Lea, Flood 2014), made odd."""
    with np.errstate(over="ignore"):
        x = np.arange(begin, begin + count, dtype=np.uint64) + np.uint64((axis + 1) << 48)
        x *= np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
