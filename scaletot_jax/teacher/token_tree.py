"""Requests as a packed tree of tokens: one branch a wording (chain so far, then the stem), and its values as a trie.

A value's last token is never run: its log-probability is read at its parent. Two sums along a value's path are of use:

    full(v)  = Σ_t log p(v_t | v_<t)                     over the whole vocabulary
    local(v) = Σ_t log p(v_t | v_<t, allowed)            softmax over the trie node's alternatives only

A node with one alternative adds log 1 = 0 to ``local``, so a tree for local sums alone leaves out what lies below the
last choice: " 8-14 days" is decided once " 8" is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Ids = tuple[int, ...]


class Variant(NamedTuple):
    """One wording: ids of all that stands between the profile and the value (chain so far, notes, stem), and each value's
    ids."""

    stem: Ids
    values: tuple[Ids, ...]


class TokenTree(NamedTuple):
    """A packed request of T tokens, R scored nodes and up to A alternatives.

    Attributes:
      tokens: [T] int32.
      depth: [T] int32, position after the cached prefix.
      ancestors: [T, T] bool, the token (row) sees the token (column): itself and its ancestors.
      nodes: [R] int32, the packed token at which alternatives are read.
      candidates: [R, A] int32, their ids; −1 unused.
      steps: per variant and value, the (r, a) places whose log-probabilities add up to the value's.
      full: whether sums over the vocabulary can be read off it.
    """

    tokens: np.ndarray
    depth: np.ndarray
    ancestors: np.ndarray
    nodes: np.ndarray
    candidates: np.ndarray
    steps: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    full: bool


class Scores(NamedTuple):
    """Log-probabilities of one variant's values, float32 [V] each; ``full`` is NaN where it was not asked for."""

    full: np.ndarray
    local: np.ndarray


def token_tree(variants: Sequence[Variant], *, close: int, full: bool) -> TokenTree:
    """Packs variants into one tree.

    Args:
      variants: stems with their values; equal beginnings are run once.
      close: id that ends a value which is the beginning of another one ("1" and "1 day"), so that both have a leaf.
      full: keep what the sums over the vocabulary need.

    Raises:
      ValueError: a variant has no stem, less than two values, or two values with the same ids.
    """
    index: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    parents: list[int] = []

    def walk(parent: int, ids: Sequence[int]) -> int:
        for token in ids:
            key = (parent, int(token))
            if key not in index:
                index[key] = len(tokens)
                tokens.append(int(token))
                parents.append(parent)
            parent = index[key]
        return parent

    nodes: list[int] = []
    candidates: list[list[int]] = []
    steps = []
    for variant in variants:
        if not variant.stem:
            raise ValueError("a stem without tokens gives its values no place to be read")
        if len(variant.values) < 2 or len(set(variant.values)) < len(variant.values):
            raise ValueError("a stem needs at least two values, and no two with the same ids")
        paths = [_closed(ids, variant.values, close) for ids in variant.values]
        root = walk(-1, variant.stem)
        rows: dict[Ids, int] = {}  # beginning of a value -> r; per variant, as another stem's branch is no alternative
        places = []
        for ids in paths:
            place = []
            for t, token in enumerate(ids):
                begin = ids[:t]
                following = list(dict.fromkeys(other[t] for other in paths if len(other) > t and other[:t] == begin))
                if not full and len(following) == 1:
                    continue
                if begin not in rows:
                    rows[begin] = len(nodes)
                    nodes.append(walk(root, begin))
                    candidates.append(following)
                place.append((rows[begin], following.index(token)))
            places.append(tuple(place))
        steps.append(tuple(places))

    count = len(tokens)
    ancestors = np.zeros((count, count), bool)
    depth = np.zeros(count, np.int32)
    for i, parent in enumerate(parents):
        if parent >= 0:
            ancestors[i] = ancestors[parent]
            depth[i] = depth[parent] + 1
        ancestors[i, i] = True
    table = np.full((len(nodes), max(map(len, candidates))), -1, np.int32)
    for r, row in enumerate(candidates):
        table[r, : len(row)] = row
    return TokenTree(
        np.asarray(tokens, np.int32), depth, ancestors, np.asarray(nodes, np.int32), table, tuple(steps), full
    )


def read_values(tree: TokenTree, full: np.ndarray, local: np.ndarray) -> list[Scores]:
    """Sums the alternatives' log-probabilities [R, A] along each value's path; one Scores a variant."""
    out = []
    for paths in tree.steps:
        sums = [
            np.asarray([sum(float(table[r, a]) for r, a in path) for path in paths], np.float32)
            for table in (full, local)
        ]
        out.append(Scores(sums[0] if tree.full else np.full_like(sums[0], np.nan), sums[1]))
    return out


def _closed(ids: Ids, values: Sequence[Ids], close: int) -> Ids:
    shadowed = any(len(other) > len(ids) and other[: len(ids)] == ids for other in values)
    return (*ids, close) if shadowed else ids
