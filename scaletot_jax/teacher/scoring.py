"""Exact log-probabilities of allowed continuations, many alternatives in one call.

A request is a token tree: the chain so far, then one branch a stem, then the stem's values as a trie. The tree is
packed into one row of tokens under an ancestor mask and run over the cached profile; nothing is written to the cache.
A value's last token is never run: its log-probability is read at its parent.

    full(v)  = Σ_t log p(v_t | v_<t)                     over the whole vocabulary
    local(v) = Σ_t log p(v_t | v_<t, allowed)            softmax over the trie node's alternatives only

Shapes are fixed: B rows a call, tokens and rows padded to multiples, so few programs are compiled. Padding and the
other rows of a batch do not change a row's result; a job's shape depends on the job alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.lm.cache import Cache, extend, prefill, repeat
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import candidate_log_probs

Ids = tuple[int, ...]

_TOKENS, _ROWS, _ALTERNATIVES = 32, 16, 8  # lengths are padded to multiples of these


class Variant(NamedTuple):
    """One wording: the stem's ids, and each value's ids."""

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
    """

    tokens: np.ndarray
    depth: np.ndarray
    ancestors: np.ndarray
    nodes: np.ndarray
    candidates: np.ndarray
    steps: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, R, A), each padded to its multiple: what selects the compiled program."""
        sizes = (len(self.tokens), len(self.nodes), self.candidates.shape[1])
        return tuple(-(-size // unit) * unit for size, unit in zip(sizes, (_TOKENS, _ROWS, _ALTERNATIVES)))  # type: ignore[return-value]


class Scores(NamedTuple):
    """Log-probabilities of one variant's values, float32 [V] each."""

    full: np.ndarray
    local: np.ndarray


class Job(NamedTuple):
    """One tree to be scored after the profile in row ``row`` of the prefix cache."""

    row: int
    tree: TokenTree


def token_tree(lead: Sequence[int], variants: Sequence[Variant], *, close: int) -> TokenTree:
    """Packs a lead and its variants.

    Args:
      lead: ids between the profile and the stems (chain so far, notes); may be empty.
      variants: stems with their values; equal beginnings are run once.
      close: id that ends a value which is the beginning of another one ("1" and "1 day"), so that both have a leaf.

    Raises:
      ValueError: a variant has no stem, or two of its values have the same ids.
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

    end = walk(-1, lead)
    nodes: list[int] = []
    candidates: list[list[int]] = []
    steps = []
    for variant in variants:
        if not variant.stem:
            raise ValueError("a stem without tokens gives its values no place to be read")
        if len(set(variant.values)) < len(variant.values):
            raise ValueError("two values have the same ids")
        root = walk(end, variant.stem)
        rows: dict[int, int] = {}  # packed node -> r, for this variant only: another stem's branch is no alternative
        paths = []
        for ids in variant.values:
            shadowed = any(len(other) > len(ids) and other[: len(ids)] == ids for other in variant.values)
            full, node, path = (*ids, close) if shadowed else ids, root, []
            for t, token in enumerate(full):
                if node not in rows:
                    rows[node] = len(nodes)
                    nodes.append(node)
                    candidates.append([])
                r = rows[node]
                if token not in candidates[r]:
                    candidates[r].append(token)
                path.append((r, candidates[r].index(token)))
                if t + 1 < len(full):
                    node = walk(node, (token,))
            paths.append(tuple(path))
        steps.append(tuple(paths))

    count, width = len(tokens), max(map(len, candidates))
    ancestors = np.zeros((count, count), bool)
    depth = np.zeros(count, np.int32)
    for i, parent in enumerate(parents):
        if parent >= 0:
            ancestors[i] = ancestors[parent]
            depth[i] = depth[parent] + 1
        ancestors[i, i] = True
    table = np.full((len(nodes), width), -1, np.int32)
    for r, row in enumerate(candidates):
        table[r, : len(row)] = row
    return TokenTree(np.asarray(tokens, np.int32), depth, ancestors, np.asarray(nodes, np.int32), table, tuple(steps))


def read_values(tree: TokenTree, full: np.ndarray, local: np.ndarray) -> list[Scores]:
    """Sums the log-probabilities [R, A] of the alternatives along each value's path; one Scores a variant."""
    out = []
    for paths in tree.steps:
        sums = [[float(sum(float(table[r, a]) for r, a in path)) for path in paths] for table in (full, local)]
        out.append(Scores(np.asarray(sums[0], np.float32), np.asarray(sums[1], np.float32)))
    return out


class Scorer:
    """A language model with one instruction, ready to score token trees after batches of profiles.

    Args:
      params, config: the model.
      instruction: ids of the fixed first part; run once.
      max_profile_tokens: most tokens of a profile.
      batch_size: B, rows of every call; missing rows are padding.
    """

    def __init__(
        self, params: Any, config: LMConfig, *, instruction: Sequence[int], max_profile_tokens: int, batch_size: int
    ):
        self.batch_size = batch_size
        self._params, self._config = params, config
        self._start = len(instruction)
        self._longest = max_profile_tokens
        size = self._start + _round(max_profile_tokens, _TOKENS)
        tokens = jnp.asarray(np.asarray(instruction, np.int32)[None])
        _, cache = jax.jit(partial(prefill, config=config, size=size))(params, tokens=tokens)
        self._instruction = cache
        self.calls = 0  # programs run
        self.tokens = 0  # real tokens run, the instruction's not counted
        self.padded = 0  # tokens run with padding

    @staticmethod
    def padded_length(tokens: int) -> int:
        """The length at which a profile of ``tokens`` tokens runs."""
        return _round(tokens, _TOKENS)

    def prefix(self, profiles: Sequence[Sequence[int]]) -> Cache:
        """Runs up to B profiles after the instruction. Their padded length is that of the longest."""
        if not 0 < len(profiles) <= self.batch_size:
            raise ValueError(f"{len(profiles)} profiles for a batch of {self.batch_size}")
        longest = max(map(len, profiles))
        if longest > self._longest:
            raise ValueError(f"a profile of {longest} tokens, but at most {self._longest} were announced")
        length = _round(longest, _TOKENS)
        tokens = np.zeros((self.batch_size, length), np.int32)
        valid = np.zeros((self.batch_size, length), bool)
        for i, ids in enumerate(profiles):
            tokens[i, : len(ids)] = ids
            valid[i, : len(ids)] = True
        self._count(sum(map(len, profiles)), length)
        return _prefix(self._params, self._config, self._instruction, tokens, valid, self._start)

    def score(self, cache: Cache, jobs: Sequence[Job], *, full: bool = True) -> list[list[Scores]]:
        """Scores every job; jobs of the same padded shape share calls of B rows. The order of the answers is the jobs'.

        Args:
          cache: from :meth:`prefix`; ``Job.row`` points into it.
          full: whether sums over the vocabulary are wanted; without them no V-sized array is built, and ``Scores.full``
            repeats ``Scores.local``.
        """
        out: list[list[Scores]] = [[] for _ in jobs]
        shapes = [job.tree.shape for job in jobs]
        for shape in sorted(set(shapes)):
            members = [i for i, s in enumerate(shapes) if s == shape]
            for start in range(0, len(members), self.batch_size):
                chunk = members[start : start + self.batch_size]
                for i, scores in zip(chunk, self._run(cache, [jobs[i] for i in chunk], shape, full)):
                    out[i] = scores
        return out

    def _run(self, cache: Cache, jobs: Sequence[Job], shape: tuple[int, int, int], full: bool) -> list[list[Scores]]:
        batch, (length, rows, width) = self.batch_size, shape
        take = np.zeros(batch, np.int32)
        tokens = np.zeros((batch, length), np.int32)
        depth = np.zeros((batch, length), np.int32)
        mask = np.zeros((batch, length, length), bool)
        nodes = np.zeros((batch, rows), np.int32)
        candidates = np.full((batch, rows, width), -1, np.int32)
        for i, (row, tree) in enumerate(jobs):
            t, (r, a) = len(tree.tokens), tree.candidates.shape
            take[i], tokens[i, :t], depth[i, :t], mask[i, :t, :t] = row, tree.tokens, tree.depth, tree.ancestors
            nodes[i, :r], candidates[i, :r, :a] = tree.nodes, tree.candidates
        self._count(sum(len(job.tree.tokens) for job in jobs), length)
        result = _score(
            self._params,
            self._config,
            cache,
            take,
            tokens,
            depth,
            mask,
            nodes,
            candidates,
            "full" if full else "candidates",
        )
        sums, local = (np.asarray(x) for x in result)
        return [read_values(job.tree, sums[i], local[i]) for i, job in enumerate(jobs)]

    def _count(self, tokens: int, length: int) -> None:
        self.calls += 1
        self.tokens += tokens
        self.padded += self.batch_size * length


@partial(jax.jit, static_argnames=("config", "start"))
def _prefix(params, config, instruction, tokens, valid, start):
    cache = repeat(instruction, tokens.shape[0])
    return extend(params, config, tokens, cache, valid=valid, write_at=start)[1]


@partial(jax.jit, static_argnames=("config", "normalise"))
def _score(params, config, cache, take, tokens, depth, mask, nodes, candidates, normalise):
    """Log-probabilities [B, R, A] over the vocabulary (or, for "candidates", over the alternatives) and over the alternatives."""
    rows = jax.tree.map(lambda leaf: leaf[take], cache)
    hidden, _ = extend(params, config, tokens, rows, offsets=depth, mask=mask)
    read = jnp.take_along_axis(hidden, nodes[..., None], axis=1)
    flat = candidates.reshape(-1, candidates.shape[-1])
    out = candidate_log_probs(params, config, read.reshape(-1, read.shape[-1]), flat, normalise=normalise, chunk=64)
    used = flat >= 0
    largest = jnp.max(jnp.where(used, out, -1e30), axis=-1, keepdims=True)
    total = jnp.log(jnp.sum(jnp.where(used, jnp.exp(out - largest), 0.0), axis=-1, keepdims=True)) + largest
    local = jnp.where(used, out - total, -jnp.inf)
    return out.reshape(candidates.shape), local.reshape(candidates.shape)


def _round(length: int, unit: int) -> int:
    return max(unit, -(-length // unit) * unit)
