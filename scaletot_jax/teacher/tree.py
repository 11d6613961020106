"""The search tree of one profile: fixed-shape arrays, one row a node, in the manner of mctx.

All storage is allocated up front, M = 1 + K·(w + R)·b rows: at each of K depths at most w paths are expanded into b
candidates, and at most R expansions are drawn again after a revision. Functions return new trees.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ROOT = 0
NO_PARENT = -1
NO_VALUE = -1

# Why a node is where it is. The texts are what nodes.parquet shows.
REASONS = (
    "",  # on the frontier, or part of a chain
    "outside the beam",
    "replaced by the revision",
    "contradicts a fact of the profile",
    "judges a field that is absent",
    "no probability",
    "budget: finished greedily",
    "budget: unknown",
)
OPEN, OUTSIDE, REPLACED, CONTRADICTION, ABSENT, IMPOSSIBLE, GREEDY, EXHAUSTED = range(len(REASONS))


class Tree(NamedTuple):
    """M nodes, S slots a segment at most.

    Attributes:
      size: [] nodes in use; row 0 is the root, the bare profile.
      parent: [M] int32, NO_PARENT at the root.
      depth: [M] int8, 0 at the root; a node of depth d decides segment d − 1.
      values: [M, S] int32, index of each slot's value; NO_VALUE beyond the segment's slots.
      probability: [M] float64, of the node's values given its parent's path.
      log_prob: [M] float64, sum of log-probabilities from the root.
      entropy, disagreement, uncertainty, threshold: [M] float64, of the expansion that made the node; 0 without a call.
      refined: [M] bool, the expansion was revised once.
      refinement_accepted: [M] bool, and the revision was taken.
      kept: [M] bool, survived the selection of its depth.
      reason: [M] int8, index into REASONS.
    """

    size: int
    parent: np.ndarray
    depth: np.ndarray
    values: np.ndarray
    probability: np.ndarray
    log_prob: np.ndarray
    entropy: np.ndarray
    disagreement: np.ndarray
    uncertainty: np.ndarray
    threshold: np.ndarray
    refined: np.ndarray
    refinement_accepted: np.ndarray
    kept: np.ndarray
    reason: np.ndarray

    def _repr_html_(self) -> str:
        from scaletot_jax.report.inline import raw_tree

        return raw_tree(self)


def empty(capacity: int, slots: int) -> Tree:
    """A tree that holds only the root."""

    def zeros(dtype):
        return np.zeros(capacity, dtype)

    tree = Tree(
        size=1,
        parent=np.full(capacity, NO_PARENT, np.int32),
        depth=zeros(np.int8),
        values=np.full((capacity, slots), NO_VALUE, np.int32),
        probability=zeros(np.float64),
        log_prob=zeros(np.float64),
        entropy=zeros(np.float64),
        disagreement=zeros(np.float64),
        uncertainty=zeros(np.float64),
        threshold=zeros(np.float64),
        refined=zeros(bool),
        refinement_accepted=zeros(bool),
        kept=zeros(bool),
        reason=zeros(np.int8),
    )
    tree.probability[ROOT] = 1.0
    tree.kept[ROOT] = True
    return tree


def add(tree: Tree, parent: int, values: tuple[int, ...], probability: float, **fields: float) -> tuple[Tree, int]:
    """The tree with one more node below ``parent``, and the node.

    Raises:
      ValueError: the tree is full, which means that a bound was not kept.
    """
    node = tree.size
    if node >= len(tree.parent):
        raise ValueError(f"the tree holds {len(tree.parent)} nodes and is full")
    columns: dict[str, Any] = {name: np.copy(value) for name, value in tree._asdict().items()}
    columns["size"] = node + 1
    columns["parent"][node] = parent
    columns["depth"][node] = tree.depth[parent] + 1
    columns["values"][node, : len(values)] = values
    columns["probability"][node] = probability
    columns["log_prob"][node] = tree.log_prob[parent] + (np.log(probability) if probability > 0 else -np.inf)
    for name, value in fields.items():
        columns[name][node] = value
    return Tree(**columns), node


def mark(tree: Tree, nodes: list[int], **fields: float) -> Tree:
    """The tree with the given columns set at ``nodes``."""
    columns = {name: getattr(tree, name).copy() for name in fields}
    for name, value in fields.items():
        columns[name][nodes] = value
    return tree._replace(**columns)


def path(tree: Tree, node: int) -> list[int]:
    """Nodes from below the root down to ``node``."""
    nodes = []
    while node != ROOT:
        nodes.append(node)
        node = int(tree.parent[node])
    return nodes[::-1]
